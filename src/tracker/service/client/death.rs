//! What is told of a tracker that died, or that was stopped.

use std::fmt;
use std::io::Write;

use crate::tracker::sys::launch::Fate;
use crate::tracker::sys::pipe_end::to_stderr;

/// How a tracker went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// It exited with this status: 0 to 3 of `rtrack daemon` are those of its manual.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
    /// It ended, and somebody else waited for it, or nobody had to, since SIGCHLD is ignored.
    Gone,
    /// It closed its pipe and lives on. It is waited for when the client is used again; of more than 32
    /// that live on so while their clients have others, those beyond are not.
    Lives,
}

impl From<Fate> for End {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Exited(status) => Self::Exited(status),
            Fate::Killed(signal) => Self::Killed(signal),
            Fate::Gone => Self::Gone,
            Fate::Alive => Self::Lives,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(signal) => write!(f, "was ended by signal {signal}"),
            Self::Gone => f.write_str("ended"),
            Self::Lives => f.write_str("closed its pipe"),
        }
    }
}

/// The end of a tracker. Where it died while its client lived, what it had been told is forgotten:
/// nobody cleans that up unless it is registered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Death {
    /// Its process id.
    pub pid: i32,
    /// How it went.
    pub end: End,
    /// How many bytes of messages it never read; nothing where that could not be asked any more. Every
    /// message before those it took.
    pub unread: Option<u64>,
    /// How many more died before this could be told, with their unread bytes counted here too.
    pub more: u32,
}

/// The text of CPython's warning, two spaces and all.
const WARNING: &str =
    "resource_tracker: process died unexpectedly, relaunching.  Some resources might leak.";

/// One line on stderr, without an allocation.
pub(super) fn warn(_death: &Death) {
    let mut line = [0; 160];
    let mut rest = line.as_mut_slice();
    let written = writeln!(rest, "rtrack:{}: UserWarning: {WARNING}", std::process::id());
    let left = rest.len();
    if written.is_ok() {
        to_stderr(line.get(..160 - left).unwrap_or_default());
    }
}

/// Deaths that were not told yet.
#[derive(Debug)]
pub(super) struct Untold {
    first: usize,
    length: usize,
    deaths: [Option<Death>; ROOM],
}

const ROOM: usize = 16;

impl Untold {
    pub(super) const fn new() -> Self {
        Self { first: 0, length: 0, deaths: [None; ROOM] }
    }

    /// Adds one, by itself or, where there is no room, to the last one.
    pub(super) fn push(&mut self, death: Death) {
        let full = self.length == ROOM;
        let at = (self.first + self.length - usize::from(full)) % ROOM;
        let Some(place) = self.deaths.get_mut(at) else { return };
        match place {
            Some(last) if full => {
                last.more += 1 + death.more;
                last.unread = last.unread.zip(death.unread).map(|(one, other)| one + other);
            }
            place => {
                *place = Some(death);
                self.length += 1;
            }
        }
    }

    /// The oldest.
    pub(super) fn pop(&mut self) -> Option<Death> {
        if self.length == 0 {
            return None;
        }
        let death = self.deaths.get_mut(self.first).and_then(Option::take);
        self.first = (self.first + 1) % ROOM;
        self.length -= 1;
        death
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_are_told_in_their_order_and_none_is_left_out() {
        let death = |pid| Death { pid, end: End::Gone, unread: Some(1), more: 0 };
        let mut untold = Untold::new();
        untold.push(death(-1));
        assert_eq!(untold.pop(), Some(death(-1)));
        for pid in 0..20 {
            untold.push(death(pid));
        }
        let told: Vec<Death> = std::iter::from_fn(|| untold.pop()).collect();
        assert_eq!(untold.length, 0);
        assert_eq!(told.len(), ROOM);
        assert!(told.iter().map(|death| death.pid).eq(0..16));
        assert_eq!(told.last(), Some(&Death { more: 4, unread: Some(5), ..death(15) }));
    }
}
