//! The resource tracker: [`protocol`] and [`registry`] are pure, the rest touches descriptors.
//!
//! It speaks the wire protocol of CPython's `multiprocessing.resource_tracker` and the [`dialect`] of
//! loky's, so that Python can run it in place of its own. Where texts and orders look arbitrary they
//! are those modules': programs and CPython's own tests match them.

pub mod channel;
pub mod client;
pub mod control;
pub mod dialect;
pub mod found;
pub mod leaks;
pub mod ledger;
pub mod listener;
pub mod protocol;
pub mod python;
pub mod registry;
pub mod server;
pub mod state;
