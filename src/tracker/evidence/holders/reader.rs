//! Reading one process: its mappings, descriptors, directories and mount namespace.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Detail, How, MOST_DETAILS, NameFilter, Targets};
use crate::tracker::evidence::mounts::{Mounts, number};
use crate::tracker::evidence::namespaces::{Namespace, Namespaces};
use crate::tracker::evidence::processes::{task_gone as gone, words};
use crate::tracker::evidence::unlinked::{self, Trace};
use crate::tracker::sys;

/// What one process showed.
#[derive(Default)]
pub(super) struct Found {
    pub(super) holds: HashMap<usize, Vec<Detail>>,
    pub(super) mapped_names: BTreeSet<Vec<u8>>,
    pub(super) maps_read: bool,
    /// What it sees, unless that is a part of its mount namespace only.
    pub(super) view: Option<Arc<Namespace>>,
    pub(super) incomplete: bool,
    /// What has no name.
    pub(super) unlinked: Vec<Trace>,
}

impl Found {
    fn note(&mut self, target: usize, detail: Detail) {
        let details = self.holds.entry(target).or_default();
        // One of each way is always noted: the holder's `how` is made of them.
        let known = details.iter().any(|other| other.how == detail.how);
        if !details.contains(&detail) && (details.len() < MOST_DETAILS || !known) {
            details.push(detail);
        }
    }
}

pub(super) struct Reader<'a> {
    pub(super) root: &'a Path,
    pub(super) targets: &'a Targets,
    pub(super) remember: &'a NameFilter,
}

