//! The kernel's own answer: is any other open file description of this inode left, anywhere?
//!
//! A write lease is granted only if none is: no descriptor, no mapping (which keeps its file
//! open), in no process, thread, mount or PID namespace, not even in flight over a unix socket. It
//! does not see `O_PATH` descriptors, bind mounts of the file, `open_tree` mounts, file handles,
//! inotify watches, pages in a pipe, and directories.
//!
//! A lease is felt by others: while it is held a blocking opener waits and an `O_NONBLOCK` one
//! (musl's `shm_open` is one) fails with `EAGAIN`. So between grant and release there is nothing
//! but a few system calls on the file itself.

use std::cell::RefCell;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::tracker::host::Host;
use crate::tracker::resource::{Identity, Name};
use crate::tracker::sys::{self, LeaseState, Stat};

/// What asking for a lease showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lease {
    /// Nobody else has the file open or mapped.
    Granted,
    /// Somebody has.
    Refused,
    /// Neither the owner nor `CAP_LEASE`, or the file may not be opened.
    NoPermission,
    /// The kernel has no leases on this file system.
    Unsupported,
    /// Not asked: the answer would not change the verdict, or the kind has no lease.
    NotAsked,
}

/// What a look at one object found.
#[derive(Debug)]
pub enum Look {
    /// It is there and is what was expected.
    Seen {
        /// What the lease showed.
        lease: Lease,
        /// The first 32 bytes, for a semaphore's value.
        head: Option<Vec<u8>>,
    },
    /// Its name is gone.
    Gone,
    /// Its name belongs to another inode now.
    Changed,
}

/// A leased file: nobody else has it open, and who opens it now waits until this is dropped.
///
/// Dropping it gives the lease back by closing the only descriptor.
#[derive(Debug)]
pub struct Leased {
    file: OwnedFd,
}

impl Leased {
    /// Whether nobody has tried to open the file since.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        // An unanswered question counts as somebody's opening.
        matches!(sys::lease_state(&self.file), Ok(LeaseState::Write))
    }

    /// What the leased inode is now.
    ///
    /// # Errors
    /// The errno of statx(2).
    pub fn stat(&self) -> io::Result<Stat> {
        sys::stat(&self.file, c"")
    }

    /// Gives the lease back and keeps the file open.
    ///
    /// # Errors
    /// `Held`: somebody is opening it. Else what kept the kernel from giving it back.
    pub fn give_back(&self) -> Result<(), LeaseError> {
        if self.is_whole() {
            Ok(sys::release_lease(self.file.as_fd())?)
        } else {
            Err(LeaseError::Held)
        }
    }

    /// Whether, after [`Leased::give_back`], nobody else has it open.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        let alone = grant(self.file.as_fd()).is_ok();
        sys::release_lease(self.file.as_fd()).is_ok() && alone
    }

    /// Gives the lease back, calls `meanwhile`, which may take its time, and takes it again, without a
    /// second open. Nobody has had the file open in between: the times of a file tell of a write at
    /// most, and to the granularity of the kernel's clock, but an open cannot be missed.
    ///
    /// # Errors
    /// `Held`: somebody has, or is opening it now. Else what kept the kernel from telling.
    pub fn without(&self, host: &Host, meanwhile: impl FnOnce()) -> Result<(), LeaseError> {
        let watch = Watch::on(host, self.file.as_fd())?;
        // Asked when the watch is there, so that between the two there is no gap.
        self.give_back()?;
        meanwhile();
        grant(self.file.as_fd())?;
        if watch.is_quiet()? { Ok(()) } else { Err(LeaseError::Held) }
    }
}

impl AsFd for Leased {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Tells of everybody who opens a file, by whatever name.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
}

impl Watch {
    /// Watches the file that is open as `file`.
    ///
    /// # Errors
    /// The errno of inotify_init1(2), `EMFILE` when this user has too many, or of
    /// inotify_add_watch(2).
    pub fn on(host: &Host, file: BorrowedFd<'_>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let link = host.proc.join(format!("self/fd/{}", file.as_raw_fd()));
        // The link leads to the file itself, which this does not open.
        inotify.add_watch(&link, AddWatchFlags::IN_OPEN | AddWatchFlags::IN_MODIFY)?;
        Ok(Self { inotify })
    }

