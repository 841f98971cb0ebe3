//! The /dev/shm of every other mount namespace, reached through a process inside.
//!
//! Whoever is root in a container decides what lies at /dev/shm there, and may want whoever looks to
//! hang, to leave the container, or to take somebody else's files for shared memory. So the mounts are
//! read before anything inside is touched, only a tmpfs is opened, no link is followed, and one that is mounted
//! elsewhere under another name is left out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Ipc, Namespace, Place, Root};
use crate::tracker::deadline;
use crate::tracker::evidence::container::Container;
use crate::tracker::evidence::mounts::{Mount, Mounts};
use crate::tracker::evidence::namespaces::directory_below;
use crate::tracker::evidence::processes::gone;
use crate::tracker::host::Host;
use crate::tracker::queues::Queues;
use crate::tracker::resource::escape;
use crate::tracker::sys;

/// Where POSIX shared memory is, in every namespace.
const SHM: &[u8] = b"/dev/shm";

/// So many processes of a namespace are tried: each may end while it is looked at.
const TRIES: usize = 8;

/// At most so many views of namespaces are looked at: any user can make many.
const MOST_VIEWS: usize = 8192;

/// So many files are kept open for each namespace, at most, while it is looked at and reaped in.
const FILES_EACH: u64 = 8;

/// So many are left for everything else.
const FILES_LEFT: u64 = 256;

/// So many namespaces of a kind may be looked at by the limit of open files, which is raised as far as it may
/// be: any user can make more than that.
pub(super) fn most_namespaces() -> usize {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, hard)| {
        let all = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        if all.is_ok() { hard } else { soft }
    });
    let most = raised.unwrap_or(0).saturating_sub(FILES_LEFT) / FILES_EACH;
    usize::try_from(most).unwrap_or(usize::MAX).min(MOST_VIEWS)
}

/// What was found, and what was not.
#[derive(Debug, Default)]
pub struct Elsewhere {
    /// The places.
    pub places: Vec<Place>,
    /// What was left out, and why: for people.
    pub left_out: Vec<String>,
    /// Processes whose namespaces may not be seen.
    pub unseen: usize,
    /// Namespaces that ended while they were looked at.
    pub ended: usize,
    /// The IPC namespaces that processes are in, ours too, each with some of them.
    pub(super) ipc: BTreeMap<u64, Vec<Member>>,
}

/// Processes that see the same: a mount namespace from the same root directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct View {
    mnt: u64,
    root: OsString,
}

/// A process of a view.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pid: i32,
    mnt: u64,
    ipc: u64,
}

/// What one view showed.
enum Shown {
    /// All its processes ended.
    Ended,
    /// It could not be looked at.
    Failed(io::Error),
    /// Its mounts, and its /dev/shm if that is a tmpfs, or why it is none.
    Mounts { tmpfs: Vec<Mount>, shm: Result<Option<Shm>, String>, member: Member },
}

struct Shm {
    directory: OwnedFd,
    identity: (u64, u64),
    base: Vec<u8>,
}

/// The mount or IPC namespace that a link in /proc/PID/ns leads to, as `mnt:[4026531841]` has it.
pub(super) fn namespace_id(link: &Path) -> io::Result<u64> {
    let target = std::fs::read_link(link)?;
    let text = target.to_string_lossy();
    let number = text.split_once('[').and_then(|(_, rest)| rest.strip_suffix(']')?.parse().ok());
    number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no namespace"))
}

