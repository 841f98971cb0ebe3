//! Who a client is.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::tracker::evidence::mounts::Mounts;
use crate::tracker::journal::Owner;
use crate::tracker::resource::escape;
use crate::tracker::sys::credentials;

/// How much is read of what this process has mounted, in bytes.
const OWN_MOUNTS_MAX: usize = 16 << 20;

/// How much is read of what a client has mounted, in bytes, or twice as much as this process has, whichever is more.
/// Anybody can make that long, and everybody else waits while it is read.
const MOUNTS_MAX: usize = 256 << 10;

/// A process that registers, or for which somebody registers, and the rights with which is removed what
/// it leaves.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its pid, in this PID namespace.
    pub pid: i32,
    /// When it started, in clock ticks since boot: with the pid it is that process and no other.
    pub started: u64,
    /// The uid that registers.
    pub uid: u32,
    /// The gid that registers.
    pub gid: u32,
    /// Its name, as the kernel has it.
    pub comm: Vec<u8>,
    /// Why a path may be another file to it than to this process; nothing if it is the same.
    pub elsewhere: Option<Elsewhere>,
    /// Whether a pid means the same process to it as to this one.
    pub same_pids: bool,
    /// The capabilities that it has, if it is root's: what is removed for it is removed with no others.
    pub capabilities: Option<u64>,
    process: Arc<OwnedFd>,
}

/// Why a path may be another file to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Elsewhere {
    /// Other file systems may be mounted there.
    #[error("tracker and client have different mount namespaces, so that path may be another file")]
    MountNamespace,
    /// Paths begin at another directory.
    #[error("tracker and client have different root directories, so that path may be another file")]
    Root,
}

/// Why a process cannot be a client.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Whoever it was has ended already.
    #[error("it is gone already")]
    Gone,
    /// It is not seen from here: it runs in a PID namespace that this one does not know.
    #[error("its process cannot be seen from here")]
    Unseen,
    /// Another user, and this daemon is not root's.
    #[error("it is of uid {0}, and this daemon serves its own user and root")]
    OtherUser(u32),
    /// Its uid has no number in this user namespace.
    #[error("its uid is not known here")]
    UnknownUser,
    /// Numbers of processes are others there.
    #[error("its pids are those of another PID namespace, where that number is another process")]
    OtherPids,
    /// The same names are other objects there.
    #[error("it has another {0} namespace, where the same names are other objects")]
    OtherNamespace(&'static str),
    /// The same names are other objects there, or it cannot be told.
    #[error(
        "what is mounted at /dev/shm is not what is mounted there for it, so names are other objects"
    )]
    OtherMemory,
    /// It has more mounts than are read.
    #[error("it has too many mounts to tell what it has at /dev/shm")]
    TooManyMounts,
    /// It could not be looked at.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
}

/// What a process shows of itself.
struct Shown {
    started: u64,
    comm: Vec<u8>,
    real_uid: u32,
    /// Its effective capabilities.
    effective: u64,
}

