//! What `list` asks daemons with `--control`, and what it makes of those that lie or say nothing.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::listening::{Client, Daemon};
use crate::support::{
    Case, Finish, Need, case, check, inside, is_real_root, object, rtrack, scratch, validate,
    verdict, wait_for,
};

pub(crate) fn tests() -> Vec<Case> {
    const ROOT: &[Need] = &[Need::RealRoot, Need::PidNamespace, Need::Python];
    vec![
        case("who_does_not_answer_may_have_it", who_does_not_answer).needs(&[Need::PidNamespace]),
        case("answers_without_end", answers_without_end).needs(ROOT),
        case("nobody_is_led_to_anothers_socket", led_to_anothers_socket)
            .needs(&[Need::PidNamespace]),
    ]
}

const LIST: [&str; 5] = ["list", "--json", "--assume-complete", "--grace", "0s"];

fn signal(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: the child has not been waited for.
    check(unsafe { libc::kill(pid, signal) }).unwrap();
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A program with the name of ours, in a directory that everybody may enter.
fn named_rtrack(program: &str) -> PathBuf {
    let copy = scratch().join("rtrack");
    fs::copy(program, &copy).unwrap();
    fs::set_permissions(scratch(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

fn reasons(document: &Value) -> Vec<&str> {
    let reasons = document["sight"]["reasons"].as_array().unwrap();
    reasons.iter().map(|reason| reason.as_str().unwrap()).collect()
}

/// A daemon that is stopped tells nothing, and what it may have is left to it.
fn who_does_not_answer() {
    let control = scratch().join("control");
    let daemon = Daemon::start(&["--control", control.to_str().unwrap()]);
    for name in ["registered", "other"] {
        object().make(name);
    }
    if is_real_root() {
        object().owner(61001).make("anothers");
    }
    let mut client = Client::new();
    client.tell("REGISTER:/registered:shared_memory\n").done();
    let document = rtrack(LIST).finish().expect(0).json();
    assert_eq!(verdict(&document, "registered"), ("claimed", "registered"));
    assert_ne!(verdict(&document, "other").1, "registered");
    assert!(!reasons(&document).contains(&"silent-trackers"), "{document:#}");

    signal(&daemon.child, libc::SIGSTOP);
    let run = rtrack(LIST).finish().expect(0);
    let pid = daemon.child.id();
    assert!(
        run.stderr.contains(&format!("no answer from the tracker of process {pid}")),
        "{run:?}"
    );
    let document = run.json();
    validate(&document);
    assert!(reasons(&document).contains(&"silent-trackers"), "{document:#}");
    let names = ["registered", "other", "anothers"];
    for name in &names[..if is_real_root() { 3 } else { 2 }] {
        assert_eq!(verdict(&document, name), ("claimed", "registered"), "{name}");
    }
    assert!(document.to_string().contains("does not answer, and may have it registered"));
    // Another user's says nothing of what is not that user's.
    if is_real_root() {
        let line = ["-f", "--", "/dev/null", "daemon", "--control", "/nowhere"];
        let mut silent = Command::new(named_rtrack("/usr/bin/tail"));
        silent.args(line).stderr(Stdio::null());
        let silent = inside("user=61001", &silent).spawn().unwrap();
        let comm = format!("/proc/{}/comm", silent.id());
        wait_for("tail", || (fs::read_to_string(&comm).unwrap() == "rtrack\n").then_some(()));
        signal(&daemon.child, libc::SIGCONT);
        client.done();
        let document = rtrack(LIST).finish().expect(0).json();
        assert_eq!(verdict(&document, "anothers"), ("claimed", "registered"));
        assert_eq!(verdict(&document, "registered"), ("claimed", "registered"));
        assert_ne!(verdict(&document, "other").1, "registered");
        end(silent);
    }
    signal(&daemon.child, libc::SIGCONT);
    drop(client);
    assert_eq!(daemon.end().0, Some(0));
}

/// Daemons of an ordinary user that answer with more than anybody could have registered.
#[allow(clippy::zombie_processes, reason = "wait4 tells what it used")]
fn answers_without_end() {
    const SCRIPT: &str = "import socket,sys\n\
        open('/proc/self/comm','w').write('rtrack')\n\
        s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[-1]); s.listen()\n\
        head=b'{\"schema\":\"rtrack.tracker/1\",\"pid\":1,\"protocol\":\"any\",'\n\
        names=b'{\"rtype\":\"shared_memory\",\"name\":\"/a\"},'\n\
        body=head+b'\"registered\":['+names*(1<<20)+b'{}]}'\n\
        if sys.argv[-1][-1] in '01': body=head+b'\"registered\":[],\"x\":['+b'[],'*(16<<20)+b'0]}'\n\
        print('ready',flush=True)\n\
        while True:\n c=s.accept()[0]\n try: c.sendall(body)\n except OSError: pass\n c.close()\n";
    let open = scratch().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let liars: Vec<Child> = (0..4)
        .map(|number| {
            let mut liar = Command::new("python3");
            liar.arg("-c").arg(SCRIPT).args(["daemon", "--control"]);
            liar.arg(open.join(format!("lie{number}")));
            let mut liar = inside("user=61001", &liar).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(liar.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
            liar
        })
        .collect();
    let child = rtrack(LIST).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: all zeros are a rusage, which is written to, and so is the status.
    let (status, used) = unsafe {
        let (mut status, mut used) = (0, std::mem::zeroed::<libc::rusage>());
        check(libc::wait4(pid, &raw mut status, 0, &raw mut used)).unwrap();
        (status, used)
    };
    assert_eq!(status, 0);
    let most = used.ru_maxrss >> 10;
    assert!(most < 160, "{most} MiB");
    let run = rtrack(LIST).finish().expect(0);
    assert!(run.stderr.contains("no answer from the tracker of process"), "{run:?}");
    liars.into_iter().for_each(end);
}

/// A command line may name any socket: only one is connected to that the process listens at itself, and that nobody
/// else could have led to.
fn led_to_anothers_socket() {
    let path = scratch().join("private");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let copy = named_rtrack("/usr/bin/tail");
    let nobody_came = |liar: &mut Command| {
        liar.args(["-f", "--", "/dev/null", "daemon", "--control"]).arg(&path);
        let liar = liar.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let line = format!("/proc/{}/cmdline", liar.id());
        wait_for("the program", || {
            let line = fs::read(&line).unwrap();
            let mut words = line.split(|byte| *byte == 0);
            words.next().is_some_and(|word| word.ends_with(b"rtrack")).then_some(())
        });
        // What it does with the socket itself is of no matter.
        while listener.accept().is_ok() {}
        let run = rtrack(LIST).finish().expect(0);
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        end(liar);
        run
    };
    let run = nobody_came(&mut Command::new(&copy));
    assert!(run.stderr.contains("no answer from the tracker of process"), "{run:?}");
    if is_real_root() {
        // Anybody may start it, and it has root's rights from then on.
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o4755)).unwrap();
        let run = nobody_came(Command::new(&copy).uid(61001).gid(61001));
        assert!(!run.stderr.contains("no answer from the tracker"), "{run:?}");
    }
}
