//! The engine: what exists, what is known about it, what follows, and the only place that deletes.

pub mod archive;
pub mod audit;
pub mod deadline;
pub mod evidence;
pub mod host;
pub mod inventory;
pub mod journal;
pub mod limits;
pub mod parallel;
pub mod plan;
pub mod queues;
pub mod reap;
pub mod resource;
pub mod select;
pub mod service;
pub mod survey;
#[allow(unsafe_code)]
pub mod sys;
pub mod verdict;
pub mod world;