impl Reader<'_> {
    /// Whether a directory of /proc is this process's own, or one of its threads'.
    fn is_own(&self, process: &Path) -> bool {
        let own = std::fs::read_link(self.root.join("self"));
        own.is_ok_and(|own| process.starts_with(self.root.join(own)))
    }

    pub(super) fn read(&self, pid: i32, threads: bool, namespaces: &Namespaces) -> Found {
        let mut found = Found::default();
        let own = self.root.join(pid.to_string());
        let mut roots = vec![own.clone()];
        if threads {
            match std::fs::read_dir(own.join("task")) {
                Ok(tasks) => roots.extend(tasks.flatten().map(|task| task.path())),
                Err(error) if gone(&own, &error) => {}
                Err(_) => found.incomplete = true,
            }
        }
        let look = |root: &PathBuf| namespaces.of(self.root, root, pid, &self.targets.places);
        let mut looked = look(&own);
        if looked.as_ref().is_err_and(|error| gone(&own, error)) {
            // A first thread that has exited has no namespaces any more; those that go on have.
            let others = roots.iter().skip(1).find_map(|root| look(root).ok());
            looked = others.map_or(looked, Ok);
        }
        // Else there may be mounts of an object that nobody could look for.
        found.incomplete |= looked.as_ref().is_err_and(|error| !gone(&own, error));
        let namespace = looked.ok();
        let mounts = namespace.as_ref().map(|(namespace, _)| &namespace.mounts);
        // What a jail does not show may still be in its reach.
        found.view = namespace.as_ref().filter(|(_, jailed)| !jailed).map(|(view, _)| view.clone());
        // A thread can have mounts of its own, too.
        let link = |task: &Path| std::fs::read_link(task.join("ns/mnt")).ok();
        let known = link(&own);
        for task in roots.iter().skip(1).filter(|task| link(task) != known) {
            let looked = look(task);
            found.incomplete |= looked.is_err_and(|error| !gone(task, &error));
        }
        for root in &roots {
            self.maps(root, &mut found);
            if self.targets.by_inode.is_empty() && self.targets.unlinked.is_empty() {
                continue;
            }
            self.descriptors(root, mounts, namespaces, &mut found);
            let jailed = namespace.as_ref().is_none_or(|(_, jailed)| *jailed);
            self.directories(root, mounts, jailed, &mut found);
        }
        found
    }

    fn maps(&self, root: &Path, found: &mut Found) {
        let text = match std::fs::read(root.join("maps")) {
            Ok(text) => text,
            // A process that is gone maps nothing; what it was is known by its executable.
            Err(error) if gone(root, &error) => Vec::new(),
            Err(_) => {
                found.incomplete = true;
                return;
            }
        };
        found.maps_read = true;
        let mut own: Option<Number> = None;
        let mut last: &[u8] = b"";
        for line in text.split(|b| *b == b'\n') {
            let Some(map) = parse_map(line) else { continue };
            for target in self.targets.at((map.dev, map.ino)) {
                found.note(*target, map.detail());
            }
            // What an anonymous mapping that is shared maps has no name to be known by.
            if self.targets.is_unlinked((map.dev, map.ino))
                && let Some(name) = unlinked::name_of(map.path).filter(|_| map.is_shared())
                && !map.path.starts_with(b"/SYSV")
                && map.path != b"/dev/zero (deleted)"
            {
                let range = String::from_utf8_lossy(map.range);
                found.unlinked.push(Trace {
                    inode: (map.dev, map.ino),
                    name: name.to_vec(),
                    link: root.join("map_files").join(without_zeroes(&range)),
                    detail: map.detail(),
                });
            }
            // Memfds are on the same device, and a name of any file may look like this one.
            if map.path.starts_with(b"/SYSV") {
                for segment in self.targets.segments_at((map.dev, map.ino)) {
                    if own.get_or_insert_with(|| namespace_of(root)).may_be(segment.namespace) {
                        found.note(segment.index, map.detail());
                    }
                }
            }
            let name = map.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
            if name != last {
                last = name;
                if !name.is_empty() && (self.remember)(name) {
                    found.mapped_names.insert(name.to_vec());
                }
            }
        }
    }

    fn descriptors(
        &self,
        root: &Path,
        mounts: Option<&Mounts>,
        namespaces: &Namespaces,
        found: &mut Found,
    ) {
        let entries = match std::fs::read_dir(root.join("fd")) {
            Ok(entries) => entries,
            Err(error) if gone(root, &error) => return,
            Err(_) => {
                found.incomplete = true;
                return;
            }
        };
        for entry in entries {
            let Ok(entry) = entry else {
                found.incomplete = true;
                return;
            };
            // Sockets, pipes and their like name no path; a file does, whatever its mount.
            let link = match std::fs::read_link(entry.path()) {
                Ok(link) if !link.as_os_str().as_bytes().starts_with(b"/") => {
                    namespaces.note_kept(link.as_os_str());
                    continue;
                }
                Ok(link) => link,
                Err(error) if gone(root, &error) => continue,
                Err(_) => {
                    found.incomplete = true;
                    continue;
                }
            };
            match self.descriptor(root, &entry.file_name(), &link, mounts) {
                Ok((inode, detail)) => {
                    let Some(inode) = inode else { continue };
                    for target in self.targets.at(inode) {
                        found.note(*target, detail.clone());
                    }
                    let name = unlinked::name_of(link.as_os_str().as_bytes());
                    if let Some(name) = name.filter(|_| self.targets.is_unlinked(inode)) {
                        let (name, link) = (name.to_vec(), entry.path());
                        found.unlinked.push(Trace { inode, name, link, detail });
                    }
                }
                Err(error) if gone(root, &error) => {}
                Err(_) => found.incomplete = true,
            }
        }
    }

    /// The inode that a descriptor refers to, if it may be one that is asked for. A mount that the process's namespace does not list
    /// is the kernel's own (memfd, System V), another namespace's, or attached nowhere (open_tree(2),
    /// or a bind mount that was taken away): then the descriptor itself tells its device, if its
    /// inode number is one of ours.
    fn descriptor(
        &self,
        root: &Path,
        fd: &OsStr,
        link: &Path,
        mounts: Option<&Mounts>,
    ) -> io::Result<(Option<(u64, u64)>, Detail)> {
        let info = std::fs::read(root.join("fdinfo").join(fd))?;
        let field = |key: &[u8]| {
            info.split(|b| *b == b'\n')
                .find_map(|line| number(words(line.strip_prefix(key)?).next()?))
        };
        let Some(ino) = field(b"ino:") else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "fdinfo has no inode number"));
        };
        let inode = match field(b"mnt_id:").and_then(|id| mounts?.dev_of(id)) {
            Some(dev) => Some((dev, ino)),
            None if self.targets.has_number(ino) => {
                inode_on(&root.join("fd").join(fd), &self.targets.devices)?
            }
            // Others may be on file systems that never answer.
            None if !self.targets.unlinked.is_empty()
                && link.as_os_str().as_bytes().starts_with(b"/memfd:") =>
            {
                inode_on(&root.join("fd").join(fd), &self.targets.unlinked)?
            }
            None => None,
        };
        let flags = info
            .split(|b| *b == b'\n')
            .find_map(|line| words(line.strip_prefix(b"flags:")?).next())
            .and_then(|octal| i32::from_str_radix(std::str::from_utf8(octal).ok()?, 8).ok());
        // This process's own looks, on other threads, have such descriptors for a moment. What it has
        // inherited stays open over execve(2), and counts.
        const LOOK: i32 = libc::O_PATH | libc::O_CLOEXEC;
        let is_look = flags.is_some_and(|flags| flags & LOOK == LOOK) && self.is_own(root);
        let inode = inode.filter(|_| !is_look);
        let access = match flags {
            Some(flags) if flags & libc::O_PATH != 0 => "path",
            Some(flags) => match flags & libc::O_ACCMODE {
                libc::O_RDONLY => "r",
                libc::O_WRONLY => "w",
                libc::O_RDWR => "rw",
                _ => "none",
            },
            None => "",
        };
        let detail = Detail {
            how: How::Fd,
            access: access.into(),
            shared: None,
            bytes: None,
            fd: number(fd.as_bytes()),
        };
        Ok((inode, detail))
    }

    /// The root and the working directory of a process, which are asked themselves: their paths say
    /// nothing where the process is in a jail, another mount came over them, or theirs was taken
    /// away. Only on a network file system, which may never answer, is the path believed.
    fn directories(&self, root: &Path, mounts: Option<&Mounts>, jailed: bool, found: &mut Found) {
        for (how, name) in [(How::Root, "root"), (How::Cwd, "cwd")] {
            let link = root.join(name);
            let asked = std::fs::read_link(&link).and_then(|at| {
                let at = at.as_os_str().as_bytes();
                if at != b"/" && mounts.is_some_and(|mounts| mounts.may_hang(at)) {
                    // The path is ours, and a jail's mounts are told by other ones.
                    found.incomplete |= jailed;
                    return Ok(None);
                }
                inode_on(&link, &self.targets.devices)
            });
            match asked {
                Ok(inode) => {
                    let (access, shared, bytes, fd) = (String::new(), None, None, None);
                    let detail = Detail { how, access, shared, bytes, fd };
                    for target in inode.map_or(&[][..], |inode| self.targets.at(inode)) {
                        found.note(*target, detail.clone());
                    }
                }
                Err(error) => found.incomplete |= !gone(root, &error),
            }
        }
    }
}