impl Peer {
    /// Who connected `stream`.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub fn of(stream: impl AsFd) -> Result<Self, Unfit> {
        let credentials = getsockopt(&stream, PeerCredentials)
            .map_err(|errno| Unfit::Io("getsockopt SO_PEERCRED", errno.into()))?;
        let (pid, uid, gid) = (credentials.pid(), credentials.uid(), credentials.gid());
        let own = nix::unistd::geteuid().as_raw();
        if uid == overflow() {
            return Err(Unfit::UnknownUser);
        }
        if own != 0 && uid != own && uid != 0 {
            return Err(Unfit::OtherUser(uid));
        }
        if pid <= 0 {
            return Err(Unfit::Unseen);
        }
        let process = match credentials::peer_process(&stream) {
            Ok(process) => process,
            // Before Linux 6.5. A pid that was taken again since is another process's, which may be of
            // another user: that is looked at, too.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => open(pid)?,
            Err(_) => return Err(Unfit::Gone),
        };
        Self::fit(pid, uid, gid, process).map(|(peer, _)| peer)
    }

    /// The process `pid`, for which this one registers: with the rights of this one, until that one ends.
    ///
    /// # Errors
    /// See [`Unfit`]. Only root registers for processes of others.
    pub fn on_behalf_of(&self, pid: i32) -> Result<Self, Unfit> {
        if !self.same_pids {
            return Err(Unfit::OtherPids);
        }
        let (mut peer, shown) = Self::fit(pid, self.uid, self.gid, open(pid)?)?;
        peer.capabilities = self.capabilities;
        if self.uid != 0 && shown.real_uid != self.uid {
            return Err(Unfit::OtherUser(shown.real_uid));
        }
        Ok(peer)
    }

    fn fit(pid: i32, uid: u32, gid: u32, process: OwnedFd) -> Result<(Self, Shown), Unfit> {
        if !same_link(pid, "ns/ipc")? {
            return Err(Unfit::OtherNamespace("IPC"));
        }
        let elsewhere = elsewhere(pid)?;
        // In a mount namespace of its own it may have the same /dev/shm all the same, as most services have.
        if elsewhere.is_some() && !same_memory(pid)? {
            return Err(Unfit::OtherMemory);
        }
        let same_pids = same_link(pid, "ns/pid")?;
        let same_users = same_link(pid, "ns/user")?;
        let shown = shown(pid)?;
        let Shown { started, ref comm, effective, .. } = shown;
        // In another user namespace they are worth nothing here.
        let capabilities = (uid == 0).then_some(if same_users { effective } else { 0 });
        let (comm, process) = (comm.clone(), Arc::new(process));
        let peer =
            Self { pid, started, uid, gid, comm, elsewhere, same_pids, capabilities, process };
        // What was read above was its own if it lives still.
        if peer.has_ended() { Err(Unfit::Gone) } else { Ok((peer, shown)) }
    }

    /// A process that a predecessor of this daemon's knew; it may have ended.
    ///
    /// # Errors
    /// It could not be found out whether it lives.
    pub fn of_the_past(owner: &Owner) -> Result<Self, Unfit> {
        let Owner { pid, start_ticks: started, uid, gid, .. } = *owner;
        let alive = match open(pid).and_then(|process| Ok((process, shown(pid)?))) {
            // What was read is its own: the pid was its before and after.
            Ok((process, shown)) if shown.started == started => Some((process, shown)),
            Ok(_) | Err(Unfit::Gone) => None,
            Err(unfit) => return Err(unfit),
        };
        let of_root = |effective| (uid == 0).then_some(effective);
        let (process, comm, capabilities) = match alive {
            Some((process, shown)) => (process, shown.comm, of_root(shown.effective)),
            None => {
                // What is readable has ended.
                let ended = EventFd::from_value_and_flags(1, EfdFlags::EFD_CLOEXEC)
                    .map_err(|errno| Unfit::Io("eventfd", errno.into()))?;
                // Nobody knows any more what it could do.
                (OwnedFd::from(ended), b"?".to_vec(), of_root(0))
            }
        };
        let (elsewhere, same_pids, process) = (None, true, Arc::new(process));
        Ok(Self { pid, started, uid, gid, comm, elsewhere, same_pids, capabilities, process })
    }

    /// Whether the process has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut target = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut target, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Whether both are one process.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }
}

impl AsFd for Peer {
    /// It is readable when the process has ended (pidfd_open(2)).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}] of uid {}", escape(&self.comm), self.pid, self.uid)
    }
}

fn open(pid: i32) -> Result<OwnedFd, Unfit> {
    credentials::process(pid).map_err(|error| match error.raw_os_error() {
        Some(libc::ESRCH) => Unfit::Gone,
        Some(libc::EINVAL) => Unfit::Unseen,
        _ => Unfit::Io("pidfd_open", error),
    })
}

/// The uid that stands for all that this user namespace does not know (user_namespaces(7)).
fn overflow() -> u32 {
    let text = fs::read_to_string("/proc/sys/fs/overflowuid").unwrap_or_default();
    text.trim().parse().unwrap_or(65534)
}

/// Whether a link in the directory of a process in /proc leads where that of this process leads. To read one neither
/// follows it nor waits for the process.
fn same_link(pid: i32, name: &str) -> Result<bool, Unfit> {
    let link = |who: &str| fs::read_link(format!("/proc/{who}/{name}"));
    let ours = link("self").map_err(|error| Unfit::Io("read the own namespaces", error))?;
    let theirs = link(&pid.to_string()).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unfit::Gone,
        _ => Unfit::Io("read its namespaces", error),
    })?;
    Ok(ours == theirs)
}

