//! Putting an object back: it is put together where nobody finds it, and gets its name when it is
//! whole, if that name is free.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, geteuid, linkat, mkfifoat, symlinkat};

use super::format::{Entry, Moment, Type};
use super::read::{Archived, Contents, DataError};
use crate::tracker::evidence::lease::c_name;
use crate::tracker::host::Host;
use crate::tracker::reap::Building;
use crate::tracker::resource::{Name, escape};
use crate::tracker::sys;

/// What became of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is back under its name.
    Restored,
    /// A dry run: it would be tried.
    WouldRestore,
    /// A newer entry of the same name was chosen.
    Older,
    /// Something has its name.
    Exists,
    /// The archive is not what it was, or it is of a kind that is not restored.
    Refused,
    /// The kernel refused a step.
    Failed,
}

impl Outcome {
    /// The word that tables and JSON use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restored => "restored",
            Self::WouldRestore => "would-restore",
            Self::Older => "older",
            Self::Exists => "exists",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// What of an object does not come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub says: String,
}

/// What became of an entry, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What became of it.
    pub outcome: Outcome,
    /// Why, for people.
    pub says: String,
    /// The errno of a [`Outcome::Failed`].
    pub errno: Option<i32>,
    /// What of it does not come back, beside the times of birth and change.
    pub lost: Vec<Lost>,
}

impl Restored {
    /// One with nothing but an outcome and a sentence.
    pub fn new(outcome: Outcome, says: impl Into<String>) -> Self {
        Self { outcome, says: says.into(), errno: None, lost: Vec::new() }
    }
}

/// Why an object is not back.
enum Trouble {
    Exists,
    Broken(String),
    Io(&'static str, io::Error),
}

impl From<DataError> for Trouble {
    fn from(error: DataError) -> Self {
        match error {
            DataError::Broken(why) => Self::Broken(why),
            DataError::Write(error) => Self::Io("write it", error),
        }
    }
}

impl From<Trouble> for Restored {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Exists => {
                Self::new(Outcome::Exists, "something has this name, and was left alone")
            }
            Trouble::Broken(why) => Self::new(Outcome::Refused, why),
            Trouble::Io(step, error) => {
                let errno = Some(error.raw_os_error().unwrap_or(libc::EIO));
                Self { errno, ..Self::new(Outcome::Failed, format!("{step}: {error}")) }
            }
        }
    }
}

fn at(step: &'static str) -> impl FnOnce(Errno) -> Trouble {
    move |errno| match errno {
        Errno::EEXIST => Trouble::Exists,
        errno => Trouble::Io(step, errno.into()),
    }
}

/// Puts objects back.
#[derive(Debug, Clone, Copy)]
pub struct Restorer<'a> {
    /// Where.
    pub host: &'a Host,
    /// From what.
    pub contents: &'a Contents,
}

