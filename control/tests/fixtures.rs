//! Every file in `fixtures/good` is accepted; every file in `fixtures/refused` is refused with
//! exactly what its `# refused:` lines say, one refusal for each line.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn fixtures(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 5);
    files
}

fn check(file: &Path) -> (Option<i32>, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_overlane"))
        .args(["config", "check", "-o", "json", "--local-port-range", "32768-60999"])
        .arg(file)
        .output()
        .unwrap();
    let verdict = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code(), verdict)
}

#[test]
fn good_fixtures_are_accepted() {
    for file in fixtures("good") {
        let (code, verdict) = check(&file);
        assert_eq!(code, Some(0), "{}: {verdict}", file.display());
        assert_eq!(verdict["accepted"], true);
        assert_eq!(verdict["refusals"], serde_json::json!([]));
    }
}

#[test]
fn refused_fixtures_are_refused_for_the_reasons_they_name() {
    for file in fixtures("refused") {
        let text = std::fs::read_to_string(&file).unwrap();
        let expected: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# refused: ")).collect();
        assert!(!expected.is_empty(), "{} names no refusal", file.display());
        let (code, verdict) = check(&file);
        assert_eq!(code, Some(1), "{}: {verdict}", file.display());
        assert_eq!(verdict["accepted"], false);
        let refusals = verdict["refusals"].as_array().unwrap();
        assert_eq!(refusals.len(), expected.len(), "{}: {verdict:#}", file.display());
        for part in expected {
            let said = refusals.iter().any(|refusal| refusal.as_str().unwrap().contains(part));
            assert!(said, "{}: {part:?} is not among {refusals:#?}", file.display());
        }
    }
}
