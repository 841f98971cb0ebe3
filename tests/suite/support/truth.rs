//! A workload of every kind of object whose truth is known, as a fixture: this binary, run as `__truth`,
//! makes it in mount, IPC and PID namespaces of its own, prints the truth about it as a line of JSON, and
//! stays until its stdin ends.
//!
//! Whatever happens to it, nothing stays: all processes are in its PID namespace and end with the first one
//! of it, which ends with the one that was started, and that with whoever started it; all objects are in
//! file systems and IPC namespaces that nobody else is in.
//!
//! The truth has what anybody has to know who looks at an object from inside (`join=PID`, see
//! [`place`]), and what `rtrack list -A --assume-complete` with the grace period of the truth has to answer
//! to root, and to an ordinary user, to whom less may be known. `null` is an object that is not listed.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::Path;
use std::process::{ExitCode, exit};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::hold::wait_for_the_end;
use super::mqueue::{empty_dev_mqueue, make_small_queue};
use super::namespaces::{fork, private_mounts, unshare};
use super::sandbox::RUN_DIRECTORY;
use super::sysv::{fill, line, queue, remove_segment, segment, semaphores};
use super::{Holder, check, hold, hold_as, is_real_root, mount, object, path, place, somebody};

/// The grace period that the truth goes by.
const GRACE: &str = "4s";
/// System V objects and queues have times in whole seconds.
const UNTIL_NOBODY_IS_YOUNG: Duration = Duration::from_secs(6);
/// How often what is young is changed.
const TOUCH: Duration = Duration::from_millis(200);

/// A name whose producer's live owners always have the object mapped.
const ALWAYS_HELD: &str = "pulse-shm-4194304001";
/// The same of another object.
const ALWAYS_HELD_TOO: &str = "pulse-shm-4194304002";

/// The main function of the workload.
pub(crate) fn main() -> ExitCode {
    place::end_with_parent();
    unshare(true).unwrap();
    place::go_on_in_a_child();
    private_mounts(true).unwrap();
    prepare_a_directory();
    let mut workload = Workload::new();
    workload.shared_memory();
    workload.semaphores();
    workload.directories();
    workload.message_queues();
    workload.segments();
    workload.semaphore_sets();
    workload.message_queues_of_system_v();
    workload.other_namespaces();
    if let (Some(user), Some(gone)) = (workload.user, workload.gone) {
        workload.of_the_user(user);
        workload.of_somebody_gone(gone);
    }
    touch(path("young"));
    thread::sleep(UNTIL_NOBODY_IS_YOUNG);
    println!("{}", workload.truth());
    io::stdout().flush().unwrap();
    wait_for_the_end();
    ExitCode::SUCCESS
}

/// Where fixtures put what they need beside the objects: nobody else sees it, and it needs no removal.
fn prepare_a_directory() {
    mount("tmpfs", "/var/log", "tmpfs", 0, "mode=755").unwrap();
    let before = env::var_os(RUN_DIRECTORY);
    let name = before.as_deref().and_then(|path| Path::new(path).file_name());
    let name = name.map_or_else(
        || format!("rtrack-suite-{}", place::pid_outside()),
        |name| name.to_str().unwrap().to_owned(),
    );
    let directory = Path::new("/var/log").join(name);
    fs::create_dir_all(directory.join("scratch")).unwrap();
    // SAFETY: this process has a single thread.
    unsafe { env::set_var(RUN_DIRECTORY, directory) };
    env::set_current_dir("/").unwrap();
    let queues = empty_dev_mqueue();
    mount("mqueue", queues.to_str().unwrap(), "mqueue", 0, "").unwrap();
}

/// A process that changes a file again and again, so that it is never older than the grace period.
fn touch(file: impl AsRef<Path>) {
    let file = file.as_ref();
    if fork() == 0 {
        place::end_with_parent();
        loop {
            let permissions = fs::metadata(file).unwrap().permissions();
            fs::set_permissions(file, permissions).unwrap();
            thread::sleep(TOUCH);
        }
    }
}

/// Has a process that ends then, of this user, make a System V object; answers with its id.
fn made_by_somebody_dead(uid: u32, make: impl FnOnce() -> i32) -> i32 {
    let (mut told, mut tells) = io::pipe().unwrap();
    let child = fork();
    if child == 0 {
        if uid != 0 {
            nix::unistd::setgroups(&[]).unwrap();
            nix::unistd::setgid(uid.into()).unwrap();
            nix::unistd::setuid(uid.into()).unwrap();
        }
        tells.write_all(&make().to_ne_bytes()).unwrap();
        exit(0);
    }
    drop(tells);
    let mut id = [0; 4];
    told.read_exact(&mut id).unwrap();
    // SAFETY: waiting without a status touches no memory.
    check(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }).unwrap();
    i32::from_ne_bytes(id)
}

