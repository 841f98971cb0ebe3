//! Reading one process: its mappings, descriptors, directories and mount namespace.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};

use super::maps::{Map, parse_map};
use super::{Detail, Enough, How, MOST_DETAILS, NameFilter, Search, Targets};
use crate::tracker::evidence::mounts::number;
use crate::tracker::evidence::namespaces::{Namespace, Namespaces};
use crate::tracker::evidence::processes::{task_gone as gone, words};
use crate::tracker::evidence::task::Task;
use crate::tracker::evidence::unlinked::{self, Trace};
use crate::tracker::sys::{self, maps::next_of_file};

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
        // Most objects are held once by most who hold them.
        let details = self.holds.entry(target).or_insert_with(|| Vec::with_capacity(1));
        // One of each way is always noted: the holder's `how` is made of them.
        let known = details.iter().any(|other| other.how == detail.how);
        if !details.contains(&detail) && (details.len() < MOST_DETAILS || !known) {
            details.push(detail);
        }
    }
}

/// How often another mapping may have come between two questions about one.
const MOST_CHANGES: usize = 64;

/// Where one looks: at a task, and from what its process sees.
#[derive(Clone, Copy)]
struct At<'a> {
    task: &'a Task,
    /// Its mount namespace, and whether the process sees a part of that only.
    seen: Option<(&'a Namespace, bool)>,
    /// All that were met.
    namespaces: &'a Namespaces,
}

pub(super) struct Reader<'a> {
    pub(super) root: &'a Path,
    pub(super) targets: &'a Targets,
    pub(super) search: &'a Search,
    /// Where in our own namespace the file systems are mounted that objects are on.
    pub(super) own_points: &'a [Vec<u8>],
    /// The targets that somebody was found for, if one is enough.
    pub(super) enough: Option<&'a Enough>,
}

