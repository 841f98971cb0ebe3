//! `rtrack probe`.

use std::fs::{File, OpenOptions};
use std::io::{Write, pipe};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{
    Case, Finish, Inherit, Need, case, kill, rtrack, scratch, somebody, wait_for,
};
use crate::traps::program_called;

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("alive_and_dead", alive_and_dead).needs(&[Need::PidNamespace]),
        case("cannot_tell", cannot_tell),
        case("readers_that_are_no_trackers", readers_that_are_no_trackers)
            .needs(&[Need::PidNamespace]),
        case("a_fifo_that_its_clients_can_read", a_fifo_that_its_clients_can_read)
            .needs(&[Need::PidNamespace]),
        case("names_that_a_terminal_would_obey", names_that_a_terminal_would_obey),
        case("other_users", other_users).needs(&[Need::RealRoot]),
    ]
}

fn probe(arguments: &[&str]) -> Command {
    let mut command = rtrack(["probe", "--json"]);
    command.args(arguments);
    command
}

fn answer(command: &mut Command, code: i32, alive: impl Into<Value>) -> Value {
    let answer = command.finish().expect(code).json();
    assert_eq!(answer["alive"], alive.into(), "{answer}");
    answer
}

fn alive_and_dead() {
    let (reader, writer) = pipe().unwrap();
    let mut command = rtrack(["daemon", "--fd", "5"]);
    let mut child = command.inherit(reader, 5).spawn().unwrap();
    drop(command);
    let pid = child.id().to_string();
    let copy = || writer.try_clone().unwrap();
    for arguments in [&["--fd", "5"][..], &["--pid", &pid]] {
        // The daemon may still be the test program that is about to become it.
        wait_for("the daemon", || {
            let answer = probe(arguments).inherit(copy(), 5).finish();
            (answer.code == Some(0) && answer.json()["kind"] == "rtrack").then_some(())
        });
        let found = answer(probe(arguments).inherit(copy(), 5), 0, true);
        assert_eq!(found["pid"], child.id());
        // In a PID namespace of its own it does not take what it sees for all there is.
        assert_eq!((&found["readers"], &found["writers"]), (&Value::Null, &Value::Null));
        assert_eq!(found["writers_seen"], 1);
        assert_eq!(found["stopped"], false);
        assert!(found["since"].as_str().unwrap().ends_with('Z'));
    }
    // SAFETY: the child has not been waited for.
    unsafe { libc::kill(pid.parse().unwrap(), libc::SIGSTOP) };
    wait_for("the daemon to stop", || {
        (answer(probe(&["--pid", &pid]).inherit(copy(), 5), 0, true)["stopped"] == true)
            .then_some(())
    });
    (&writer).write_all(b"PROBE:0:noop\n").unwrap();
    let found = answer(probe(&["--pid", &pid]).inherit(copy(), 5), 0, true);
    assert_eq!(found["queued"], 13);
    assert!(found["says"].as_str().unwrap().contains("but it is stopped"));
    kill(child.id());
    // A zombie reads nothing.
    wait_for("the daemon to die", || {
        (probe(&["--pid", &pid]).finish().code == Some(1)).then_some(())
    });
    child.wait().unwrap();
    answer(&mut probe(&["--pid", &pid]), 1, false);
    answer(probe(&["--fd", "5"]).inherit(copy(), 5), 1, false);
    let run = rtrack(["probe", "--fd", "5"]).inherit(copy(), 5).finish().expect(1);
    assert!(run.text().starts_with("dead: "), "{}", run.text());
}

fn cannot_tell() {
    rtrack(["probe"]).finish().expect(2);
    rtrack(["probe", "--fd", "x"]).finish().expect(2);
    let (reader, _writer) = pipe().unwrap();
    for (fd, file) in [
        ("5", None),
        ("6", Some(File::open("/dev/null").unwrap().into())),
        ("7", Some(std::os::fd::OwnedFd::from(reader))),
    ] {
        let mut command = probe(&["--fd", fd]);
        if let Some(file) = file {
            command.inherit(file, fd.parse().unwrap());
        }
        let answer = answer(&mut command, 3, Value::Null);
        assert!(answer["says"].as_str().unwrap().starts_with("cannot tell: "), "{answer}");
    }
    answer(&mut probe(&["--pid", &std::process::id().to_string()]), 3, Value::Null);
}

