//! The only place that deletes: the daemon's clean-up and the operator's go through here.
//!
//! [`Reaper`] removes objects that were judged, in steps that reality can interrupt: the write
//! lease is held while the object is moved into a private directory, so that whoever opens it
//! meanwhile blocks, is noticed, and finds it back under its name. `registered` removes by name,
//! unconditionally, as the tracker protocol demands; `trees` does so with folders.
#![allow(clippy::disallowed_methods)]

mod directories;
pub mod keeping;
mod kept;
mod leftovers;
mod objects;
mod quarantine;
mod queues;
pub mod registered;
mod saving;
pub mod sockets;
pub mod sysv;
pub mod trees;

pub(super) use kept::{Building, discard, publish, replace};
pub use leftovers::{Fate, How, Leftover, Settled, Witness, fate, foresee, leftovers, settle};
pub use objects::{Manner, Reaper, Steps, Target};
pub use quarantine::is_quarantine_name;
pub use quarantine::{at_work, is_our_leftover};
pub use queues::remove_queue;

use serde::Serialize;

use super::sys::Nanoseconds;

/// What became of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is removed, and nobody was opening it.
    Reaped,
    /// A dry run: it would be tried.
    WouldReap,
    /// Somebody has it open or mapped.
    Held,
    /// Its name belongs to another object now.
    Changed,
    /// Somebody opened it during the removal; it is back under its name, or counts as unlinked if
    /// that name was taken again meanwhile.
    OpenedMeanwhile,
    /// Somebody opened it in the moment of its removal, too late to be noticed before.
    OpenedAtRemoval,
    /// It may not be removed: the verdict changed, or it is not removed by this version.
    Refused,
    /// Its name was gone already.
    Gone,
    /// The kernel refused a step.
    Failed,
}

impl Outcome {
    /// All.
    pub const ALL: [Self; 9] = [
        Self::Reaped,
        Self::WouldReap,
        Self::Held,
        Self::Changed,
        Self::OpenedMeanwhile,
        Self::OpenedAtRemoval,
        Self::Refused,
        Self::Gone,
        Self::Failed,
    ];

    /// The word that tables and JSON use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reaped => "reaped",
            Self::WouldReap => "would-reap",
            Self::Held => "held",
            Self::Changed => "changed",
            Self::OpenedMeanwhile => "opened-meanwhile",
            Self::OpenedAtRemoval => "opened-at-removal",
            Self::Refused => "refused",
            Self::Gone => "gone",
            Self::Failed => "failed",
        }
    }

    /// Whether its name was removed by this.
    #[must_use]
    pub fn is_removed(self) -> bool {
        matches!(self, Self::Reaped | Self::OpenedAtRemoval)
    }

    /// Whether the object that was planned is still there, so that the answer is no.
    #[must_use]
    pub fn is_left(self) -> bool {
        match self {
            Self::Reaped | Self::WouldReap | Self::OpenedAtRemoval | Self::Gone => false,
            Self::Held | Self::Changed | Self::OpenedMeanwhile | Self::Refused | Self::Failed => {
                true
            }
        }
    }
}

/// The outcome, a sentence, and the errno where the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What became of it.
    pub outcome: Outcome,
    /// Why, for people.
    pub says: String,
    /// The errno of a [`Outcome::Failed`].
    pub errno: Option<i32>,
    /// When the inode changed last, once its name was removed under a lease: another name of it has
    /// that as well.
    pub changed: Option<Nanoseconds>,
    /// The entry of the archive that has its content.
    pub archived: Option<String>,
    /// It was the archive, not /dev/shm, that the errno is about.
    pub of_archive: bool,
}

impl Report {
    /// One with nothing but an outcome and a sentence.
    pub fn new(outcome: Outcome, says: impl Into<String>) -> Self {
        let says = says.into();
        Self { outcome, says, errno: None, changed: None, archived: None, of_archive: false }
    }

    fn failed(step: &str, error: &std::io::Error) -> Self {
        let errno = Some(error.raw_os_error().unwrap_or(libc::EIO));
        Self { errno, ..Self::new(Outcome::Failed, format!("{step}: {error}")) }
    }
}
