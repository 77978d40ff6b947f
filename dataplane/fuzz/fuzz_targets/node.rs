#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(broken) = overlane_dataplane::testing::fuzz::node(bytes) {
        panic!("{broken}");
    }
});
