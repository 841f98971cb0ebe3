//! Where a case runs: a supervisor process, which outlives the case and ends whatever it left
//! behind, and below it the case in its own namespaces.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, exit};
use std::time::{Duration, Instant};

use super::case::{Case, Need, find, skip};
use super::namespaces::{check, private_mounts, unshare};
pub(crate) use super::namespaces::{fork, mount, status_of};
use super::pythons;

/// Names the directory of this run to the cases.
pub(super) const RUN_DIRECTORY: &str = "RTRACK_SUITE_DIR";
/// Overrides the binary under test.
const BINARY: &str = "RTRACK_BIN";
/// Overrides the program of `examples/register.rs`.
const EXAMPLE: &str = "RTRACK_EXAMPLE";

/// A directory for the whole run, which every user can enter; removed at the end.
pub(super) struct RunDirectory {
    path: PathBuf,
    binary: PathBuf,
}

/// Makes the run's directory. Root's tests run the binary as other users too: where it lies under
/// a directory that they cannot enter, they get a copy.
pub(super) fn prepare() -> RunDirectory {
    let path = std::env::temp_dir().join(format!("rtrack-suite-{}", std::process::id()));
    fs::DirBuilder::new().mode(0o755).create(&path).unwrap();
    fs::create_dir(path.join("scratch")).unwrap();
    let built = std::env::var_os(BINARY)
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_rtrack")), PathBuf::from);
    let binary = if is_real_root() && !everybody_reaches(&built) {
        let copy = path.join("rtrack");
        fs::copy(&built, &copy).unwrap();
        copy
    } else {
        built
    };
    RunDirectory { path, binary }
}

/// Whether users who own nothing on the way can execute `path`.
pub(super) fn everybody_reaches(path: &Path) -> bool {
    path.ancestors()
        .all(|part| fs::metadata(part).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0))
}

impl RunDirectory {
    /// What the cases are told.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            (RUN_DIRECTORY, self.path.to_str().unwrap().to_owned()),
            (BINARY, self.binary.to_str().unwrap().to_owned()),
        ]
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.path).unwrap_or(());
    }
}

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os(BINARY).unwrap().into()
}

/// The example that registers a memory object. Cargo builds it with all tests, and not with this one
/// alone: then the case is skipped.
pub(crate) fn example() -> PathBuf {
    let built = || Path::new(env!("CARGO_BIN_EXE_rtrack")).with_file_name("examples/register");
    let path = std::env::var_os(EXAMPLE).map_or_else(built, PathBuf::from);
    if !path.exists() {
        skip(format_args!("{} is not built: cargo build --examples", path.display()));
    }
    path
}

/// The directory of the whole run: no tmpfs where the machine's temporary directory is none.
pub(crate) fn run_directory() -> PathBuf {
    std::env::var_os(RUN_DIRECTORY).unwrap().into()
}

/// A user and group that no account has and no other run of the tests uses; nor the next one.
pub(crate) fn somebody() -> u32 {
    let directory = run_directory();
    let run = directory.to_str().unwrap().rsplit('-').next().unwrap().parse::<u32>().unwrap();
    200_000 + 2 * run
}

/// The case's own empty directory, a tmpfs that everybody may write to; also its working directory.
pub(crate) fn scratch() -> PathBuf {
    run_directory().join("scratch")
}

/// The directory in which programs of a user keep their state: users share the rest of what the
/// environment says.
pub(crate) fn state_of(uid: u32) -> PathBuf {
    scratch().join(format!("state-{uid}"))
}

/// Whether this process is root of the first user namespace.
pub(crate) fn is_real_root() -> bool {
    // SAFETY: the call reads the process's own credentials.
    let root = unsafe { libc::geteuid() } == 0;
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    root && map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Runs the case called `name` in a child, ends everything it started, and answers with its
/// status. It works on the host's /proc and signals only its own descendants, by pid.
pub(crate) fn supervise(name: &str) -> ExitCode {
    let case = find(name);
    // SAFETY: these calls change flags of this process, which has a single thread.
    let signals = unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    let child = fork();
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::sigprocmask(libc::SIG_UNBLOCK, &signals, std::ptr::null_mut());
        }
        exit(enter_and_run(&case));
    }
    let status = watch(&case, child, &signals);
    let end = Instant::now() + Duration::from_secs(60);
    while let [first, rest @ ..] = descendants().as_slice() {
        for &pid in std::iter::once(first).chain(rest) {
            // SAFETY: the pid is a descendant's, and a zombie's pid is not used again before the
            // loop below has waited for it.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        // SAFETY: waiting without a status touches no memory.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        if Instant::now() > end {
            eprintln!("{:?} cannot be ended", descendants());
            return ExitCode::FAILURE;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    status
}

/// Waits for the case, its time, or a request to stop.
fn watch(case: &Case, child: i32, signals: &libc::sigset_t) -> ExitCode {
    let end = Instant::now() + Duration::from_secs(case.seconds);
    loop {
        let mut status = 0;
        // SAFETY: the status is one integer.
        match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
            pid if pid == child => return ExitCode::from(status_of(status)),
            pid if pid > 0 => continue,
            _ => {}
        }
        let left = end.saturating_duration_since(Instant::now());
        let timeout = libc::timespec {
            tv_sec: left.as_secs().try_into().unwrap(),
            tv_nsec: left.subsec_nanos().into(),
        };
        // SAFETY: both structures live, and no information about the signal is asked for.
        match unsafe { libc::sigtimedwait(signals, std::ptr::null_mut(), &timeout) } {
            libc::SIGCHLD => {}
            -1 if left.is_zero() => {
                eprintln!("the watchdog ended the case after {} s; alive were:", case.seconds);
                for pid in descendants() {
                    let read = |file: &str| {
                        let text = fs::read_to_string(format!("/proc/{pid}/{file}"));
                        text.unwrap_or_default().trim().to_owned()
                    };
                    let (comm, wchan, syscall) = (read("comm"), read("wchan"), read("syscall"));
                    eprintln!("  {pid} {comm} in {wchan}, system call {syscall}");
                }
                return ExitCode::FAILURE;
            }
            -1 => {}
            signal => {
                eprintln!("ended by signal {signal}");
                return ExitCode::FAILURE;
            }
        }
    }
}

