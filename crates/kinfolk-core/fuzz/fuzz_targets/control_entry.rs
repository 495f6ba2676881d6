#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kinfolk_core_fuzz::control_entry(bytes));
