//! How deep calls may go on the threads that plan.

/// The stack of a thread that plans statements, in bytes. Plans are trees, and walked by functions that call themselves: a
/// level takes some 2 to 5 KB, and several times that where nothing is optimized. Only what is touched is taken.
pub const STACK_BYTES: usize = 64 << 20;