/// Every process below this one. Processes whose parent died are here too: this one is their
/// subreaper.
fn descendants() -> Vec<i32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let stat = fs::read(entry.path().join("stat")).unwrap_or_default();
        // The name, in parentheses, can hold anything: what follows the last one is fields.
        let stat = String::from_utf8_lossy(&stat).into_owned();
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        let parent = fields.split(' ').nth(1).and_then(|ppid| ppid.parse::<i32>().ok());
        parents.extend(pid.zip(parent));
    }
    let mut found = vec![i32::try_from(std::process::id()).unwrap()];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// The child's side: the namespaces, then the case. Answers with the exit status.
fn enter_and_run(case: &Case) -> i32 {
    if case.needs.contains(&Need::RealRoot) && !is_real_root() {
        skip("needs root of the first user namespace, to become other users");
    }
    if case.needs.contains(&Need::Fuse) {
        let fuse = fs::File::options().read(true).write(true).open("/dev/fuse");
        fuse.map(drop).unwrap_or_else(|error| skip(format_args!("/dev/fuse: {error}")));
    }
    let own_pids = case.needs.contains(&Need::PidNamespace);
    if let Err(error) = unshare(own_pids) {
        skip(format_args!("no private namespaces: {error}"));
    }
    if own_pids {
        let init = fork();
        if init > 0 {
            let mut status = 0;
            // SAFETY: the status is one integer.
            check(unsafe { libc::waitpid(init, &mut status, 0) }).unwrap();
            return status_of(status).into();
        }
        // SAFETY: this changes a flag of this process only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let child = fork();
        if child > 0 {
            exit(be_init(child));
        }
    }
    if let Err(error) = mounts(own_pids) {
        skip(format_args!("no private mounts: {error}"));
    }
    if case.needs.contains(&Need::Python) && pythons().is_empty() {
        skip("no Python from 3.8 on was found");
    }
    clean_environment();
    let result = catch_unwind(AssertUnwindSafe(case.body));
    if result.is_ok() { 0 } else { 101 }
}

/// Takes away what programs would be told by the environment of whoever runs the tests.
fn clean_environment() {
    let home = std::env::var_os("HOME").unwrap_or_default();
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let is_told = ["PYTHON", "XDG_"].iter().any(|prefix| name.starts_with(prefix));
        if is_told || ["NO_COLOR", "COLUMNS", "RTRACK_FD"].contains(&&*name) {
            // SAFETY: this process has a single thread.
            unsafe { std::env::remove_var(&*name) };
        }
    }
    // SAFETY: as above. Interpreters are looked for in the real home.
    unsafe {
        std::env::set_var("HOME", scratch());
        if std::env::var_os("PYENV_ROOT").is_none() {
            std::env::set_var("PYENV_ROOT", Path::new(&home).join(".pyenv"));
        }
    }
}

/// Pid 1 of a namespace: waits for everything that loses its parent, until the case ends. The
/// kernel ends what is left then.
fn be_init(case: i32) -> i32 {
    loop {
        let mut status = 0;
        // SAFETY: the status is one integer.
        let pid = check(unsafe { libc::waitpid(-1, &mut status, 0) }).unwrap();
        if pid == case {
            return status_of(status).into();
        }
    }
}

fn mounts(own_pids: bool) -> io::Result<()> {
    private_mounts(own_pids)?;
    // Where root's reaps are recorded. Of other users see `state_of`.
    mount("tmpfs", "/var/log", "tmpfs", 0, "mode=755,size=256M")?;
    mount("tmpfs", scratch().to_str().unwrap(), "tmpfs", 0, "mode=1777,size=256M")?;
    std::env::set_current_dir(scratch())
}
