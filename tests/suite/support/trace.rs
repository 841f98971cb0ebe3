//! A program stopped at a system call, so that a test can act between two of its steps.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};

use super::check;

/// Runs `command` and calls `meanwhile` whenever its first thread is about to make the system call
/// `number` (`SYS_…`), with how often it has been stopped there before, and its pid; it goes on
/// when `meanwhile` returns. Fails the case if that call is never made.
pub(crate) fn stopped_before(
    number: libc::c_long,
    command: &mut Command,
    mut meanwhile: impl FnMut(u32, u32),
) -> ExitStatus {
    stopped_with_arguments(number, command, |stops, pid, _| meanwhile(stops, pid))
}

/// As [`stopped_before`]; `meanwhile` is given the arguments of the call as well.
pub(crate) fn stopped_with_arguments(
    number: libc::c_long,
    command: &mut Command,
    mut meanwhile: impl FnMut(u32, u32, [u64; 6]),
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
    let mut stops = 0;
    loop {
        let mut status = 0;
        // SAFETY: the status is one integer.
        check(unsafe { libc::waitpid(pid, &mut status, 0) }).unwrap();
        if !libc::WIFSTOPPED(status) {
            assert!(stops > 0, "{command:?} never made system call {number}");
            return ExitStatus::from_raw(status);
        }
        // The first stop is that of exec; from then on system calls can be told from signals.
        let signal = libc::WSTOPSIG(status);
        // SAFETY: the process is stopped, or was killed by `meanwhile`: then waiting tells.
        unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, libc::PTRACE_O_TRACESYSGOOD) };
        if let Some((entered, arguments)) = enters(pid)
            && entered == number
        {
            meanwhile(stops, child.id(), arguments);
            stops += 1;
        }
        // Stops for exec and system calls are this tracer's own, other signals are passed on.
        let passed = if signal & 0x7f == libc::SIGTRAP { 0 } else { signal };
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0, passed) };
    }
}

/// The system call that the stopped process is about to make, if it stopped for one, and its arguments.
fn enters(pid: i32) -> Option<(libc::c_long, [u64; 6])> {
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
    Some((entry.nr.try_into().unwrap(), entry.args))
}