    /// Whether nobody has opened or written the file since.
    ///
    /// # Errors
    /// The errno of reading what happened.
    pub fn is_quiet(&self) -> io::Result<bool> {
        match self.inotify.read_events() {
            Ok(_) => Ok(false),
            Err(nix::Error::EAGAIN) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        // `F_UNLCK` first: openers wake now and not when the last reference goes. A failure
        // leaves the release to the close that follows.
        sys::release_lease(self.file.as_fd()).unwrap_or(());
    }
}

/// Why a file could not be leased.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Its name is gone.
    #[error("it is gone")]
    Gone,
    /// Its name belongs to another inode, or another kind of file.
    #[error("it was replaced")]
    Changed,
    /// Somebody else has it open or mapped, or has a lease on it.
    #[error("somebody has it open or mapped")]
    Held,
    /// Neither owner nor `CAP_LEASE`, or no permission to open it.
    #[error("no permission to ask the kernel")]
    NoPermission,
    /// The file system has no leases.
    #[error("no lease support")]
    Unsupported,
    /// The link in procfs that leads to it does not.
    #[error("open it through {link}: {source}")]
    Reopen {
        /// The link.
        link: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Opens what `name` in `dir` is, if it is the regular file `expected`, without ever opening
/// anything else: an `O_PATH` descriptor is looked at first and reopened through procfs.
///
/// # Errors
/// [`LeaseError`]; `Held` when somebody else's lease is in the way.
pub fn open_expected(
    host: &Host,
    dir: BorrowedFd<'_>,
    name: &Name,
    expected: &Identity,
) -> Result<OwnedFd, LeaseError> {
    let path = match openat(
        dir,
        name.as_os_str(),
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fd) => fd,
        Err(nix::Error::ENOENT) => return Err(LeaseError::Gone),
        Err(nix::Error::EACCES) => return Err(LeaseError::NoPermission),
        Err(errno) => return Err(io::Error::from(errno).into()),
    };
    let stat = match sys::stat(&path, c"") {
        Ok(stat) => stat,
        // Over what lay there a user may have mounted a FUSE file, which denies everything but this.
        Err(_) if sys::device(&path)? != expected.dev => return Err(LeaseError::Changed),
        Err(error) => return Err(error.into()),
    };
    if !stat.is_file() || !expected.is(&stat) {
        return Err(LeaseError::Changed);
    }
    reopen(host, path.as_fd())
}

/// Opens for reading what a descriptor refers to, once more or for the first time.
fn reopen(host: &Host, file: BorrowedFd<'_>) -> Result<OwnedFd, LeaseError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let number = file.as_raw_fd();
    let opened = with_own_descriptors(&host.proc, |directory| {
        openat(directory, number.to_string().as_str(), flags, Mode::empty())
    });
    let link = || host.proc.join(format!("self/fd/{number}"));
    match opened {
        Ok(fd) => Ok(fd),
        Err(nix::Error::EAGAIN) => Err(LeaseError::Held),
        Err(nix::Error::EACCES | nix::Error::EPERM) => Err(LeaseError::NoPermission),
        Err(errno) => Err(LeaseError::Reopen { link: link(), source: errno.into() }),
    }
}

/// The directory of a process's own descriptors, as this thread has it open.
struct OwnDescriptors {
    proc: PathBuf,
    /// In a child of fork(2) it would be the parent's.
    pid: Pid,
    directory: OwnedFd,
}

/// Calls `work` with the directory of our own descriptors, which is opened once: the way there is most of what
/// opening one of them by its path takes.
fn with_own_descriptors<T>(
    proc: &Path,
    work: impl FnOnce(BorrowedFd<'_>) -> nix::Result<T>,
) -> nix::Result<T> {
    thread_local! {
        static OWN: RefCell<Option<OwnDescriptors>> = const { RefCell::new(None) };
    }
    let pid = Pid::this();
    OWN.with_borrow_mut(|own| {
        if own.as_ref().is_none_or(|own| own.pid != pid || own.proc != proc) {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let directory = openat(AT_FDCWD, &proc.join("self/fd"), flags, Mode::empty())?;
            *own = Some(OwnDescriptors { proc: proc.to_owned(), pid, directory });
        }
        own.as_ref().map_or(Err(nix::Error::EBADF), |own| work(own.directory.as_fd()))
    })
}

/// Leases the regular file `expected` that `name` in `dir` is.
///
/// # Errors
/// [`LeaseError`].
pub fn take(
    host: &Host,
    dir: BorrowedFd<'_>,
    name: &Name,
    expected: &Identity,
) -> Result<Leased, LeaseError> {
    lease(open_expected(host, dir, name, expected)?)
}

/// The same, where leases cannot be tried out on a file of our own, as on mqueuefs, which has no files
/// without a name: on this very file. The kernel has to refuse it while it is open here twice.
///
/// # Errors
/// [`LeaseError`]; `Unsupported` when the kernel grants what it has to refuse.
pub fn take_tested(
    host: &Host,
    dir: BorrowedFd<'_>,
    name: &Name,
    expected: &Identity,
) -> Result<Leased, LeaseError> {
    let file = open_expected(host, dir, name, expected)?;
    let second = reopen(host, file.as_fd())?;
    match grant(file.as_fd()) {
        Err(LeaseError::Held) => {}
        Ok(()) => {
            sys::release_lease(file.as_fd())?;
            return Err(LeaseError::Unsupported);
        }
        Err(error) => return Err(error),
    }
    drop(second);
    lease(file)
}

/// Asks about one object by [`take_tested`] and gives the lease back at once.
///
/// # Errors
/// As [`look`].
pub fn look_tested(
    host: &Host,
    dir: BorrowedFd<'_>,
    name: &Name,
    expected: &Identity,
) -> io::Result<Look> {
    let lease = match take_tested(host, dir, name, expected) {
        Ok(leased) => {
            drop(leased);
            Lease::Granted
        }
        Err(LeaseError::Gone) => return Ok(Look::Gone),
        Err(LeaseError::Changed) => return Ok(Look::Changed),
        Err(LeaseError::Held) => Lease::Refused,
        Err(LeaseError::NoPermission) => Lease::NoPermission,
        Err(LeaseError::Unsupported) => Lease::Unsupported,
        Err(LeaseError::Io(error)) => return Err(error),
        Err(error @ LeaseError::Reopen { .. }) => return Err(io::Error::other(error.to_string())),
    };
    Ok(Look::Seen { lease, head: None })
}

fn lease(file: OwnedFd) -> Result<Leased, LeaseError> {
    grant(file.as_fd()).map(|()| Leased { file })
}

fn grant(file: BorrowedFd<'_>) -> Result<(), LeaseError> {
    let mut result = sys::take_write_lease(file);
    if result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EACCES)) {
        result = sys::take_write_lease_as(file, sys::stat(file, c"")?.uid);
    }
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::EAGAIN) => LeaseError::Held,
            Some(libc::EACCES | libc::EPERM) => LeaseError::NoPermission,
            Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS) => LeaseError::Unsupported,
            _ => LeaseError::Io(error),
        }),
    }
}

