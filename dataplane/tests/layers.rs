//! The layers, kept: which folder may import what, where `unsafe` ends, and what the crates may
//! depend on.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

/// A folder of `src/` and the folders that it may import besides itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("wire", &[]),
    // One layer, two folders.
    ("packet", &["wire", "stats"]),
    ("stats", &["wire", "packet"]),
    ("tables", &["packet", "wire"]),
    ("flow", &["packet"]),
    ("stages", &["wire", "packet", "tables", "flow", "stats"]),
    ("io", &["packet"]),
    ("worker", &["wire", "packet", "stats", "tables", "flow", "stages", "io"]),
    ("node", &["wire", "packet", "stats", "tables", "flow", "stages", "io", "worker", "testing"]),
    // Not part of the process: for tests, fuzzing and benchmarks.
    ("testing", &["wire", "packet", "stats", "tables", "flow", "stages", "io", "worker", "node"]),
];

/// The phases of `stages/`, which do not know each other.
const PHASES: &[&str] = &["ingress", "lookup", "resolve", "transmit"];

/// Where `unsafe` may stand, in `dataplane/src`.
const UNSAFE: &[&str] = &["io/af_xdp/", "packet/prefetch.rs", "packet/region.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Is the file compiled for tests only? By its name, and its parent must say so, too.
fn is_test(file: &str, files: &[(String, String)]) -> bool {
    let Some(name) = file.strip_suffix("_tests.rs") else { return false };
    let (folder, name) = name.rsplit_once('/').unwrap_or(("", name));
    let declarations = [
        format!("#[cfg(test)]\nmod {name}_tests;"),
        format!("#[cfg(test)]\n#[path = \"{name}_tests.rs\"]"),
    ];
    files
        .iter()
        .filter(|(other, _)| other.starts_with(folder))
        .any(|(_, text)| declarations.iter().any(|line| text.contains(line)))
}

/// All Rust files under `directory`: path from there, and text.
fn sources(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                open.push(entry);
            } else if entry.extension().is_some_and(|ext| ext == "rs") {
                let name = entry.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
                found.push((name, std::fs::read_to_string(&entry).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The code without comments, and without what is only compiled for tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).fold(
        String::new(),
        |mut all, line| {
            all.push_str(line);
            all.push('\n');
            all
        },
    )
}

/// Segments of the module that a file is.
fn module(file: &str) -> Vec<String> {
    let mut segments: Vec<String> =
        file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if segments.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        segments.pop();
    }
    segments
}

/// Every path into this crate that `file` names, from the crate's root.
fn imports(file: &str, text: &str) -> Vec<Vec<String>> {
    let code = code(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        expand(&code[at + "crate::".len()..], &[], &mut found);
    }
    for (at, _) in code.match_indices("super::") {
        if code[..at].ends_with("super::") {
            continue;
        }
        let mut rest = &code[at..];
        let mut base = module(file);
        while let Some(shorter) = rest.strip_prefix("super::") {
            base.pop();
            rest = shorter;
        }
        expand(rest, &base, &mut found);
    }
    found
}

/// Reads a path or a group of paths that `text` begins with; says how many bytes it took.
fn expand(text: &str, base: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = base.to_vec();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        if rest.starts_with('{') {
            at += 1;
            loop {
                at += text[at..].len() - text[at..].trim_start().len();
                if text[at..].starts_with('}') {
                    return at + 1;
                }
                if text[at..].starts_with(',') {
                    at += 1;
                    continue;
                }
                let taken = expand(&text[at..], &path, found);
                if taken == 0 {
                    return at;
                }
                at += taken;
            }
        }
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        at += name.len();
        if name.is_empty() {
            at += usize::from(rest.starts_with('*'));
        } else {
            path.push(name);
        }
        if !text[at..].starts_with("::") {
            break;
        }
        at += 2;
    }
    if path.len() > base.len() || at > 0 {
        found.push(path);
    }
    at
}

/// What is wrong with one file of `dataplane/src`.
fn violations(file: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let own = module(file);
    let layer = own.first().map(String::as_str).unwrap_or_default();
    if file.contains('/') && !LAYERS.iter().any(|(name, _)| *name == layer) {
        wrong.push(format!("{file}: no layer is called {layer}"));
    }
    let allowed = LAYERS.iter().find(|(name, _)| *name == layer).map(|(_, allowed)| *allowed);
    for path in imports(file, text) {
        let Some(target) = path.first().map(String::as_str) else { continue };
        let is_layer = LAYERS.iter().any(|(name, _)| *name == target);
        if let Some(allowed) = allowed
            && is_layer
            && target != layer
            && !allowed.contains(&target)
        {
            wrong.push(format!("{file}: {layer} imports {}", path.join("::")));
        }
        if let ("stages", Some(phase), Some(other)) = (layer, own.get(1), path.get(1))
            && target == "stages"
            && PHASES.contains(&phase.as_str())
            && PHASES.contains(&other.as_str())
            && phase != other
        {
            wrong.push(format!("{file}: {phase} imports {}", path.join("::")));
        }
    }
    let unsafe_code = code(text)
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|word| word == "unsafe" || word == "unsafe_code");
    if unsafe_code && !UNSAFE.iter().any(|place| file.starts_with(place)) {
        wrong.push(format!("{file}: unsafe code"));
    }
    if code(text).contains("k8s_openapi") {
        wrong.push(format!("{file}: Kubernetes stops at control/src/manifests"));
    }
    wrong
}

