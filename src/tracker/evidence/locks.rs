//! Which files somebody has locked, from `/proc/locks`: some producers show by a lock of their own
//! that they are alive. Nobody's lock is ever taken to find out.

use std::collections::HashMap;
use std::path::PathBuf;

use super::mounts::number;
use super::processes::words;
use crate::tracker::deadline;
use crate::tracker::host::Host;

/// Who has a lock, by device and inode of the file; the pid is 0 where it is not visible here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locks(HashMap<(u64, u64), i32>);

impl Locks {
    /// Reads `/proc/locks`; nothing if it cannot be read, or not in time: any user can have so many
    /// locks that the kernel lists them for minutes.
    #[must_use]
    pub fn read(host: &Host) -> Option<Self> {
        let path = host.proc.join("locks");
        // The kernel tells them a page at a time, by their number: one that goes meanwhile hides the next. Who is missing
        // must be missing twice.
        let read =
            |path: PathBuf| Some([std::fs::read(&path).ok()?, std::fs::read(&path).ok()?].concat());
        let read = deadline::map(vec![path], read);
        read.into_iter().next()?.ok().flatten().map(|text| Self::parse(&text))
    }

    /// Parses proc_locks(5): `1: FLOCK  ADVISORY  WRITE 6543 00:1b:4242 0 EOF`. Leases are not
    /// locks, and lines with an arrow are of those that wait.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        Self(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
    }

    /// The pid of one that has a lock on this file.
    #[must_use]
    pub fn holder(&self, dev: u64, ino: u64) -> Option<i32> {
        self.0.get(&(dev, ino)).copied()
    }
}

fn parse_line(line: &[u8]) -> Option<((u64, u64), i32)> {
    let mut fields = words(line).skip(1);
    let kind = fields.next()?;
    if kind == b"->" || kind == b"LEASE" || kind == b"DELEG" {
        return None;
    }
    let mut fields = fields.skip(2);
    // An open file description's lock has the pid -1.
    let pid = std::str::from_utf8(fields.next()?).ok()?.parse::<i32>().ok()?.max(0);
    let mut file = fields.next()?.split(|b| *b == b':');
    let mut hex = || u32::from_str_radix(std::str::from_utf8(file.next()?).ok()?, 16).ok();
    let (major, minor) = (hex()?, hex()?);
    Some(((libc::makedev(major, minor), number(file.next()?)?), pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_but_no_leases_and_nobody_who_waits() {
        let locks = Locks::parse(
            b"1: FLOCK  ADVISORY  WRITE 6543 00:1b:4242 0 EOF\n\
              1: -> FLOCK  ADVISORY  WRITE 6544 00:1b:4243 0 EOF\n\
              2: LEASE  ACTIVE    WRITE 77 00:1b:4244 0 EOF\n\
              3: OFDLCK ADVISORY  READ  -1 00:1b:4245 0 EOF\n\
              4: POSIX  ADVISORY\nrubbish\n",
        );
        let dev = libc::makedev(0, 0x1b);
        assert_eq!(locks.holder(dev, 4242), Some(6543));
        assert_eq!(locks.holder(dev, 4243), None);
        assert_eq!(locks.holder(dev, 4244), None);
        assert_eq!(locks.holder(dev, 4245), Some(0));
    }
}
