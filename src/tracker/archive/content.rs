//! The content of files: copied with its holes, and its digest, which does not depend on how holes
//! are kept.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, ftruncate, lseek};
use sha2::{Digest as _, Sha256};

use super::format;

/// What is hashed or left out as a whole; no file system that matters has smaller pages.
const BLOCK: usize = 4096;

/// So much is read and written at once.
const PIECE: usize = 1 << 18;

/// So much is written before it is sent to the disk: what is left for the end is little, and whoever
/// waits for a lease does not wait for all of it at once.
const UNSYNCED: u64 = 64 << 20;

/// Why content was not copied.
#[derive(Debug)]
pub(super) enum CopyError {
    /// It was told to stop.
    Stopped,
    /// Reading failed.
    Read(io::Error),
    /// Writing failed.
    Write(io::Error),
}

/// The digest of the first `size` bytes of `from`, which are copied to the empty file `to`, if there
/// is one. Only what is no hole is read and written; `go_on` is asked before each 256 KiB.
pub(super) fn copy(
    from: BorrowedFd<'_>,
    to: Option<BorrowedFd<'_>>,
    size: u64,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<String, CopyError> {
    let write = |error: io::Error| CopyError::Write(error);
    let source = own(from).map_err(CopyError::Read)?;
    let target = to.map(own).transpose().map_err(write)?;
    let length = i64::try_from(size).map_err(|_| write(Errno::EFBIG.into()))?;
    if let Some(to) = to {
        ftruncate(to, length).map_err(|errno| write(errno.into()))?;
    }
    let mut hash = Sha256::new_with_prefix(b"rtrack.content/1\0");
    let mut buffer = vec![0; PIECE];
    let (mut at, mut unsynced) = (0, 0);
    while let Some((start, end)) = next_data(from, at, size).map_err(CopyError::Read)? {
        at = start;
        while at < end {
            if !go_on() {
                return Err(CopyError::Stopped);
            }
            let length = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let piece = buffer.get_mut(..length).unwrap_or_default();
            source.read_exact_at(piece, at).map_err(CopyError::Read)?;
            update(&mut hash, at, piece);
            if let Some(target) = &target {
                target.write_all_at(piece, at).map_err(write)?;
                unsynced += length as u64;
                if unsynced >= UNSYNCED {
                    target.sync_data().map_err(write)?;
                    unsynced = 0;
                }
            }
            at += length as u64;
        }
    }
    hash.update(size.to_le_bytes());
    Ok(format::finish(hash))
}

fn own(fd: BorrowedFd<'_>) -> io::Result<File> {
    fd.as_fd().try_clone_to_owned().map(File::from)
}

/// Adds what is not zero of a piece at `offset`, a multiple of a block.
fn update(hash: &mut Sha256, offset: u64, piece: &[u8]) {
    const ZEROES: [u8; BLOCK] = [0; BLOCK];
    for (number, block) in piece.chunks(BLOCK).enumerate() {
        let (zeroes, fill) = ZEROES.split_at(block.len());
        if block != zeroes {
            hash.update((offset + (number * BLOCK) as u64).to_le_bytes());
            hash.update(block);
            hash.update(fill);
        }
    }
}

/// The first data at or after `at`, in whole blocks but for the end of the file: where it begins and
/// ends. `at` is a multiple of a block.
fn next_data(file: BorrowedFd<'_>, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |at: u64, whence| match lseek(file, i64::try_from(at).unwrap_or(i64::MAX), whence) {
        Ok(found) => Ok(Some(found.unsigned_abs())),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)),
    };
    if at >= size {
        return Ok(None);
    }
    let Some(data) = seek(at, Whence::SeekData)? else { return Ok(None) };
    let hole = seek(data, Whence::SeekHole)?.unwrap_or(size);
    let block = BLOCK as u64;
    let start = (data - data % block).max(at);
    let end = hole.max(start + 1).next_multiple_of(block).min(size);
    Ok((start < end).then_some((start, end)))
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    fn file() -> File {
        File::from(memfd_create(c"content", MFdFlags::MFD_CLOEXEC).unwrap())
    }

    fn digest(file: &File) -> String {
        copy(file.as_fd(), None, file.metadata().unwrap().len(), &mut || true).unwrap()
    }

    #[test]
    fn holes_and_zeroes_are_the_same_content() {
        let (sparse, full) = (file(), file());
        for file in [&sparse, &full] {
            file.set_len(1_000_001).unwrap();
        }
        full.write_all_at(&vec![0; 1_000_001], 0).unwrap();
        for file in [&sparse, &full] {
            file.write_all_at(b"x", 4095).unwrap();
            file.write_all_at(b"y", 500_000).unwrap();
            file.write_all_at(b"z", 1_000_000).unwrap();
        }
        assert_eq!(digest(&sparse), digest(&full));
        let copied = file();
        let read = copy(sparse.as_fd(), Some(copied.as_fd()), 1_000_001, &mut || true).unwrap();
        assert_eq!((read.as_str(), digest(&copied)), (&*digest(&full), digest(&full)));
    }

    #[test]
    fn every_byte_its_place_and_the_size_count() {
        let base = file();
        base.write_all_at(&[7; 10_000], 0).unwrap();
        let mut seen = std::collections::BTreeSet::from([digest(&base)]);
        for (bytes, at, size) in [
            (&b"\x08"[..], 0, 10_000),
            (b"\x08", 9_999, 10_000),
            (b"", 0, 10_001),
            (b"", 0, 9_999),
            (b"", 0, 100 << 30),
        ] {
            let other = file();
            other.write_all_at(&[7; 10_000], 0).unwrap();
            other.write_all_at(bytes, at).unwrap();
            other.set_len(size).unwrap();
            assert!(seen.insert(digest(&other)), "{at} {size}");
        }
    }

    #[test]
    fn it_stops_when_told() {
        let base = file();
        base.write_all_at(&vec![1; 3 * PIECE], 0).unwrap();
        let mut left = 2;
        let stopped = copy(base.as_fd(), None, 3 * PIECE as u64, &mut || {
            left -= 1;
            left >= 0
        });
        assert!(matches!(stopped, Err(CopyError::Stopped)));
        let short = copy(base.as_fd(), None, 4 * PIECE as u64 + 1, &mut || true);
        // What lies beyond the end is no data.
        assert!(short.is_ok());
    }
}
