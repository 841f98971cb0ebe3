//! A tracker on a socket: each client's leftovers go when it goes, and nobody else's.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rtrack::tracker::service::client::{Connection, ConnectionError};
use serde_json::{Value, json};

use crate::support::{
    Case, Finish, Need, case, check, fork, identity, inside, kill, mount, names, object, rtrack,
    scratch, sysv, validate, wait_for,
};

pub(crate) fn tests() -> Vec<Case> {
    const ROOT: &[Need] = &[Need::RealRoot];
    vec![
        case("each_for_itself", each_for_itself),
        case("nobody_takes_back_what_is_anothers", nobody_takes_back),
        case("the_end_of_a_process_counts_and_not_that_of_its_children", end_of_a_process),
        case("registered_for_another_process", registered_for_another_process),
        case("end_by_a_signal", end_by_a_signal),
        case("garbage_and_half_lines", garbage_and_half_lines),
        case("no_more_than_may_be", no_more_than_may_be),
        case("who_is_not_served", who_is_not_served).needs(ROOT),
        case("who_is_served_but_for_paths", who_is_served_but_for_paths),
        case("an_owner_with_other_paths", an_owner_with_other_paths),
        case("too_many_mounts", too_many_mounts),
        case("with_the_rights_of_who_registered", with_the_rights).needs(ROOT),
        case("a_thousand_clients_of_several_users", a_thousand_clients).needs(ROOT),
        case("a_socket_that_was_left", a_socket_that_was_left),
        case("a_socket_that_is_passed", a_socket_that_is_passed),
        case("told_by_hand", told_by_hand),
        case("told_by_a_program", told_by_a_program),
        case("pids_of_another_namespace", pids_of_another_namespace).needs(ROOT),
        case("root_without_capabilities", root_without_capabilities).needs(ROOT),
        case("processes_that_are_waited_for", processes_that_are_waited_for),
        case("what_has_the_name_now_stays", what_has_the_name_now_stays),
        case("asked_what_it_has", asked_what_it_has).needs(&[Need::PidNamespace]),
        case("asked_without_a_descriptor_left", asked_without_a_descriptor),
        case("who_may_ask", who_may_ask).needs(&[Need::RealRoot, Need::PidNamespace]),
    ]
}

/// A daemon that listens.
pub(crate) struct Daemon {
    pub(crate) child: Child,
}

impl Daemon {
    pub(crate) fn start(options: &[&str]) -> Self {
        let mut command = rtrack(["daemon", "--listen"]);
        command.arg(socket()).args(options).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        wait_for("the socket", || UnixStream::connect(socket()).ok());
        Self { child }
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: the child has not been waited for.
        check(unsafe { libc::kill(pid, signal) }).unwrap();
    }

