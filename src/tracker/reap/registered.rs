//! Removal by name and unconditionally, as the resource tracker's protocol demands it for what
//! its clients registered and never took back.

use std::ffi::CString;
use std::fmt;
use std::io;

use crate::tracker::service::protocol::Rtype;
use crate::tracker::service::python::ReprStr;
use crate::tracker::sys;

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
    /// The C library's `shm_unlink` or `sem_unlink` failed.
    #[error("{}", OsErrorText(.error, .name.as_deref()))]
    Os {
        /// With its errno.
        error: io::Error,
        /// The name, where Python's message ends with it.
        name: Option<Vec<u8>>,
    },
}

/// Which characters of a name are bytes that are not UTF-8: the first run of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surrogates {
    position: usize,
    count: usize,
    first: u8,
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

struct OsErrorText<'a>(&'a io::Error, Option<&'a [u8]>);

impl fmt::Display for OsErrorText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(error, name) = self;
        let errno = error.raw_os_error().unwrap_or_default();
        let text = error.to_string();
        // std appends the number to what strerror says; Python puts it before.
        let text = text.strip_suffix(&format!(" (os error {errno})")).unwrap_or(&text);
        write!(f, "[Errno {errno}] {text}")?;
        match name {
            Some(name) => write!(f, ": {}", ReprStr(name)),
            None => Ok(()),
        }
    }
}

/// Removes the resource of that name. The C library's rules for names hold, since it is the C
/// library that removes: no path is ever built from a name.
///
/// # Errors
/// See [`RemoveError`].
pub fn remove(rtype: Rtype, name: &[u8]) -> Result<(), RemoveError> {
    let unlink = match rtype {
        Rtype::Noop => return Err(RemoveError::Noop),
        Rtype::Dummy => return Ok(()),
        Rtype::Semaphore => sys::sem_unlink,
        Rtype::SharedMemory => sys::shm_unlink,
    };
    if let Some(surrogates) = Surrogates::find(name) {
        return Err(RemoveError::NotUtf8(surrogates));
    }
    let text = CString::new(name).map_err(|_| RemoveError::EmbeddedNul)?;
    unlink(&text).map_err(|error| RemoveError::Os {
        error,
        name: (rtype == Rtype::SharedMemory).then(|| name.to_vec()),
    })
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
        ] {
            assert_eq!(error.unwrap_err().to_string(), text);
        }
        remove(Rtype::Dummy, b"\0").unwrap();
    }
}
