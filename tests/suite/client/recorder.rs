//! A tracker that only writes down: what it is started with, and what it is told. Whatever it took out
//! of the pipe is in its file, even when it is killed at that moment, because the kernel moves it.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rtrack::tracker::service::client::{Builder, ResourceTracker};

use super::records;
use crate::support::{check, wait_for};

/// A client of such trackers, which write down any name. `mode` is one of
/// - nothing: it records,
/// - `deaf`: it never reads,
/// - `dies`: it ends at once,
/// - `first-closes`: the first one closes its pipe after a message and lives on.
pub(super) fn recorder(mode: &str) -> Builder {
    fs::create_dir_all(records()).unwrap();
    let own = std::env::current_exe().unwrap();
    let records = records();
    let arguments = [own.to_str().unwrap(), "__record", records.to_str().unwrap(), "{fd}", mode];
    ResourceTracker::builder().command(arguments).any_name()
}

/// `suite __record DIRECTORY FD MODE`
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let [directory, fd, mode] = arguments else { panic!("__record DIRECTORY FD MODE") };
    let fd: RawFd = fd.parse().unwrap();
    let pid = std::process::id();
    let first = fs::read_dir(directory).unwrap().next().is_none();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut open: Vec<i32> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().ok())
        .collect();
    // The directory itself was open too.
    // SAFETY: the call touches no memory.
    open.retain(|number| unsafe { libc::fcntl(*number, libc::F_GETFD) } != -1);
    let open: Vec<String> = open.iter().map(ToString::to_string).collect();
    let text = format!("{status}open: {}\n", open.join(" "));
    fs::write(format!("{directory}/{pid}.new"), text).unwrap();
    fs::rename(format!("{directory}/{pid}.new"), format!("{directory}/{pid}.status")).unwrap();
    match mode.as_str() {
        "dies" => return ExitCode::SUCCESS,
        "deaf" => std::thread::sleep(Duration::from_secs(1000)),
        "first-closes" if first => {
            let mut message = [0; 512];
            // SAFETY: the kernel writes to the buffer; the descriptor was passed for this program.
            unsafe {
                libc::read(fd, message.as_mut_ptr().cast(), message.len());
                libc::close(fd);
            }
            std::thread::sleep(Duration::from_secs(1000));
        }
        _ => {}
    }
    let out = File::create(format!("{directory}/{pid}.lines")).unwrap();
    let to = std::os::fd::AsRawFd::as_raw_fd(&out);
    let nowhere = std::ptr::null_mut();
    // SAFETY: no memory of this process is involved.
    while unsafe { libc::splice(fd, nowhere, to, nowhere, 1 << 16, 0) } > 0 {}
    ExitCode::SUCCESS
}

/// The files of what recorders were told.
fn files() -> impl Iterator<Item = PathBuf> {
    let files = fs::read_dir(records()).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "lines"))
}

/// What the recorders were told, each in the order of time, without newlines.
pub(super) fn lines() -> Vec<String> {
    let mut files: Vec<PathBuf> = files().collect();
    files.sort_by_key(|path| fs::metadata(path).unwrap().created().unwrap());
    let text: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    text.lines().map(str::to_owned).collect()
}

/// How many bytes that is.
pub(super) fn bytes() -> u64 {
    files().map(|path| fs::metadata(path).unwrap().len()).sum()
}

/// How many were started, as far as they came to write that down.
pub(super) fn starts() -> usize {
    let entries = fs::read_dir(records()).unwrap();
    let status = |name: &str| name.ends_with(".status");
    entries.filter(|entry| status(entry.as_ref().unwrap().file_name().to_str().unwrap())).count()
}

/// What the present one wrote down of itself.
pub(super) fn ready(tracker: &ResourceTracker) -> String {
    let file = records().join(format!("{}.status", tracker.pid().unwrap()));
    wait_for("the recorder", || fs::read_to_string(&file).ok())
}

/// Ends what a child of a fork does, past everything of its parent's that would run at the end.
pub(super) fn leave(success: bool) -> ! {
    std::io::stdout().flush().unwrap_or(());
    // SAFETY: the process ends.
    unsafe { libc::_exit(i32::from(!success)) }
}

/// Waits for a child; whether it said that all was well.
pub(super) fn went_well(child: i32) -> bool {
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    check(unsafe { libc::waitpid(child, &mut status, 0) }).unwrap();
    status == 0
}
