//! `rtrack send`.

use std::ffi::OsStr;
use std::io::{Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use crate::support::{
    Case, Finish, Finished, Inherit, Need, case, names, note, object, pythons, rtrack, skip,
    wait_for,
};
use crate::traps::program_called;

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("what_is_written", what_is_written),
        case("what_is_refused", what_is_refused),
        case("streams", streams),
        case("dead_and_deaf_trackers", dead_and_deaf_trackers),
        case("targets", targets),
        case("a_shell_script", a_shell_script),
        case("each_daemon_is_told_its_own_dialect", each_daemon_is_told_its_own_dialect),
        case("pythons_trackers", pythons_trackers).needs(&[Need::Python]),
    ]
}

fn send<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = rtrack(["send"]);
    command.args(arguments);
    command
}

/// Runs it with a pipe as descriptor 5, and answers with what came out.
fn through_pipe(command: &mut Command, code: i32) -> (Vec<u8>, Finished) {
    let (mut reader, writer) = pipe().unwrap();
    let finished = command.env("RTRACK_FD", "5").inherit(writer, 5).finish().expect(code);
    // The command keeps the write end for its next run.
    *command = Command::new("true");
    let mut written = Vec::new();
    reader.read_to_end(&mut written).unwrap();
    (written, finished)
}

fn what_is_written() {
    for (arguments, line) in [
        (
            &[&b"REGISTER"[..], b"/psm_1", b"shared_memory"][..],
            &b"REGISTER:/psm_1:shared_memory\n"[..],
        ),
        (&[b"UNREGISTER", b"a:b", b"semaphore"], b"UNREGISTER:a:b:semaphore\n"),
        (&[b"MAYBE_UNLINK", b"/a:b", b"folder"], b"MAYBE_UNLINK:/a:b:folder\n"),
        (&[b"MAYBE_UNLINK", b"x", b"dummy", b"--protocol", b"loky"], b"MAYBE_UNLINK:x:dummy\n"),
        (&[b"PROBE"], b"PROBE:0:noop\n"),
        (&[b"PROBE", b"x", b"dummy"], b"PROBE:x:dummy\n"),
        (&[b"REGISTER", b"-x", b"dummy"], b"REGISTER:-x:dummy\n"),
        (&[b"REGISTER", b"--", b"--fd", b"dummy"], b"REGISTER:--fd:dummy\n"),
        (&[b"REGISTER", b" a ", b"dummy"], b"REGISTER: a :dummy\n"),
        (&[b"REGISTER", b"", b"dummy"], b"REGISTER::dummy\n"),
        (
            &[b"REGISTER", b"a\nb", b"dummy"],
            b"{\"cmd\":\"REGISTER\",\"rtype\":\"dummy\",\"base64_name\":\"YQpi\"}\n",
        ),
        (
            &[b"REGISTER", b"\xff\xfe", b"dummy"],
            b"{\"cmd\":\"REGISTER\",\"rtype\":\"dummy\",\"base64_name\":\"__4=\"}\n",
        ),
    ] {
        let arguments = arguments.iter().map(|argument| OsStr::from_bytes(argument));
        let (written, _) = through_pipe(&mut send(arguments), 0);
        assert_eq!(written, line, "{}", String::from_utf8_lossy(&written));
    }
}

fn what_is_refused() {
    let long = "a".repeat(497);
    let long_json = "é".repeat(128);
    for arguments in [
        &["REGISTER", &long, "dummy"][..],
        &["REGISTER", &long_json, "dummy"],
        &["register", "x", "dummy"],
        &["REGISTER", "x", "shared-memory"],
        &["REGISTER"],
        &["REGISTER", "x"],
        &["MAYBE_UNLINK", "x"],
        &["MAYBE_UNLINK", "x", "shared_memory"],
        &["MAYBE_UNLINK", "x", "dummy", "--protocol", "cpython"],
        &["REGISTER", "x", "file", "--protocol", "cpython"],
        &["REGISTER", "x", "semaphore", "--protocol", "loky"],
        &["-", "x", "dummy"],
        &["PROBE", "--pid", "0"],
        &["PROBE", "--pid", "1", "--fd", "5"],
        &[],
    ] {
        let (written, finished) = through_pipe(&mut send(arguments), 2);
        assert!(written.is_empty(), "{arguments:?}");
        assert!(finished.stderr.starts_with("error: "), "{}", finished.stderr);
    }
    let fits = "a".repeat(496);
    let (written, _) = through_pipe(&mut send(["REGISTER", &fits, "dummy"]), 0);
    assert_eq!(written.len(), 512);
    let finished = send(["PROBE"]).finish().expect(2);
    assert!(finished.stderr.contains("\nhint: "), "{}", finished.stderr);
    send(["PROBE"]).env("RTRACK_FD", "five").finish().expect(2);
}