fn readers_that_are_no_trackers() {
    let (reader, writer) = pipe().unwrap();
    let mut sleep = Command::new("sleep").arg("1000").stdin(reader).spawn().unwrap();
    let found = answer(probe(&["--fd", "5"]).inherit(writer, 5), 0, true);
    assert_eq!(found["kind"], "unknown");
    assert_eq!(found["pid"], sleep.id());
    sleep.kill().unwrap();
    sleep.wait().unwrap();
}

/// A process can have any name.
fn names_that_a_terminal_would_obey() {
    let program = program_called("\x1b[31m\u{9b}1m\x07", "sh");
    let mut other =
        Command::new(program).args(["-c", "read x"]).stdin(Stdio::piped()).spawn().unwrap();
    let pid = other.id().to_string();
    wait_for("the program", || {
        let comm = std::fs::read(format!("/proc/{pid}/comm")).unwrap();
        comm.starts_with(b"\x1b").then_some(())
    });
    for arguments in [
        &["probe", "--pid", &pid][..],
        &["probe", "--json", "--pid", &pid],
        &["send", "--pid", &pid, "PROBE"],
        &["restore", "\x1b[31m\u{9b}1m\x07"],
    ] {
        let run = rtrack(arguments).finish().expect(3);
        let said = run.text() + &run.stderr;
        let obeyed = |c: char| c != '\n' && c.is_control();
        assert!(!said.contains(obeyed), "{arguments:?}: {said:?}");
        assert!(said.contains("x1b[31m") || said.contains("u001b[31m"), "{said}");
    }
    drop(other.stdin.take());
    other.wait().unwrap();
}

fn a_fifo_that_its_clients_can_read() {
    let fifo = scratch().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let both = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let copy = || both.try_clone().unwrap();
    // Nobody but clients, as far as can be seen from here: the pipe would take messages for ever.
    answer(probe(&["--fd", "5"]).inherit(copy(), 5), 3, Value::Null);
    let mut command = rtrack(["daemon", "--fd", "5"]);
    let mut child = command.inherit(copy(), 5).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    wait_for("the daemon", || {
        let found = probe(&["--fd", "5"]).inherit(copy(), 5).finish();
        (found.code == Some(0) && found.json()["kind"] == "rtrack").then_some(())
    });
    kill(child.id());
    child.wait().unwrap();
    answer(probe(&["--fd", "5"]).inherit(copy(), 5), 3, Value::Null);
}

fn other_users() {
    let (reader, writer) = pipe().unwrap();
    let mut command = rtrack(["daemon", "--fd", "5"]);
    let mut child = command.inherit(reader, 5).spawn().unwrap();
    drop(command);
    let copy = || writer.try_clone().unwrap();
    let pid = child.id().to_string();
    wait_for("the daemon", || {
        let found = probe(&["--pid", &pid]).inherit(copy(), 5).finish();
        (found.code == Some(0)).then_some(())
    });
    // A stranger sees that it is read, and not by whom; and cannot open its pipe.
    let found =
        answer(probe(&["--fd", "5"]).inherit(copy(), 5).uid(somebody()).gid(somebody()), 0, true);
    assert_eq!((&found["pid"], &found["writers"]), (&Value::Null, &Value::Null));
    assert!(found["says"].as_str().unwrap().contains("could not be looked into"), "{found}");
    let found = answer(probe(&["--pid", &pid]).uid(somebody()).gid(somebody()), 3, Value::Null);
    assert!(found["says"].as_str().unwrap().contains("Permission denied"), "{found}");
    drop(writer);
    assert!(child.wait().unwrap().success());
}
