//! Memory that has lost its name, or never had one, and that somebody still holds: `df` counts it and
//! `ls` does not show it.
//!
//! Who holds it is all that leads to it: a mapping or a descriptor whose path ends in ` (deleted)`, on a
//! file system that objects are on, of an inode that no name there has.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::holders::{Detail, Holder};
use crate::tracker::sys::{self, Stat};

/// How the kernel marks the path of what has lost its name.
const MARK: &[u8] = b" (deleted)";

/// What a memfd is called before its name (memfd_create(2)).
pub const MEMFD: &[u8] = b"memfd:";

/// Device and inode of a file.
pub type Inode = (u64, u64);

/// What one process showed of it.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) inode: Inode,
    /// The last part of its path, without the mark.
    pub(super) name: Vec<u8>,
    /// A link in /proc that leads to it.
    pub(super) link: PathBuf,
    pub(super) detail: Detail,
}

/// A file without a name.
#[derive(Debug, Clone)]
pub struct Unlinked {
    /// The name that it had, or `memfd:NAME`.
    pub name: Vec<u8>,
    /// What statx(2) says of it, unless nobody who may look showed it.
    pub stat: Option<Stat>,
    /// The length of the longest mapping of it that was seen.
    pub mapped: u64,
    /// Who holds it.
    pub holders: Vec<Holder>,
}

/// Files without a name, by device and inode.
pub type All = HashMap<Inode, Unlinked>;

/// The name that a path of /proc has, if that is marked as deleted.
pub(super) fn name_of(path: &[u8]) -> Option<&[u8]> {
    let path = path.strip_suffix(MARK)?;
    path.rsplit(|b| *b == b'/').next().filter(|name| !name.is_empty())
}

/// Adds what a process, described by `holder` but for how it holds each, showed.
pub(super) fn add(all: &mut All, holder: &Holder, traces: Vec<Trace>) {
    for Trace { inode, name, link, detail } in traces {
        let known = all.entry(inode).or_insert_with(|| Unlinked {
            name,
            stat: None,
            mapped: 0,
            holders: Vec::new(),
        });
        known.mapped = known.mapped.max(detail.bytes.unwrap_or(0));
        if known.stat.is_none() {
            known.stat = stat_of(&link, inode);
        }
        match known.holders.last_mut().filter(|last| last.pid == holder.pid) {
            Some(last) => last.add(detail),
            None => {
                let mut holder = holder.clone();
                holder.add(detail);
                known.holders.push(holder);
            }
        }
    }
}

/// What `link` leads to, if that is the inode that was seen, which is on a file system of the kernel's
/// memory: following it waits for nobody.
fn stat_of(link: &Path, inode: Inode) -> Option<Stat> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let file = nix::fcntl::open(link, flags, nix::sys::stat::Mode::empty()).ok()?;
    if sys::device(&file).ok()? != inode.0 {
        return None;
    }
    sys::stat(&file, c"").ok().filter(|stat| (stat.dev, stat.ino) == inode)
}

/// The device that memfds are on, and System V memory with them.
///
/// # Errors
/// The errno of memfd_create(2) or statx(2).
pub fn memfd_device() -> std::io::Result<u64> {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    sys::device(nix::sys::memfd::memfd_create(c"rtrack-device", flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_what_has_none() {
        for (path, name) in [
            (&b"/dev/shm/psm_1 (deleted)"[..], Some(&b"psm_1"[..])),
            (b"/memfd:a b (deleted)", Some(b"memfd:a b")),
            (b"/x (deleted) (deleted)", Some(b"x (deleted)")),
            (b"/dev/shm/psm_1", None),
            (b" (deleted)", None),
            (b"/dev/shm/ (deleted)", None),
            (b"", None),
        ] {
            assert_eq!(name_of(path), name);
        }
    }
}
