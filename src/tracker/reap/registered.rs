//! Removal by name and unconditionally, as the resource tracker's protocol demands it for what
//! its clients registered and never took back.

use std::ffi::{CString, OsStr};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;

use super::trees::{self, TreeError};
use crate::tracker::service::dialect::{Rtype, system_v_id};
use crate::tracker::service::python::{ReprStr, os_error_class};
use crate::tracker::sys;
use crate::tracker::sys::ipc::{self, Family, State};
use crate::tracker::sys::mqueue;

/// Why a registered resource could not be removed. `Display` is what CPython's tracker prints.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// `noop` is for probes; there is nothing behind it that could be removed.
    #[error("noop should never be registered or cleaned up")]
    Noop,
    /// CPython makes a `str` of the name and cannot hand it to the C library, so it never removes
    /// such an object. Nor does it create one.
    #[error("'utf-8' codec can't encode {0}: surrogates not allowed")]
    NotUtf8(Surrogates),
    /// A name with a NUL would be cut there and remove another object. Refused since CPython 3.14;
    /// before that only for semaphores.
    #[error("embedded null character")]
    EmbeddedNul,
    /// The same in a path.
    #[error("embedded null byte")]
    NulInPath,
    /// A System V object is named by its id and by nothing else.
    #[error("not the id of a System V object: {}", ReprStr(.0))]
    NotAnId(Vec<u8>),
    /// A folder, or something in it.
    #[error(transparent)]
    Tree(TreeError),
    /// The C library's `shm_unlink`, `sem_unlink`, `mq_unlink` or `unlink` failed, or `IPC_RMID`.
    #[error("{}", OsErrorText(.error, .name.as_deref()))]
    Os {
        /// With its errno.
        error: io::Error,
        /// The name, where Python's message ends with it.
        name: Option<Vec<u8>>,
    },
    /// Another step on the way, which only who removes with care takes.
    #[error("[Errno {errno}] {says}")]
    Step {
        /// The errno,
        errno: i32,
        /// and what was done.
        says: String,
    },
}

/// What became of a registered resource.
#[derive(Debug)]
pub enum Fate {
    /// It is removed, with so many entries that were in it.
    Removed(u64),
    /// Somebody uses it, or that cannot be ruled out, and it was to stay then; with the reason.
    Kept(String),
    /// Another object has its name now, which nobody registered: it stays.
    Changed,
    /// It could not be removed.
    Failed(RemoveError),
}

impl From<Result<u64, RemoveError>> for Fate {
    fn from(result: Result<u64, RemoveError>) -> Self {
        result.map_or_else(Self::Failed, Self::Removed)
    }
}

/// Which characters of a name are bytes that are not UTF-8: the first run of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surrogates {
    position: usize,
    count: usize,
    first: u8,
}

impl RemoveError {
    fn named(error: io::Error, name: &[u8]) -> Self {
        Self::Os { error, name: Some(name.to_vec()) }
    }

    /// The errno, where a system call failed.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Os { error, .. } => error.raw_os_error(),
            Self::Tree(error) => error.errno(),
            Self::Step { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// The error that removing this resource by its name would have met.
    pub(super) fn of(rtype: Rtype, name: &[u8], errno: i32) -> Self {
        let error = io::Error::from_raw_os_error(errno);
        match rtype {
            Rtype::Folder => Self::Tree(TreeError::Os { error, within: Vec::new() }),
            _ => Self::Os { error, name: (rtype == Rtype::SharedMemory).then(|| name.to_vec()) },
        }
    }
}

impl Surrogates {
    fn find(name: &[u8]) -> Option<Self> {
        let mut found: Option<Self> = None;
        let mut position = 0;
        for chunk in name.utf8_chunks() {
            match &mut found {
                Some(run) if chunk.valid().is_empty() => run.count += chunk.invalid().len(),
                Some(_) => break,
                None => {
                    position += chunk.valid().chars().count();
                    let count = chunk.invalid().len();
                    let first = chunk.invalid().first().copied();
                    found = first.map(|first| Self { position, count, first });
                }
            }
        }
        found
    }
}

impl fmt::Display for Surrogates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, count, first } = self;
        if *count == 1 {
            write!(f, "character '\\udc{first:02x}' in position {position}")
        } else {
            write!(f, "characters in position {position}-{}", position + count - 1)
        }
    }
}

/// What strerror says: std appends the number to it, Python puts that before.
fn strerror(error: &io::Error) -> String {
    let errno = error.raw_os_error().unwrap_or_default();
    let text = error.to_string();
    text.strip_suffix(&format!(" (os error {errno})")).unwrap_or(&text).to_owned()
}