/// Asks about one object and gives the lease back at once. With `head` its first 32 bytes are
/// read too, before the lease is asked for.
///
/// # Errors
/// What opening or reading failed with, other than the answers that [`Look`] and [`Lease`] name.
pub fn look(
    host: &Host,
    dir: BorrowedFd<'_>,
    name: &Name,
    expected: &Identity,
    ask: bool,
    head: bool,
) -> io::Result<Look> {
    let seen = |lease, head| Ok(Look::Seen { lease, head });
    let file = match open_expected(host, dir, name, expected) {
        Ok(file) => file,
        Err(LeaseError::Gone) => return Ok(Look::Gone),
        Err(LeaseError::Changed) => return Ok(Look::Changed),
        Err(LeaseError::Held) => return seen(Lease::Refused, None),
        Err(LeaseError::NoPermission) => return seen(Lease::NoPermission, None),
        Err(LeaseError::Unsupported) => return seen(Lease::Unsupported, None),
        Err(LeaseError::Io(error)) => return Err(error),
        Err(error @ LeaseError::Reopen { .. }) => return Err(io::Error::other(error.to_string())),
    };
    let file = File::from(file);
    let head = if head {
        let mut bytes = vec![0; 32];
        let length = file.read_at(&mut bytes, 0)?;
        bytes.truncate(length);
        Some(bytes)
    } else {
        None
    };
    if !ask {
        return seen(Lease::NotAsked, head);
    }
    let answer = match lease(file.into()) {
        Ok(leased) => {
            drop(leased);
            Lease::Granted
        }
        Err(LeaseError::Held) => Lease::Refused,
        Err(LeaseError::NoPermission) => Lease::NoPermission,
        Err(LeaseError::Unsupported) => Lease::Unsupported,
        Err(LeaseError::Io(error)) => return Err(error),
        // Not of asking about what is open already.
        Err(LeaseError::Gone | LeaseError::Changed | LeaseError::Reopen { .. }) => {
            return Ok(Look::Changed);
        }
    };
    seen(answer, head)
}

