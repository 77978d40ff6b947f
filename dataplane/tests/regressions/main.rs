//! Replays every input that once broke the node, and the seeds of the fuzz target.
//!
//! A crash that the fuzzer finds becomes a file in `inputs/`, named after what was wrong.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use overlane_dataplane::testing::fuzz;

fn inputs() -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/regressions/inputs");
    let mut found: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    found.sort();
    found
}

#[test]
fn every_stored_input_leaves_the_node_whole() {
    let inputs = inputs();
    assert!(!inputs.is_empty());
    for (name, bytes) in inputs {
        println!("{name}");
        fuzz::node(&bytes).unwrap();
    }
}

#[test]
fn an_input_does_the_same_alone_as_after_others() {
    let alone: Vec<_> = inputs()
        .into_iter()
        .map(|(_, bytes)| std::thread::spawn(move || fuzz::node(&bytes)))
        .collect();
    for thread in alone {
        thread.join().unwrap().unwrap();
    }
}

#[test]
fn bytes_at_random_leave_the_node_whole() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    };
    for number in 0..3000 {
        let bytes: Vec<u8> = (0..1 + number % 64).flat_map(|_| random()).collect();
        if let Err(error) = fuzz::node(&bytes) {
            panic!("{error}: {bytes:?}");
        }
    }
}