struct OsErrorText<'a>(&'a io::Error, Option<&'a [u8]>);

impl fmt::Display for OsErrorText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(error, name) = self;
        let errno = error.raw_os_error().unwrap_or_default();
        write!(f, "[Errno {errno}] {}", strerror(error))?;
        match name {
            Some(name) => write!(f, ": {}", ReprStr(name)),
            None => Ok(()),
        }
    }
}

/// The same as `repr()` shows the exception, which is what loky's tracker prints.
#[derive(Debug)]
pub struct Repr<'a> {
    /// Why it could not be removed,
    pub error: &'a RemoveError,
    /// and its name.
    pub name: &'a [u8],
}

impl fmt::Display for Repr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let os = |error: &io::Error, f: &mut fmt::Formatter<'_>| {
            let errno = error.raw_os_error().unwrap_or_default();
            let text = strerror(error);
            write!(f, "{}({errno}, {})", os_error_class(errno), ReprStr(text.as_bytes()))
        };
        match self.error {
            RemoveError::Noop => write!(f, "RuntimeError('{}')", self.error),
            RemoveError::NotUtf8(Surrogates { position, count, .. }) => write!(
                f,
                "UnicodeEncodeError('utf-8', {}, {position}, {}, 'surrogates not allowed')",
                ReprStr(self.name),
                position + count,
            ),
            RemoveError::EmbeddedNul | RemoveError::NulInPath => {
                write!(f, "ValueError('{}')", self.error)
            }
            RemoveError::NotAnId(_) => {
                write!(f, "ValueError({})", ReprStr(self.error.to_string().as_bytes()))
            }
            RemoveError::Os { error, .. } | RemoveError::Tree(TreeError::Os { error, .. }) => {
                os(error, f)
            }
            RemoveError::Step { errno, says } => {
                write!(f, "{}({errno}, {})", os_error_class(*errno), ReprStr(says.as_bytes()))
            }
            RemoveError::Tree(error) => {
                write!(f, "OSError({})", ReprStr(error.to_string().as_bytes()))
            }
        }
    }
}

/// Removes the resource of that name, and answers how many entries were in it. For semaphores, memory and
/// message queues the C library's rules for names hold, since it is the C library that removes: no path
/// is ever built from a name. Files and folders are named by their paths, System V objects by their ids.
///
/// Who has a resource open keeps it. A System V segment that is attached is marked by this: its key finds it
/// no more, and it goes with its last user. Sets of semaphores and System V queues are not kept by anybody:
/// who waits at one is woken with `EIDRM`.
///
/// # Errors
/// See [`RemoveError`].
pub fn remove(rtype: Rtype, name: &[u8]) -> Result<u64, RemoveError> {
    let unlink = match rtype {
        Rtype::Noop => return Err(RemoveError::Noop),
        Rtype::Dummy => return Ok(0),
        Rtype::Semaphore | Rtype::Semlock => sys::sem_unlink,
        Rtype::SharedMemory => sys::shm_unlink,
        Rtype::MessageQueue => mqueue::unlink,
        Rtype::SysvShm => return remove_by_id(Family::Shm, name),
        Rtype::SysvSem => return remove_by_id(Family::Sem, name),
        Rtype::SysvMsg => return remove_by_id(Family::Msg, name),
        Rtype::File | Rtype::Folder if name.contains(&0) => return Err(RemoveError::NulInPath),
        Rtype::File => {
            return nix::unistd::unlink(OsStr::from_bytes(name))
                .map(|()| 0)
                .map_err(|errno| RemoveError::named(errno.into(), name));
        }
        Rtype::Folder => return trees::remove(name).map_err(RemoveError::Tree),
    };
    // Python has no message queues, and so no rule that would keep one of another name.
    if rtype != Rtype::MessageQueue
        && let Some(surrogates) = Surrogates::find(name)
    {
        return Err(RemoveError::NotUtf8(surrogates));
    }
    let text = CString::new(name).map_err(|_| RemoveError::EmbeddedNul)?;
    unlink(&text).map(|()| 0).map_err(|error| match rtype {
        Rtype::Semaphore | Rtype::Semlock => RemoveError::Os { error, name: None },
        _ => RemoveError::named(error, name),
    })
}

/// `IPC_RMID`. The kernel has two numbers for an id that is of no object (any more), one of which it also
/// has for every other mistake; here it is what a name is that leads to nothing.
fn remove_by_id(family: Family, name: &[u8]) -> Result<u64, RemoveError> {
    let id = system_v_id(name).ok_or_else(|| RemoveError::NotAnId(name.to_vec()))?;
    ipc::remove(family, id).map(|()| 0).map_err(|error| match ipc::is_gone(&error) {
        true => RemoveError::named(io::Error::from_raw_os_error(libc::ENOENT), name),
        false => RemoveError::named(error, name),
    })
}

