//! A journal: what is registered outlives a `kill -9` of the daemon.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::daemon::Daemon;
use crate::support::{
    Case, Finish, Need, case, check, fork, identity, kill, mount, names, note, object, path,
    rtrack, scratch, sem_open, wait_for,
};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("taken_over_by_the_next_one", taken_over),
        case("another_object_of_the_name_stays", another_object),
        case("files_have_to_be_the_same", files),
        case("only_one_daemon_has_it", only_one),
        case("by_hand", by_hand).needs(&[Need::PidNamespace]),
        case("by_hand_but_not_what_living_owners_have", not_of_the_living)
            .needs(&[Need::PidNamespace]),
        case("truncated_at_every_byte", truncated).seconds(200),
        case("a_newer_version_or_no_journal", strange_files),
        case("a_full_disk", full_disk),
        case("owners_that_live_keep_theirs", owners_that_live),
        case("what_a_living_one_has_too_stays", what_a_living_one_has_too),
        case("killed_at_random_nothing_is_forgotten", killed_at_random).seconds(200),
        case("files_of_owners_that_live", files_of_owners_that_live),
        case("room_is_made_on_a_full_disk", room_is_made),
        case("it_is_said_that_nothing_is_written_down", not_written_down),
        case("moved_away_while_in_use", moved_away),
        case("owners_of_another_pid_namespace", another_pid_namespace),
        case("nothing_counts_after_another_boot", another_boot),
    ]
}

fn journal() -> PathBuf {
    scratch().join("journal")
}

fn start(options: &[&str]) -> Daemon {
    Daemon::start_with(|command| {
        command.arg("--journal").arg(journal()).args(options);
    })
}

/// Ends a daemon by `kill -9`.
fn end_badly(mut daemon: Daemon) {
    // When it reads this it has done what it read before.
    daemon.told("PROBE:0:noop\n");
    kill(daemon.child.id());
    daemon.child.wait_with_output().unwrap();
}

fn left() -> Vec<String> {
    names().into_iter().map(|name| name.into_string().unwrap()).collect()
}

fn taken_over() {
    drop(sem_open("/mp-1", 1));
    for name in ["a", "b", "c"] {
        object().make(name);
    }
    let mut daemon = start(&[]);
    daemon.told(
        "REGISTER:/a:shared_memory\nREGISTER:/b:shared_memory\nREGISTER:/mp-1:semaphore\n\
         UNREGISTER:/b:shared_memory\nREGISTER:/c:shared_memory\nREGISTER:/late:shared_memory\n",
    );
    wait_for("the journal", || (fs::metadata(journal()).unwrap().len() > 200).then_some(()));
    end_badly(daemon);
    object().make("late");
    assert_eq!(left(), ["a", "b", "c", "late", "sem.mp-1"]);
    // The next one goes on with it: what is taken back there stays.
    let mut daemon = start(&[]);
    daemon.told("UNREGISTER:/c:shared_memory\n");
    let (status, said) = daemon.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("4 names are taken over from a tracker that was killed"), "{said}");
    assert_eq!(left(), ["b", "c"]);
    // And what it has dealt with is not there for the next.
    let (status, said) = start(&[]).end();
    assert_eq!((status.code(), &said[..]), (Some(0), ""));
    let mode = fs::metadata(journal()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

fn another_object() {
    object().make("a");
    let mut daemon = start(&[]);
    daemon.told("REGISTER:/a:shared_memory\n");
    end_badly(daemon);
    fs::remove_file("/dev/shm/a").unwrap();
    let new = object().make("a");
    let (_, said) = start(&[]).end();
    assert_eq!(identity("a"), Some(new));
    assert!(said.contains("'/a' stays: another object has its name now"), "{said}");
}

fn files() {
    let file = |name: &str| scratch().join(name);
    for name in ["same", "other"] {
        fs::write(file(name), "x").unwrap();
    }
    let options = ["--protocol", "any"];
    let mut daemon = start(&options);
    for name in ["same", "other", "later"] {
        daemon.told(&format!("REGISTER:{}:file\n", file(name).display()));
    }
    end_badly(daemon);
    fs::rename(file("other"), file("moved")).unwrap();
    fs::write(file("other"), "new").unwrap();
    fs::write(file("later"), "new").unwrap();
    let (status, said) = start(&options).end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("2 names are of an earlier boot, or files"), "{said}");
    assert!(!file("same").exists() && file("other").exists() && file("later").exists());
}

