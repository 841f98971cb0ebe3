//! What is known about the objects: leases, holders, processes, mounts, producers, clocks, sight.

pub mod clock;
pub mod container;
pub mod holders;
pub mod identity;
pub mod lease;
pub mod locks;
pub mod mounts;
pub mod namespaces;
pub mod processes;
pub mod producers;
pub mod registrations;
pub mod sight;
pub mod task;
pub mod unlinked;
pub mod usage;
pub mod users;
pub mod waiters;
