//! Removing what was registered, unless the kernel says that somebody uses it.
//!
//! Files are asked about by a write lease. Where none is to be had, and of directories, only a look at all
//! processes that saw everything shows that nobody does. What cannot be told stays.
//!
//! Who opens such an object while it is removed:
//!
//! - in /dev/shm, under the lease: is noticed, and finds it back under its name, as with
//!   [`Reaper`]; one that comes between the last question and the unlink, a few system calls, has an object
//!   without a name;
//! - elsewhere, under the lease: the same, but without the private directory; and what is renamed over the name
//!   between the last look at it and the unlink goes in its place, since no lease tells of renames;
//! - without a lease, and of folders: whoever comes between the look at the processes and the removal is not
//!   seen, unless the last look into the folder finds a file open or something new in it. That is as long as
//!   the look itself takes, for large ones seconds.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::directories::{TOO_LARGE, look_inside};
use super::leftovers::{Fate as Left, Witness};
use super::objects::{Manner, Reaper, Steps, Target, gone, refusal};
use super::registered::{Fate, RemoveError, remove};
use super::{Outcome, Report};
use crate::tracker::evidence::lease::{self, Lease, LeaseError, Leased, Look};
use crate::tracker::evidence::users::{Thing, Use};
use crate::tracker::host::Host;
use crate::tracker::inventory::Tree;
use crate::tracker::inventory::posix::{stat_here, tree_of};
use crate::tracker::resource::{Identity, Name};
use crate::tracker::service::dialect::Rtype;
use crate::tracker::sys::{self, Nanoseconds, Stat};

/// How long another rtrack that looks may keep this one from asking.
const COURTESY: Duration = Duration::from_millis(250);

/// How often it is asked again in all, and after how long, where somebody has something open that nobody was
/// seen to have: another rtrack may have, for a moment.
const AGAIN: usize = 16;
const PAUSE: Duration = Duration::from_millis(20);

/// What a resource is on its file system.
#[derive(Debug)]
enum Place {
    /// There is none, or the C library takes no such name.
    Nowhere,
    /// A file of this name in the directory of the POSIX objects.
    Shm(Name),
    /// Whatever has this name in the directory of that path. There may be more of them than descriptors.
    Path(Vec<u8>, Name),
}

/// What was found of one resource, before anything is removed.
#[derive(Debug)]
pub struct Found {
    place: Place,
    /// The errno of looking, if it failed.
    trouble: Option<i32>,
    stat: Option<Stat>,
    tree: Option<Tree>,
    lease: Lease,
    thing: Thing,
}

impl Found {
    /// Bytes: of a directory those of all files in it, as far as they were counted.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.tree.as_ref().map(|tree| tree.size).or_else(|| self.stat.map(|stat| stat.size))
    }

    /// When it was made, where its file system knows.
    #[must_use]
    pub fn born(&self) -> Option<Nanoseconds> {
        self.stat?.born
    }

    /// What the processes have to be asked about, if it is there.
    #[must_use]
    pub fn thing(&self) -> &Thing {
        &self.thing
    }

    /// Whether the kernel cannot be asked about it by a lease, so that only a look at all processes tells.
    #[must_use]
    pub fn needs_sight(&self) -> bool {
        self.stat.is_some() && !matches!(self.lease, Lease::Granted | Lease::Refused)
    }
}

/// Finds out what is called `name`; with `ask`, also whether the kernel has a lease for it. `host` is the machine,
/// if it has POSIX objects, and whether leases tell the truth there.
#[must_use]
pub fn find(host: Option<(&Host, bool)>, rtype: Rtype, name: &[u8], ask: bool) -> Found {
    let thing = Thing::default();
    let lease = Lease::NotAsked;
    let mut found =
        Found { place: Place::Nowhere, trouble: None, stat: None, tree: None, lease, thing };
    let looked = match rtype {
        Rtype::Noop | Rtype::Dummy => Ok(()),
        Rtype::Semaphore | Rtype::Semlock => found.in_shm(host, b"sem.", name, ask),
        Rtype::SharedMemory => found.in_shm(host, b"", name, ask),
        Rtype::File => found.at_path(host, name, ask, false),
        Rtype::Folder => found.at_path(host, name, ask, true),
    };
    found.trouble = looked.err().map(|error| error.raw_os_error().unwrap_or(libc::EIO));
    found
}