fn elsewhere(pid: i32) -> Result<Option<Elsewhere>, Unfit> {
    if !same_link(pid, "ns/mnt")? {
        return Ok(Some(Elsewhere::MountNamespace));
    }
    Ok((!same_link(pid, "root")?).then_some(Elsewhere::Root))
}

/// Whether a process has the same directory at /dev/shm as this one, by what is mounted there.
fn same_memory(pid: i32) -> Result<bool, Unfit> {
    let memory = |mounts: &Mounts| {
        let mount = mounts.reached_at(b"/dev/shm").filter(|mount| !mount.lost_its_name())?;
        Some((mount.dev, mount.root.clone()))
    };
    let own = mountinfo("self", OWN_MOUNTS_MAX)?;
    let theirs = mountinfo(&pid.to_string(), MOUNTS_MAX.max(own.len().saturating_mul(2)))?;
    let ours = memory(&Mounts::parse(&own));
    Ok(ours.is_some() && ours == memory(&Mounts::parse(&theirs)))
}

/// What a process has mounted, as it sees it, in at most `most` bytes. To read that waits neither for it nor for a file system.
fn mountinfo(who: &str, most: usize) -> Result<Vec<u8>, Unfit> {
    let mut text = Vec::new();
    let read = File::open(format!("/proc/{who}/mountinfo"))
        .and_then(|file| file.take(most as u64 + 1).read_to_end(&mut text));
    match read {
        Ok(length) if length > most => Err(Unfit::TooManyMounts),
        Ok(_) => Ok(text),
        Err(error) => Err(match error.raw_os_error() {
            // While it ends it has none any more.
            Some(libc::ENOENT | libc::ESRCH | libc::EINVAL) => Unfit::Gone,
            _ => Unfit::Io("read its mounts", error),
        }),
    }
}

/// What /proc says of a process. Neither file waits for it.
fn shown(pid: i32) -> Result<Shown, Unfit> {
    let read = |name: &str| {
        let path: PathBuf = ["/proc", &pid.to_string(), name].iter().collect();
        fs::read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Unfit::Gone,
            _ => Unfit::Io("read what /proc says of it", error),
        })
    };
    let stat = read("stat")?;
    let status = read("status")?;
    parse(&stat, &status)
        .ok_or_else(|| Unfit::Io("read what /proc says of it", io::ErrorKind::InvalidData.into()))
}

fn parse(stat: &[u8], status: &[u8]) -> Option<Shown> {
    let first = stat.iter().position(|byte| *byte == b'(')?;
    let last = stat.iter().rposition(|byte| *byte == b')')?;
    let comm = stat.get(first + 1..last)?.to_vec();
    // The start is field 22 of proc_pid_stat(5); the first one behind the name is field 3.
    let rest = std::str::from_utf8(stat.get(last + 1..)?).ok()?;
    let started = rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()?;
    let uids = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    let real = std::str::from_utf8(uids).ok()?.split_ascii_whitespace().next()?.parse().ok()?;
    let effective =
        status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"CapEff:"))?;
    let effective = std::str::from_utf8(effective).ok()?.trim();
    let effective = u64::from_str_radix(effective, 16).ok()?;
    Some(Shown { started, comm, real_uid: real, effective })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says() {
        let fields: Vec<String> = (4..30).map(|field| field.to_string()).collect();
        let stat = format!("7 (a) b) S {}\n", fields.join(" "));
        let status = b"Name:\tx\nUid:\t1000\t1001\t1002\t1003\nGid:\t5\t5\t5\t5\nCapEff:\t00a0\n";
        let shown = parse(stat.as_bytes(), status).unwrap();
        assert_eq!((shown.started, &shown.comm[..], shown.real_uid), (22, &b"a) b"[..], 1000));
        assert_eq!(shown.effective, 0xa0);
        assert!(parse(b"7 (a", status).is_none());
        assert!(parse(stat.as_bytes(), b"").is_none());
    }
}