/// Looks for the /dev/shm of every mount namespace but those whose directory, by device and inode, is
/// one of `known`.
pub(super) fn find(host: &Host, known: &HashSet<(u64, u64)>, most: usize) -> io::Result<Elsewhere> {
    let mut found = Elsewhere::default();
    let mut views = views(host, &mut found)?;
    if views.len() > most {
        let more = views.len() - most;
        found.left_out.push(format!("{more} more views of mount namespaces: there are too many"));
        while views.len() > most && views.pop_last().is_some() {}
    }
    let jobs: Vec<(u64, Vec<Member>)> =
        views.into_iter().map(|(view, members)| (view.mnt, members)).collect();
    let ids: Vec<u64> = jobs.iter().map(|(mnt, _)| *mnt).collect();
    let proc = host.proc.clone();
    let shown = deadline::map(jobs, move |(mnt, members)| look(&proc, mnt, &members));
    let own = Mounts::parse(&host.read_proc("self/mountinfo").unwrap_or_default());
    let mut elsewhere: HashMap<u64, Vec<u8>> = HashMap::new();
    note_other_names(&mut elsewhere, &own.0);
    for one in &shown {
        if let Ok(Shown::Mounts { tmpfs, .. }) = one {
            note_other_names(&mut elsewhere, tmpfs);
        }
    }
    let mut known = known.clone();
    for (mnt, one) in ids.into_iter().zip(shown) {
        let mut leave_out = |why: &str| {
            found.left_out.push(format!("/dev/shm of mount namespace {mnt}: {why}"));
        };
        let (shm, member) = match one {
            Err(_) => {
                leave_out("it does not answer");
                continue;
            }
            Ok(Shown::Ended) => {
                found.ended += 1;
                continue;
            }
            Ok(Shown::Failed(error)) => {
                leave_out(&error.to_string());
                continue;
            }
            Ok(Shown::Mounts { shm: Err(why), .. }) => {
                leave_out(&why);
                continue;
            }
            Ok(Shown::Mounts { shm: Ok(None), .. }) => continue,
            Ok(Shown::Mounts { shm: Ok(Some(shm)), member, .. }) => (shm, member),
        };
        // A mount counts once, however many namespaces it is in.
        if !known.insert(shm.identity) {
            continue;
        }
        if let Some(point) = elsewhere.get(&shm.identity.0) {
            leave_out(&format!(
                "it is mounted at {} as well, so what is in it need not be shared memory",
                escape(point)
            ));
            continue;
        }
        let path = PathBuf::from(format!("/proc/{}/root/dev/shm", member.pid));
        let other = host.in_directory(path, shm.directory, shm.base);
        let namespace = Namespace {
            mnt,
            ipc: member.ipc,
            pid: member.pid,
            container: container(host, member.pid),
        };
        found.places.push(Place {
            root: Root::Shm(other),
            namespace: Some(Arc::new(namespace)),
            wanted: true,
        });
    }
    Ok(found)
}

/// The System V objects and the message queues of other IPC namespaces than ours, of which the queues on the
/// devices `known` are known already. What cannot be entered is left out.
pub(super) fn find_ipc(
    host: &Host,
    all: BTreeMap<u64, Vec<Member>>,
    mut known: HashSet<u64>,
    most: usize,
    left_out: &mut Vec<String>,
) -> Vec<Place> {
    if all.len() > most {
        left_out.push(format!("{} more IPC namespaces: there are too many", all.len() - most));
    }
    let own = namespace_id(&host.proc.join("self/ns/ipc")).ok();
    let jobs: Vec<(u64, Vec<Member>)> =
        all.into_iter().take(most).filter(|(number, _)| Some(*number) != own).collect();
    let numbers: Vec<u64> = jobs.iter().map(|(number, _)| *number).collect();
    let proc = host.proc.clone();
    let entered = deadline::map(jobs, move |(number, members)| enter_by(&proc, number, members));
    let mut places = Vec::new();
    let mut denied = 0_usize;
    for (number, entered) in numbers.into_iter().zip(entered) {
        let (member, ipc, queues) = match entered {
            Ok(Ok(Some(entered))) => entered,
            // It has ended.
            Ok(Ok(None)) => continue,
            Ok(Err(error)) if error.raw_os_error() == Some(libc::EPERM) => {
                denied += 1;
                continue;
            }
            Ok(Err(error)) => {
                left_out.push(format!("IPC namespace {number}: {error}"));
                continue;
            }
            Err(_) => {
                left_out.push(format!("IPC namespace {number}: it does not answer"));
                continue;
            }
        };
        let (pid, mnt, ipc_number) = (member.pid, member.mnt, member.ipc);
        let container = container(host, pid);
        let namespace = Some(Arc::new(Namespace { mnt, ipc: ipc_number, pid, container }));
        match queues {
            Ok(queues) if known.insert(queues.dev) => {
                let root = Root::Queues(queues);
                places.push(Place { root, namespace: namespace.clone(), wanted: true });
            }
            Ok(_) => {}
            Err(error) => {
                left_out.push(format!("message queues of IPC namespace {number}: {error}"));
            }
        }
        places.push(Place { root: Root::Ipc(ipc), namespace, wanted: true });
    }
    if denied > 0 {
        left_out.push(format!("{denied} IPC namespaces: only root may enter them"));
    }
    places
}

