//! Who waits at a System V message queue: of semaphores the kernel counts that, of queues it does not.
//!
//! `/proc/PID/task/TID/syscall` tells what a thread waits in. Reading it takes a lock that somebody may
//! hold for ever, so it is read by a deadline.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::processes::{gone, words};
use crate::tracker::deadline;
use crate::tracker::host::Host;

/// Who waits at message queues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiters {
    /// How many threads do, by IPC namespace and id.
    waiting: HashMap<(u64, i32), u64>,
    /// Not everybody could be asked.
    pub incomplete: bool,
}

impl Waiters {
    /// Asks every thread.
    #[must_use]
    pub fn read(host: &Host) -> Self {
        let mut found = Self::default();
        let Ok(entries) = fs::read_dir(&host.proc) else {
            return Self { incomplete: true, ..found };
        };
        let pids = entries.map_while(Result::ok).map(|entry| entry.file_name());
        let pids =
            pids.filter(|name| name.to_str().is_some_and(|name| name.parse::<i32>().is_ok()));
        let proc = host.proc.clone();
        let said = deadline::map(pids.collect(), move |pid| waits(&proc.join(pid)));
        for one in said {
            match one {
                Ok(Ok(queues)) => {
                    for queue in queues {
                        *found.waiting.entry(queue).or_default() += 1;
                    }
                }
                Ok(Err(error)) if gone(&error) => {}
                Ok(Err(_)) | Err(_) => found.incomplete = true,
            }
        }
        found
    }

    /// How many threads wait at the queue with this id in the IPC namespace with this number.
    #[must_use]
    pub fn at(&self, namespace: u64, id: i32) -> u64 {
        self.waiting.get(&(namespace, id)).copied().unwrap_or(0)
    }
}

/// The queues that the threads of a process wait at.
fn waits(process: &Path) -> io::Result<Vec<(u64, i32)>> {
    let mut found = Vec::new();
    for thread in fs::read_dir(process.join("task"))? {
        let thread = thread?.path();
        let id = match fs::read(thread.join("syscall")) {
            Ok(text) => queue_of(&text),
            Err(error) if gone(&error) => None,
            Err(error) => return Err(error),
        };
        if let Some(id) = id {
            match fs::metadata(thread.join("ns/ipc")).map(|meta| meta.ino()) {
                Ok(namespace) => found.push((namespace, id)),
                Err(error) if gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

/// The queue that a thread waits at which is in this system call: its number, and its arguments in
/// hexadecimal. What runs is `running`, and -1 is none.
fn queue_of(text: &[u8]) -> Option<i32> {
    let mut words = words(text);
    let mut next = || std::str::from_utf8(words.next()?).ok();
    let call: libc::c_long = next()?.parse().ok()?;
    let mut argument = || u64::from_str_radix(next()?.strip_prefix("0x")?, 16).ok();
    let first = argument()?;
    // Of 32-bit programs on a 64-bit kernel: msgsnd, msgrcv, and ipc(2), which takes the id second. Nothing
    // waits in what else has these numbers.
    let id = match call {
        libc::SYS_msgsnd | libc::SYS_msgrcv | 400 | 401 => first,
        117 => argument()?,
        _ => return None,
    };
    // An int, in a register that may hold anything above.
    Some(u32::try_from(id & u64::from(u32::MAX)).ok()?.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_waits_in() {
        let call = libc::SYS_msgrcv;
        for (text, id) in [
            (format!("{call} 0x7 0x7ffc 0x64 0x0 0x0 0x64 0x7ffc 0x7f"), Some(7)),
            (format!("{call} 0xffffffff00008000 0x7ffc 0x64"), Some(32768)),
            ("117 0xc 0x3 0x64 0x0".to_owned(), Some(3)),
            ("230 0x7 0x0 0x7ffc".to_owned(), None),
            ("running\n".to_owned(), None),
            ("-1 0x7ffc 0x7f\n".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(queue_of(text.as_bytes()), id, "{text}");
        }
    }
}
