//! `rtrack` inspects and reaps leaked IPC resources on Linux, with proof.
//!
//! Two rooms: [`tracker`] is the engine (it prints nothing and never exits), [`commands`] is the
//! command line on top of it. The library exists so that tests, benches and fuzzers reach the
//! engine; its API follows the command line and may change between minor versions.

pub mod commands;
pub mod tracker;