/// What the C library makes of a name: it drops leading slashes, and takes no others.
fn file_of(prefix: &[u8], name: &[u8]) -> Option<Name> {
    let first = name.iter().position(|byte| *byte != b'/')?;
    let rest = name.get(first..).filter(|rest| !rest.contains(&b'/') && !rest.contains(&0))?;
    Some(Name::new([prefix, rest].concat()))
}

/// The object of a name, if it lies in /dev/shm and is there. glibc and musl put both kinds
/// there, semaphores with the prefix `sem.` (sem_overview(7)).
#[must_use]
pub fn in_shm(rtype: Rtype, name: &[u8]) -> Option<Stat> {
    let prefix = match rtype {
        Rtype::SharedMemory => &b""[..],
        Rtype::Semaphore | Rtype::Semlock => b"sem.",
        Rtype::Noop | Rtype::Dummy | Rtype::File | Rtype::Folder => return None,
    };
    let path = [b"/dev/shm/", file_of(prefix, name)?.as_bytes()].concat();
    sys::stat(AT_FDCWD, &CString::new(path).ok()?).ok()
}

/// Opens the directory that something lies in, links above it followed, as whoever named the path meant them.
fn open_parent(path: &[u8]) -> nix::Result<OwnedFd> {
    openat(AT_FDCWD, OsStr::from_bytes(path), LOOK | OFlag::O_DIRECTORY, Mode::empty())
}

const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

impl Found {
    fn in_shm(
        &mut self,
        host: Option<(&Host, bool)>,
        prefix: &[u8],
        name: &[u8],
        ask: bool,
    ) -> io::Result<()> {
        // What is not UTF-8 is refused by whoever removes it, as CPython does.
        let file = file_of(prefix, name).filter(Name::is_utf8);
        let Some(file) = file else { return Ok(()) };
        self.place = Place::Shm(file.clone());
        let own;
        let dir = match host {
            Some((host, _)) => host.shm(),
            None => {
                own = openat(AT_FDCWD, "/dev/shm", LOOK, Mode::empty())?;
                own.as_fd()
            }
        };
        self.look(dir, &file, Path::new("/dev/shm"))?;
        if let Some((host, true)) = host
            && ask
        {
            self.lease = self.ask(|identity| lease::look(host, dir, &file, identity, true, false));
        }
        Ok(())
    }