fn streams() {
    let (mut reader, writer) = pipe().unwrap();
    let mut command = send(["--fd", "5", "-"]);
    command.inherit(writer, 5).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(command);
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"REGISTER: a:b :dummy\nREGISTER:\xff:dummy\n{\"cmd\":\"PROBE\",\"rtype\":\"noop\"}\nUNREGISTER:x\nPROBE:0:noop\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("error: line 4: \"UNREGISTER:x\" is no CMD:NAME:RTYPE"), "{said}");
    let mut written = String::new();
    reader.read_to_string(&mut written).unwrap();
    assert_eq!(
        written,
        "REGISTER: a:b :dummy\n{\"cmd\":\"REGISTER\",\"rtype\":\"dummy\",\"base64_name\":\"_w==\"}\nPROBE::noop\n"
    );
}

fn dead_and_deaf_trackers() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let run = send(["--fd", "5", "PROBE"]).inherit(writer, 5).finish().expect(1);
    assert!(run.stderr.contains("nobody reads the pipe"), "{}", run.stderr);
    // Full and not read, blocking or not: bounded, and an error.
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(&[b'x'; 65536]).unwrap();
    let run = send(["--fd", "5", "PROBE"]).inherit(writer, 5).finish().expect(3);
    assert!(run.stderr.contains("the pipe is full"), "{}", run.stderr);
    drop(reader);
    // A FIFO that was opened for both takes everything, and nobody is there.
    let fifo = crate::support::scratch().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let both = || std::fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    // Who does not see all processes cannot tell.
    let run = send(["--fd", "5", "PROBE"]).inherit(both(), 5).finish();
    let told = [(1, "no tracker reads the pipe"), (3, "cannot tell whether a tracker reads")];
    let is = |(code, said): (i32, &str)| run.code == Some(code) && run.stderr.contains(said);
    assert!(told.into_iter().any(is), "{run:?}");
    let _kept = both();
    let run = send(["--fd", "5", "REGISTER", "x", "dummy"]).inherit(both(), 5).finish().expect(0);
    assert!(run.stderr.contains("no tracker is seen to read the pipe"), "{}", run.stderr);
    send(["--pid", "999999999", "PROBE"]).finish().expect(1);
    let run = send(["--pid", "1", "PROBE"]).finish().expect(3);
    assert!(run.stderr.starts_with("error: "), "{}", run.stderr);
}

fn targets() {
    let file = |write| {
        let mut options = std::fs::OpenOptions::new();
        OwnedFd::from(options.read(true).write(write).open("/dev/null").unwrap())
    };
    let (reader, _writer) = pipe().unwrap();
    for (what, descriptor, said) in [
        ("a file", Some(file(true)), "is not a pipe"),
        ("the read end", Some(reader.into()), "is not open for writing"),
        ("nothing", None, "is not open"),
    ] {
        let mut command = send(["--fd", "5", "PROBE"]);
        if let Some(descriptor) = descriptor {
            command.inherit(descriptor, 5);
        }
        let run = command.finish().expect(3);
        assert!(run.stderr.contains(said), "{what}: {}", run.stderr);
    }
    // Descriptor 1 may be the pipe, and a socket will do.
    let (mut one, other) = UnixStream::pair().unwrap();
    let output = send(["--fd", "1", "PROBE"]).output().unwrap();
    assert_eq!(output.stdout, b"PROBE:0:noop\n");
    send(["--fd", "5", "PROBE"]).inherit(other, 5).finish().expect(0);
    let mut line = [0; 13];
    one.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"PROBE:0:noop\n");
    // Nothing is written to the pipe of a process that is no tracker.
    let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let run = send(["--pid", &cat.id().to_string(), "PROBE"]).finish().expect(3);
    assert!(run.stderr.contains("is no resource tracker"), "{}", run.stderr);
    drop(cat.stdin.take());
    assert!(cat.wait_with_output().unwrap().stdout.is_empty());
    // Nor when it has the words of a tracker among its arguments.
    let launch = "from multiprocessing.resource_tracker import main;main(5)";
    let rtrack = program_called("rtrack", "sh");
    for (program, arguments) in [
        ("sh", &["-c", "read x <&5", launch][..]),
        (rtrack.to_str().unwrap(), &["-c", "read x <&5", "daemon"]),
    ] {
        let (reader, writer) = pipe().unwrap();
        let mut command = Command::new(program);
        let mut other = command.args(arguments).inherit(reader, 5).spawn().unwrap();
        drop(command);
        let pid = other.id().to_string();
        wait_for("the program", || {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
            line.windows(7).any(|part| part == b"read x ").then_some(())
        });
        let run = send(["--pid", &pid, "PROBE"]).finish().expect(3);
        assert!(run.stderr.contains("is no resource tracker"), "{program}: {}", run.stderr);
        drop(writer);
        // The end of input, and no line.
        assert_eq!(other.wait().unwrap().code(), Some(1), "{program}");
    }
}

