//! Starting a program as a tracker, without an allocation and without a copy of this process.
//!
//! `posix_spawn` would do but for two things: its file actions allocate, which a signal handler
//! must not, and it cannot close what else is open on every C library.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::SigSet;

use super::check;

/// The descriptor under which the program finds what it reads.
pub(crate) const INPUT: RawFd = 3;

/// The stack of the child until it executes the program: it makes a few system calls.
const STACK: usize = 64 * 1024;

/// How long is slept between two questions whether a process has ended, where they cannot be asked
/// of a descriptor (before Linux 5.4).
const STEP: Duration = Duration::from_millis(1);

/// What to execute, prepared so that nothing is left to allocate.
pub(crate) struct Program {
    /// Where it may be; the first that can be executed is.
    candidates: Vec<CString>,
    /// Pointers to what the two vectors below own, and a null each.
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    _arguments: Vec<CString>,
    _environment: Vec<CString>,
}

// SAFETY: the pointers refer to strings on the heap that the structure owns and nobody changes.
unsafe impl Send for Program {}
// SAFETY: as above.
unsafe impl Sync for Program {}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

impl Program {
    pub(crate) fn new(
        candidates: Vec<CString>,
        arguments: Vec<CString>,
        environment: Vec<CString>,
    ) -> Self {
        let (argv, envp) = (pointers(&arguments), pointers(&environment));
        Self { candidates, argv, envp, _arguments: arguments, _environment: environment }
    }
}

/// A child of this process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// That process and no later one of the same pid; nothing before Linux 5.4.
    handle: Option<OwnedFd>,
}

/// What is to be learnt of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It ended, and was waited for here: its exit status.
    Exited(i32),
    /// A signal ended it, and it was waited for here.
    Killed(i32),
    /// Somebody else waited for it, or nobody had to (SIGCHLD is ignored).
    Gone,
    /// It has not ended.
    Alive,
}

impl Process {
    /// Waits for it, and for nothing else, at most that long; without a limit where that is nothing.
    pub(crate) fn reap(&self, patience: Option<Duration>) -> Fate {
        let began = Instant::now();
        let mut told = false;
        loop {
            match self.look() {
                // Its end has been told and is not to be had yet: somebody traces it.
                Fate::Alive if told => std::thread::sleep(STEP),
                Fate::Alive => {}
                fate => return fate,
            }
            let left = patience.map(|patience| patience.saturating_sub(began.elapsed()));
            if left == Some(Duration::ZERO) {
                return Fate::Alive;
            }
            match &self.handle {
                Some(handle) => {
                    let mut asked =
                        libc::pollfd { fd: handle.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                    let timeout = left.map_or(-1, |left| {
                        i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1)
                    });
                    // SAFETY: the kernel reads and writes one structure.
                    told = unsafe { libc::poll(&mut asked, 1, timeout) } == 1;
                }
                None => std::thread::sleep(STEP),
            }
        }
    }

    /// Waits for it if it has ended.
    fn look(&self) -> Fate {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        let mut wait = |kind, id: i32| {
            let flags = libc::WEXITED | libc::WNOHANG;
            // SAFETY: the kernel writes one structure to the buffer.
            Errno::result(unsafe {
                libc::waitid(kind, id.unsigned_abs(), info.as_mut_ptr(), flags)
            })
        };
        let mut waited = Err(Errno::EINVAL);
        if let Some(handle) = &self.handle {
            waited = wait(libc::P_PIDFD, handle.as_raw_fd());
        }
        // There is none, or one that cannot be waited for (Linux 5.2 and 5.3).
        if waited == Err(Errno::EINVAL) {
            waited = wait(libc::P_PID, self.pid);
        }
        match waited {
            Err(Errno::EINTR) => return Fate::Alive,
            Err(_) => return Fate::Gone,
            Ok(_) => {}
        }
        // SAFETY: zeroes are valid for it; the fields are there for every child that is reported.
        let (info, pid, status) = unsafe {
            let info = info.assume_init();
            (info, info.si_pid(), info.si_status())
        };
        match info.si_code {
            _ if pid == 0 => Fate::Alive,
            libc::CLD_EXITED => Fate::Exited(status),
            _ => Fate::Killed(status),
        }
    }
}

/// A program that runs, and the end of the pipe that it reads.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) process: Process,
    pub(crate) writer: OwnedFd,
}

/// Why none does.
#[derive(Debug)]
pub(crate) struct NotStarted {
    /// It is about the pipe or the process, and not about the program.
    pub(crate) before_exec: bool,
    pub(crate) error: io::Error,
    /// The child that could not become the program; somebody has to wait for it.
    pub(crate) process: Option<Process>,
}

impl From<io::Error> for NotStarted {
    fn from(error: io::Error) -> Self {
        Self { before_exec: true, error, process: None }
    }
}

/// What the child is told, and what it answers.
struct Order<'a> {
    program: &'a Program,
    input: RawFd,
    mask: SigSet,
    /// The errno of what it could not do.
    failed: i32,
}