#[test]
fn the_layers_are_kept() {
    let files = sources(&root().join("dataplane/src"));
    assert!(files.len() > 50, "{} files", files.len());
    let shipped = files.iter().filter(|(file, _)| !is_test(file, &files));
    let wrong: Vec<String> = shipped.flat_map(|(file, text)| violations(file, text)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_seen_however_they_are_written() {
    let text = "use crate::{tables::{Snapshot, hash::Map}, io::Port};\n\
                // use crate::node::X;\n\
                fn f(x: crate::worker::Worker) { super::resolve::route::mtu() }\n\
                use super::super::wire::*;\n\
                #[cfg(test)]\nmod tests { use crate::node::Y; }";
    let seen: Vec<String> =
        imports("stages/transmit/encap.rs", text).iter().map(|path| path.join("::")).collect();
    assert_eq!(
        seen,
        [
            "tables::Snapshot",
            "tables::hash::Map",
            "io::Port",
            "worker::Worker",
            "stages::transmit::resolve::route::mtu",
            "stages::wire",
        ]
    );
}

#[test]
fn each_rule_can_be_broken() {
    for (file, text) in [
        ("wire/udp.rs", "use crate::packet::frame::Frame;"),
        ("packet/meta.rs", "use crate::tables::Snapshot;"),
        ("stats/counters.rs", "use crate::io::Port;"),
        ("tables/compile/mod.rs", "use crate::stages::Context;"),
        ("tables/hash.rs", "use super::super::io::Port;"),
        ("stages/mod.rs", "use crate::worker::Worker;"),
        ("stages/ingress/decap.rs", "use crate::{wire, io::Port};"),
        ("stages/ingress/decap.rs", "use crate::stages::transmit::encap;"),
        ("stages/transmit/encap.rs", "use crate::stages::resolve::route;"),
        ("stages/transmit/encap.rs", "use super::super::resolve::route;"),
        ("stages/resolve/route.rs", "use crate::stages::{Context, ingress::parse};"),
        ("io/memory.rs", "fn f(x: &crate::tables::Snapshot) {}"),
        ("worker/mod.rs", "use crate::node::settings::Settings;"),
        ("worker/mod.rs", "fn f() { unsafe { g() } }"),
        ("io/memory.rs", "#![allow(unsafe_code)]"),
        ("node/mod.rs", "use k8s_openapi::api::core::v1::Pod;"),
        ("helpers/mod.rs", ""),
    ] {
        assert_eq!(violations(file, text).len(), 1, "{file}: {text}");
    }
    for (file, text) in [
        ("stages/transmit/encap.rs", "use crate::tables::peers::PeerEntry;"),
        ("stages/transmit/encap.rs", "use crate::stages::{Context, Notice};"),
        ("stages/mod.rs", "use crate::stages::ingress::parse;"),
        ("io/af_xdp/umem.rs", "unsafe { f() }"),
        ("worker/mod.rs", "// unsafe, crate::node"),
        ("main.rs", "use overlane_dataplane::node::run;"),
    ] {
        assert_eq!(violations(file, text), Vec::<String>::new(), "{file}: {text}");
    }
}

/// Crates of ours that the manifest names as dependencies of the kinds that `counts` says.
fn dependencies(manifest: &str, counts: fn(&str) -> bool) -> Vec<String> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section.contains("dependencies")
            && counts(section)
            && line.starts_with("overlane-")
        {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            found.push(name.to_owned());
        }
    }
    found.sort();
    found.dedup();
    found
}

#[test]
fn crates_depend_downwards_only() {
    for (manifest, allowed) in [
        ("control/api", &[][..]),
        ("bpf", &["overlane-api"]),
        ("control", &["overlane-api"]),
        ("dataplane", &["overlane-api", "overlane-bpf"]),
        ("perf", &["overlane-api", "overlane-bpf", "overlane-dataplane"]),
    ] {
        let text = std::fs::read_to_string(root().join(manifest).join("Cargo.toml")).unwrap();
        // The dataplane's benches use the scenarios of perf; its code and tests do not.
        let counts: fn(&str) -> bool = match manifest {
            "dataplane" => |section| !section.contains("dev-"),
            _ => |_| true,
        };
        for dependency in dependencies(&text, counts) {
            assert!(allowed.contains(&dependency.as_str()), "{manifest} depends on {dependency}");
        }
    }
    let sample = "[package]\nname = \"overlane-control\"\n[dev-dependencies]\n\
                  overlane-dataplane.workspace = true\n[lints]\noverlane-x = 1";
    assert_eq!(dependencies(sample, |_| true), ["overlane-dataplane"]);
    assert_eq!(dependencies(sample, |s| !s.contains("dev-")), Vec::<String>::new());
}

#[test]
fn other_crates_keep_unsafe_where_it_belongs() {
    for directory in ["control/src", "control/api/src", "perf/src"] {
        for (file, text) in sources(&root().join(directory)) {
            let words = code(&text);
            let mut words = words.split(|c: char| !c.is_alphanumeric() && c != '_');
            assert!(!words.any(|word| word == "unsafe"), "{directory}/{file}: unsafe code");
        }
    }
}
