//! What an online store holds is not always what was written: any bytes are read as an entry, merged and decoded.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fletching::fuzzing::online_entry(bytes));
