//! What a command can fail with: a kind, which sets the exit status, a cause and, where the
//! operator can do something, a hint.

use std::fmt;

/// The kinds of failure, by the exit status that tells scripts about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The answer is no: status 1.
    No,
    /// The command line is wrong: status 2.
    Usage,
    /// It could not be found out or done: status 3.
    Failed,
    /// The daemon never started: status 64 (`EX_USAGE` of sysexits.h).
    NotStarted,
    /// Interrupted by SIGINT: status 130.
    Interrupted,
}

impl Kind {
    /// The exit status of this kind.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::No => 1,
            Self::Usage => 2,
            Self::Failed => 3,
            Self::NotStarted => 64,
            Self::Interrupted => 130,
        }
    }
}

/// An error on its way to the operator: `error: CAUSE`, then `hint: …` where there is one.
#[derive(Debug)]
pub struct CommandError {
    /// Sets the exit status.
    pub kind: Kind,
    /// What happened, outermost first.
    pub source: anyhow::Error,
    /// What the operator can do about it.
    pub hint: Option<String>,
}

impl CommandError {
    /// An error of `kind`.
    pub fn new(kind: Kind, source: impl Into<anyhow::Error>) -> Self {
        Self { kind, source: source.into(), hint: None }
    }

    /// A wrong command line (status 2).
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Kind::Usage, anyhow::anyhow!("{message}"))
    }

    /// The same error with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl<E: Into<anyhow::Error>> From<E> for CommandError {
    /// An error that nobody gave a kind could not be done: status 3.
    fn from(source: E) -> Self {
        Self::new(Kind::Failed, source)
    }
}