fn a_shell_script() {
    object().make("psm_1");
    object().make("psm_2");
    let script = "
        mkfifo fifo
        \"$RTRACK_BIN\" daemon --fd 3 3<fifo 2>said &
        exec 5>fifo
        rm fifo
        export RTRACK_FD=5
        \"$RTRACK_BIN\" send REGISTER /psm_1 shared_memory
        printf 'REGISTER:%s:shared_memory\\n' /psm_2 /psm_3 | \"$RTRACK_BIN\" send -
        \"$RTRACK_BIN\" send --pid $! UNREGISTER /psm_3 shared_memory
        \"$RTRACK_BIN\" probe
        exec 5>&-
        wait $!
    ";
    let run = Command::new("sh").args(["-euc", script]).finish().expect(1);
    assert!(run.text().starts_with("alive: process "), "{}", run.text());
    assert!(names().is_empty());
}

/// What a daemon understands is seen from its command line, unless another one is named.
fn each_daemon_is_told_its_own_dialect() {
    for (protocol, told, refused) in [
        ("cpython", ["REGISTER", "x", "semaphore"], ["REGISTER", "x", "file"]),
        ("loky", ["MAYBE_UNLINK", "x", "file"], ["REGISTER", "x", "shared_memory"]),
        ("any", ["MAYBE_UNLINK", "x", "semlock"], ["MAYBE_UNLINK", "x", "semaphore"]),
        ("rtrack", ["REGISTER", "/x", "message_queue"], ["MAYBE_UNLINK", "x", "file"]),
    ] {
        let (reader, writer) = pipe().unwrap();
        let mut command = rtrack(["daemon", "--fd", "5", "--protocol", protocol]);
        let mut daemon = command.inherit(reader, 5).stderr(Stdio::null()).spawn().unwrap();
        let pid = daemon.id().to_string();
        // Before it has become rtrack, the process is none that is known.
        wait_for("the daemon to start", || {
            let probe = rtrack(["probe", "--json", "--pid", &pid]).finish().json();
            (probe["kind"] == "rtrack").then_some(())
        });
        send(["--pid", &pid]).args(told).finish().expect(0);
        let run = send(["--pid", &pid]).args(refused).finish().expect(2);
        assert!(run.stderr.contains("this tracker"), "{}", run.stderr);
        // What is asserted counts more than what is seen.
        let every = if protocol == "rtrack" { "rtrack" } else { "any" };
        send(["--pid", &pid, "--protocol", every]).args(told).finish().expect(0);
        drop(writer);
        daemon.wait().unwrap();
    }
}

fn pythons_trackers() {
    let pythons = pythons();
    if pythons.is_empty() {
        skip("there is no Python of version 3.8 or later");
    }
    let program = "
import sys
from multiprocessing import resource_tracker
resource_tracker.ensure_running()
print(resource_tracker._resource_tracker._pid, flush=True)
sys.stdin.read()
";
    for python in &pythons {
        object().make("psm_1");
        let mut command = python.program(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pid = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut pid).unwrap();
        // The client tells the pid of its tracker before that has become an interpreter.
        let probe = wait_for("the tracker to start", || {
            let probe = rtrack(["probe", "--json", "--pid", pid.trim()]).finish().json();
            (probe["kind"] == "cpython").then_some(probe)
        });
        assert_eq!(probe["alive"], true, "{python}: {probe}");
        let version = probe["version"].as_str().unwrap_or("3");
        assert!(python.to_string().starts_with(version), "{python}: {probe}");
        send(["--pid", pid.trim(), "REGISTER", "/psm_1", "shared_memory"]).finish().expect(0);
        if python.version < (3, 13, 0) {
            let refused = send(["--pid", pid.trim(), "REGISTER", "a\nb", "shared_memory"]);
            let run = { refused }.finish().expect(2);
            assert!(run.stderr.contains("cannot be told the name \"a\\nb\""), "{}", run.stderr);
        }
        drop(child.stdin.take());
        let output = child.wait_with_output().unwrap();
        assert!(!String::from_utf8_lossy(&output.stderr).contains("Traceback"), "{python}");
        wait_for("Python's tracker to clean", || names().is_empty().then_some(()));
    }
    note(format_args!("{} interpreters", pythons.len()));
}