impl Restorer<'_> {
    /// Puts one object back, or with `dry_run` says whether that would be tried: all of its data is
    /// checked even so.
    #[must_use]
    pub fn restore(&self, archived: &Archived, dry_run: bool) -> Restored {
        let mut lost = Vec::new();
        match self.try_restore(archived, dry_run, &mut lost) {
            Ok(()) if dry_run => {
                Restored { lost, ..Restored::new(Outcome::WouldRestore, "its data is whole") }
            }
            Ok(()) => Restored { lost, ..Restored::new(Outcome::Restored, "restored") },
            Err(trouble) => trouble.into(),
        }
    }

    fn try_restore(
        &self,
        archived: &Archived,
        dry_run: bool,
        lost: &mut Vec<Lost>,
    ) -> Result<(), Trouble> {
        let entries = &archived.document.entries;
        let Some((first, inside)) = entries.split_first() else {
            return Err(Trouble::Broken("it has no entries".into()));
        };
        // Asked first, so that nothing is written in vain; what counts is asked at the end.
        match c_name(&archived.file).and_then(|name| sys::stat(self.host.shm(), &name)) {
            Ok(_) => return Err(Trouble::Exists),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(Trouble::Io("look at its name", error)),
        }
        if !matches!(first.kind, Type::File | Type::Directory) {
            return Err(Trouble::Broken("only files and directories are restored".into()));
        }
        if dry_run {
            for entry in entries {
                foresee(entry, lost);
                if !geteuid().is_root() && entry.uid != geteuid().as_raw() {
                    lose(lost, "owner", format!("{} was uid {}'s", what(entry), entry.uid));
                }
                if entry.kind == Type::File {
                    self.contents.data(self.host, entry, None)?;
                }
            }
            return Ok(());
        }
        if first.kind == Type::File {
            return self.file(archived, first, lost);
        }
        let building = Building::make(self.host)
            .map_err(|error| Trouble::Io("make a private directory", error))?;
        let built = self.directory(&building, archived, first, inside, lost);
        // What was not finished goes, and so does the directory; else it is a leftover for `reap`.
        let closed = building.close(self.host);
        built.and(closed.map_err(|error| Trouble::Io("remove the private directory", error)))
    }

    /// A file without a name, which gets it when it is whole.
    fn file(
        &self,
        archived: &Archived,
        entry: &Entry,
        lost: &mut Vec<Lost>,
    ) -> Result<(), Trouble> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let file = openat(self.host.shm(), c".", flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(at("make a file"))?;
        self.contents.data(self.host, entry, Some(file.as_fd()))?;
        self.dress(entry, file.as_fd(), lost)?;
        let link = self.link_to(file.as_fd());
        linkat(
            AT_FDCWD,
            &link,
            self.host.shm(),
            archived.file.as_os_str(),
            AtFlags::AT_SYMLINK_FOLLOW,
        )
        .map_err(at("give it its name"))
    }

    fn link_to(&self, fd: BorrowedFd<'_>) -> std::path::PathBuf {
        self.host.proc.join(format!("self/fd/{}", fd.as_raw_fd()))
    }

    /// Owner, permissions and times, in that order: a new owner takes permissions away, and all of
    /// them change the inode.
    fn dress(
        &self,
        entry: &Entry,
        fd: BorrowedFd<'_>,
        lost: &mut Vec<Lost>,
    ) -> Result<(), Trouble> {
        let mut mode = entry.mode().map_err(Trouble::Broken)? & 0o777;
        let empty = c"";
        let own = |uid, gid| fchownat(fd, empty, uid, gid, AtFlags::AT_EMPTY_PATH);
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        if own(Some(uid), Some(gid)).is_err() {
            // Not root, or a user namespace that does not have them: then the group alone, perhaps.
            let group = own(None, Some(gid)).is_ok();
            let is = sys::stat(fd, c"").map_err(|error| Trouble::Io("look at it", error))?;
            if is.uid != entry.uid {
                let (was, is) = (entry.uid, is.uid);
                lose(lost, "owner", format!("{} was uid {was}'s and is uid {is}'s", what(entry)));
            }
            if !group && is.gid != entry.gid {
                // What was for that group is not for another one.
                mode &= !0o070;
                let (was, is) = (entry.gid, is.gid);
                let says = format!(
                    "{} was of group {was} and is of group {is}, which gets no access",
                    what(entry)
                );
                lose(lost, "group", says);
            }
        }
        // The group's permissions were then the mask of what the list gave whom.
        if entry.attributes.iter().any(|name| name == "system.posix_acl_access") {
            mode &= !0o070;
        }
        foresee(entry, lost);
        // The link leads to what is open, and no further.
        let link = self.link_to(fd);
        if entry.kind != Type::Symlink {
            let bits = Mode::from_bits_truncate(mode);
            fchmodat(AT_FDCWD, &link, bits, FchmodatFlags::FollowSymlink)
                .map_err(at("set its mode"))?;
        }
        let (read, written) = (time(entry.atime), time(entry.mtime));
        utimensat(AT_FDCWD, &link, &read, &written, UtimensatFlags::FollowSymlink)
            .map_err(at("set its times"))
    }

    /// A directory, put together in a private one.
    fn directory(
        &self,
        building: &Building,
        archived: &Archived,
        first: &Entry,
        inside: &[Entry],
        lost: &mut Vec<Lost>,
    ) -> Result<(), Trouble> {
        let name = archived.file.as_os_str();
        let private = Mode::S_IRWXU;
        mkdirat(building.fd(), name, private).map_err(at("make it"))?;
        let top = enter(building.fd(), &archived.file)?;
        for entry in inside {
            self.inside(&top, entry, lost)?;
        }
        // The deepest first: a directory that is dressed may not be entered any more, and what is
        // made in one changes its times.
        for entry in inside.iter().rev().filter(|entry| entry.kind == Type::Directory) {
            let (dir, name) = locate(&top, entry)?;
            self.dress(entry, enter(dir.as_fd(), &name)?.as_fd(), lost)?;
        }
        let release =
            || building.release(self.host, &archived.file).map_err(at("give it its name"));
        // Only root moves a directory that it may not write in.
        if !geteuid().is_root() && first.mode().map_err(Trouble::Broken)? & 0o200 == 0 {
            release()?;
            return self.dress(first, top.as_fd(), lost);
        }
        self.dress(first, top.as_fd(), lost)?;
        release()
    }

    /// One thing in a directory.
    fn inside(&self, top: &OwnedFd, entry: &Entry, lost: &mut Vec<Lost>) -> Result<(), Trouble> {
        let (dir, name) = locate(top, entry)?;
        let (dir, file) = (dir.as_fd(), name.as_os_str());
        let private = Mode::S_IRUSR | Mode::S_IWUSR;
        let look = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = match entry.kind {
            Type::Directory => {
                return mkdirat(dir, file, Mode::S_IRWXU).map_err(at("make a directory in it"));
            }
            Type::File => {
                let flags = OFlag::O_RDWR
                    | OFlag::O_CREAT
                    | OFlag::O_EXCL
                    | OFlag::O_NOFOLLOW
                    | OFlag::O_CLOEXEC;
                let made = openat(dir, file, flags, private).map_err(at("make a file in it"))?;
                self.contents.data(self.host, entry, Some(made.as_fd()))?;
                made
            }
            Type::Symlink => {
                let target = Name::new(entry.target().map_err(Trouble::Broken)?);
                symlinkat(target.as_os_str(), dir, file).map_err(at("make a link in it"))?;
                openat(dir, file, look, Mode::empty()).map_err(at("open a link in it"))?
            }
            Type::Fifo => {
                mkfifoat(dir, file, private).map_err(at("make a fifo in it"))?;
                openat(dir, file, look, Mode::empty()).map_err(at("open a fifo in it"))?
            }
            Type::Socket | Type::Device => {
                foresee(entry, lost);
                return Ok(());
            }
        };
        self.dress(entry, made.as_fd(), lost)
    }
}

