//! Replays the stored inputs without a fuzzer: `seeds/<target>/`, to which every input that once
//! broke a target is added.

use std::fs;
use std::path::Path;

/// Runs `body` on every file of the target, and says which one it fails on.
fn replay(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut replayed = 0;
    for entry in fs::read_dir(&folder).expect("the target has a folder of seeds") {
        let path = entry.expect("a readable folder").path();
        let bytes = fs::read(&path).expect("a readable seed");
        println!("{}", path.display());
        // The input, and all of its beginnings: where a length check is missing, one of them shows it.
        for length in 0..=bytes.len() {
            body(&bytes[..length]);
        }
        replayed += 1;
    }
    assert!(replayed > 0, "{} is empty", folder.display());
}

#[test]
fn wire_parsers_keep_their_promises() {
    replay("wire_parsers", overlane_fuzz::wire_parsers);
}

#[test]
fn geneve_options_keep_their_promises() {
    replay("geneve_options", overlane_fuzz::geneve_options);
}