/// What one who looks is to be told about an object.
#[derive(Debug, Clone)]
struct Answer {
    verdict: &'static str,
    reason: &'static str,
    sees_holders: bool,
    sees_size: bool,
    sees_owner: bool,
    counts: bool,
}

/// An object and the truth about it.
#[derive(Debug)]
struct Entry {
    /// In words, for people.
    what: &'static str,
    id: String,
    /// The mount and the IPC namespace that it lies in, if they are others.
    namespace: Option<[u64; 2]>,
    deleted: bool,
    size: u64,
    uid: u32,
    /// What the kernel counts of it, by the words of the documents; told to root.
    counted: Option<(&'static str, u64)>,
    /// Every process that holds it.
    holders: Vec<u32>,
    root: Option<Answer>,
    user: Option<Answer>,
}

impl Entry {
    fn new(what: &'static str, id: impl Into<String>) -> Self {
        let (root, user, counted) = (None, None, None);
        let (namespace, deleted, holders) = (None, false, Vec::new());
        Self {
            what,
            id: id.into(),
            namespace,
            deleted,
            size: 4096,
            uid: 0,
            counted,
            holders,
            root,
            user,
        }
    }

    fn size(self, size: u64) -> Self {
        Self { size, ..self }
    }

    fn counted(self, what: &'static str, number: u64) -> Self {
        Self { counted: Some((what, number)), ..self }
    }

    fn of(self, uid: u32) -> Self {
        Self { uid, ..self }
    }

    fn deleted(self) -> Self {
        Self { deleted: true, ..self }
    }

    fn held_by(self, holder: &Holder) -> Self {
        Self { holders: vec![holder.pid], ..self }
    }

    fn within(self, holder: &Holder) -> Self {
        let inode = |name| fs::metadata(format!("/proc/{}/ns/{name}", holder.pid)).unwrap().ino();
        Self { namespace: Some(["mnt", "ipc"].map(inode)), ..self }
    }

    /// What root has to be told, the holders as well.
    fn root(self, verdict: &'static str, reason: &'static str) -> Self {
        let root = Answer {
            verdict,
            reason,
            sees_holders: true,
            sees_size: true,
            sees_owner: true,
            counts: true,
        };
        Self { root: Some(root), ..self }
    }

    /// What an ordinary user has to be told, to whom the processes of others tell nothing.
    fn user(self, verdict: &'static str, reason: &'static str) -> Self {
        let user = Answer {
            verdict,
            reason,
            sees_holders: false,
            sees_size: true,
            sees_owner: true,
            counts: true,
        };
        Self { user: Some(user), ..self }
    }

    /// The same for both, since it belongs to the user.
    fn both(self, verdict: &'static str, reason: &'static str) -> Self {
        let both = self.root(verdict, reason);
        Self { user: both.root.clone(), ..both }
    }

    /// It may not be opened by an ordinary user, who is not told more.
    fn private(self) -> Self {
        self.user("unknown", "no-permission")
    }

    /// The same of a directory: there are no leases on them, and what is in it is not counted, which is said.
    fn private_directory(self) -> Self {
        let mut entry = self.user("unknown", "no-lease");
        if let Some(user) = &mut entry.user {
            user.counts = false;
        }
        entry
    }

    /// Its holders are in no process's mappings and descriptors, where anybody could see them.
    fn of_hidden_holders(mut self) -> Self {
        for answer in [&mut self.root, &mut self.user].into_iter().flatten() {
            answer.sees_holders = false;
        }
        self
    }

    /// What is in it is known only to those who may open it.
    fn of_private_size(mut self) -> Self {
        if let Some(user) = &mut self.user {
            user.sees_size = false;
        }
        self
    }

    /// Only its mappings lead to it. They may be listed by whoever may read its process, and followed only by
    /// root of the first user namespace: nobody else finds out whose it is, and how large.
    fn only_mapped(mut self) -> Self {
        if let Some(root) = &mut self.root {
            root.sees_owner = is_real_root();
            root.sees_size = root.sees_owner;
        }
        if let Some(user) = &mut self.user {
            user.sees_owner = false;
            user.sees_size = false;
        }
        self
    }

