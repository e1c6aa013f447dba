//! What a client sends need not be what clients should send: any bytes are read as a command, as the inside of a handle or
//! a ticket, and as a greeting.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fletching::fuzzing::flight_request(bytes));
