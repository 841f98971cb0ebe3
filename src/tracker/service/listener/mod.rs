//! A tracker that listens on a socket: each connection is an owner, and what it registered goes when its
//! process is gone, not when everybody is.
//!
//! On a connection the protocol is that of the pipe, in lines of at most [`LINE_MAX`] bytes, and besides:
//!
//! - `PROBE` is answered by a line of JSON: how many messages of this connection were understood and how many
//!   were not, how many names its owner has registered, and what was wrong with the last bad message, if any.
//!   Everything that was written before it has been done by then, and is in the journal, if there is one and
//!   `journaled` is not false.
//! - `{"cmd":"OWNER","pid":N}`, before anything is registered, makes the process N the owner, with the rights
//!   of who writes: a program that ends at once registers for another one. The end of the connection
//!   means nothing then. N is a pid of the daemon's PID namespace, and who has another one may not say it. If it is
//!   refused, a line of JSON says why (`error`), and the connection ends.
//!
//! Nobody takes back what is another owner's. A daemon of root removes with the rights of who registered, so that
//! nothing goes that this user could not remove. Who lives in another IPC namespace, or has something else mounted at
//! /dev/shm, so that the same names mean other objects, is not served. Who has another mount namespace or root directory,
//! and the same /dev/shm, is served but for paths.

mod bind;
mod clients;
mod owners;
mod peer;
mod remover;

pub use bind::{BindError, Bound};
pub use clients::{block_signals, run};
pub use owners::{Limits, Refused};
pub use peer::{Elsewhere, Peer, Unfit};

use super::dialect::Dialect;
use super::leaks::Care;

/// The longest line, in bytes without its newline. No client's message is longer than
/// [`MESSAGE_MAX`](super::protocol::MESSAGE_MAX).
pub const LINE_MAX: usize = 1024;

/// How a listening tracker behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What it understands, and whose words it uses.
    pub dialect: Dialect,
    /// Whether it tells every step.
    pub verbose: bool,
    /// Whether it warns of what was left and of what could not be removed.
    pub warnings: bool,
    /// How much a client may have.
    pub limits: Limits,
    /// What is found out about what was left, and whether it may go while somebody uses it.
    pub care: Care,
}