    fn json(&self) -> Value {
        let answer = |answer: &Option<Answer>| {
            answer.as_ref().map(|answer| {
                json!({
                    "verdict": answer.verdict,
                    "reason": answer.reason,
                    "holders": if answer.sees_holders { &self.holders[..] } else { &[] },
                    "uid": answer.sees_owner.then_some(self.uid),
                    "size": answer.sees_size.then_some(if answer.counts { self.size } else { 0 }),
                    "whole": answer.counts,
                })
            })
        };
        json!({
            "what": self.what,
            "id": self.id,
            "kind": self.id.split(':').next(),
            "namespace": self.namespace.map(|[mnt, ipc]| json!({ "mnt": mnt, "ipc": ipc })),
            "deleted": self.deleted,
            "size": self.size,
            "uid": self.uid,
            "counted": self.counted.map(|(what, number)| json!({ what: number })),
            "holders": self.holders,
            "root": answer(&self.root),
            "user": answer(&self.user),
        })
    }
}

/// Everything that was made.
struct Workload {
    entries: Vec<Entry>,
    /// They end with this process, the first one of the namespace: to wait for one that lies below another
    /// one, which would then be ours to wait for, is not needed.
    holders: ManuallyDrop<Vec<Holder>>,
    /// The ordinary user who looks, where this process may become one.
    user: Option<u32>,
    /// A user of whom no process is alive.
    gone: Option<u32>,
}

impl Workload {
    fn new() -> Self {
        let gone = is_real_root().then(somebody);
        let user = gone.map(|uid| uid + 1);
        Self { entries: Vec::new(), holders: ManuallyDrop::new(Vec::new()), user, gone }
    }