    fn at_path(
        &mut self,
        host: Option<(&Host, bool)>,
        path: &[u8],
        ask: bool,
        folder: bool,
    ) -> io::Result<()> {
        if path.contains(&0) {
            return Ok(());
        }
        let end = if folder { path.iter().rposition(|byte| *byte != b'/') } else { None };
        let path = path.get(..end.map_or(path.len(), |last| last + 1)).unwrap_or_default();
        let (parent, last) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => path.split_at(slash + 1),
            None => (&b"."[..], path),
        };
        // No entry of a directory: what removes says so.
        if matches!(last, b"" | b"." | b"..") {
            return Ok(());
        }
        let dir = open_parent(parent)?;
        let name = Name::new(last);
        let shown = std::fs::canonicalize(OsStr::from_bytes(parent)).unwrap_or_default();
        let looked = self.look(dir.as_fd(), &name, &shown);
        if let (Some((host, _)), true, Ok(())) = (host, ask, &looked)
            && !folder
        {
            self.lease =
                self.ask(|identity| lease::look_tested(host, dir.as_fd(), &name, identity));
        }
        self.place = Place::Path(parent.to_vec(), name);
        looked
    }

    /// What is called `name` in `dir`, whose path is given, and what is in it.
    fn look(&mut self, dir: BorrowedFd<'_>, name: &Name, parent: &Path) -> io::Result<()> {
        let path = openat(dir, name.as_os_str(), LOOK | OFlag::O_NOFOLLOW, Mode::empty())?;
        let stat = sys::stat(&path, c"")?;
        self.stat = Some(stat);
        self.thing.mount = sys::mount_id(&path).ok();
        self.thing.parent = parent.as_os_str().as_bytes().to_vec();
        self.thing.name = name.as_bytes().to_vec();
        self.thing.inodes.insert((stat.dev, stat.ino));
        if stat.is_dir() {
            self.thing.directory = true;
            let seen = tree_of(dir, name, &Identity::of(&stat), &mut |_, _, _| {})?;
            if let Some((_, tree)) = seen {
                self.thing.inodes.clone_from(&tree.inodes);
                self.tree = Some(tree);
            }
            let above = parent.ancestors().filter_map(|above| {
                let path = CString::new(above.as_os_str().as_bytes()).ok()?;
                let stat = sys::stat(AT_FDCWD, &path).ok()?;
                Some((stat.dev, stat.ino))
            });
            self.thing.above = above.collect();
        }
        Ok(())
    }

    fn ask(&self, look: impl FnOnce(&Identity) -> io::Result<Look>) -> Lease {
        let Some(stat) = self.stat.filter(Stat::is_file) else { return Lease::NotAsked };
        match look(&Identity::of(&stat)) {
            Ok(Look::Seen { lease, .. }) => lease,
            // What became of it is found out by whoever removes it.
            Ok(Look::Gone | Look::Changed) => Lease::Refused,
            Err(_) => Lease::Unsupported,
        }
    }
}

/// Removes resources one by one; what is used, or of which that cannot be told, stays.
#[derive(Debug)]
pub struct Keeper<'a> {
    host: Option<&'a Host>,
    reaper: Option<Reaper<'a>>,
    again: usize,
    _courtesy: Option<std::fs::File>,
}

impl<'a> Keeper<'a> {
    /// One for the machine, if it has POSIX objects.
    #[must_use]
    pub fn new(host: Option<&'a Host>) -> Self {
        let courtesy = host.and_then(|host| lease::courtesy_lock(host.shm(), COURTESY));
        let reaper = host.map(|host| Reaper::new(host, false));
        Self { host, reaper, again: AGAIN, _courtesy: courtesy }
    }

    /// Removes what was `found` under this name, unless somebody uses it; `seen` is what a look at the
    /// processes showed since.
    pub fn remove(&mut self, rtype: Rtype, name: &[u8], found: &Found, seen: Option<&Use>) -> Fate {
        if let Some(errno) = found.trouble {
            return Fate::Failed(RemoveError::of(rtype, name, errno));
        }
        // Nothing that could be in use, or a name that is refused.
        let Some(stat) = &found.stat else { return remove(rtype, name).into() };
        let (file, folder) = match rtype {
            Rtype::Noop | Rtype::Dummy => return remove(rtype, name).into(),
            Rtype::Semaphore | Rtype::Semlock | Rtype::SharedMemory | Rtype::File => (true, false),
            Rtype::Folder => (false, true),
        };
        // Refused, each with its errno; or a link, which nobody has open.
        if file && stat.is_dir() || folder && !stat.is_dir() || stat.file_type() == libc::S_IFLNK {
            return remove(rtype, name).into();
        }
        let report = loop {
            let report = match &found.place {
                Place::Nowhere => return remove(rtype, name).into(),
                Place::Shm(file) => self.in_shm(file, stat, found, seen),
                Place::Path(parent, file) => match open_parent(parent) {
                    Ok(dir) if folder => match self.folder(dir.as_fd(), file, found, seen) {
                        Ok(()) => return remove(rtype, name).into(),
                        Err(report) => report,
                    },
                    Ok(dir) => self.file(dir.as_fd(), file, stat, found, seen),
                    Err(errno) => {
                        return Fate::Failed(RemoveError::of(rtype, name, errno as i32));
                    }
                },
            };
            let unexplained =
                report.outcome == Outcome::Held && seen.is_none_or(|seen| seen.holders.is_empty());
            if !unexplained || self.again == 0 {
                break report;
            }
            self.again -= 1;
            std::thread::sleep(PAUSE);
        };
        let failed = |errno| Fate::Failed(RemoveError::of(rtype, name, errno));
        match report.outcome {
            Outcome::Reaped | Outcome::OpenedAtRemoval => Fate::Removed(0),
            Outcome::Changed => Fate::Changed,
            Outcome::Gone => failed(libc::ENOENT),
            Outcome::Failed => match report.errno {
                // As who removes without looking is told it.
                Some(errno) if report.says.starts_with("unlink:") => failed(errno),
                errno => {
                    let errno = errno.unwrap_or(libc::EIO);
                    Fate::Failed(RemoveError::Step { errno, says: report.says })
                }
            },
            Outcome::Held | Outcome::OpenedMeanwhile | Outcome::Refused | Outcome::WouldReap => {
                Fate::Kept(report.says)
            }
        }
    }

