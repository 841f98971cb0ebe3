//! The only place that deletes.
#![allow(clippy::disallowed_methods)]

pub mod registered;