/// An entry in a sentence.
fn what(entry: &Entry) -> String {
    let path = Name::new(entry.path().unwrap_or_default());
    if entry.path.is_empty() { "it".to_owned() } else { path.to_string() }
}

/// Of one sort, so many are told of: a directory may hold a hundred thousand files.
const MOST_TOLD: usize = 5;

fn lose(lost: &mut Vec<Lost>, code: &'static str, says: String) {
    let told = lost.iter().filter(|one| one.code == code).count();
    match told.cmp(&MOST_TOLD) {
        std::cmp::Ordering::Less => lost.push(Lost { code, says }),
        std::cmp::Ordering::Equal => lost.push(Lost { code, says: "and more like that".into() }),
        std::cmp::Ordering::Greater => {}
    }
}

/// What of an entry does not come back, whoever restores it.
fn foresee(entry: &Entry, lost: &mut Vec<Lost>) {
    let what = what(entry);
    let special = entry.mode().unwrap_or_default() & 0o7000;
    if special != 0 && entry.kind != Type::Symlink {
        let says = format!(
            "{what} had the special bits {special:04o} (set-uid, set-gid, sticky), which are dropped"
        );
        lose(lost, "special-bits", says);
    }
    if entry.nlink > 1 && entry.kind != Type::Directory {
        let says = format!("{what} had {} names, and is a file by itself now", entry.nlink);
        lose(lost, "hard-links", says);
    }
    if entry.attributes.iter().any(|name| name.starts_with("system.posix_acl")) {
        let says = format!("{what} had an access control list; its group gets no access instead");
        lose(lost, "acl", says);
    }
    let others = entry.attributes.iter().filter(|name| !name.starts_with("system.posix_acl"));
    let others: Vec<String> = others.map(|name| escape(name.as_bytes())).collect();
    if !others.is_empty() {
        lose(lost, "attributes", format!("{what} had the attributes {}", others.join(", ")));
    }
    if matches!(entry.kind, Type::Socket | Type::Device) {
        lose(lost, "special-file", format!("{what} is a socket or a device"));
    }
}

fn time(moment: Moment) -> TimeSpec {
    TimeSpec::new(moment.s, moment.ns.into())
}

/// The directory that an entry is in, below `top`, which is ours alone, and its name there.
fn locate(top: &OwnedFd, entry: &Entry) -> Result<(OwnedFd, Name), Trouble> {
    let path = entry.path().map_err(Trouble::Broken)?;
    let mut dir = top.try_clone().map_err(|error| Trouble::Io("open it", error))?;
    let mut names = path.split(|b| *b == b'/').map(Name::new).peekable();
    while let Some(name) = names.next() {
        if names.peek().is_none() {
            return Ok((dir, name));
        }
        dir = enter(dir.as_fd(), &name)?;
    }
    Err(Trouble::Broken("a path is empty".into()))
}

fn enter(dir: BorrowedFd<'_>, name: &Name) -> Result<OwnedFd, Trouble> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name.as_os_str(), flags, Mode::empty()).map_err(at("open a directory of it"))
}
