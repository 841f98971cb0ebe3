//! The engine: what exists, what is known about it, what follows, and the only place that deletes.

pub mod reap;
pub mod resource;
pub mod service;
#[allow(unsafe_code)]
pub mod sys;
