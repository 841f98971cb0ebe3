//! The OS-level tests.
fn main() {}