/// Enters the IPC namespace `number` by one of its processes; nothing if all of them have ended.
fn enter_by(
    proc: &Path,
    number: u64,
    members: Vec<Member>,
) -> io::Result<Option<(Member, Ipc, io::Result<Queues>)>> {
    let mut failed = Ok(None);
    for member in members {
        match enter(&proc.join(member.pid.to_string()).join("ns/ipc"), number) {
            Ok((ipc, queues)) => return Ok(Some((member, ipc, queues))),
            Err(error) if gone(&error) => {}
            Err(error) => failed = Err(error),
        }
    }
    failed
}

/// Enters the IPC namespace `number`, to which `link` leads, and finds its queues.
fn enter(link: &Path, number: u64) -> io::Result<(Ipc, io::Result<Queues>)> {
    let namespace: OwnedFd = File::open(link)?.into();
    // The process may have gone elsewhere, or be another one.
    if sys::stat(&namespace, c"")?.ino != number {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let ipc = Ipc { namespace: Some(namespace) };
    let queues = ipc.run(Queues::of_this_namespace)?.and_then(|queues| {
        // As with a /dev/shm: who does not let it be listed is found out here.
        crate::tracker::inventory::posix::entries(queues.dir()).map(|_| queues)
    });
    Ok((ipc, queues))
}

/// The container of a process.
pub(super) fn container(host: &Host, pid: i32) -> Option<Container> {
    let groups = host.read_proc(&format!("{pid}/cgroup")).ok()?;
    Container::of(&String::from_utf8_lossy(&groups))
}

/// The views of all processes, each with some of its processes, lowest pid first. In `found`
/// their IPC namespaces are noted, and how many may not be seen. Of the IPC namespaces, what is found is noted in `found`.
fn views(host: &Host, found: &mut Elsewhere) -> io::Result<BTreeMap<View, Vec<Member>>> {
    let mut pids: Vec<i32> = std::fs::read_dir(&host.proc)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let mut views: BTreeMap<View, Vec<Member>> = BTreeMap::new();
    for pid in pids {
        let own = host.proc.join(pid.to_string());
        let seen = namespace_id(&own.join("ns/mnt")).and_then(|mnt| {
            let root = std::fs::read_link(own.join("root"))?.into_os_string();
            Ok((View { mnt, root }, Member { pid, mnt, ipc: namespace_id(&own.join("ns/ipc"))? }))
        });
        match seen {
            Ok((view, member)) => {
                let of_ipc = found.ipc.entry(member.ipc).or_default();
                for members in [views.entry(view).or_default(), of_ipc] {
                    if members.len() < TRIES {
                        members.push(member);
                    }
                }
            }
            Err(error) if gone(&error) => {}
            Err(_) if !own.exists() => {}
            Err(_) => found.unseen += 1,
        }
    }
    Ok(views)
}

fn look(proc: &Path, mnt: u64, members: &[Member]) -> Shown {
    let mut failed = None;
    for member in members {
        match look_through(proc, mnt, *member) {
            Ok(Some(shown)) => return shown,
            Ok(None) => {}
            Err(error) if gone(&error) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Shown::Ended, Shown::Failed)
}

/// What is seen through one process; nothing if it has left the namespace.
fn look_through(proc: &Path, mnt: u64, member: Member) -> io::Result<Option<Shown>> {
    let process = proc.join(member.pid.to_string());
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    let root = File::options().read(true).custom_flags(flags).open(process.join("root"))?;
    let mounts = Mounts::parse(&std::fs::read(process.join("mountinfo"))?);
    // Asked last: its number may be another process's by now, and it may have gone elsewhere.
    if namespace_id(&process.join("ns/mnt"))? != mnt {
        return Ok(None);
    }
    let shm = match mounts.above(SHM) {
        // A /dev/shm that is no mount is an empty directory of a system's image.
        None => Ok(None),
        Some(mount) if mount.point != SHM && mount.fstype != b"tmpfs" => Ok(None),
        Some(mount) if mount.point != SHM => Err("it is no mount but a part of one".into()),
        Some(mount) if mount.fstype == b"tmpfs" => open(&root, &mounts, mount),
        Some(mount) => Err(format!("it is no tmpfs but {}", escape(&mount.fstype))),
    };
    let tmpfs = mounts.0.into_iter().filter(|mount| mount.fstype == b"tmpfs").collect();
    Ok(Some(Shown::Mounts { tmpfs, shm, member }))
}

/// Opens the directory, which `mount` has to be.
fn open(root: &File, mounts: &Mounts, mount: &Mount) -> Result<Option<Shm>, String> {
    let open = || {
        let path = directory_below(root.as_fd(), mounts, SHM)?;
        // By its id: the order of the lines need not be that in which one covers the other.
        let id = if sys::device(&path)? == mount.dev { Some(sys::mount_id(&path)?) } else { None };
        let Some(mount) = mounts.0.iter().find(|mount| Some(mount.id) == id && mount.point == SHM)
        else {
            return Ok(Err("it was mounted over while it was looked at".to_owned()));
        };
        // Any user can mount somebody else's directory there, even one that he may not look into.
        if mount.root != b"/" {
            return Ok(Err(format!(
                "it is {} of a tmpfs, so what is in it need not be shared memory",
                escape(&mount.root)
            )));
        }
        let directory = crate::tracker::inventory::posix::open_directory(path.as_fd())?;
        // Somebody inside may keep whoever lists it waiting for ever: then he is found out here.
        crate::tracker::inventory::posix::entries(directory.as_fd())?;
        let stat = sys::stat(&directory, c"")?;
        let (identity, base) = ((stat.dev, stat.ino), mount.root.clone());
        Ok(Ok(Shm { directory, identity, base }))
    };
    match open() {
        Ok(opened) => opened.map(Some),
        Err(error) => match io::Error::raw_os_error(&error) {
            Some(libc::ENOENT | libc::ENOTDIR) => Ok(None),
            Some(libc::ELOOP) => Err("it is a symbolic link".into()),
            Some(libc::EAGAIN) => {
                Err("a file system that may never answer is on the way to it".into())
            }
            _ => Err(error.to_string()),
        },
    }
}

/// Notes the tmpfs mounts that are found under a name which is not one of shared memory. What container
/// runtimes make for it is called `shm` wherever it is mounted.
fn note_other_names(elsewhere: &mut HashMap<u64, Vec<u8>>, mounts: &[Mount]) {
    for mount in mounts.iter().filter(|mount| mount.fstype == b"tmpfs") {
        if mount.point.rsplit(|b| *b == b'/').next() != Some(b"shm") {
            elsewhere.entry(mount.dev).or_insert_with(|| mount.point.clone());
        }
    }
}
