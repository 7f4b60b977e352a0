#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| callsheet_fuzz::process::run_dir(bytes));