/// What the kernel says of a System V object that is about to be removed, for the record; nothing of anything
/// else, nor where it says nothing.
#[must_use]
pub fn state(rtype: Rtype, name: &[u8]) -> Option<State> {
    let family = match rtype {
        Rtype::SysvShm => Family::Shm,
        Rtype::SysvSem => Family::Sem,
        Rtype::SysvMsg => Family::Msg,
        _ => return None,
    };
    ipc::state(family, system_v_id(name)?).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_pythons() {
        let missing = || io::Error::from_raw_os_error(nix::libc::ENOENT);
        for (error, text) in [
            (remove(Rtype::Noop, b"x"), "noop should never be registered or cleaned up"),
            (remove(Rtype::Semaphore, b"a\0b"), "embedded null character"),
            (remove(Rtype::SharedMemory, b"a\0b"), "embedded null character"),
            (
                remove(Rtype::SharedMemory, b"/\xc3\xa9\xff"),
                "'utf-8' codec can't encode character '\\udcff' in position 2: surrogates not allowed",
            ),
            (
                remove(Rtype::Semaphore, b"\xe2\x82\xff\0x\xff"),
                "'utf-8' codec can't encode characters in position 0-2: surrogates not allowed",
            ),
            (
                Err(RemoveError::Os { error: missing(), name: None }),
                "[Errno 2] No such file or directory",
            ),
            (
                Err(RemoveError::Os { error: missing(), name: Some(b"/a'".to_vec()) }),
                "[Errno 2] No such file or directory: \"/a'\"",
            ),
            (remove(Rtype::MessageQueue, b"a\0b"), "embedded null character"),
            (remove(Rtype::File, b"a\0b"), "embedded null byte"),
            (remove(Rtype::File, b""), "[Errno 2] No such file or directory: ''"),
            (remove(Rtype::File, b"/"), "[Errno 21] Is a directory: '/'"),
            (remove(Rtype::SysvShm, b""), "not the id of a System V object: ''"),
            (remove(Rtype::SysvShm, b"0x5"), "not the id of a System V object: '0x5'"),
            (remove(Rtype::SysvSem, b" 5"), "not the id of a System V object: ' 5'"),
            (remove(Rtype::SysvMsg, b"-1"), "not the id of a System V object: '-1'"),
            (remove(Rtype::SysvMsg, b"5\0"), "not the id of a System V object: '5\\x00'"),
        ] {
            assert_eq!(error.unwrap_err().to_string(), text);
        }
        remove(Rtype::Dummy, b"\0").unwrap();
    }
    #[test]
    fn exceptions_are_shown_as_loky_shows_them() {
        for (rtype, name, shown) in [
            (
                Rtype::Noop,
                &b"x"[..],
                "RuntimeError('noop should never be registered or cleaned up')",
            ),
            (Rtype::Semlock, b"a\0b", "ValueError('embedded null character')"),
            (Rtype::File, b"a\0b", "ValueError('embedded null byte')"),
            (Rtype::Folder, b"a\0b", "ValueError('embedded null byte')"),
            (
                Rtype::Semlock,
                b"/\xff",
                "UnicodeEncodeError('utf-8', '/\\udcff', 1, 2, 'surrogates not allowed')",
            ),
            (Rtype::Semlock, b"/a/b", "FileNotFoundError(2, 'No such file or directory')"),
            (Rtype::File, b"", "FileNotFoundError(2, 'No such file or directory')"),
            (Rtype::File, b"/", "IsADirectoryError(21, 'Is a directory')"),
            (Rtype::File, b"/dev/null/x", "NotADirectoryError(20, 'Not a directory')"),
            (Rtype::Folder, b"", "FileNotFoundError(2, 'No such file or directory')"),
            (Rtype::Folder, b"/dev/null", "NotADirectoryError(20, 'Not a directory')"),
            (Rtype::Folder, b"/dev/fd", "OSError('Cannot call rmtree on a symbolic link')"),
            (Rtype::Folder, b"/dev/fd/", "OSError('Cannot call rmtree on a symbolic link')"),
            (Rtype::Folder, b"/proc", "OSError('Cannot call rmtree on a mount: /proc')"),
            (Rtype::Folder, b"/", "OSError('Cannot call rmtree on /')"),
            (Rtype::SysvSem, b"it's", r#"ValueError('not the id of a System V object: "it\'s"')"#),
        ] {
            let error = remove(rtype, name).unwrap_err();
            assert_eq!(Repr { error: &error, name }.to_string(), shown, "{rtype}");
        }
    }
}