    /// Ends it as a service manager does; the exit status and what it said.
    pub(crate) fn end(self) -> (Option<i32>, String) {
        self.signal(libc::SIGTERM);
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

fn socket() -> PathBuf {
    scratch().join("socket")
}

/// A connection.
pub(crate) struct Client(BufReader<UnixStream>);

impl Client {
    pub(crate) fn new() -> Self {
        Self(BufReader::new(UnixStream::connect(socket()).unwrap()))
    }

    pub(crate) fn tell(&mut self, text: &str) -> &mut Self {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
        self
    }

    /// Waits until everything that was told is done.
    pub(crate) fn done(&mut self) -> Value {
        self.tell("PROBE:0:noop\n");
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

fn gone(name: &str) {
    wait_for(&format!("the end of {name}"), || identity(name).is_none().then_some(()));
}

fn each_for_itself() {
    let daemon = Daemon::start(&[]);
    let (mut first, mut second) = (Client::new(), Client::new());
    for name in ["a", "b", "both", "kept"] {
        object().make(name);
    }
    first.tell("REGISTER:/a:shared_memory\nREGISTER:/both:shared_memory\n");
    first.tell("REGISTER:/kept:shared_memory\nUNREGISTER:/kept:shared_memory\n");
    second.tell("REGISTER:/b:shared_memory\nREGISTER:/both:shared_memory\n");
    assert_eq!(first.done()["registered"], 2);
    assert_eq!(second.done()["registered"], 2);
    drop(first);
    gone("a");
    assert!(identity("both").is_some() && identity("b").is_some());
    drop(second);
    gone("both");
    gone("b");
    assert!(identity("kept").is_some());
    let (status, said) = daemon.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("left 1 shared_memory objects to clean up: '/a'\n"), "{said}");
    assert!(!socket().exists());
}

fn nobody_takes_back() {
    let daemon = Daemon::start(&[]);
    let (mut first, mut second) = (Client::new(), Client::new());
    object().make("a");
    first.tell("REGISTER:/a:shared_memory\n").done();
    let answer = second.tell("UNREGISTER:/a:shared_memory\n").done();
    assert_eq!((&answer["bad"], &answer["wrong"]), (&json!(1), &json!("'/a'")));
    drop(second);
    assert_eq!(first.done()["registered"], 1);
    assert!(identity("a").is_some());
    drop(first);
    gone("a");
    assert_eq!(daemon.end().0, Some(0));
}

fn end_of_a_process() {
    let daemon = Daemon::start(&[]);
    object().make("a");
    object().make("late");
    let pid = fork();
    if pid == 0 {
        let mut client = Client::new();
        client.tell("REGISTER:/a:shared_memory\n").done();
        if fork() == 0 {
            // It has the connection too, and lives on.
            std::thread::sleep(std::time::Duration::from_secs(3600));
        }
        // What was written last is read, whoever wrote it.
        client.tell("REGISTER:/late:shared_memory\n");
        // SAFETY: the call does not return.
        unsafe { libc::_exit(0) }
    }
    gone("a");
    gone("late");
    assert_eq!(daemon.end().0, Some(0));
}

fn registered_for_another_process() {
    let daemon = Daemon::start(&[]);
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    object().make("a");
    object().make("b");
    let mut client = Client::new();
    let first = format!("{{\"cmd\": \"OWNER\", \"pid\": {}}}\n", owner.id());
    let answer = client.tell(&first).tell("REGISTER:/a:shared_memory\n").done();
    assert_eq!((&answer["bad"], &answer["registered"]), (&json!(0), &json!(1)));
    // Not again, and not for what is no process.
    assert_eq!(client.tell(&first).done()["bad"], 1);
    assert_eq!(client.tell("{\"cmd\":\"OWNER\"}\n").done()["bad"], 2);
    drop(client);
    let mut client = Client::new();
    assert_eq!(client.tell(&first).done()["registered"], 1);
    assert_eq!(
        client.tell("UNREGISTER:/a:shared_memory\nREGISTER:/b:shared_memory\n").done()["bad"],
        0
    );
    assert!(identity("a").is_some() && identity("b").is_some());
    owner.kill().unwrap();
    owner.wait().unwrap();
    gone("b");
    assert!(identity("a").is_some());
    let gone = Client::new().tell(&first).done();
    assert!(gone["error"].as_str().unwrap().contains("gone already"), "{gone}");
    assert_eq!(daemon.end().0, Some(0));
}

fn end_by_a_signal() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let daemon = Daemon::start(&[]);
        object().make("a");
        object().make("drained");
        let mut client = Client::new();
        client.tell("REGISTER:/a:shared_memory\n").done();
        for other in [libc::SIGHUP, libc::SIGQUIT] {
            daemon.signal(other);
        }
        // It lies in the socket when the signal comes.
        client.tell("REGISTER:/drained:shared_memory\nREGISTER:/missing:shared_memory\n");
        daemon.signal(signal);
        let output = daemon.child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(names().is_empty());
    }
    let daemon = Daemon::start(&[]);
    object().make("a");
    let mut client = Client::new();
    client.tell("REGISTER:/a:shared_memory\n").done();
    assert_eq!(daemon.end().0, Some(1));
    assert!(names().is_empty());
}

fn garbage_and_half_lines() {
    let daemon = Daemon::start(&[]);
    object().make("a");
    object().make("ab");
    let mut good = Client::new();
    good.tell("REGISTER:/a:shared_memory\n").done();
    let mut half = Client::new();
    half.tell("REGISTER:/ab:shared_memory\nREGISTER:/a");
    let mut noise = Client::new();
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n * 31 % 251) as u8).collect();
    noise.0.get_mut().write_all(&bytes).unwrap();
    noise.tell("\n");
    let answer = noise.done();
    assert!(answer["bad"].as_u64().unwrap() > 100, "{answer}");
    let mut long = Client::new();
    let answer = long.tell(&format!("REGISTER:/{}:shared_memory\n", "a".repeat(1100))).done();
    assert_eq!(answer["wrong"], "line longer than 1024 bytes");
    // Killed in mid-line: half a name is another name.
    drop(half);
    gone("ab");
    drop((noise, long));
    assert_eq!(good.done()["registered"], 1);
    assert!(identity("a").is_some());
    drop(good);
    gone("a");
    let (status, said) = daemon.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("what follows is only counted") && said.contains("messages were bad"));
    assert!(said.contains("REGISTER:/a: it was cut off"), "{said}");
}

