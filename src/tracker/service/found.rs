//! What a registered name means: the object that has it now.

use std::ffi::CString;

use super::dialect::Rtype;
use crate::tracker::resource::Identity;
use crate::tracker::sys::{self, Stat};

/// The object of a name in /dev/shm, if it is there: glibc and musl put shared memory there, and semaphores
/// with the prefix `sem.` (sem_overview(7)). Nothing for other types.
#[must_use]
pub fn in_shm(rtype: Rtype, name: &[u8]) -> Option<Stat> {
    let prefix = match rtype {
        Rtype::SharedMemory => "",
        Rtype::Semaphore | Rtype::Semlock => "sem.",
        _ => return None,
    };
    let first = name.iter().position(|byte| *byte != b'/')?;
    let name = name.get(first..)?;
    if name.contains(&b'/') {
        return None;
    }
    stat([b"/dev/shm/", prefix.as_bytes(), name].concat())
}

/// The same, and files and folders by their paths, which may wait for their file system.
#[must_use]
pub fn anywhere(rtype: Rtype, name: &[u8]) -> Option<Stat> {
    match rtype {
        Rtype::File | Rtype::Folder => stat(name.to_vec()),
        _ => in_shm(rtype, name),
    }
}

/// What a name of that type stands for, whatever it is spelled like and called: two registrations of one object have
/// the same.
#[must_use]
pub fn meaning(rtype: Rtype, name: &[u8]) -> (&'static str, Box<[u8]>) {
    let bare = || {
        let first = name.iter().position(|byte| *byte != b'/').unwrap_or(name.len());
        name.get(first..).unwrap_or_default()
    };
    match rtype {
        Rtype::SharedMemory => ("shm", bare().into()),
        Rtype::Semaphore | Rtype::Semlock => ("shm", [b"sem.", bare()].concat().into()),
        Rtype::MessageQueue => ("mqueue", bare().into()),
        Rtype::File | Rtype::Folder => {
            let end = name.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
            let path = name.get(..end).unwrap_or_default();
            match path.strip_prefix(b"/dev/shm/") {
                Some(inside) if !inside.contains(&b'/') => ("shm", inside.into()),
                _ => ("path", path.into()),
            }
        }
        other => (other.as_str(), name.into()),
    }
}

/// Whether what has a name of that type can be found by it.
#[must_use]
pub const fn is_known_place(rtype: Rtype) -> bool {
    matches!(
        rtype,
        Rtype::SharedMemory | Rtype::Semaphore | Rtype::Semlock | Rtype::File | Rtype::Folder
    )
}

/// Whether `then`, which had a name once, has lost it to another object.
#[must_use]
pub fn is_another(rtype: Rtype, name: &[u8], then: &Identity) -> bool {
    anywhere(rtype, name).is_some_and(|now| !then.is(&now))
}

fn stat(path: Vec<u8>) -> Option<Stat> {
    sys::stat(nix::fcntl::AT_FDCWD, &CString::new(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_has_one_meaning() {
        for (one, other, same) in [
            ((Rtype::SharedMemory, "/a"), (Rtype::SharedMemory, "a"), true),
            ((Rtype::SharedMemory, "sem.k"), (Rtype::Semaphore, "//k"), true),
            ((Rtype::Semaphore, "k"), (Rtype::Semlock, "/k"), true),
            ((Rtype::File, "/dev/shm/a"), (Rtype::SharedMemory, "a"), true),
            ((Rtype::Folder, "/tmp/d/"), (Rtype::Folder, "/tmp/d"), true),
            ((Rtype::MessageQueue, "/a"), (Rtype::SharedMemory, "/a"), false),
            ((Rtype::SysvShm, "7"), (Rtype::SysvSem, "7"), false),
            ((Rtype::SharedMemory, "a"), (Rtype::SharedMemory, "b"), false),
        ] {
            let meaning = |(rtype, name): (Rtype, &str)| meaning(rtype, name.as_bytes());
            assert_eq!(meaning(one) == meaning(other), same, "{one:?} {other:?}");
        }
    }
}
