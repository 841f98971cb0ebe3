//! The resource tracker: [`protocol`] and [`registry`] are pure, the rest touches descriptors.
//!
//! It speaks the wire protocol of CPython's `multiprocessing.resource_tracker`, so that Python
//! can run it in place of its own. Where texts and orders look arbitrary they are that module's:
//! programs and CPython's own tests match them.

pub mod channel;
pub mod client;
pub mod protocol;
pub mod python;
pub mod registry;
pub mod server;
