//! Command line to settings to server to exit code.

fn main() {}
