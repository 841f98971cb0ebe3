//! A program stopped at a system call, so that a test can act between two of its steps.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};

use super::check;

/// A system call that a stopped process is about to make.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// Which one (`SYS_…`).
    pub(crate) number: libc::c_long,
    /// What it is given.
    pub(crate) arguments: [u64; 6],
}

/// Runs `command` and calls `meanwhile` whenever its first thread is about to make the system call
/// `number` (`SYS_…`), with how often it has been stopped there before, and its pid; it goes on
/// when `meanwhile` returns. Fails the case if that call is never made.
pub(crate) fn stopped_before(
    number: libc::c_long,
    command: &mut Command,
    mut meanwhile: impl FnMut(u32, u32),
) -> ExitStatus {
    stopped_before_any(&[number], command, |_, stops, pid| meanwhile(stops, pid))
}

/// The same for several system calls; `meanwhile` is told which.
pub(crate) fn stopped_before_any(
    numbers: &[libc::c_long],
    command: &mut Command,
    mut meanwhile: impl FnMut(libc::c_long, u32, u32),
) -> ExitStatus {
    let mut stops = 0;
    let status = stopped_before_each(command, |call, pid| {
        if numbers.contains(&call.number) {
            meanwhile(call.number, stops, pid);
            stops += 1;
        }
    });
    assert!(stops > 0, "{command:?} never made one of the system calls {numbers:?}");
    status
}

/// As [`stopped_before`]; `meanwhile` is given the arguments of the call as well.
pub(crate) fn stopped_with_arguments(
    number: libc::c_long,
    command: &mut Command,
    mut meanwhile: impl FnMut(u32, u32, [u64; 6]),
) -> ExitStatus {
    let mut stops = 0;
    let status = stopped_before_each(command, |call, pid| {
        if call.number == number {
            meanwhile(stops, pid, call.arguments);
            stops += 1;
        }
    });
    assert!(stops > 0, "{command:?} never made system call {number}");
    status
}

/// Runs `command` and calls `meanwhile` before every system call of its first thread, with its
/// pid; it goes on when `meanwhile` returns, unless that has killed it.
pub(crate) fn stopped_before_each(
    command: &mut Command,
    mut meanwhile: impl FnMut(Call, u32),
) -> ExitStatus {
    // SAFETY: between fork and exec only system calls are made.
    unsafe {
        command.pre_exec(|| {
            check(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0).try_into().unwrap()).map(drop)
        });
    }
    command.stdin(Stdio::null());
    // Not waited for by its handle: its stops have to be told from its end.
    #[allow(clippy::zombie_processes)]
    let child = command.spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    loop {
        let mut status = 0;
        // SAFETY: the status is one integer.
        check(unsafe { libc::waitpid(pid, &mut status, 0) }).unwrap();
        if !libc::WIFSTOPPED(status) {
            return ExitStatus::from_raw(status);
        }
        // The first stop is that of exec; from then on system calls can be told from signals.
        let signal = libc::WSTOPSIG(status);
        // SAFETY: the process is stopped, or was killed by `meanwhile`: then waiting tells.
        unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, libc::PTRACE_O_TRACESYSGOOD) };
        if let Some(call) = enters(pid) {
            meanwhile(call, child.id());
        }
        // Stops for exec and system calls are this tracer's own, other signals are passed on.
        let passed = if signal & 0x7f == libc::SIGTRAP { 0 } else { signal };
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0, passed) };
    }
}

/// The system call that the stopped process is about to make, if it stopped for one.
fn enters(pid: i32) -> Option<Call> {
    // SAFETY: the structure is integers only, and the kernel writes at most its size.
    let info = unsafe {
        let mut info = std::mem::zeroed::<libc::ptrace_syscall_info>();
        let size = size_of_val(&info);
        let request = libc::PTRACE_GET_SYSCALL_INFO;
        if libc::ptrace(request, pid, size, &raw mut info) <= 0 {
            return None;
        }
        info
    };
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: the kernel says that this is the member it wrote.
    let entry = unsafe { info.u.entry };
    Some(Call { number: entry.nr.try_into().unwrap(), arguments: entry.args })
}