fn no_more_than_may_be() {
    let daemon = Daemon::start(&["--max-clients", "6", "--max-registrations", "3"]);
    let own = nix::unistd::geteuid().as_raw();
    let most = if own == 0 { 6 } else { 3 };
    // The first one looked whether it listens.
    wait_for("its end", || {
        let mut client = Client::new();
        let answer = client.done();
        answer.get("error").is_none().then_some(())
    });
    let mut clients: Vec<Client> = Vec::new();
    wait_for("all to be there", || {
        let mut client = Client::new();
        if client.done().get("error").is_none() {
            clients.push(client);
        }
        (clients.len() == most).then_some(())
    });
    let refused = {
        let mut line = String::new();
        Client::new().0.read_to_string(&mut line).unwrap();
        line
    };
    assert!(refused.contains("no more may be"), "{refused}");
    for name in ["a", "b", "c", "d"] {
        object().make(name);
        clients[0].tell(&format!("REGISTER:/{name}:shared_memory\n"));
    }
    let answer = clients[0].done();
    assert_eq!((&answer["registered"], &answer["bad"]), (&json!(3), &json!(1)));
    drop(clients);
    for name in ["a", "b", "c"] {
        gone(name);
    }
    assert!(identity("d").is_some());
    assert_eq!(daemon.end().0, Some(0));
}

fn who_is_not_served() {
    let daemon = Daemon::start(&[]);
    object().make("a");
    let send = |places: &str| {
        let mut send = rtrack(["send", "REGISTER", "/a", "shared_memory", "--socket"]);
        send.arg(socket());
        inside(places, &send).finish()
    };
    for (places, what) in [("own-shm=x", "/dev/shm"), ("own-ipc", "IPC namespace")] {
        let run = send(places).expect(3);
        assert!(run.stderr.contains(what), "{run:?}");
    }
    assert_eq!(daemon.end().0, Some(0));
    assert!(identity("a").is_some());

    // An ordinary user's daemon serves that user and root, whatever the socket lets in.
    let directory = scratch().join("open");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    let socket = directory.join("socket");
    let mut command = rtrack(["daemon", "--socket-mode", "0666", "--listen"]);
    command.arg(&socket);
    let mut child = inside("user=61001", &command).spawn().unwrap();
    wait_for("the socket", || socket.exists().then_some(()));
    let mut send = rtrack(["send", "REGISTER", "/a", "dummy", "--socket"]);
    let mut owner = Command::new("sleep").arg("1000").uid(61001).gid(61001).spawn().unwrap();
    send.arg(&socket).arg("--owner").arg(owner.id().to_string());
    inside("user=61001", &send).finish().expect(0);
    owner.kill().unwrap();
    owner.wait().unwrap();
    let run = inside("user=61002", &send).finish().expect(3);
    assert!(run.stderr.contains("serves its own user and root"), "{run:?}");
    kill(child.id());
    child.wait().unwrap();
}

/// Goes somewhere, from where the socket has the name that it answers.
type Way = fn() -> PathBuf;

fn own_mounts() {
    // SAFETY: this process has a single thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).unwrap();
}

fn mount_over_memory(source: &str, fstype: &str, flags: libc::c_ulong) -> PathBuf {
    own_mounts();
    mount(source, "/dev/shm", fstype, flags, "").unwrap();
    socket()
}

