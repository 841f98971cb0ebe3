//! What exists. The objects are read before any process is looked at: what is created later cannot
//! be judged by a list of processes that is older than it.

pub mod posix;
