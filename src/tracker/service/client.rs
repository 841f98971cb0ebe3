//! The writing side. [`ResourceTracker`] is for programs: it starts a tracker, keeps one alive, and tells
//! it what to clean up. The rest is for operators: find a tracker's pipe, say something into it, find
//! out whether anybody reads it.

pub mod asking;
mod builder;
mod connection;
mod death;
mod descriptors;
pub mod everywhere;
mod failure;
mod launch;
mod probe;
mod resource_tracker;
mod state;
mod target;
mod tracker;

pub use builder::Builder;
pub use connection::{Answer, Connection, ConnectionError, SOCKET_VARIABLE};
pub use death::{Death, End};
pub use failure::{ClientError, Shortened};
pub use launch::Family;
pub use probe::{Ends, Life, Probe};
pub use resource_tracker::ResourceTracker;
pub use target::{SendError, Target, TargetError};
pub use tracker::{Reader, Tracker, Version};

pub use super::dialect::Dialect;
