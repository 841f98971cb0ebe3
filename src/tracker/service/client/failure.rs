//! Why the client could not do what it was asked for.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::tracker::resource::escape;
use crate::tracker::service::protocol::{JSON_NAME_MAX, MESSAGE_MAX};

/// Why a message was not sent, or no tracker started. Making one allocates nothing, so that it can
/// be had in a signal handler.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The program cannot be executed: `ENOENT` also where it is in no directory of `PATH`.
    #[error("start {}: {error}", escape(program.as_os_str().as_encoded_bytes()))]
    Start {
        /// Which one.
        program: Arc<Path>,
        /// What execve(2) failed with.
        error: io::Error,
    },
    /// There is no pipe or no process to be had.
    #[error("start a tracker: {0}")]
    Resources(io::Error),
    /// Each tracker that was started died before it could be told anything.
    #[error("the tracker died {0} times in a row")]
    KeepsDying(u32),
    /// Longer than what writers may write at once; nothing was written.
    #[error(
        "the message for \"{name}\" would be {length} bytes long, and no writer may exceed {MESSAGE_MAX}"
    )]
    MessageTooLong {
        /// The beginning of the name.
        name: Shortened,
        /// The length in bytes, newline included.
        length: usize,
    },
    /// The name needs the JSON form and is too long for it; nothing was written.
    #[error("the name \"{0}\" is {length} bytes long, and the JSON form takes at most {JSON_NAME_MAX}", length = .0.length)]
    NameTooLong(Shortened),
    /// No resource has such a name; nothing was written.
    #[error("the name \"{0}\" has a NUL in it")]
    NulInName(Shortened),
    /// loky's own trackers read ASCII only; nothing was written.
    #[error(
        "the name \"{0}\" has a newline or a byte beyond ASCII in it, and loky's messages carry none"
    )]
    NotPlain(Shortened),
    /// The command is not known to read such names, and an older Python forgets them; nothing was written.
    #[error(
        "the name \"{0}\" has a colon, a newline or a byte beyond ASCII in it, and the tracker's command is \
         not known to read such"
    )]
    NotRead(Shortened),
    /// A tracker of this dialect has no such resources, or none that can be told that; nothing was written.
    #[error("a tracker of this dialect cannot be told that of type \"{0}\"")]
    UnknownType(Shortened),
    /// System V objects have numbers for names; nothing was written.
    #[error("\"{0}\" is not the id of a System V object")]
    NotAnId(Shortened),
    /// The pipe could not be written to for another reason than that nobody reads it.
    #[error("write to the tracker's pipe: {0}")]
    Write(io::Error),
    /// As many trackers as one process may have are there already.
    #[error("this process has {0} trackers already")]
    TooMany(usize),
    /// The fork handlers could not be installed.
    #[error("pthread_atfork: {0}")]
    AtFork(io::Error),
    /// A NUL in the program's name or its arguments.
    #[error("there is a NUL in the command for the tracker")]
    NulInCommand,
    /// A command without a program.
    #[error("the command for the tracker is empty")]
    EmptyCommand,
}

/// The beginning of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortened {
    beginning: [u8; 32],
    /// Of the whole name, in bytes.
    length: usize,
}

impl Shortened {
    pub(super) fn new(name: &[u8]) -> Self {
        let mut beginning = [0; 32];
        for (to, from) in beginning.iter_mut().zip(name) {
            *to = *from;
        }
        Self { beginning, length: name.len() }
    }
}

impl std::fmt::Display for Shortened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = self.beginning.get(..self.length).unwrap_or(&self.beginning);
        f.write_str(&escape(shown))?;
        f.write_str(if self.length > shown.len() { "..." } else { "" })
    }
}
