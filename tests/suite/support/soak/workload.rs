//! The processes that make objects and open them by name.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use super::board::{Board, Count};
use super::objects;

/// The main function of the processes that race.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    // SAFETY: this changes a flag of this process only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    match arguments {
        [role, memory] if role == "creator" => create(&Board::inherited(memory.parse().unwrap())),
        [role, memory] if role == "opener" => open(&Board::inherited(memory.parse().unwrap())),
        _ => panic!("usage: __race creator|opener DESCRIPTOR"),
    }
    ExitCode::SUCCESS
}

/// Where the objects lie, with their indices.
fn paths() -> Vec<(usize, PathBuf)> {
    objects().map(|name| Path::new("/dev/shm").join(name)).enumerate().collect()
}

/// Makes whatever is missing, for ever. Each object holds its own inode number, and that of its making.
fn create(board: &Board) {
    let mut number = 0_u64;
    loop {
        for (index, path) in &paths() {
            let mut options = File::options();
            match options.read(true).write(true).create_new(true).open(path) {
                Ok(file) => {
                    number += 1;
                    let inode = file.metadata().unwrap().ino();
                    file.set_len(4096).unwrap();
                    // The inode last: where it is to be seen, the number is as well.
                    file.write_all_at(&number.to_ne_bytes(), 8).unwrap();
                    file.write_all_at(&inode.to_ne_bytes(), 0).unwrap();
                    board.set_latest(*index, number);
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists),
            }
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// Opens objects, one after the other, until it is told to stop.
fn open(board: &Board) {
    let start = usize::try_from(std::process::id()).unwrap();
    for (turn, (index, path)) in paths().iter().cycle().skip(start % 16).enumerate() {
        if board.has_stopped() {
            break;
        }
        let latest = board.latest(*index);
        match File::options().read(true).write(true).open(path) {
            Ok(file) => hold(board, *index, path, latest, file, turn),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                board.add(Count::Missing);
                thread::yield_now();
            }
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}

/// Maps the object, closes its descriptor, verifies it and holds it for a moment. Before it was
/// opened, the newest of its name was number `latest`.
fn hold(board: &Board, index: usize, path: &Path, latest: u64, file: File, turn: usize) {
    board.add(Count::Opens);
    let opened = file.metadata().map(|meta| (meta.dev(), meta.ino())).unwrap();
    let mapping = Mapping::of(&file);
    drop(file);
    // Nothing there yet: the creator is between its steps.
    let (inode, number) = mapping.content();
    if inode != 0 && number < latest {
        board.add(Count::Stale);
    }
    let now = identity(path);
    if now != Some(opened) {
        board.add(Count::LostAtOpen);
        if inode == 0 || now.is_some() || board.latest(index) > number {
            board.add(Count::LostToNewer);
        } else {
            board.lose(opened.1);
        }
        return;
    }
    // Most look once or twice more, some hold it for milliseconds.
    let checks = if turn.is_multiple_of(64) { 20 } else { turn % 4 };
    for check in 0..checks {
        if check > 0 {
            thread::sleep(Duration::from_micros(20));
        }
        if identity(path) != Some(opened) {
            board.add(Count::LostWhileHeld);
            break;
        }
    }
    let (inode, _) = mapping.content();
    if inode != 0 && inode != opened.1 {
        board.add(Count::WrongContent);
    }
}

/// Device and inode of what the path leads to.
fn identity(path: &Path) -> Option<(u64, u64)> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Some((meta.dev(), meta.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// A shared mapping of an object's page, which is all that holds it.
struct Mapping(*mut libc::c_void, bool);

impl Mapping {
    fn of(file: &File) -> Self {
        let (access, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        let whole = file.metadata().unwrap().len() >= 4096;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, shared, file.as_raw_fd(), 0) };
        assert!(address != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(address, whole)
    }

    /// The inode and the number at its start; an inode 0 while there are none.
    fn content(&self) -> (u64, u64) {
        if !self.1 {
            return (0, 0);
        }
        let words = self.0.cast::<u64>();
        // SAFETY: the page lies inside the file, which never shrinks, and others may write it.
        unsafe { (words.read_volatile(), words.add(1).read_volatile()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own.
        unsafe { libc::munmap(self.0, 4096) };
    }
}