    /// Removes the private directory, if one was made. What stays in it is the next reap's to settle.
    pub fn finish(mut self) {
        if let Some(reaper) = self.reaper.take() {
            drop(reaper.finish(&mut Silent));
        }
    }

    fn in_shm(&mut self, file: &Name, stat: &Stat, found: &Found, seen: Option<&Use>) -> Report {
        let manner = match manner(stat, found, seen) {
            Ok(manner) => manner,
            Err(why) => return Report::new(Outcome::Refused, why),
        };
        let Some(reaper) = &mut self.reaper else {
            return Report::new(Outcome::Refused, "/dev/shm is no tmpfs that can be opened");
        };
        let identity = Identity::of(stat);
        let target = Target {
            file,
            identity,
            manner,
            may_go_directly: true,
            tree: None,
            messages: None,
            force: false,
        };
        reaper.remove(&target, &mut Unjudged)
    }

    fn file(
        &self,
        dir: BorrowedFd<'_>,
        file: &Name,
        stat: &Stat,
        found: &Found,
        seen: Option<&Use>,
    ) -> Report {
        let leased = match manner(stat, found, seen) {
            Ok(Manner::Leased) => match self.lease(dir, file, stat) {
                Ok(leased) => Some(leased),
                Err(report) => return report,
            },
            Ok(_) => None,
            Err(why) => return Report::new(Outcome::Refused, why),
        };
        let whole = || leased.as_ref().is_none_or(Leased::is_whole);
        match stat_here(dir, file, stat.dev) {
            Ok(Some(now)) if Identity::of(stat).is(&now) => {}
            Ok(_) => return super::objects::changed(),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return gone(),
            Err(error) => return Report::failed("statx", &error),
        }
        if !whole() {
            return Report::new(Outcome::OpenedMeanwhile, "somebody is opening it");
        }
        match unlinkat(dir, file.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) if whole() => Report::new(Outcome::Reaped, "removed"),
            Ok(()) => Report::new(Outcome::OpenedAtRemoval, "removed"),
            Err(nix::Error::ENOENT) => gone(),
            Err(errno) => Report::failed("unlink", &errno.into()),
        }
    }

    /// Leases are tried out on the very file: on its file system there may be no room for another one.
    fn lease(&self, dir: BorrowedFd<'_>, file: &Name, stat: &Stat) -> Result<Leased, Report> {
        let Some(host) = self.host else {
            return Err(refusal(LeaseError::Unsupported));
        };
        lease::take_tested(host, dir, file, &Identity::of(stat)).map_err(refusal)
    }

    /// Whether a folder may go.
    fn folder(
        &self,
        dir: BorrowedFd<'_>,
        name: &Name,
        found: &Found,
        seen: Option<&Use>,
    ) -> Result<(), Report> {
        let refused = |why: String| Report::new(Outcome::Refused, why);
        let (Some(stat), Some(tree), Some(host)) = (&found.stat, &found.tree, self.host) else {
            return Err(refused(UNSEEN.into()));
        };
        if tree.truncated {
            return Err(refused(TOO_LARGE.into()));
        }
        if tree.special {
            let says = "a FIFO, socket or device is in it: who uses that cannot be told";
            return Err(refused(says.into()));
        }
        nobody(seen).map_err(refused)?;
        // What was removed from it since, by this daemon as well, is no matter.
        let inside = match look_inside(host, dir, name, &Identity::of(stat)) {
            Ok(inside) => inside.ok_or_else(super::objects::changed)?,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Err(gone()),
            Err(error) => return Err(Report::failed("look into it", &error)),
        };
        if let Some(file) = &inside.held {
            let says = format!("somebody has {file} in it open or mapped");
            return Err(Report::new(Outcome::Held, says));
        }
        if inside.is_truncated() || !inside.tree.inodes.is_subset(&tree.inodes) {
            return Err(refused("something was put into it since it was looked at".into()));
        }
        Ok(())
    }
}

