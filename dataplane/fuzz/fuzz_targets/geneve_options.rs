#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| overlane_fuzz::geneve_options(bytes));
