//! Mappings of a process, asked for one by one: `PROCMAP_QUERY` (Linux 6.11).
//!
//! The kernel passes over those that are not asked for without writing a line about each, as it does for
//! who reads `/proc/PID/maps`: for a process of thousands of private mappings that is most of the work.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `PROCMAP_QUERY_*` of linux/fs.h.
const VMA_READABLE: u64 = 0x01;
const VMA_WRITABLE: u64 = 0x02;
const VMA_EXECUTABLE: u64 = 0x04;
const VMA_SHARED: u64 = 0x08;
const COVERING_OR_NEXT: u64 = 0x10;
const FILE_BACKED: u64 = 0x20;

/// The longest name that the kernel tells (`PATH_MAX`), with its NUL.
pub const NAME_MAX: usize = 4096;

/// `struct procmap_query` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

nix::ioctl_readwrite!(
    /// `PROCMAP_QUERY` of linux/fs.h.
    procmap_query,
    b'f',
    17,
    Query
);

/// One mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Its first address,
    pub start: u64,
    /// and the one behind its last.
    pub end: u64,
    /// Device number of what is mapped, as `maps` has it.
    pub dev: u64,
    /// Its inode number.
    pub ino: u64,
    /// How it may be used, as `maps` shows it: `rw-`.
    pub access: [u8; 3],
    /// Whether it is shared.
    pub shared: bool,
}

/// The first mapping of a file at or behind `address` in the process whose `maps` is open; with `shared` only
/// such as are. With `name`, what `maps` shows as its path is put there, without a NUL; it is
/// empty if that is too long.
///
/// # Errors
/// `ENOTTY`: the kernel does not know this question. `ESRCH`: the process is gone.
pub fn next_of_file(
    maps: impl AsFd,
    address: u64,
    shared: bool,
    name: Option<&mut Vec<u8>>,
) -> io::Result<Option<Mapping>> {
    let flags = COVERING_OR_NEXT | FILE_BACKED | if shared { VMA_SHARED } else { 0 };
    let size = size_of::<Query>() as u64;
    let mut query = Query { size, flags, address, ..Query::default() };
    let mut name = name;
    if let Some(name) = name.as_deref_mut() {
        name.clear();
        name.resize(NAME_MAX, 0);
        query.name = name.as_mut_ptr() as u64;
        query.name_size = NAME_MAX as u32;
    }
    // SAFETY: the kernel reads and writes one structure of the size that it names, and writes a name of at most
    // as many bytes as the buffer has that it points to.
    match unsafe { procmap_query(maps.as_fd().as_raw_fd(), &raw mut query) } {
        Ok(_) => {}
        Err(nix::Error::ENOENT) => return Ok(None),
        Err(nix::Error::ENAMETOOLONG) if name.is_some() => {
            let found = next_of_file(maps, address, shared, None)?;
            if let Some(name) = name {
                name.clear();
            }
            return Ok(found);
        }
        Err(errno) => return Err(errno.into()),
    }
    if let Some(name) = name {
        name.truncate((query.name_size as usize).saturating_sub(1));
    }
    let has = |flag: u64, letter: u8| if query.vma_flags & flag != 0 { letter } else { b'-' };
    Ok(Some(Mapping {
        start: query.start,
        end: query.end,
        dev: libc::makedev(query.major, query.minor),
        ino: query.inode,
        access: [has(VMA_READABLE, b'r'), has(VMA_WRITABLE, b'w'), has(VMA_EXECUTABLE, b'x')],
        shared: query.vma_flags & VMA_SHARED != 0,
    }))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// The same as the text says, for this process.
    #[test]
    fn says_what_the_text_says() {
        let file = tempfile();
        let length = std::num::NonZeroUsize::new(8192).unwrap();
        let (protection, flags) =
            (nix::sys::mman::ProtFlags::PROT_READ, nix::sys::mman::MapFlags::MAP_SHARED);
        // SAFETY: the mapping is not used.
        let address =
            unsafe { nix::sys::mman::mmap(None, length, protection, flags, &file, 0) }.unwrap();
        let start = address.as_ptr() as u64;
        let maps = File::open("/proc/self/maps").unwrap();
        let mut name = Vec::new();
        let found = match next_of_file(&maps, start, true, Some(&mut name)) {
            // The kernel is older.
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => return,
            other => other.unwrap().unwrap(),
        };
        let stat = super::super::stat(&file, c"").unwrap();
        let expected = Mapping {
            start,
            end: start + 8192,
            dev: stat.dev,
            ino: stat.ino,
            access: *b"r--",
            shared: true,
        };
        assert_eq!(found, expected);
        assert_eq!(name, b"/memfd:rtrack-test (deleted)");
        assert!(next_of_file(&maps, u64::MAX - 4096, false, None).unwrap().is_none());
        // SAFETY: as above.
        unsafe { nix::sys::mman::munmap(address, 8192) }.unwrap();
    }

    fn tempfile() -> File {
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let file = File::from(nix::sys::memfd::memfd_create(c"rtrack-test", flags).unwrap());
        file.set_len(8192).unwrap();
        file
    }
}