impl Reader<'_> {
    /// Whether a directory of /proc is this process's own, or one of its threads'.
    fn is_own(&self, process: &Path) -> bool {
        let own = std::fs::read_link(self.root.join("self"));
        own.is_ok_and(|own| process.starts_with(self.root.join(own)))
    }

    pub(super) fn read(&self, pid: i32, threads: bool, namespaces: &Namespaces) -> Found {
        let mut found = Found::default();
        let path = self.root.join(pid.to_string());
        let own = match Task::open(path.clone()) {
            Ok(own) => own,
            // A process that is gone maps nothing; what it was is known by its executable.
            Err(error) if gone(&path, &error) => {
                found.maps_read = true;
                return found;
            }
            Err(_) => {
                found.incomplete = true;
                return found;
            }
        };
        let mut others = Vec::new();
        if threads {
            match std::fs::read_dir(path.join("task")) {
                Ok(tasks) => {
                    let tasks = tasks.flatten().map(|task| task.path());
                    others.extend(tasks.filter_map(|task| Task::open(task).ok()));
                }
                Err(error) if own.is_gone(&error) => {}
                Err(_) => found.incomplete = true,
            }
        }
        let look = |task: &Task| namespaces.of(self.root, task, pid, &self.targets.places);
        let mut looked = look(&own);
        if looked.as_ref().is_err_and(|error| own.is_gone(error)) {
            // A first thread that has exited has no namespaces any more; those that go on have.
            let other = others.iter().find_map(|task| look(task).ok());
            looked = other.map_or(looked, Ok);
        }
        // Else there may be mounts of an object that nobody could look for.
        found.incomplete |= looked.as_ref().is_err_and(|error| !own.is_gone(error));
        let namespace = looked.ok();
        // What a jail does not show may still be in its reach.
        found.view = namespace.as_ref().filter(|(_, jailed)| !jailed).map(|(view, _)| view.clone());
        // A thread can have mounts of its own, too.
        let link = |task: &Task| {
            let mut link = Vec::new();
            task.link(c"ns/mnt", &mut link).ok().map(|()| link)
        };
        if !others.is_empty() {
            let known = link(&own);
            for task in others.iter().filter(|task| link(task) != known) {
                let looked = look(task);
                found.incomplete |= looked.is_err_and(|error| !task.is_gone(&error));
            }
        }
        let seen = namespace.as_ref().map(|(namespace, jailed)| (&**namespace, *jailed));
        let mut buffers = Buffers::default();
        for task in std::iter::once(&own).chain(&others) {
            self.look(At { task, seen, namespaces }, &mut buffers, &mut found);
        }
        found
    }

    /// What one task has mapped and open.
    fn look(&self, at: At<'_>, buffers: &mut Buffers, found: &mut Found) {
        let wanted = self.search.holders && !self.enough.is_some_and(Enough::is_reached);
        if wanted || self.search.names.is_some() {
            self.maps(at.task, buffers, found);
        }
        if !wanted || self.targets.by_inode.is_empty() && self.targets.unlinked.is_empty() {
            return;
        }
        self.descriptors(at, buffers, found);
        // Nothing else can be a working directory.
        if self.search.deep || self.targets.directories {
            self.directories(at, found);
        }
    }

    fn note(&self, found: &mut Found, target: usize, detail: &Detail) {
        let known = found.holds.contains_key(&target);
        if known || self.enough.is_none_or(|enough| enough.is_first_of(target)) {
            found.note(target, detail.clone());
        }
    }

    fn maps(&self, task: &Task, buffers: &mut Buffers, found: &mut Found) {
        let read = if self.search.deep { None } else { self.maps_of_files(task, buffers, found) };
        match read.unwrap_or_else(|| self.all_maps(task, buffers, found)) {
            Ok(()) => found.maps_read = true,
            // A process that is gone maps nothing; what it was is known by its executable.
            Err(error) if task.is_gone(&error) => found.maps_read = true,
            Err(_) => found.incomplete = true,
        }
    }

    /// The shared mappings of files, one by one, as the kernel finds them, and all others where names are asked
    /// for; nothing if it does not answer, which one before Linux 6.11 does not.
    fn maps_of_files(
        &self,
        task: &Task,
        buffers: &mut Buffers,
        found: &mut Found,
    ) -> Option<io::Result<()>> {
        let mut own: Option<Number> = None;
        let mut last = None;
        let shared = self.search.names.is_none();
        let (mut address, mut changes) = (0, 0);
        let mut look = |maps: &File| {
            while let Some(map) = next_of_file(maps, address, shared, None)? {
                address = map.end;
                let inode = (map.dev, map.ino);
                let wanted = map.shared && self.search.holders && self.targets.may_be(inode);
                // A library is mapped in several pieces, one behind the other.
                let named = !shared && last.replace(inode) != Some(inode);
                if !wanted && !named {
                    continue;
                }
                buffers.name.clear();
                if named || !self.targets.is_known(inode) {
                    let again = next_of_file(maps, map.start, shared, Some(&mut buffers.name))?;
                    // Another one may be there now.
                    if again != Some(map) {
                        changes += 1;
                        if changes > MOST_CHANGES {
                            return Err(io::Error::other("it does not stop mapping"));
                        }
                        (address, last) = (map.start, None);
                        continue;
                    }
                }
                if named {
                    if buffers.name.is_empty() {
                        // Too long to be told like that.
                        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
                    }
                    self.name(&buffers.name, found);
                }
                if wanted {
                    let range = format!("{:x}-{:x}", map.start, map.end);
                    let [r, w, x] = map.access;
                    let map = Map {
                        range: range.as_bytes(),
                        bytes: map.end.saturating_sub(map.start),
                        permissions: &[r, w, x, b's'],
                        dev: map.dev,
                        ino: map.ino,
                        path: &buffers.name,
                    };
                    self.mapping(task, &map, &mut own, found);
                }
            }
            Ok(())
        };
        match task.file(c"maps").and_then(|maps| look(&maps)) {
            Err(error) if !task.is_gone(&error) => None,
            read => Some(read),
        }
    }

    /// Notes that a file is mapped, if its name is worth remembering.
    fn name(&self, path: &[u8], found: &mut Found) {
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let worth = |remember: &NameFilter| !name.is_empty() && remember(name);
        if self.search.names.as_ref().is_some_and(worth) && !found.mapped_names.contains(name) {
            found.mapped_names.insert(name.to_vec());
        }
    }

    /// All mappings, and the names of what is mapped.
    fn all_maps(&self, task: &Task, buffers: &mut Buffers, found: &mut Found) -> io::Result<()> {
        let text = task.read(c"maps", &mut buffers.text)?;
        let mut own: Option<Number> = None;
        let mut last: &[u8] = b"";
        for line in text.split(|b| *b == b'\n') {
            let Some(map) = parse_map(line) else { continue };
            if self.search.holders {
                self.mapping(task, &map, &mut own, found);
            }
            if map.path != last {
                last = map.path;
                self.name(map.path, found);
            }
        }
        Ok(())
    }

    /// What one mapping says.
    fn mapping(&self, task: &Task, map: &Map<'_>, own: &mut Option<Number>, found: &mut Found) {
        for target in self.targets.at((map.dev, map.ino)) {
            self.note(found, *target, &map.detail());
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
                link: task.path().join("map_files").join(without_zeroes(&range)),
                detail: map.detail(),
            });
        }
        // Memfds are on the same device, and a name of any file may look like this one.
        if map.path.starts_with(b"/SYSV") {
            for segment in self.targets.segments_at((map.dev, map.ino)) {
                if own.get_or_insert_with(|| namespace_of(task)).may_be(segment.namespace) {
                    self.note(found, segment.index, &map.detail());
                }
            }
        }
    }

    fn descriptors(&self, at: At<'_>, buffers: &mut Buffers, found: &mut Found) {
        let At { task, seen, namespaces } = at;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = match openat(task, c"fd", flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(error) => {
                found.incomplete |= !task.is_gone(&error.into());
                return;
            }
        };
        let Buffers { entries, name, text } = buffers;
        let listed = sys::list(&directory, entries, |fd| {
            match sys::read_link(&directory, fd, name) {
                // A path that is too long to be told is one.
                Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => name.clear(),
                Err(error) => {
                    found.incomplete |= !task.is_gone(&error);
                    return;
                }
                // Sockets, pipes and their like name no path; a file does, whatever its mount.
                Ok(()) if !name.starts_with(b"/") => return namespaces.note_kept(name),
                Ok(()) => {}
            }
            if self.may_be_wanted(name, seen) || is_without_access(&directory, fd) {
                self.file(at, fd, name, text, found);
            }
        });
        found.incomplete |= listed.is_err_and(|error| !task.is_gone(&error));
    }

    /// What one descriptor of a file says.
    fn file(&self, at: At<'_>, fd: &CStr, link: &[u8], text: &mut Vec<u8>, found: &mut Found) {
        let (task, fd) = (at.task, OsStr::from_bytes(fd.to_bytes()));
        match self.descriptor(at, fd, link, text) {
            Ok((inode, detail)) => {
                let Some(inode) = inode else { return };
                for target in self.targets.at(inode) {
                    self.note(found, *target, &detail);
                }
                let name = unlinked::name_of(link);
                if let Some(name) = name.filter(|_| self.targets.is_unlinked(inode)) {
                    let link = task.path().join("fd").join(fd);
                    found.unlinked.push(Trace { inode, name: name.to_vec(), link, detail });
                }
            }
            Err(error) => found.incomplete |= !task.is_gone(&error),
        }
    }

    /// Whether a descriptor with this path may be one of a target; only then is asked which inode it is of.
    ///
    /// The path is that of the mount by which it was opened and, below that, of the name by which it was, as both
    /// are called now. So it begins where a file system of the objects is mounted, in the process's
    /// namespace or in ours; or the mount is in neither, and it ends in the name of an object, or says that this
    /// name is gone; or it is the root of such a mount, and nothing else. Where that is not all, the kernel's answer
    /// tells that somebody has the object open, unless the descriptor is one [without access](is_without_access).
    fn may_be_wanted(&self, path: &[u8], seen: Option<(&Namespace, bool)>) -> bool {
        // A jail's mounts have other paths for us than for who is in it.
        let Some((view, false)) = seen else { return true };
        let below = |point: &Vec<u8>| {
            let rest = path.strip_prefix(point.strip_suffix(b"/").unwrap_or(point));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        self.search.deep
            || path.is_empty()
            || path == b"/"
            || path.ends_with(b" (deleted)")
            || self.own_points.iter().chain(&view.points).any(below)
            || path
                .rsplit(|b| *b == b'/')
                .next()
                .is_some_and(|name| self.targets.may_have_name(name))
    }

    /// The inode that a descriptor refers to, if it may be one that is asked for. A mount that the process's namespace does not list
    /// is the kernel's own (memfd, System V), another namespace's, or attached nowhere (open_tree(2),
    /// or a bind mount that was taken away): then the descriptor itself tells its device, if its
    /// inode number is one of ours.
    fn descriptor(
        &self,
        at: At<'_>,
        fd: &OsStr,
        link: &[u8],
        info: &mut Vec<u8>,
    ) -> io::Result<(Option<(u64, u64)>, Detail)> {
        let At { task, seen, .. } = at;
        let of = |directory: &str| {
            let path = [directory.as_bytes(), fd.as_bytes()].concat();
            CString::new(path).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
        };
        let info = task.read_piece(&of("fdinfo/")?, info)?;
        let field = |key: &[u8]| {
            info.split(|b| *b == b'\n')
                .find_map(|line| number(words(line.strip_prefix(key)?).next()?))
        };
        let Some(ino) = field(b"ino:") else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "fdinfo has no inode number"));
        };
        let device = field(b"mnt_id:").and_then(|id| seen?.0.devices.get(&id).copied());
        let inode = match device {
            Some(dev) => Some((dev, ino)),
            None if self.targets.has_number(ino) => {
                inode_on(task, &of("fd/")?, &self.targets.devices)?
            }
            // Others may be on file systems that never answer.
            None if !self.targets.unlinked.is_empty() && link.starts_with(b"/memfd:") => {
                inode_on(task, &of("fd/")?, &self.targets.unlinked)?
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
        let is_look = flags.is_some_and(|flags| flags & LOOK == LOOK) && self.is_own(task.path());
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
    fn directories(&self, at: At<'_>, found: &mut Found) {
        let task = at.task;
        let may_hang = |path: &[u8]| at.seen.is_some_and(|(view, _)| view.mounts.may_hang(path));
        for (how, name) in [(How::Root, c"root"), (How::Cwd, c"cwd")] {
            let mut path = Vec::new();
            let asked = task.link(name, &mut path).and_then(|()| {
                if path != b"/" && may_hang(&path) {
                    // The path is ours, and a jail's mounts are told by other ones.
                    found.incomplete |= at.seen.is_none_or(|(_, jailed)| jailed);
                    return Ok(None);
                }
                inode_on(task, name, &self.targets.devices)
            });
            match asked {
                Ok(inode) => {
                    let (access, shared, bytes, fd) = (String::new(), None, None, None);
                    let detail = Detail { how, access, shared, bytes, fd };
                    for target in inode.map_or(&[][..], |inode| self.targets.at(inode)) {
                        self.note(found, *target, &detail);
                    }
                }
                Err(error) => found.incomplete |= !task.is_gone(&error),
            }
        }
    }
}

/// What is read into, again and again.
#[derive(Default)]
struct Buffers {
    entries: Vec<u8>,
    text: Vec<u8>,
    name: Vec<u8>,
}

/// Whether what is open under a number can neither be read nor written: an `O_PATH` descriptor, or one of access
/// mode 3. No lease tells of those. The link in /proc has the permissions of the descriptor (proc_pid_fd(5)); where
/// they are not told, it may be one.
fn is_without_access(directory: &OwnedFd, fd: &CStr) -> bool {
    let stat = fstatat(directory, fd, AtFlags::AT_SYMLINK_NOFOLLOW);
    stat.map_or(true, |stat| stat.st_mode & 0o700 == 0)
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
fn namespace_of(task: &Task) -> Number {
    let mut link = Vec::new();
    let read = task.link(c"ns/ipc", &mut link).ok();
    Number(read.and_then(|()| number(link.strip_prefix(b"ipc:[")?.strip_suffix(b"]")?)))
}

/// Device and inode of what a link of /proc leads to, if it is on one of `devices`.
fn inode_on(task: &Task, link: &CStr, devices: &HashSet<u64>) -> io::Result<Option<(u64, u64)>> {
    let directory = openat(task, link, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    // Of another file system nothing else may be asked: it may be one that never answers.
    if !devices.contains(&sys::device(&directory)?) {
        return Ok(None);
    }
    let stat = sys::stat(&directory, c"")?;
    Ok(Some((stat.dev, stat.ino)))
}