/// What a client is answered that has gone somewhere, after a probe, a name in /dev/shm and the path of a file.
fn answers_from(way: Way, file: &Path) -> [Value; 3] {
    let (mut ours, theirs) = std::io::pipe().unwrap();
    if fork() == 0 {
        let mut client = Client(BufReader::new(UnixStream::connect(way()).unwrap()));
        // Who is not served is told so before anything is asked.
        client.0.get_mut().write_all(b"PROBE:0:noop\n").unwrap_or(());
        let mut line = String::new();
        client.0.read_line(&mut line).unwrap();
        let first: Value = serde_json::from_str(&line).unwrap();
        let answers = if first.get("error").is_some() {
            [first, json!(null), json!(null)]
        } else {
            let name = client.tell("REGISTER:/a:shared_memory\n").done();
            [first, name, client.tell(&format!("REGISTER:{}:file\n", file.display())).done()]
        };
        (&theirs).write_all(json!(answers).to_string().as_bytes()).unwrap();
        // SAFETY: the call does not return.
        unsafe { libc::_exit(0) }
    }
    drop(theirs);
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// With the same /dev/shm in another mount namespace, or below another root directory, only paths mean something else.
fn who_is_served_but_for_paths() {
    const ELSEWHERE: &[(&str, Way, &str)] = &[
        (
            "mounts of its own",
            || {
                own_mounts();
                socket()
            },
            "different mount namespaces",
        ),
        (
            "the same memory, mounted again",
            || {
                let copy = scratch().join("dev/shm");
                mount_over_memory("tmpfs", "tmpfs", 0);
                mount_over_memory(copy.to_str().unwrap(), "", libc::MS_BIND)
            },
            "different mount namespaces",
        ),
        (
            "another root directory",
            || {
                std::os::unix::fs::chroot(scratch()).unwrap();
                "/socket".into()
            },
            "different root directories",
        ),
    ];
    const NOT_SERVED: &[(&str, Way)] = &[
        ("other memory", || mount_over_memory("tmpfs", "tmpfs", 0)),
        ("a directory of that memory", || {
            fs::create_dir("/dev/shm/directory").unwrap();
            mount_over_memory("/dev/shm/directory", "", libc::MS_BIND)
        }),
        ("another /dev, which hides it", || {
            own_mounts();
            mount("tmpfs", "/dev", "tmpfs", 0, "").unwrap();
            fs::create_dir("/dev/shm").unwrap();
            socket()
        }),
        ("another root directory, without it", || {
            own_mounts();
            nix::mount::umount(&scratch().join("dev/shm")).unwrap();
            std::os::unix::fs::chroot(scratch()).unwrap();
            "/socket".into()
        }),
    ];
    let daemon = Daemon::start(&["--protocol", "rtrack"]);
    let copy = scratch().join("dev/shm");
    fs::create_dir_all(&copy).unwrap();
    mount("/dev/shm", copy.to_str().unwrap(), "", libc::MS_BIND, "").unwrap();
    let file = scratch().join("file");
    fs::write(&file, "").unwrap();
    for (place, way, why) in ELSEWHERE {
        object().make("a");
        let [_, name, path] = answers_from(*way, &file);
        assert_eq!(name["registered"], 1, "{place}: {name}");
        gone("a");
        assert!(path["wrong"].as_str().unwrap_or_default().contains(why), "{place}: {path}");
        assert!(file.exists(), "{place}");
    }
    object().make("a");
    for (place, way) in NOT_SERVED {
        let [error, ..] = answers_from(*way, &file);
        let why = error["error"].as_str().unwrap_or_default();
        assert!(why.contains("/dev/shm"), "{place}: {error}");
    }
    assert!(identity("a").is_some() && file.exists());
    let [_, _, path] = answers_from(socket, &file);
    assert_eq!(path["registered"], 2, "{path}");
    gone("a");
    wait_for("the end of the file", || (!file.exists()).then_some(()));
    assert_eq!(daemon.end().0, Some(0));
}

/// It is the paths of the owner that count, too.
fn an_owner_with_other_paths() {
    let daemon = Daemon::start(&["--protocol", "rtrack"]);
    let file = scratch().join("file");
    fs::write(&file, "").unwrap();
    object().make("a");
    let mut owner = Command::new("sleep");
    let mut owner = inside("own-mounts", owner.arg("1000")).spawn().unwrap();
    let comm = format!("/proc/{}/comm", owner.id());
    wait_for("the owner", || (fs::read(&comm).unwrap() == b"sleep\n").then_some(()));
    let mut client = Client::new();
    client.tell(&format!("{{\"cmd\":\"OWNER\",\"pid\":{}}}\n", owner.id()));
    client.tell("REGISTER:/a:shared_memory\n");
    let answer = client.tell(&format!("REGISTER:{}:file\n", file.display())).done();
    assert_eq!((&answer["registered"], &answer["bad"]), (&json!(1), &json!(1)), "{answer}");
    assert!(answer["wrong"].as_str().unwrap().contains("different mount namespaces"), "{answer}");
    owner.kill().unwrap();
    owner.wait().unwrap();
    gone("a");
    assert_eq!(daemon.end().0, Some(0));
    assert!(file.exists());
}

/// What is mounted is read up to a bound, and the others are served meanwhile.
fn too_many_mounts() {
    let daemon = Daemon::start(&[]);
    let [error, ..] = answers_from(
        || {
            own_mounts();
            // Each byte of such a name is four of them in mountinfo.
            let long = scratch().join(vec!["\n".repeat(255); 12].join("/"));
            fs::create_dir_all(&long).unwrap();
            for _ in 0..400 {
                mount("/dev/shm", long.to_str().unwrap(), "", libc::MS_BIND, "").unwrap();
            }
            socket()
        },
        Path::new("/nowhere"),
    );
    assert!(error["error"].as_str().unwrap().contains("too many mounts"), "{error}");
    assert_eq!(Client::new().done()["bad"], 0);
    assert_eq!(daemon.end().0, Some(0));
}

fn with_the_rights() {
    let daemon = Daemon::start(&[]);
    let user = |lines: &str| {
        let mut send = rtrack(["send", "-", "--socket"]);
        let owner = Command::new("sleep").arg("0.1").uid(61001).spawn().unwrap();
        send.arg(socket()).arg("--owner").arg(owner.id().to_string());
        let mut child = inside("user=61001", &send)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let mut owner = owner;
        owner.wait().unwrap();
        output
    };
    object().make("roots");
    object().owner(61002).make("others");
    object().owner(61001).make("own");
    object().owner(61001).make("marker");
    let private = scratch().join("private");
    fs::create_dir(&private).unwrap();
    fs::write(private.join("file"), "").unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    let file = private.join("file");
    let output = user(
        "REGISTER:/roots:shared_memory\nREGISTER:/others:shared_memory\nREGISTER:/own:shared_memory\n\
         REGISTER:/marker:shared_memory\n",
    );
    // What is another's is refused, and no reason to refuse the rest.
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    gone("own");
    gone("marker");
    assert!(identity("roots").is_some() && identity("others").is_some() && file.exists());
    // Nor for a process of somebody else, whose end would be the moment.
    let mut foreign = rtrack(["send", "REGISTER", "/own", "shared_memory", "--socket"]);
    foreign.arg(socket()).arg("--owner").arg(std::process::id().to_string());
    let run = inside("user=61001", &foreign).finish().expect(3);
    assert!(run.stderr.contains("cannot own"), "{run:?}");
    // What is made by another user after it was registered stays too: the kernel says so.
    let mut client = rtrack(["send", "REGISTER", "/later", "shared_memory", "--socket"]);
    let mut owner = Command::new("sleep").arg("1000").uid(61001).gid(61001).spawn().unwrap();
    client.arg(socket()).arg("--owner").arg(owner.id().to_string());
    inside("user=61001", &client).finish().expect(0);
    object().make("later");
    owner.kill().unwrap();
    owner.wait().unwrap();
    let (_, said) = daemon.end();
    assert!(said.contains("'/later': [Errno 13] Permission denied"), "{said}");
    assert!(said.contains("REGISTER:/roots:shared_memory: it belongs to uid 0"), "{said}");
    assert!(identity("later").is_some());
}

/// A number of a process is another one's there.
fn pids_of_another_namespace() {
    let daemon = Daemon::start(&[]);
    object().make("a");
    let mut send = rtrack(["send", "REGISTER", "/a", "shared_memory", "--owner", "1", "--socket"]);
    send.arg(socket());
    let run = inside("own-pids", &send).finish().expect(3);
    assert!(run.stderr.contains("another PID namespace"), "{run:?}");
    assert_eq!(daemon.end().0, Some(0));
    assert!(identity("a").is_some());
}

/// Root in a container has less than root, and so has who removes for it.
fn root_without_capabilities() {
    let daemon = Daemon::start(&["--protocol", "rtrack"]);
    sysv::by(61001, || {
        sysv::segment(0x7777, 4096, 0o600);
        0
    });
    let id = sysv::segment_of(0x7777);
    let own = sysv::segment(0, 4096, 0o600);
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    for id in [id, own] {
        let mut send = rtrack(["send", "REGISTER", &id.to_string(), "sysv_shm", "--socket"]);
        send.arg(socket()).arg("--owner").arg(owner.id().to_string());
        inside("usual-capabilities", &send).finish().expect(0);
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    let (_, said) = daemon.end();
    let there = |id: i32| sysv::line("shm", id).is_some();
    assert!(there(id) && !there(own), "{said}");
    assert!(said.contains("Operation not permitted"), "{said}");
}

/// Who registers for others has no more of them than of connections, and none that has nothing.
fn processes_that_are_waited_for() {
    let daemon = Daemon::start(&["--max-clients", "8"]);
    let most = if nix::unistd::geteuid().is_root() { 8 } else { 4 };
    let mut owners: Vec<Child> =
        (0..=most).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect();
    let tell = |owner: &Child, name: &str| -> Value {
        loop {
            let mut client = Client::new();
            client.tell(&format!("{{\"cmd\":\"OWNER\",\"pid\":{}}}\n", owner.id()));
            if !name.is_empty() {
                client.tell(&format!("REGISTER:/{name}:dummy\n"));
            }
            let answer = client.done();
            // Connections that were closed may still count.
            if !answer["error"].as_str().is_some_and(|why| why.contains("are connected")) {
                return answer;
            }
        }
    };
    // Nothing is registered for them, so they count for nothing.
    for owner in &owners {
        assert_eq!(tell(owner, "")["bad"], 0);
    }
    for (number, owner) in owners.iter().take(most).enumerate() {
        assert_eq!(tell(owner, &format!("d{number}"))["registered"], 1);
    }
    let refused = tell(&owners[most], "one-more");
    assert!(refused["error"].as_str().unwrap().contains("no more may be"), "{refused}");
    for owner in &mut owners {
        owner.kill().unwrap();
        owner.wait().unwrap();
    }
    assert_eq!(daemon.end().0, Some(0));
}

fn a_thousand_clients() {
    const USERS: [u32; 4] = [61001, 61002, 61003, 61004];
    const EACH: usize = 250;
    let daemon = Daemon::start(&[]);
    let (ready, told) = std::io::pipe().unwrap();
    let mut children = Vec::new();
    for (number, uid) in USERS.into_iter().enumerate() {
        for client in 0..EACH {
            object().size(8).owner(uid).make(format!("c-{uid}-{client}"));
        }
        let pid = fork();
        if pid == 0 {
            become_user(uid);
            let mut clients = Vec::new();
            for client in 0..EACH {
                let mut connection = Client::new();
                let own = format!("REGISTER:/c-{uid}-{client}:shared_memory\n");
                // Some register what is another user's, and send what is no message.
                let other = USERS[(number + 1) % USERS.len()];
                let foreign = format!("REGISTER:/c-{other}-{client}:shared_memory\nnoise\n\0");
                connection.tell(&own);
                if number % 2 == 1 {
                    connection.tell(&foreign);
                } else {
                    connection.done();
                }
                clients.push(connection);
            }
            (&told).write_all(b".").unwrap();
            std::thread::sleep(std::time::Duration::from_secs(3600));
            drop(clients);
        }
        children.push(u32::try_from(pid).unwrap());
    }
    let mut ready = ready;
    ready.read_exact(&mut [0; USERS.len()]).unwrap();
    let memory = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    };
    let resident = memory();
    assert!(resident < 32 * 1024, "{resident} kB");
    let of = |uid: u32| {
        let prefix = format!("c-{uid}-");
        names().iter().filter(|name| name.to_str().unwrap().starts_with(&prefix)).count()
    };
    for (ended, pid) in children.iter().enumerate() {
        kill(*pid);
        wait_for("its objects to go", || (of(USERS[ended]) == 0).then_some(()));
        for uid in &USERS[ended + 1..] {
            assert_eq!(of(*uid), EACH, "of {uid} when {ended} has ended");
        }
    }
    let (status, said) = daemon.end();
    assert_eq!(status, Some(0), "{said}");
}

fn become_user(uid: u32) {
    // SAFETY: the calls touch no memory: the list of groups is empty.
    unsafe {
        check(libc::setgroups(0, std::ptr::null())).unwrap();
        check(libc::setresgid(uid, uid, uid)).unwrap();
        check(libc::setresuid(uid, uid, uid)).unwrap();
    }
}

fn a_socket_that_was_left() {
    let daemon = Daemon::start(&[]);
    let second = rtrack(["daemon", "--listen"]).arg(socket()).finish().expect(64);
    assert!(second.stderr.contains("somebody listens there already"), "{second:?}");
    kill(daemon.child.id());
    let mut child = daemon.child;
    child.wait().unwrap();
    assert!(socket().exists());
    let daemon = Daemon::start(&[]);
    assert_eq!(daemon.end().0, Some(0));
    fs::write(socket(), "").unwrap();
    let refused = rtrack(["daemon", "--listen"]).arg(socket()).finish().expect(64);
    assert!(refused.stderr.contains("is no socket"), "{refused:?}");
    assert!(socket().exists());
}

fn a_socket_that_is_passed() {
    let listener = UnixListener::bind(socket()).unwrap();
    let script =
        "exec 3<&9; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" daemon --listen /nowhere/socket";
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(crate::support::binary());
    let fd = listener.as_raw_fd();
    // SAFETY: dup2 is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(fd, 9) == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    drop(listener);
    object().make("a");
    let mut client = Client::new();
    client.tell("REGISTER:/a:shared_memory\n").done();
    // Not who made the socket.
    let run = rtrack(["probe", "--json", "--socket"]).arg(socket()).finish().expect(0);
    assert_eq!(run.json()["pid"], child.id(), "{run:?}");
    drop(client);
    gone("a");
    let (status, said) = Daemon { child }.end();
    assert_eq!(status, Some(0), "{said}");
    // It is the service manager's.
    assert!(socket().exists());
    let mut wrong = Command::new("sh");
    wrong.arg("-c").arg(script.replace("3<&9", "3</dev/null")).arg(crate::support::binary());
    wrong.finish().expect(64);
}

fn told_by_hand() {
    let send = |words: &[&str]| {
        let mut send = rtrack(["send"]);
        send.args(words).env("RTRACK_SOCKET", socket());
        send.finish()
    };
    let mut probe = rtrack(["probe"]);
    probe.env("RTRACK_SOCKET", socket());
    assert!(probe.finish().expect(1).text().starts_with("dead: "));
    send(&["REGISTER", "/a", "shared_memory"]).expect(1);
    let daemon = Daemon::start(&[]);
    object().make("a");
    let mut probe = rtrack(["probe", "--socket"]);
    let run = probe.arg(socket()).arg("--json").finish().expect(0);
    assert_eq!(run.json()["pid"], daemon.child.id());
    // The parent owns it: this process.
    send(&["REGISTER", "/a", "shared_memory"]).expect(0);
    assert!(identity("a").is_some());
    send(&["UNREGISTER", "/a", "shared_memory"]).expect(0);
    let run = send(&["UNREGISTER", "/a", "shared_memory"]).expect(3);
    assert!(run.stderr.contains("the tracker refused 1: '/a'"), "{run:?}");
    let mut shell = Command::new("sh");
    let script = "\"$0\" send REGISTER /a shared_memory && kill -9 $$";
    shell.arg("-c").arg(script).arg(crate::support::binary()).env("RTRACK_SOCKET", socket());
    shell.finish();
    gone("a");
    assert_eq!(daemon.end().0, Some(0));
}

/// The library's connection, from many threads, over the death of the daemon, and in a child.
fn told_by_a_program() {
    let dead = Connection::open(socket()).unwrap_err();
    assert!(matches!(dead, ConnectionError::Dead { .. }), "{dead}");
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("RTRACK_SOCKET", socket()) };
    let daemon = Daemon::start(&[]);
    let connection = Connection::from_environment().unwrap().unwrap();
    assert_eq!(connection.daemon(), Some(i32::try_from(daemon.child.id()).unwrap()));
    thread::scope(|scope| {
        for worker in 0..4 {
            let connection = &connection;
            scope.spawn(move || {
                for number in 0..50 {
                    let name = format!("t-{worker}-{number}");
                    connection.register(&name, "shared_memory").unwrap();
                    object().size(8).make(&name);
                    if number % 2 == 0 {
                        connection.unregister(&name, "shared_memory").unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(connection.probe().unwrap().registered, 100);
    let refused = connection.unregister("/never", "shared_memory").unwrap_err();
    assert!(matches!(&refused, ConnectionError::Refused { count: 1, .. }), "{refused}");
    let refused = connection.register("/x", "no-type").unwrap_err();
    assert!(matches!(&refused, ConnectionError::Refused { count: 1, .. }), "{refused}");
    let long = connection.register("x".repeat(600), "shared_memory").unwrap_err();
    assert!(matches!(long, ConnectionError::Encode(_)), "{long}");
    let child = fork();
    if child == 0 {
        let forked = connection.register("/of-a-child", "dummy");
        let right = matches!(forked, Err(ConnectionError::Forked));
        // SAFETY: the call does not return.
        unsafe { libc::_exit(if right { 7 } else { 8 }) }
    }
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    check(unsafe { libc::waitpid(child, &mut status, 0) }).unwrap();
    assert_eq!(libc::WEXITSTATUS(status), 7);
    drop(connection);
    wait_for("what is registered to go", || (names().len() == 100).then_some(()));
    let connection = Connection::open(socket()).unwrap();
    assert_eq!(daemon.end().0, Some(0));
    let dead = connection.register("/late", "dummy").unwrap_err();
    assert!(matches!(dead, ConnectionError::Dead { .. }), "{dead}");
}

fn what_has_the_name_now_stays() {
    let daemon = Daemon::start(&[]);
    object().make("a");
    let mut client = Client::new();
    client.tell("REGISTER:/a:shared_memory\n").done();
    fs::remove_file("/dev/shm/a").unwrap();
    // The inode numbers of a tmpfs are not given again.
    let new = object().make("a");
    drop(client);
    let (_, said) = daemon.end();
    assert_eq!(identity("a"), Some(new));
    assert!(said.contains("'/a' stays: it is another object"), "{said}");
}

/// A daemon at a pipe that can be asked, and one that listens.
fn asked_what_it_has() {
    let control = scratch().join("control");
    let mut daemon = super::daemon::Daemon::start_with(|command| {
        command.arg("--control").arg(&control);
    });
    object().make("frames");
    object().make("other");
    daemon.told("REGISTER:/frames:shared_memory\nREGISTER:/missing:semaphore\nnoise\n");
    let pid = daemon.child.id().to_string();
    let run = rtrack(["probe", "--pid", &pid, "--json"]).finish().expect(0);
    let probe = run.json();
    validate(&probe);
    let tracker = &probe["tracker"];
    assert_eq!((&tracker["messages"], &tracker["bad"]), (&json!(3), &json!(1)), "{tracker:#}");
    let registered = tracker["registered"].as_array().unwrap();
    assert_eq!(registered.len(), 2);
    assert_eq!(registered[0]["name"], "/missing");
    assert!(registered[0]["registered_at"].is_string() && registered[0]["by"].is_null());
    let text = rtrack(["probe", "--pid", &pid]).finish().expect(0).text();
    assert!(text.contains("2 names are registered"), "{text}");

    let list = ["list", "--json", "--assume-complete", "--grace", "0s"];
    let document = rtrack(list).finish().expect(0).json();
    assert_eq!(crate::support::verdict(&document, "frames"), ("claimed", "registered"));
    assert_ne!(crate::support::verdict(&document, "other").1, "registered");
    let mut of_one = rtrack(list);
    let run = of_one.args(["--tracker", &pid]).finish().expect(0);
    assert_eq!(run.json()["objects"].as_array().unwrap().len(), 1);
    assert!(run.stderr.contains("2 names are registered, 1 of them listed"), "{run:?}");
    let mut nobody = rtrack(list);
    let run = nobody.args(["--tracker", &std::process::id().to_string()]).finish().expect(3);
    assert!(run.stderr.contains("not started with --control"), "{run:?}");
    let (status, _) = daemon.end();
    assert_eq!(status.code(), Some(1));
    assert!(!control.exists());

    let daemon = Daemon::start(&["--control", control.to_str().unwrap()]);
    object().make("frames");
    let mut client = Client::new();
    client.tell("REGISTER:/frames:shared_memory\n").done();
    let run = rtrack(["probe", "--json", "--socket"]).arg(socket()).finish().expect(0);
    let probe = run.json();
    validate(&probe);
    let pid = daemon.child.id().to_string();
    let text = rtrack(["probe", "--pid", &pid]).finish().expect(0).text();
    assert!(text.contains("listens on a socket, and answers; 1 name is registered"), "{text}");
    let by = &probe["tracker"]["registered"][0]["by"];
    assert_eq!(by["pid"], std::process::id(), "{probe:#}");
    let document = rtrack(list).finish().expect(0).json();
    assert_eq!(crate::support::verdict(&document, "frames"), ("claimed", "registered"));
    assert_eq!(daemon.end().0, Some(1));
}

/// Who asks while the daemon has no descriptor left sees the end, and the daemon does not turn in circles.
fn asked_without_a_descriptor() {
    let control = scratch().join("control");
    let daemon = Daemon::start(&["--control", control.to_str().unwrap()]);
    let mut client = Client::new();
    client.done();
    let pid = i32::try_from(daemon.child.id()).unwrap();
    let mut open = 0;
    while fs::symlink_metadata(Path::new(&format!("/proc/{pid}/fd/{open}"))).is_ok() {
        open += 1;
    }
    let limit = libc::rlimit { rlim_cur: open, rlim_max: open };
    // SAFETY: the limit is read, and nothing is written.
    let set =
        unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) };
    check(set).unwrap();
    for _ in 0..3 {
        let mut stream = UnixStream::connect(&control).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.is_empty());
    }
    assert_eq!(client.done()["bad"], 0);
    drop(client);
    assert_eq!(daemon.end().0, Some(0));
}

/// Whoever may not ask is not told, and whoever is not the daemon is not believed.
fn who_may_ask() {
    let control = scratch().join("control");
    let daemon = Daemon::start(&["--control", control.to_str().unwrap()]);
    let mut client = Client::new();
    object().make("a");
    client.tell("REGISTER:/a:shared_memory\n").done();
    fs::set_permissions(&control, fs::Permissions::from_mode(0o666)).unwrap();
    let told = |uid: Option<u32>| {
        let control = control.clone();
        let (mut ours, theirs) = std::io::pipe().unwrap();
        if fork() == 0 {
            if let Some(uid) = uid {
                become_user(uid);
            }
            let mut bytes = Vec::new();
            UnixStream::connect(&control).unwrap().read_to_end(&mut bytes).unwrap_or(0);
            (&theirs).write_all(bytes.len().to_string().as_bytes()).unwrap();
            // SAFETY: the call does not return.
            unsafe { libc::_exit(0) }
        }
        drop(theirs);
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        text.parse::<usize>().unwrap()
    };
    assert!(told(None) > 50);
    assert_eq!(told(Some(61001)), 0);

    // A program of the name that leads to somebody else's socket.
    let copy = scratch().join("rtrack");
    fs::copy("/bin/sleep", &copy).unwrap();
    let mut liar = Command::new(&copy);
    liar.arg0("rtrack").args(["1000"]);
    let mut liar = liar.spawn().unwrap();
    let list = ["list", "--json", "--assume-complete", "--grace", "0s"];
    rtrack(list).finish().expect(0);
    liar.kill().unwrap();
    liar.wait().unwrap();
    // One that says anything, of another user than the object's.
    let script = "import socket,os,sys,json\n\
        open('/proc/self/comm','w').write('rtrack')\n\
        s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[-1]); s.listen()\n\
        print('ready',flush=True)\n\
        while True:\n c=s.accept()[0]; c.sendall(json.dumps({'schema':'rtrack.tracker/1','pid':1,'protocol':'any','registered':[{'rtype':'shared_memory','name':'/b'},{'rtype':'shared_memory','name':'/c'}]}).encode()); c.close()\n";
    let open = scratch().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let mut liar = Command::new("python3");
    liar.arg("-c").arg(script).args(["daemon", "--control"]).arg(open.join("lie"));
    let mut liar = inside("user=61001", &liar).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(liar.stdout.take().unwrap()).read_line(&mut line).unwrap();
    object().make("b");
    object().owner(61001).make("c");
    let document = rtrack(list).finish().expect(0).json();
    assert_ne!(crate::support::verdict(&document, "b").1, "registered");
    assert_eq!(crate::support::verdict(&document, "c"), ("claimed", "registered"));
    liar.kill().unwrap();
    liar.wait().unwrap();
    drop(client);
    assert_eq!(daemon.end().0, Some(0));
}
