//! POSIX message queues.
//!
//! To know what is in one it has to be opened for reading, which its owner and root may. Reading it
//! sets the time of its last access, and that of the last change of its inode with it; so the
//! latter says nothing of a queue, and the time of the last message takes its place. mqueuefs has
//! times in whole seconds and no births.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::posix::{Entry, entries, entry, mount_point};
use super::{Inventory, Object};
use crate::tracker::evidence::lease::{LeaseError, Patience, open_expected};
use crate::tracker::host::Host;
use crate::tracker::queues::Queues;
use crate::tracker::resource::{Identity, Kind, Name};
use crate::tracker::sys::{self, Stat, mqueue};

/// How long another rtrack may keep this one from reading, since it would break that one's leases.
pub const COURTESY: Duration = Duration::from_millis(250);

/// So often is a queue opened that somebody has leased, or whose name has another one now.
const ATTEMPTS: usize = 5;

/// What is in a message queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Messages that wait to be received.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// So many messages may wait.
    pub max_messages: u64,
    /// So many bytes each may have.
    pub message_size: u64,
    /// Who asked to be told of the next message (mq_notify(3)); 0 if that process is not visible here.
    pub notify_pid: Option<i32>,
}

impl Queue {
    /// Looks into the queue that is open as `file`; nothing where the kernel tells it in another form.
    ///
    /// # Errors
    /// The errno of read(2) or mq_getattr(3).
    pub fn of(file: &File) -> io::Result<Option<Self>> {
        let mut text = [0; 256];
        let length = file.read_at(&mut text, 0)?;
        let Some(status) = Status::parse(text.get(..length).unwrap_or_default()) else {
            return Ok(None);
        };
        // Asked last: what came in between is counted.
        let attributes = mqueue::attributes(file)?;
        Ok(Some(Self {
            messages: attributes.messages,
            bytes: status.bytes,
            max_messages: attributes.max_messages,
            message_size: attributes.message_size,
            notify_pid: status.notify_pid,
        }))
    }
}

/// What the file of a queue says (mq_overview(7)).
#[derive(Debug, PartialEq, Eq)]
struct Status {
    bytes: u64,
    notify_pid: Option<i32>,
}

impl Status {
    /// `QSIZE:129 NOTIFY:2 SIGNO:0 NOTIFY_PID:8260`, with blanks in between. A process that is not
    /// visible here has the pid 0, as nobody has; a signal, or a way to tell that is no signal, says
    /// that there is somebody.
    fn parse(text: &[u8]) -> Option<Self> {
        let field = |key: &[u8]| -> Option<u64> {
            let mut words = text.split(|b| b.is_ascii_whitespace());
            let digits = words.find_map(|word| word.strip_prefix(key))?;
            std::str::from_utf8(digits).ok()?.parse().ok()
        };
        let (bytes, notify) = (field(b"QSIZE:")?, field(b"NOTIFY:")?);
        let (signal, pid) = (field(b"SIGNO:")?, i32::try_from(field(b"NOTIFY_PID:")?).ok()?);
        let somebody = pid != 0 || notify != 0 || signal != 0;
        Some(Self { bytes, notify_pid: somebody.then_some(pid) })
    }
}

/// What `stat` says of a queue, with the time of its last message as that of its last change.
#[must_use]
pub fn without_reads(stat: Stat) -> Stat {
    Stat { changed: stat.modified, ..stat }
}

/// Adds the queues of a place to the inventory.
///
/// # Errors
/// The directory itself could not be read. What vanishes meanwhile is not there.
pub fn read(
    host: &Host,
    queues: &Queues,
    place: usize,
    patience: &mut Patience,
    inventory: &mut Inventory,
) -> io::Result<()> {
    let names = entries(queues.dir())?;
    let _lock = if names.is_empty() { None } else { patience.lock(queues.dir()) };
    for name in names {
        match read_one(host, queues, place, &name) {
            Ok(object) => inventory.objects.push(object),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => inventory.troubles.push((format!("{}:{name}", Kind::Mqueue), error)),
        }
    }
    Ok(())
}

/// Reads one queue.
///
/// # Errors
/// The errno of looking at it; `ENOENT` when there is no such name.
pub fn read_one(host: &Host, queues: &Queues, place: usize, file: &Name) -> io::Result<Object> {
    let mut attempt = 1;
    loop {
        let Entry::Here(path) = entry(queues.dir(), file, queues.dev)? else {
            return Ok(Object { place, ..mount_point(file, (host.clock.wall)()) });
        };
        let stat = sys::stat(path.as_fd(), c"")?;
        let (kind, name) = (Kind::Mqueue, file.clone());
        let object = Object::of(file, without_reads(stat));
        let object = Object { kind, name, file_type: None, place, ..object };
        match open_expected(host, queues.dir(), file, &Identity::of(&stat)) {
            Ok(open) => return Ok(Object { queue: Queue::of(&File::from(open))?, ..object }),
            // Another one has its name, or another rtrack asks the kernel about it.
            Err(LeaseError::Changed | LeaseError::Held) if attempt < ATTEMPTS => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(LeaseError::Gone) => return Err(io::Error::from_raw_os_error(libc::ENOENT)),
            Err(LeaseError::Io(error)) => return Err(error),
            // What is in it is not known.
            Err(_) => return Ok(object),
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_of_a_queue_says() {
        for (text, bytes, notify_pid) in [
            (&b"QSIZE:0          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n"[..], 0, None),
            (b"QSIZE:129        NOTIFY:2     SIGNO:0     NOTIFY_PID:8260  \n", 129, Some(8260)),
            (b"QSIZE:7          NOTIFY:0     SIGNO:10    NOTIFY_PID:12    \n", 7, Some(12)),
            (b"QSIZE:7          NOTIFY:0     SIGNO:10    NOTIFY_PID:0     \n", 7, Some(0)),
        ] {
            assert_eq!(Status::parse(text), Some(Status { bytes, notify_pid }));
        }
        for text in [&b""[..], b"QSIZE:", b"QSIZE:1 NOTIFY:0 SIGNO:0", b"QSIZE:-1 NOTIFY:0"] {
            assert_eq!(Status::parse(text), None);
        }
        let other = b"QSIZE:x NOTIFY:0 SIGNO:0 NOTIFY_PID:0";
        assert_eq!(Status::parse(other), None);
    }
}