/// A range of `maps` as `map_files` has it: `00400000-00401000` there is `400000-401000` here.
fn without_zeroes(range: &str) -> String {
    let ends = range.split('-').map(|end| end.trim_start_matches('0'));
    ends.map(|end| if end.is_empty() { "0" } else { end }).collect::<Vec<_>>().join("-")
}

/// The number of an IPC namespace, unless it could not be found out.
struct Number(Option<u64>);

impl Number {
    fn may_be(&self, other: Option<u64>) -> bool {
        self.0.is_none() || other.is_none() || self.0 == other
    }
}

/// The IPC namespace that a process is in.
fn namespace_of(root: &Path) -> Number {
    let link = std::fs::read_link(root.join("ns/ipc")).ok();
    let number = link.as_ref().and_then(|link| {
        number(link.as_os_str().as_bytes().strip_prefix(b"ipc:[")?.strip_suffix(b"]")?)
    });
    Number(number)
}

/// Device and inode of what a link of /proc leads to, if it is on one of `devices`.
fn inode_on(link: &Path, devices: &HashSet<u64>) -> io::Result<Option<(u64, u64)>> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
    let directory = nix::fcntl::open(link, flags, nix::sys::stat::Mode::empty())?;
    // Of another file system nothing else may be asked: it may be one that never answers.
    if !devices.contains(&sys::device(&directory)?) {
        return Ok(None);
    }
    let stat = sys::stat(&directory, c"")?;
    Ok(Some((stat.dev, stat.ino)))
}