fn only_one() {
    let first = start(&[]);
    wait_for("the journal", || journal().exists().then_some(()));
    let second = start(&[]);
    let output = second.child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("hint: a live daemon has it"), "{said}");
    let mut by_hand = rtrack(["reap", "--yes", "--journal"]);
    let run = by_hand.arg(journal()).finish().expect(3);
    assert!(run.stderr.contains("a live daemon has it"), "{run:?}");
    assert_eq!(first.end().0.code(), Some(0));
}

fn by_hand() {
    for name in ["a", "held", "other", "kept"] {
        object().make(name);
    }
    let mut daemon = start(&[]);
    daemon.told("REGISTER:/a:shared_memory\nREGISTER:/held:shared_memory\n");
    daemon.told("REGISTER:/other:shared_memory\n");
    end_badly(daemon);
    fs::remove_file("/dev/shm/other").unwrap();
    object().make("other");
    let held = fs::File::open("/dev/shm/held").unwrap();
    let reap = |options: &[&str]| {
        let mut reap = rtrack(["reap", "--assume-complete", "--grace", "0s", "--no-audit"]);
        reap.args(options).arg("--journal").arg(journal());
        reap.finish()
    };
    let run = reap(&["--dry-run", "--json"]).expect(0);
    let document = run.json();
    let mut ids: Vec<&str> = document["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| object["id"].as_str().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, ["shm:a"], "{document:#}");
    assert_eq!(left(), ["a", "held", "kept", "other"]);
    let run = reap(&["--yes"]).expect(0);
    assert!(run.stderr.contains("left alone: 1 held"), "{run:?}");
    assert_eq!(left(), ["held", "kept", "other"]);
    drop(held);
    // What is dealt with is not in it any more, what was held is.
    object().make("a");
    reap(&["--yes"]).expect(0);
    assert_eq!(left(), ["a", "kept", "other"]);
    let mut missing = rtrack(["reap", "--yes", "--journal", "nowhere"]);
    missing.finish().expect(3);
    assert!(!scratch().join("nowhere").exists());
}

/// Only who registered them has ended, or nobody.
fn not_of_the_living() {
    for name in ["living", "ended", "both"] {
        object().make(name);
    }
    let options = ["--journal", journal().to_str().unwrap()].map(str::to_owned);
    let daemon = super::listening::Daemon::start(&options.each_ref().map(String::as_str));
    let mut owners: Vec<Child> =
        (0..2).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect();
    for (owner, names) in owners.iter().zip([["living", "both"], ["ended", "both"]]) {
        for name in names {
            let mut send = rtrack(["send", "REGISTER", &format!("/{name}"), "shared_memory"]);
            send.arg("--socket").arg(scratch().join("socket"));
            send.args(["--owner", &owner.id().to_string()]).finish().expect(0);
        }
    }
    kill(daemon.child.id());
    daemon.child.wait_with_output().unwrap();
    let end = |owner: Child| {
        kill(owner.id());
        owner.wait_with_output().unwrap();
    };
    end(owners.pop().unwrap());
    let reap = || {
        let mut reap = rtrack(["reap", "--assume-complete", "--grace", "0s", "--no-audit"]);
        reap.args(["--yes", "--journal"]).arg(journal()).finish().expect(0)
    };
    let run = reap();
    assert!(run.stderr.contains("2 names belong to processes that live"), "{run:?}");
    assert_eq!(left(), ["both", "living"]);
    end(owners.pop().unwrap());
    let run = reap();
    assert!(!run.stderr.contains("processes that live"), "{run:?}");
    assert!(left().is_empty());
}

/// What is read of a journal that was cut off is what was registered when it was as long as that.
fn truncated() {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    const STATES: [&[&str]; 5] = [&[], &["a"], &["a", "b"], &["a"], &["a", "c"]];
    for name in NAMES {
        object().make(format!("keep-{name}"));
        fs::hard_link(path(format!("keep-{name}")), path(name)).unwrap();
    }
    let mut daemon = start(&[]);
    daemon.told("REGISTER:/a:shared_memory\nREGISTER:/b:shared_memory\n");
    daemon.told("UNREGISTER:/b:shared_memory\nREGISTER:/c:shared_memory\n");
    wait_for("the journal", || (fs::metadata(journal()).unwrap().len() > 200).then_some(()));
    end_badly(daemon);
    let whole = fs::read(journal()).unwrap();
    let mut state = 0;
    for length in 0..=whole.len() {
        for name in NAMES.iter().filter(|name| identity(name).is_none()) {
            // The same object again.
            fs::hard_link(path(format!("keep-{name}")), path(name)).unwrap();
        }
        fs::write(journal(), &whole[..length]).unwrap();
        let (_, said) = start(&[]).end();
        let gone: Vec<&str> = NAMES.into_iter().filter(|name| identity(name).is_none()).collect();
        if gone != STATES[state] {
            state += 1;
        }
        assert_eq!(STATES.get(state), Some(&&gone[..]), "{length}: {said}");
    }
    assert_eq!(state, STATES.len() - 1);
    note(format!("{} lengths", whole.len() + 1));
}

fn strange_files() {
    object().make("a");
    let mut daemon = start(&[]);
    daemon.told("REGISTER:/a:shared_memory\n");
    end_badly(daemon);
    let whole = fs::read(journal()).unwrap();
    for (bytes, what) in
        [(&b"{\"some\": \"json\"}\n"[..], "no journal"), (&[0; 4096], "no journal")]
    {
        fs::write(journal(), bytes).unwrap();
        let daemon = start(&[]);
        let output = daemon.child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains(what), "{said}");
        assert_eq!(fs::read(journal()).unwrap(), bytes);
    }
    // Whoever else could write to it could have anything removed.
    fs::write(journal(), &whole).unwrap();
    fs::set_permissions(journal(), fs::Permissions::from_mode(0o622)).unwrap();
    let output = start(&[]).child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(identity("a").is_some());
    fs::remove_file(journal()).unwrap();
    nix::unistd::mkfifo(&journal(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let output = start(&[]).child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(64));
}

fn full_disk() {
    let disk = scratch().join("disk");
    fs::create_dir(&disk).unwrap();
    mount("tmpfs", disk.to_str().unwrap(), "tmpfs", 0, "size=64k").unwrap();
    let journal = disk.join("journal");
    let mut daemon = Daemon::start_with(|command| {
        command.arg("--journal").arg(&journal);
    });
    object().make("a");
    daemon.told("REGISTER:/a:shared_memory\n");
    wait_for("the journal", || (fs::metadata(&journal).unwrap().len() > 80).then_some(()));
    let mut filler =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(disk.join("f")).unwrap();
    while filler.write(&[0; 4096]).is_ok() {}
    for number in 0..3000 {
        daemon.tell(&format!("REGISTER:/filler-{number}:dummy\n"));
    }
    object().make("b");
    daemon.told("REGISTER:/b:shared_memory\n");
    let (status, said) = daemon.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(said.matches("may be lost if the daemon is killed").count(), 1, "{said}");
    assert!(names().is_empty());
}

struct Listening(Child);

impl Listening {
    fn start() -> Self {
        Self::with(&journal())
    }

    fn with(journal: &Path) -> Self {
        Self::run(rtrack(["daemon"]), journal)
    }

    fn run(mut command: Command, journal: &Path) -> Self {
        command.args(["--protocol", "rtrack", "--listen"]).arg(socket());
        command.arg("--journal").arg(journal).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        // One can connect before the journal is read; who has an answer comes after.
        let mut stream = wait_for("the socket", connect);
        exchange(&mut stream, "").expect("an answer");
        Self(child)
    }

    fn end(self, signal: i32) -> String {
        let pid = i32::try_from(self.0.id()).unwrap();
        // SAFETY: the child has not been waited for.
        check(unsafe { libc::kill(pid, signal) }).unwrap();
        String::from_utf8(self.0.wait_with_output().unwrap().stderr).unwrap()
    }
}

fn socket() -> PathBuf {
    scratch().join("socket")
}

/// Tells something, and waits until it is done; nothing if the daemon died meanwhile.
fn exchange(stream: &mut BufReader<UnixStream>, text: &str) -> Option<Value> {
    stream.get_mut().write_all(text.as_bytes()).ok()?;
    stream.get_mut().write_all(b"PROBE:0:noop\n").ok()?;
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
    serde_json::from_str(&line).ok()
}

fn connect() -> Option<BufReader<UnixStream>> {
    UnixStream::connect(socket()).ok().map(BufReader::new)
}

fn owners_that_live() {
    let daemon = Listening::start();
    for name in ["own", "mine", "dead"] {
        object().make(name);
    }
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut dead = Command::new("sleep").arg("1000").spawn().unwrap();
    for (pid, name) in [(owner.id(), "own"), (dead.id(), "dead")] {
        let mut stream = connect().unwrap();
        let text = format!("{{\"cmd\":\"OWNER\",\"pid\":{pid}}}\nREGISTER:/{name}:shared_memory\n");
        assert_eq!(exchange(&mut stream, &text).unwrap()["registered"], 1);
    }
    let mut stream = connect().unwrap();
    exchange(&mut stream, "REGISTER:/mine:shared_memory\n").unwrap();
    daemon.end(libc::SIGKILL);
    dead.kill().unwrap();
    dead.wait().unwrap();
    let daemon = Listening::start();
    wait_for("what is of the dead one to go", || identity("dead").is_none().then_some(()));
    assert!(identity("own").is_some() && identity("mine").is_some());
    // This process lives, and goes on with what it has.
    let mut stream = connect().unwrap();
    let answer = exchange(&mut stream, "UNREGISTER:/mine:shared_memory\n").unwrap();
    assert_eq!(answer["bad"], 0, "{answer}");
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_for("what is of that one to go", || identity("own").is_none().then_some(()));
    drop(stream);
    let said = daemon.end(libc::SIGTERM);
    assert!(said.contains("3 names are taken over"), "{said}");
    assert!(identity("mine").is_some());
}

fn what_a_living_one_has_too() {
    let daemon = Listening::start();
    object().make("both");
    let mut dead = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    // The one that dies comes first in the journal; and they spell it in their own ways.
    for (pid, name) in [(dead.id(), "/both"), (owner.id(), "both")] {
        let mut stream = connect().unwrap();
        let text = format!("{{\"cmd\":\"OWNER\",\"pid\":{pid}}}\nREGISTER:{name}:shared_memory\n");
        assert_eq!(exchange(&mut stream, &text).unwrap()["registered"], 1);
    }
    daemon.end(libc::SIGKILL);
    dead.kill().unwrap();
    dead.wait().unwrap();
    let daemon = Listening::start();
    // Whoever answers has dealt with the dead one.
    exchange(&mut connect().unwrap(), "").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(identity("both").is_some());
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_for("it to go", || identity("both").is_none().then_some(()));
    daemon.end(libc::SIGTERM);
}

fn killed_at_random() {
    const EACH: usize = 1500;
    const CLIENTS: usize = 3;
    let mut daemon = Listening::start();
    let mut children = Vec::new();
    for client in 0..CLIENTS {
        let pid = fork();
        if pid == 0 {
            let mut stream = None;
            for number in 0..EACH {
                let name = format!("k-{client}-{number}");
                object().size(8).make(&name);
                // Until a daemon has said that it has it.
                loop {
                    stream = stream.or_else(connect);
                    let told = stream.as_mut().and_then(|stream| {
                        exchange(stream, &format!("REGISTER:/{name}:shared_memory\n"))
                    });
                    match told {
                        Some(answer) if answer.get("error").is_none() => break,
                        _ => stream = None,
                    }
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                if number % 5 == 0 {
                    // Taken back: it has to stay.
                    fs::rename(
                        format!("/dev/shm/{name}"),
                        format!("/dev/shm/stays-{client}-{number}"),
                    )
                    .unwrap();
                    object().size(8).make(&name);
                    loop {
                        stream = stream.or_else(connect);
                        let told = stream.as_mut().and_then(|stream| {
                            exchange(stream, &format!("UNREGISTER:/{name}:shared_memory\n"))
                        });
                        match told {
                            Some(answer) if answer.get("error").is_none() => break,
                            _ => stream = None,
                        }
                        std::thread::sleep(std::time::Duration::from_millis(2));
                    }
                }
            }
            // SAFETY: the call does not return.
            unsafe { libc::_exit(0) }
        }
        children.push(pid);
    }
    let mut kills = 0_u32;
    let mut running = children.len();
    while running > 0 {
        std::thread::sleep(std::time::Duration::from_millis(u64::from(20 + kills * 37 % 90)));
        daemon.end(libc::SIGKILL);
        kills += 1;
        daemon = Listening::start();
        // SAFETY: the kernel writes one int.
        while unsafe { libc::waitpid(-1, &mut 0, libc::WNOHANG) } > 0 {}
        // SAFETY: the call touches no memory.
        running = children.iter().filter(|pid| unsafe { libc::kill(**pid, 0) } == 0).count();
    }
    daemon.end(libc::SIGTERM);
    let left = left();
    let forgotten: Vec<&String> = left
        .iter()
        .filter(|name| {
            let number = name.rsplit('-').next().unwrap().parse::<usize>().unwrap();
            name.starts_with("k-") && number % 5 != 0
        })
        .collect();
    assert!(forgotten.is_empty(), "{kills} kills: {forgotten:?}");
    let taken_back = left.iter().filter(|name| name.starts_with("k-")).count();
    assert_eq!(taken_back, CLIENTS * EACH / 5, "what was taken back stays");
    note(format!("{kills} kills during {} registrations", CLIENTS * EACH));
    assert!(kills >= 3, "{kills}");
}

fn files_of_owners_that_live() {
    let file = |name: &str| scratch().join(name);
    let daemon = Listening::start();
    let mut owners = Vec::new();
    for name in ["lives", "dies"] {
        fs::write(file(name), "x").unwrap();
        let owner = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut stream = connect().unwrap();
        let (pid, path) = (owner.id(), file(name));
        let text =
            format!("{{\"cmd\":\"OWNER\",\"pid\":{pid}}}\nREGISTER:{}:file\n", path.display());
        let answer = exchange(&mut stream, &text).unwrap();
        assert_eq!((&answer["registered"], &answer["journaled"]), (&1.into(), &true.into()));
        owners.push(owner);
    }
    daemon.end(libc::SIGKILL);
    owners[1].kill().unwrap();
    owners[1].wait().unwrap();
    let daemon = Listening::start();
    assert!(file("lives").exists());
    owners[0].kill().unwrap();
    owners[0].wait().unwrap();
    wait_for("the file to go", || (!file("lives").exists()).then_some(()));
    let said = daemon.end(libc::SIGTERM);
    // Nobody knows of a dead one's whether it is still the same.
    assert!(file("dies").exists());
    assert!(said.contains("1 names are of an earlier boot, or files"), "{said}");
    assert!(said.contains("1 names are taken over"), "{said}");
}

/// A directory of a file system of its own of so many KiB.
fn disk(size: usize) -> PathBuf {
    let disk = scratch().join("disk");
    fs::create_dir(&disk).unwrap();
    mount("tmpfs", disk.to_str().unwrap(), "tmpfs", 0, &format!("size={size}k")).unwrap();
    disk
}

/// Names that are registered for good, of so many KiB together, or taken back at once.
fn padded(kib: usize, taken_back: bool) -> String {
    let padding = "x".repeat(900);
    let name = |number| format!("/{taken_back}-{number}-{padding}:dummy");
    let line = |number| match taken_back {
        true => format!("REGISTER:{0}\nUNREGISTER:{0}\n", name(number)),
        false => format!("REGISTER:{}\n", name(number)),
    };
    (0..kib).map(line).collect()
}

/// What is registered takes more than half of it, so that there is no room for a second journal beside the first.
fn room_is_made() {
    let journal = disk(512).join("journal");
    let daemon = Listening::with(&journal);
    let mut other = connect().unwrap();
    assert_eq!(exchange(&mut other, &padded(300, false)).unwrap()["journaled"], true);
    for _ in 0..4 {
        let answer = exchange(&mut other, &padded(100, true)).unwrap();
        assert_eq!(answer["registered"], 300);
    }
    object().make("a");
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut stream = connect().unwrap();
    let text = format!("{{\"cmd\":\"OWNER\",\"pid\":{}}}\nREGISTER:/a:shared_memory\n", owner.id());
    assert_eq!(exchange(&mut stream, &text).unwrap()["journaled"], true);
    let said = daemon.end(libc::SIGKILL);
    assert_eq!(said, "");
    owner.kill().unwrap();
    owner.wait().unwrap();
    let daemon = Listening::with(&journal);
    wait_for("what was registered to go", || identity("a").is_none().then_some(()));
    let said = daemon.end(libc::SIGTERM);
    assert!(said.contains("301 names are taken over"), "{said}");
}

fn not_written_down() {
    let disk = disk(256);
    let journal = disk.join("journal");
    let daemon = Listening::with(&journal);
    let mut other = connect().unwrap();
    assert_eq!(exchange(&mut other, &padded(300, false)).unwrap()["journaled"], false);
    object().make("a");
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    let send = || {
        let mut send = rtrack(["send", "--socket"]);
        send.arg(socket()).args(["--owner", &owner.id().to_string()]);
        send.args(["REGISTER", "/a", "shared_memory"]);
        send.finish().expect(0).stderr
    };
    let said = send();
    assert!(said.contains("could not write it down"), "{said}");
    // With who took the room it is there again.
    drop(other);
    wait_for("the journal to go on", || send().is_empty().then_some(()));
    let said = daemon.end(libc::SIGKILL);
    assert_eq!(said.matches("may be lost if the daemon is killed").count(), 1, "{said}");
    owner.kill().unwrap();
    owner.wait().unwrap();
    let daemon = Listening::with(&journal);
    wait_for("what was registered to go", || identity("a").is_none().then_some(()));
    daemon.end(libc::SIGTERM);
}

fn moved_away() {
    for name in ["a", "b"] {
        object().make(name);
    }
    let mut daemon = start(&[]);
    wait_for("the journal", || journal().exists().then_some(()));
    fs::rename(journal(), scratch().join("aside")).unwrap();
    daemon.told("REGISTER:/a:shared_memory\n");
    wait_for("the journal to be written anew", || {
        fs::metadata(journal()).is_ok_and(|file| file.len() > 80).then_some(())
    });
    daemon.told("PROBE:0:noop\n");
    kill(daemon.child.id());
    let said = String::from_utf8(daemon.child.wait_with_output().unwrap().stderr).unwrap();
    assert_eq!(said.matches("moved away while it was in use").count(), 1, "{said}");
    // Another's is not touched, and that nothing is kept is said.
    let before = fs::metadata(journal()).unwrap().len();
    let mut daemon = start(&[]);
    daemon.told("REGISTER:/c:dummy\n");
    wait_for("the journal", || (fs::metadata(journal()).unwrap().len() > before).then_some(()));
    fs::rename(journal(), scratch().join("aside")).unwrap();
    fs::write(journal(), "another's").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    daemon.told("REGISTER:/b:shared_memory\n");
    let (_, said) = daemon.end();
    assert_eq!(said.matches("its name belongs to another file now").count(), 1, "{said}");
    assert_eq!(fs::read(journal()).unwrap(), b"another's");
    assert_eq!(left(), [""; 0]);
}

fn another_pid_namespace() {
    object().make("a");
    let daemon = Listening::start();
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut stream = connect().unwrap();
    let text = format!("{{\"cmd\":\"OWNER\",\"pid\":{}}}\nREGISTER:/a:shared_memory\n", owner.id());
    assert_eq!(exchange(&mut stream, &text).unwrap()["registered"], 1);
    daemon.end(libc::SIGKILL);
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    let program = rtrack(["daemon"]);
    command.arg(program.get_program()).args(program.get_args());
    let daemon = Listening::run(command, &journal());
    let said = daemon.end(libc::SIGKILL);
    assert!(said.contains("1 names are of processes that are not known"), "{said}");
    assert!(identity("a").is_some());
    owner.kill().unwrap();
    owner.wait().unwrap();
}

fn another_boot() {
    object().make("a");
    let mut daemon = start(&[]);
    daemon.told("REGISTER:/a:shared_memory\n");
    end_badly(daemon);
    let bytes = fs::read(journal()).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(bytes.windows(36).any(|part| part == boot.trim().as_bytes()));
    // As after a restart: a file system with a boot id of its own, which only the daemon sees.
    let id = scratch().join("boot_id");
    fs::write(&id, "00000000-0000-4000-8000-000000000000\n").unwrap();
    let target = "/proc/sys/kernel/random/boot_id";
    if mount(id.to_str().unwrap(), target, "", libc::MS_BIND, "").is_err() {
        crate::support::skip("nothing can be mounted over /proc/sys");
    }
    let (status, said) = start(&[]).end();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("1 names are of an earlier boot"), "{said}");
    assert!(identity("a").is_some());
}