/// Said where no look at the processes was possible.
const UNSEEN: &str = "who uses it cannot be told";

/// How a file may be removed.
fn manner(stat: &Stat, found: &Found, seen: Option<&Use>) -> Result<Manner, String> {
    if matches!(found.lease, Lease::Granted | Lease::Refused) {
        // What the processes had open when they were looked at, the lease knows better.
        return match seen.and_then(Use::beside_the_lease) {
            Some(how) => Err(how),
            None => Ok(Manner::Leased),
        };
    }
    // Who is bound to a socket, or waits for the other end of a FIFO, has no descriptor of it.
    if !stat.is_file() {
        return Err("it is a FIFO, socket or device: who uses it cannot be told".into());
    }
    nobody(seen).map(|()| Manner::Unleased)
}

/// Whether a look at all processes shows that nobody uses it.
fn nobody(seen: Option<&Use>) -> Result<(), String> {
    let Some(seen) = seen else { return Err(UNSEEN.into()) };
    if !seen.holders.is_empty() {
        return Err(crate::tracker::evidence::users::in_use_by(&seen.holders));
    }
    if let Some(how) = &seen.mounted {
        return Err(how.clone());
    }
    match &seen.unseen {
        Some(why) => Err(format!("who uses it cannot be told: {why}")),
        None => Ok(()),
    }
}

/// What was registered needs no judgement: that nobody uses it is enough.
struct Unjudged;

impl Steps for Unjudged {
    fn judge(&mut self, _now: &Stat) -> Result<(), String> {
        Ok(())
    }
}

/// Nothing is recorded of what an overtaken removal leaves: it was registered, and is.
struct Silent;

impl Witness for Silent {
    fn before(&mut self, _directory: &Name, _file: &Name, _stat: &Stat) -> Result<(), String> {
        Ok(())
    }

    fn after(&mut self, _directory: &Name, _file: &Name, _stat: &Stat, _fate: &Left) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_the_c_library_takes_them() {
        let file = |name: &[u8]| file_of(b"sem.", name).map(|file| file.as_bytes().to_vec());
        assert_eq!(file(b"//a b"), Some(b"sem.a b".to_vec()));
        for none in [&b""[..], b"/", b"/a/b", b"a\0"] {
            assert_eq!(file(none), None);
        }
    }

    #[test]
    fn what_cannot_be_told_stays() {
        assert!(nobody(None).is_err());
        assert!(nobody(Some(&Use::default())).is_ok());
        let unseen = Use { unseen: Some("x".into()), ..Use::default() };
        assert!(nobody(Some(&unseen)).unwrap_err().ends_with(": x"));
        let mounted = Use { mounted: Some("mounted at /x".into()), ..Use::default() };
        assert!(nobody(Some(&mounted)).is_err());
        assert_eq!(mounted.beside_the_lease().as_deref(), Some("mounted at /x"));
    }
}