/// One line of `maps`.
#[derive(Debug, PartialEq, Eq)]
struct Map<'a> {
    range: &'a [u8],
    bytes: u64,
    permissions: &'a [u8],
    dev: u64,
    ino: u64,
    path: &'a [u8],
}

impl Map<'_> {
    fn is_shared(&self) -> bool {
        self.permissions.get(3) == Some(&b's')
    }

    fn detail(&self) -> Detail {
        Detail {
            how: How::Map,
            access: String::from_utf8_lossy(self.permissions.get(..3).unwrap_or_default()).into(),
            shared: Some(self.is_shared()),
            bytes: Some(self.bytes),
            fd: None,
        }
    }
}

/// `start-end perms offset major:minor inode path`, numbers in hexadecimal but for the inode.
fn parse_map(line: &[u8]) -> Option<Map<'_>> {
    let mut rest = line;
    let mut field = || {
        let start = rest.iter().position(|b| *b != b' ')?;
        let text = rest.get(start..)?;
        let end = text.iter().position(|b| *b == b' ').unwrap_or(text.len());
        let (field, tail) = text.split_at(end);
        rest = tail;
        Some(field)
    };
    let (range, permissions, _offset) = (field()?, field()?, field()?);
    let (dev, ino) = (field()?, number(field()?)?);
    let mut dev = dev.split(|b| *b == b':').map(|part| {
        std::str::from_utf8(part).ok().and_then(|part| u32::from_str_radix(part, 16).ok())
    });
    let (major, minor) = (dev.next()??, dev.next()??);
    let path = rest.iter().position(|b| *b != b' ').and_then(|at| rest.get(at..));
    let path = path.unwrap_or_default();
    // System V memory has the id 0 as well; else there is no file.
    if ino == 0 && !path.starts_with(b"/SYSV") {
        return None;
    }
    let mut ends = range.split(|b| *b == b'-').map(|part| {
        std::str::from_utf8(part).ok().and_then(|part| u64::from_str_radix(part, 16).ok())
    });
    let (start, end) = (ends.next()??, ends.next()??);
    Some(Map {
        range,
        bytes: end.saturating_sub(start),
        permissions,
        dev: libc::makedev(major, minor),
        ino,
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lines_as_bytes() {
        let line =
            b"7f00-7f01 rw-s 00001000 00:1b 4242                       /dev/shm/a b\xff (deleted)";
        assert_eq!(
            parse_map(line),
            Some(Map {
                range: b"7f00-7f01",
                bytes: 1,
                permissions: b"rw-s",
                dev: libc::makedev(0, 0x1b),
                ino: 4242,
                path: b"/dev/shm/a b\xff (deleted)"
            })
        );
        assert_eq!(parse_map(b"7f00-7f01 rw-p 00000000 00:00 0 [heap]"), None);
        assert_eq!(parse_map(b"7f00-7f01 rw-p 00000000 103:02 7").map(|m| m.ino), Some(7));
        let first = b"7f00-7f01 rw-s 00000000 00:01 0                 /SYSV00000000 (deleted)";
        assert_eq!(parse_map(first).map(|m| (m.dev, m.ino)), Some((libc::makedev(0, 1), 0)));
        for rubbish in
            [&b""[..], b"x", b"a b c d e", b"a b c 1:2:3 9 /x", b"1-2 b", b"a b c zz:1 9"]
        {
            let _ignored: Option<Map<'_>> = parse_map(rubbish);
        }
    }
}
