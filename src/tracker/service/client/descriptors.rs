//! What /proc says of the descriptors of processes.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

/// `/proc/PID/FILE`
pub(super) fn proc(pid: i32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}

/// What a descriptor was opened for.
pub(super) struct Access {
    pub(super) reads: bool,
    pub(super) writes: bool,
}

/// What descriptor `fd` of `pid` was opened for.
pub(super) fn access(pid: i32, fd: RawFd) -> Option<Access> {
    let mode = info(pid, fd, "flags:", 8)? & 0o3;
    Some(Access { reads: mode == 0 || mode == 2, writes: mode == 1 || mode == 2 })
}

/// A number in `/proc/PID/fdinfo/FD` (proc_pid_fdinfo(5)); `ino` is there since Linux 5.14.
pub(super) fn info(pid: i32, fd: RawFd, key: &str, radix: u32) -> Option<u64> {
    let text = fs::read_to_string(proc(pid, "fdinfo").join(fd.to_string())).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    u64::from_str_radix(value.trim(), radix).ok()
}

/// The names in a directory that are numbers.
pub(super) fn numbers(directory: &Path) -> io::Result<Vec<RawFd>> {
    let entries = fs::read_dir(directory)?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}