/// Whether leases tell the truth on this mount, found out on a file of our own: granted when it is
/// open once, refused when it is open a second time. Newer kernels make leases opt-in for each
/// file system; gVisor and old kernels lack this one.
///
/// The file has no name (`O_TMPFILE`); where the mount has no room for it (no bytes or inodes
/// left, read-only, not ours to write in) it is a memfd, which lives on a tmpfs of the kernel's.
#[must_use]
pub fn calibrate(host: &Host) -> bool {
    let open = |how: OFlag| {
        openat(
            host.shm(),
            c".",
            how | OFlag::O_TMPFILE | OFlag::O_CLOEXEC,
            Mode::S_IRUSR | Mode::S_IWUSR,
        )
    };
    let Ok(file) = open(OFlag::O_RDWR).or_else(|_| {
        nix::sys::memfd::memfd_create(c"rtrack-calibration", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
    }) else {
        return false;
    };
    // The descriptor that made a memfd is not counted as one that has it open, and objects are
    // asked about by read-only descriptors: so two of those are compared.
    let reopen = || {
        openat(
            AT_FDCWD,
            &host.proc.join(format!("self/fd/{}", file.as_raw_fd())),
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
    };
    let (Ok(first), Ok(second), Ok(third)) = (reopen(), reopen(), reopen()) else { return false };
    drop(file);
    let refused = matches!(lease(first), Err(LeaseError::Held));
    drop(second);
    let granted = lease(third).is_ok();
    refused && granted
}

/// Keeps two rtracks from seeing each other's probes: a lock on the directory itself, held while
/// probing. A courtesy only: any user can hold that lock, so it delays us by `patience` at most
/// and nothing relies on it.
#[must_use]
pub fn courtesy_lock(dir: BorrowedFd<'_>, patience: Duration) -> Option<File> {
    let own =
        openat(dir, c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .ok()?;
    let step = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    loop {
        match sys::try_lock(&own) {
            Ok(true) => return Some(File::from(own)),
            Ok(false) if waited < patience => {
                std::thread::sleep(step);
                waited += step;
            }
            _ => return None,
        }
    }
}

/// Patience with the locks of others in several directories: each user can have many, and lock them all
/// for ever.
#[derive(Debug)]
pub struct Patience {
    one: Duration,
    left: Duration,
}

impl Patience {
    /// As much as `one` with one directory, and four times as much with all of them.
    #[must_use]
    pub fn new(one: Duration) -> Self {
        Self { one, left: one * 4 }
    }

    /// As [`courtesy_lock`], as long as there is patience left.
    #[must_use]
    pub fn lock(&mut self, dir: BorrowedFd<'_>) -> Option<File> {
        let began = Instant::now();
        let lock = courtesy_lock(dir, self.one.min(self.left));
        self.left = self.left.saturating_sub(began.elapsed());
        lock
    }
}

/// `name` for a system call.
///
/// # Errors
/// `EINVAL` when it holds a NUL, which no directory entry does.
pub fn c_name(name: &Name) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