/// `end` under a number of at least `lowest`, closed on exec.
fn at_least(end: OwnedFd, lowest: RawFd) -> io::Result<OwnedFd> {
    if end.as_raw_fd() >= lowest {
        return Ok(end);
    }
    // SAFETY: the call touches no memory.
    let copy = check(unsafe { libc::fcntl(end.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Starts `program` with the reading end of a new pipe as its descriptor [`INPUT`], with the standard
/// descriptors of this process and, since Linux 5.9, no other one. It has `mask` blocked; what this
/// process handles has its default there, and SIGPIPE too, as a program expects that Rust's standard
/// library starts. Nothing is allocated. The caller has all signals blocked.
pub(crate) fn start(program: &Program, mask: SigSet) -> Result<Started, NotStarted> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|error| NotStarted::from(io::Error::from(error)))?;
    let writer = at_least(writer, INPUT)?;
    // Not that number itself: dup2 would do nothing then, and leave it to be closed on exec.
    let reader = at_least(reader, INPUT + 1)?;
    let mut order = Order { program, input: reader.as_raw_fd(), mask, failed: 0 };
    let process = run(&mut order)?;
    match order.failed {
        0 => Ok(Started { process, writer }),
        errno => Err(NotStarted {
            before_exec: false,
            error: io::Error::from_raw_os_error(errno),
            process: Some(process),
        }),
    }
}

/// Runs [`child`] on a stack of its own, in this process's memory, while this thread waits.
fn run(order: &mut Order<'_>) -> io::Result<Process> {
    let (protection, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a mapping at a place of the kernel's choice replaces nothing.
    let stack =
        unsafe { libc::mmap(ptr::null_mut(), STACK, protection, kind | libc::MAP_STACK, -1, 0) };
    if stack == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut handle: libc::c_int = -1;
    let mut clone = |more: libc::c_int| {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD | more;
        let order: *mut Order<'_> = order;
        // SAFETY: the stack grows down from its end, which is aligned. The child shares this memory,
        // and this thread does nothing until it has executed or ended: `order` outlives it, and no
        // second reference to it is used meanwhile. It has descriptors and dispositions of its own.
        unsafe {
            let top = stack.byte_add(STACK);
            libc::clone(child, top, flags, order.cast(), &raw mut handle)
        }
    };
    let pid = match clone(libc::CLONE_PIDFD) {
        // A sandbox that does not know the flag; kernels before 5.2 ignore it.
        -1 if Errno::last() == Errno::EINVAL => clone(0),
        pid => pid,
    };
    let result = check(pid);
    // SAFETY: the child has left this memory, and nothing refers to the mapping.
    unsafe { libc::munmap(stack, STACK) };
    // SAFETY: the kernel has just made this descriptor for us.
    let handle = (handle != -1).then(|| unsafe { OwnedFd::from_raw_fd(handle) });
    // It takes the lowest number, which is a standard descriptor's where one is closed.
    let handle = handle.and_then(|handle| at_least(handle, INPUT).ok());
    Ok(Process { pid: result?, handle })
}

/// The child, up to `execve`. It shares the parent's memory: system calls, and nothing else.
extern "C" fn child(order: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `run` passes an `Order`, and waits.
    let order = unsafe { &mut *order.cast::<Order<'_>>() };
    reset_handlers();
    // SAFETY: the calls touch no memory but the set. The descriptors are the child's own copies, and
    // it is about to lose them. Without close_range, those stay that are not closed on exec.
    let ready = unsafe {
        let input = check(libc::dup2(order.input, INPUT));
        libc::syscall(libc::SYS_close_range, INPUT + 1, libc::c_int::MAX, 0);
        input.and_then(|_| {
            check(libc::sigprocmask(libc::SIG_SETMASK, order.mask.as_ref(), ptr::null_mut()))
        })
    };
    order.failed = match ready {
        Ok(_) => execute(order.program),
        Err(error) => error.raw_os_error().unwrap_or(libc::EINVAL),
    };
    // SAFETY: nothing of the parent's is run at this end.
    unsafe { libc::_exit(127) }
}

/// Handlers are functions of the parent, in its memory: none may run once signals are unblocked.
fn reset_handlers() {
    for signal in 1..=libc::SIGRTMAX() {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: the kernel writes and reads one structure, for which zeroes are valid: the default.
        unsafe {
            if libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == -1 {
                continue;
            }
            let now = action.assume_init().sa_sigaction;
            if now != libc::SIG_DFL && (now != libc::SIG_IGN || signal == libc::SIGPIPE) {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &default, ptr::null_mut());
            }
        }
    }
}

/// Executes the first candidate that is there, as execvp(3) does; the errno where none is.
fn execute(program: &Program) -> i32 {
    let mut refused = libc::ENOENT;
    for candidate in &program.candidates {
        let path: &CStr = candidate;
        // SAFETY: the path is NUL-terminated, the vectors end with a null, and all outlive the call.
        unsafe { libc::execve(path.as_ptr(), program.argv.as_ptr(), program.envp.as_ptr()) };
        match Errno::last() as i32 {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => refused = libc::EACCES,
            error => return error,
        }
    }
    refused
}