    fn add(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    fn add_held(&mut self, holder: Holder, entry: Entry) {
        self.entries.push(entry.held_by(&holder));
        self.holders.push(holder);
    }

    fn truth(&self) -> Value {
        json!({
            "inside": place::pid_outside(),
            "user": self.user,
            "grace": GRACE,
            "objects": self.entries.iter().map(Entry::json).collect::<Vec<_>>(),
        })
    }

    fn shared_memory(&mut self) {
        for (name, way, what) in [
            ("map", "map-shared", "held by a mapping only"),
            ("fd", "fd-write", "held by a descriptor only"),
            ("both", "fd-and-map", "held by both"),
            ("mounts", "own-mounts:map-shared", "held from another mount namespace"),
            ("pids", "own-pids:fd-read", "held from another PID namespace"),
            ("ipc", "own-ipc:map-shared", "held from another IPC namespace"),
        ] {
            object().make(name);
            let entry = Entry::new(what, format!("shm:{name}"));
            let entry = entry.root("held", "lease-refused").private();
            self.add_held(hold(way, path(name)), entry);
        }
        object().make("flying");
        let entry = Entry::new("held by a descriptor in flight only", "shm:flying");
        let entry = entry.root("held", "lease-refused").private().of_hidden_holders();
        self.add_held(hold("in-flight", path("flying")), entry);
        object().make(ALWAYS_HELD);
        let entry = Entry::new("orphaned, by its name", format!("shm:{ALWAYS_HELD}"));
        self.add(entry.root("orphaned", "always-held-producer").private());
        object().size(8192).make("left");
        let entry = Entry::new("unclaimed", "shm:left").size(8192);
        self.add(entry.root("unclaimed", "unknown-producer").private());
        object().make("young");
        let entry = Entry::new("claimed, since it is young", "shm:young");
        self.add(entry.root("claimed", "too-young").user("claimed", "too-young"));
        for (name, way, what) in [
            ("gone-map", "map-shared", "deleted, held by a mapping"),
            ("gone-fd", "fd-read", "deleted, held by a descriptor"),
            ("gone-flying", "in-flight", "deleted, held by a descriptor in flight"),
        ] {
            let (holder, id) = deleted("shm", name, || hold(way, path(name)));
            let entry = Entry::new(what, id).deleted();
            // Nothing but the space that the file system counts tells of what is in flight.
            let seen = name != "gone-flying";
            let entry = if seen { entry.root("held", reason_of(way)) } else { entry };
            let entry = if way.starts_with("map") { entry.only_mapped() } else { entry };
            self.add_held(holder, entry);
        }
        let holder = hold("memfd", "anonymous");
        let ino = inode_of_memfd(holder.pid);
        let entry = Entry::new("memfd", format!("shm:memfd:anonymous (deleted {ino})"))
            .size(8192)
            .deleted();
        self.add_held(holder, entry.root("held", "open-by"));
    }

    fn semaphores(&mut self) {
        for (name, way, what) in [
            ("map", "map-shared", "held by a mapping only"),
            ("flying", "in-flight", "held by a descriptor in flight only"),
        ] {
            let file = format!("sem.{name}");
            object().size(32).make(&file);
            let entry = Entry::new(what, format!("sem:{name}")).size(32);
            let entry = entry.root("held", "lease-refused").private();
            let entry = if way == "in-flight" { entry.of_hidden_holders() } else { entry };
            self.add_held(hold(way, path(file)), entry);
        }
        object().size(32).make("sem.mp-abcdefgh");
        let entry = Entry::new("orphaned, by its name", "sem:mp-abcdefgh").size(32);
        self.add(entry.root("orphaned", "always-held-producer").private());
        object().size(32).make("sem.left");
        let entry = Entry::new("unclaimed", "sem:left").size(32);
        self.add(entry.root("unclaimed", "unknown-producer").private());
    }

    fn directories(&mut self) {
        for (name, way, what) in [
            ("open", "fd-read", "open in a process"),
            ("worked-in", "working-directory", "somebody's working directory"),
        ] {
            make_directory(path(name));
            let entry = Entry::new(what, format!("dir:{name}")).size(0);
            let entry = entry.root("held", "open-by").private_directory();
            self.add_held(hold(way, path(name)), entry);
        }
        make_directory(path("with-a-file"));
        object().make("with-a-file/mapped");
        let entry = Entry::new("a file in it is mapped", "dir:with-a-file");
        let entry = entry.root("held", "lease-refused").private_directory();
        self.add_held(hold("map-shared", path("with-a-file/mapped")), entry);
        make_directory(path("left-directory"));
        object().make("left-directory/file");
        let entry = Entry::new("unclaimed", "dir:left-directory");
        let entry = entry.root("unclaimed", "unknown-producer").private_directory();
        self.add(entry);
    }

    fn message_queues(&mut self) {
        drop(make_small_queue("empty", 2));
        let entry = Entry::new("empty, held by nobody", "mqueue:empty").size(0);
        self.add(entry.root("unclaimed", "unknown-producer").private());
        let full = make_small_queue("full", 2);
        let messages = (0..1000).take_while(|_| full.send("hello").is_ok()).count();
        drop(full);
        let entry = Entry::new("full, held by nobody", "mqueue:full")
            .size(5 * messages as u64)
            .counted("messages", messages as u64);
        self.add(entry.root("claimed", "unread").private());
        for (name, way, what) in [
            ("open", "message-queue", "empty, held by a descriptor"),
            ("flying", "message-queue-in-flight", "empty, held by a descriptor in flight"),
            ("told", "told-of-messages", "empty, somebody waits to be told of a message"),
        ] {
            drop(make_small_queue(name, 2));
            let entry = Entry::new(what, format!("mqueue:{name}")).size(0);
            let entry = entry.root("held", "lease-refused").private();
            let entry = if name == "flying" { entry.of_hidden_holders() } else { entry };
            self.add_held(hold(way, path(name)), entry);
        }
        for entry in self.entries.iter_mut().filter(|entry| entry.id.starts_with("mqueue:")) {
            if let Some(user) = &mut entry.user {
                user.sees_size = false;
            }
        }
    }

    /// System V memory. The first process of the namespace makes what is of a creator who is alive.
    fn segments(&mut self) {
        let alive = segment(0, 4096, 0o600);
        let entry = Entry::new("not attached, creator alive", format!("sysv-shm:{alive}"));
        self.add(entry.root("claimed", "creator-alive").user("claimed", "creator-alive"));
        let dead = made_by_somebody_dead(0, || segment(0x5255, 8192, 0o600));
        let entry = Entry::new("not attached, creator dead", format!("sysv-shm:{dead}"))
            .counted("attachments", 0)
            .size(8192);
        let entry = entry.root("unclaimed", "unknown-producer");
        self.add(entry.user("unclaimed", "unknown-producer"));
        for (what, id) in [
            ("attached, creator alive", segment(0, 4096, 0o600)),
            ("attached, creator dead", made_by_somebody_dead(0, || segment(0, 4096, 0o600))),
        ] {
            let entry = Entry::new(what, format!("sysv-shm:{id}"));
            let entry = entry.root("held", "mapped-by").user("held", "attached");
            let entry = entry.counted("attachments", 1);
            self.add_held(hold("sysv-attached", id.to_string()), entry);
        }
        let id = segment(0x5256, 4096, 0o600);
        let holder = hold("sysv-attached", id.to_string());
        remove_segment(id);
        let entry = Entry::new("removed and attached (dest)", format!("sysv-shm:{id}")).deleted();
        let entry = entry.counted("attachments", 1);
        self.add_held(holder, entry.root("held", "mapped-by").user("held", "attached"));
    }

    /// Who made a set of semaphores, and who waits at it, the kernel tells nobody.
    fn semaphore_sets(&mut self) {
        let entry = |what, id: i32| Entry::new(what, format!("sysv-sem:{id}")).size(0);
        let set = entry("nobody waits, creator alive", semaphores(0, 2, 0o600));
        self.add(set.root("unclaimed", "weak-producer").private().counted("semaphores", 2));
        let id = made_by_somebody_dead(0, || semaphores(0x5257, 1, 0o600));
        let set = entry("nobody waits, creator dead", id);
        self.add(set.root("unclaimed", "unknown-producer").private());
        let id = made_by_somebody_dead(0, || semaphores(0x5258, 1, 0o600));
        let waiter = hold("sysv-waiting", id.to_string());
        let set = entry("a process waits, creator dead", id).root("held", "attached").private();
        self.add_held(waiter, set.of_hidden_holders().counted("waiting", 1));
    }

    /// Who made a queue the kernel tells nobody either, but who sent to it last.
    fn message_queues_of_system_v(&mut self) {
        let entry = |what, id: i32| Entry::new(what, format!("sysv-msg:{id}")).size(0);
        let id = queue(0x5259, 0o600);
        let empty = entry("empty, creator alive", id).root("unclaimed", "unknown-producer");
        self.add(empty.user("unclaimed", "unknown-producer"));
        let id = made_by_somebody_dead(0, || queue(0x525a, 0o600));
        let empty = entry("empty, creator dead", id).root("unclaimed", "unknown-producer");
        self.add(empty.user("unclaimed", "unknown-producer"));
        let id = made_by_somebody_dead(0, || {
            let id = queue(0x525b, 0o600);
            fill(id);
            id
        });
        let bytes = line("msg", id).unwrap()[3].parse().unwrap();
        let full = entry("full, creator dead", id)
            .size(bytes)
            .counted("messages", bytes / 1024)
            .root("claimed", "unread");
        self.add(full.user("claimed", "unread"));
    }

    /// Each with objects of the same names as ours.
    fn other_namespaces(&mut self) {
        let way = format!("own-shm=map+{ALWAYS_HELD}:map-shared");
        let holder = hold(&way, path("map"));
        let entry =
            Entry::new("of a container, orphaned by its name", format!("shm:{ALWAYS_HELD}"));
        self.add(entry.root("orphaned", "always-held-producer").within(&holder));
        let entry = Entry::new("of a container, held by a mapping", "shm:map");
        let entry = entry.root("held", "lease-refused").within(&holder);
        self.add_held(holder, entry);
        let holder = hold("own-shm=fd:own-pids:fd-write", path("fd"));
        let entry = Entry::new("of a container with its own pids, held", "shm:fd");
        let entry = entry.root("held", "lease-refused").within(&holder);
        self.add_held(holder, entry);
        let holder = hold("own-queues=empty+open:message-queue", "open");
        let entry = Entry::new("of a container, empty, held by nobody", "mqueue:empty").size(0);
        self.add(entry.root("unclaimed", "unknown-producer").within(&holder));
        let entry = Entry::new("of a container, empty, held", "mqueue:open").size(0);
        let entry = entry.root("held", "lease-refused").within(&holder);
        self.add_held(holder, entry);
        // Ids begin anew, so that this one is another one's as well.
        let holder = hold("own-ipc:sysv-made-and-attached", "0");
        let entry = Entry::new("of a container, attached", "sysv-shm:0");
        let entry = entry.root("held", "mapped-by").within(&holder);
        self.add_held(holder, entry);
    }

    /// What belongs to the ordinary user is known to him as it is to root.
    fn of_the_user(&mut self, user: u32) {
        let entry = |what, id: &str| Entry::new(what, id).of(user);
        for (name, what, verdict, reason) in [
            (
                ALWAYS_HELD_TOO,
                "the user's, orphaned by its name",
                "orphaned",
                "always-held-producer",
            ),
            ("users-left", "the user's, unclaimed", "unclaimed", "unknown-producer"),
        ] {
            object().owner(user).make(name);
            self.add(entry(what, &format!("shm:{name}")).both(verdict, reason));
        }
        object().owner(user).make("users");
        let holder = hold_as(user, "map-shared", path("users"));
        let users = entry("the user's, held by a mapping", "shm:users");
        self.add_held(holder, users.both("held", "lease-refused"));
        let (holder, id) = deleted("shm", "users-gone", || {
            chown(path("users-gone"), Some(user), Some(user)).unwrap();
            hold_as(user, "map-shared", path("users-gone"))
        });
        let users = entry("the user's, deleted, held by a mapping", &id).deleted();
        let users = users.both("held", "mapped-by").only_mapped();
        self.add_held(holder, users);
        drop(make_small_queue("users", 2));
        chown("/dev/mqueue/users", Some(user), Some(user)).unwrap();
        let users = entry("the user's, empty, held by nobody", "mqueue:users").size(0);
        self.add(users.both("unclaimed", "unknown-producer"));
        let id = made_by_somebody_dead(user, || segment(0, 4096, 0o600));
        let holder = hold_as(user, "sysv-attached", id.to_string());
        let users = entry("the user's, attached", &format!("sysv-shm:{id}"));
        self.add_held(holder, users.both("held", "mapped-by"));
    }

    /// Nobody is left who could come back for what is of a user without processes.
    fn of_somebody_gone(&mut self, gone: u32) {
        let entry =
            |id: String| Entry::new("orphaned, nobody of its owner's is alive", id).of(gone);
        let orphaned = |entry: Entry| entry.root("orphaned", "no-kin");
        object().owner(gone).make("kinless");
        self.add(orphaned(entry("shm:kinless".into())).private());
        object().owner(gone).size(32).make("sem.kinless");
        self.add(orphaned(entry("sem:kinless".into())).private().size(32));
        make_directory(path("kinless-directory"));
        chown(path("kinless-directory"), Some(gone), Some(gone)).unwrap();
        self.add(orphaned(entry("dir:kinless-directory".into())).private_directory().size(0));
        drop(make_small_queue("kinless", 2));
        chown("/dev/mqueue/kinless", Some(gone), Some(gone)).unwrap();
        let queue_ = orphaned(entry("mqueue:kinless".into())).private().size(0);
        self.add(queue_.of_private_size());
        let id = made_by_somebody_dead(gone, || segment(0, 4096, 0o600));
        self.add(orphaned(entry(format!("sysv-shm:{id}"))).user("orphaned", "no-kin"));
        let id = made_by_somebody_dead(gone, || semaphores(0, 1, 0o600));
        self.add(orphaned(entry(format!("sysv-sem:{id}"))).private().size(0));
        let id = made_by_somebody_dead(gone, || queue(0, 0o600));
        // Who waits at a queue, only who may ask everybody can know.
        self.add(
            orphaned(entry(format!("sysv-msg:{id}"))).user("unclaimed", "unknown-producer").size(0),
        );
    }
}

/// A directory that its owner only may enter.
fn make_directory(at: impl AsRef<Path>) {
    fs::DirBuilder::new().mode(0o700).create(at).unwrap();
}

/// Makes an object, has somebody hold it, and takes away its name; answers with its id as well.
fn deleted(kind: &str, name: &str, hold: impl FnOnce() -> Holder) -> (Holder, String) {
    let (_, ino) = object().make(name);
    let holder = hold();
    fs::remove_file(path(name)).unwrap();
    (holder, format!("{kind}:{name} (deleted {ino})"))
}

/// What tells of the holders of what has no name, which cannot be asked for a lease.
fn reason_of(way: &str) -> &'static str {
    if way.contains("map") { "mapped-by" } else { "open-by" }
}

/// The inode number of the only memfd of a process.
fn inode_of_memfd(pid: u32) -> u64 {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut files = files.map(|file| file.unwrap().path());
    let file = files.find(|file| {
        fs::read_link(file)
            .is_ok_and(|name| name.as_os_str().as_encoded_bytes().starts_with(b"/memfd:"))
    });
    fs::metadata(file.unwrap()).unwrap().ino()
}
