//! `rtrack daemon --protocol rtrack`: POSIX queues by name, System V objects by id, and files.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::sys::stat::Mode;
use rtrack::tracker::service::client::{ClientError, Dialect, End, ResourceTracker};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::support::sysv::{by, line, queue, remove_segment, segment, semaphores, send};
use crate::support::{
    Case, Finish, Inherit, Need, binary, case, check, fork, give_queue, hold, leave_queue,
    make_queue, names, open_queue, pythons, queue_names, rtrack, scratch, sem_open, shm_open,
    somebody, validate, wait_for,
};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("each_type_goes_unless_taken_back", each_type_goes_unless_taken_back),
        case("what_happened_last_decides", what_happened_last_decides),
        case("sets_and_words_of_cpython", sets_and_words_of_cpython),
        case("names_of_queues", names_of_queues),
        case("a_queue_that_is_open", a_queue_that_is_open),
        case("an_id_is_digits", an_id_is_digits),
        case("an_id_of_nothing", an_id_of_nothing),
        case("an_attached_segment", an_attached_segment),
        case("who_waits_is_woken", who_waits_is_woken),
        case("files", files),
        case("of_somebody_else", of_somebody_else).needs(&[Need::RealRoot]),
        case("what_is_recorded", what_is_recorded),
        case("what_send_takes", what_send_takes),
        case("each_daemon_tells_its_dialect", each_daemon_tells_its_dialect),
        case("from_a_program", from_a_program),
        case("examples_in_the_readme", examples_in_the_readme).needs(&[Need::Python]),
    ]
}

fn daemon(more: &[&str]) -> Daemon {
    Daemon::start_with(|command| {
        command.args(["--protocol", "rtrack"]).args(more);
    })
}

/// Tells a daemon `text`, and ends it; its status, and what it said without where from.
fn told_by(mut daemon: Daemon, text: &str) -> (i32, Vec<String>) {
    daemon.tell(text);
    let (status, said) = daemon.end();
    let line = |line: &str| {
        let text = line.split_once(": UserWarning: resource_tracker: ").map_or(line, |(_, t)| t);
        text.replace("There appear to be ", "").replace(" to clean up at shutdown", "")
    };
    (status.code().unwrap(), said.lines().map(line).collect())
}

fn told(text: &str) -> (i32, Vec<String>) {
    told_by(daemon(&[]), text)
}

fn exists(path: impl AsRef<Path>) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// A message in the JSON form.
fn message(name: &[u8], rtype: &str) -> String {
    use base64::Engine as _;
    let name = base64::engine::general_purpose::URL_SAFE.encode(name);
    format!("{}\n", json!({ "cmd": "REGISTER", "rtype": rtype, "base64_name": name }))
}

fn each_type_goes_unless_taken_back() {
    let mut text = String::new();
    let mut both = |rtype: &str, left: String, kept: String| {
        text = format!(
            "REGISTER:{left}:{rtype}\nREGISTER:{kept}:{rtype}\n{text}UNREGISTER:{kept}:{rtype}\n"
        );
    };
    // In the order of cleaning; they are registered in the other one.
    drop((sem_open("/s", 1), sem_open("/kept-s", 1)));
    both("semaphore", "/s".into(), "/kept-s".into());
    drop((shm_open("/m", 64), shm_open("/kept-m", 64)));
    both("shared_memory", "/m".into(), "/kept-m".into());
    leave_queue("q", 2);
    leave_queue("kept-q", 1);
    both("message_queue", "/q".into(), "/kept-q".into());
    let segments = [segment(0, 4096, 0o600), segment(0x77, 4096, 0o600)];
    both("sysv_shm", segments[0].to_string(), segments[1].to_string());
    let sets = [semaphores(0, 2, 0o600), semaphores(0, 1, 0o600)];
    both("sysv_sem", sets[0].to_string(), sets[1].to_string());
    let messages = [queue(0, 0o600), queue(0, 0o600)];
    send(messages[0]);
    both("sysv_msg", messages[0].to_string(), messages[1].to_string());
    fs::write("f", "").unwrap();
    fs::write("kept-f", "").unwrap();
    both("file", "f".into(), "kept-f".into());

    let (status, said) = told(&text);
    let leaked =
        |rtype, name: &dyn std::fmt::Display| format!("1 leaked {rtype} objects: {{'{name}'}}");
    let expected = [
        leaked("semaphore", &"/s"),
        leaked("shared_memory", &"/m"),
        leaked("message_queue", &"/q"),
        leaked("sysv_shm", &segments[0]),
        leaked("sysv_sem", &sets[0]),
        leaked("sysv_msg", &messages[0]),
        leaked("file", &"f"),
    ];
    assert_eq!((status, said), (1, expected.to_vec()));
    assert_eq!(names().into_iter().collect::<Vec<_>>(), ["kept-m", "sem.kept-s"]);
    assert_eq!(queue_names().into_iter().collect::<Vec<_>>(), ["kept-q"]);
    for (table, [left, kept]) in [("shm", segments), ("sem", sets), ("msg", messages)] {
        assert!(line(table, left).is_none() && line(table, kept).is_some(), "{table}");
    }
    assert!(!exists("f") && exists("kept-f"));
}

/// By type, in the order of cleaning, whatever the order of registration.
fn what_happened_last_decides() {
    for (text, status) in [
        ("", 0),
        ("nonsense\n", 3),
        ("REGISTER:x:dummy\n", 1),
        ("REGISTER:x:noop\n", 2),
        ("REGISTER:f:file\nREGISTER:/no:message_queue\n", 1),
        ("REGISTER:no:file\nREGISTER:/q:message_queue\n", 2),
        ("REGISTER:f:file\nREGISTER:no:sysv_msg\nnonsense\n", 1),
        ("REGISTER:no:sysv_msg\nREGISTER:/q:message_queue\nnonsense\n", 2),
        ("REGISTER:f:file\nUNREGISTER:f:file\nnonsense\n", 3),
        ("nonsense\nREGISTER:f:file\nUNREGISTER:f:file\n", 3),
    ] {
        fs::write("f", "").unwrap();
        if !queue_names().contains(std::ffi::OsStr::new("q")) {
            leave_queue("q", 0);
        }
        assert_eq!(told(text).0, status, "{text}");
    }
}

fn sets_and_words_of_cpython() {
    fs::write("f", "").unwrap();
    // Registered twice is registered once.
    let (status, said) = told("REGISTER:f:file\nREGISTER:f:file\nUNREGISTER:f:file\n");
    assert_eq!((status, said, exists("f")), (0, vec![], true));
    for (line, error) in [
        ("UNREGISTER:f:file", "KeyError: 'f'"),
        ("MAYBE_UNLINK:f:file", "RuntimeError: unrecognized command 'MAYBE_UNLINK'"),
        (
            "PROBE::",
            "ValueError: Cannot register  for automatic cleanup: unknown resource type ().",
        ),
        ("REGISTER:f:folder", "ValueError: Cannot register f for automatic cleanup: unknown"),
        ("REGISTER:f:semlock", "ValueError: Cannot register f for automatic cleanup: unknown"),
    ] {
        let (status, said) = told(line);
        assert_eq!(status, 3, "{line}");
        assert!(said.last().unwrap().starts_with(error), "{said:?}");
    }
    // Other dialects do not know the types.
    for protocol in ["cpython", "loky", "any"] {
        for rtype in ["message_queue", "sysv_shm", "sysv_sem", "sysv_msg"] {
            let daemon = Daemon::start_with(|command| {
                command.args(["--protocol", protocol]);
            });
            assert_eq!(told_by(daemon, &format!("REGISTER:5:{rtype}\n")).0, 3, "{protocol}");
        }
    }
    // A file is warned of in CPython's words too, and no count is shown when it is asked.
    let mut daemon = daemon(&[]);
    daemon.told("REGISTER:f:file\nREGISTER:f:file\nREGISTER:it's:file\n");
    daemon.signal(libc::SIGUSR1);
    let (status, said) = daemon.end();
    assert_eq!(status.code(), Some(2));
    let listed: Vec<&str> = said.lines().skip(1).take(2).collect();
    assert_eq!(listed, ["file 'f'", "file \"it's\""], "{said}");
    assert!(
        said.contains("2 leaked file objects to clean up at shutdown: {'f', \"it's\"}"),
        "{said}"
    );
    assert!(
        said.contains("resource_tracker: \"it's\": [Errno 2] No such file or directory: \"it's\""),
        "{said}"
    );
    assert!(!exists("f"));
}

/// The C library's rules, and the kernel's behind them.
fn names_of_queues() {
    leave_queue("kept", 1);
    for (name, errno) in [
        ("", libc::EINVAL),
        ("kept", libc::EINVAL),
        ("/", libc::ENOENT),
        ("//kept", libc::EACCES),
        ("/kept/", libc::EACCES),
        ("/./kept", libc::EACCES),
        ("/.", libc::EACCES),
        ("/..", libc::EACCES),
        ("/Kept", libc::ENOENT),
        (" /kept", libc::EINVAL),
        ("/dev/mqueue/kept", libc::EACCES),
    ] {
        // musl's rule differs: there, no slash has to be in front.
        if cfg!(not(target_env = "gnu")) && !name.starts_with('/') {
            continue;
        }
        let (status, said) = told(&format!("REGISTER:{name}:message_queue\n"));
        assert_eq!(status, 2, "{name:?}: {said:?}");
        assert!(said[1].contains(&format!(": [Errno {errno}] ")), "{name:?}: {said:?}");
        assert!(said[1].ends_with(&format!(": '{name}'")), "{name:?}: {said:?}");
    }
    let (status, said) = told(&message(b"/kept\0", "message_queue"));
    assert_eq!((status, &*said[1]), (2, "'/kept\\x00': embedded null character"));
    let too_long = format!("REGISTER:/{}:message_queue\n", "x".repeat(256));
    assert!(told(&too_long).1[1].contains(&format!("[Errno {}]", libc::ENAMETOOLONG)));
    assert_eq!(queue_names().into_iter().collect::<Vec<_>>(), ["kept"]);

    // Whatever bytes it has.
    use std::os::unix::ffi::OsStrExt;
    let odd: &[u8] = b"/a:b\n\xff\xc3";
    leave_queue(std::ffi::OsStr::from_bytes(&odd[1..]), 0);
    let (status, said) = told(&message(odd, "message_queue"));
    let expected = "1 leaked message_queue objects: {'/a:b\\n\\udcff\\udcc3'}";
    assert_eq!((status, said), (1, vec![expected.to_owned()]));
    assert_eq!(queue_names().len(), 1);
}

/// It loses its name, and those who have it keep it, with what is in it.
fn a_queue_that_is_open() {
    let open = make_queue("q");
    open.send("hello").unwrap();
    let _holder = hold("message-queue", "q");
    assert_eq!(told("REGISTER:/q:message_queue\n").0, 1);
    assert!(queue_names().is_empty() && open_queue("q").is_err());
    assert_eq!(open.receive().unwrap(), b"hello");
    // The name is free.
    drop(make_queue("q"));
}

/// Nothing but its digits is the id of an object.
fn an_id_is_digits() {
    // So that the ids are more than one digit long.
    while segment_and_others().iter().any(|(.., id)| *id < 10) {}
    let all = segment_and_others();
    for (rtype, table, id) in all {
        let wrapped = i64::from(id) + (1 << 32);
        for name in [
            format!("0{id}"),
            format!("+{id}"),
            format!("-{id}"),
            format!(" {id}"),
            format!("{id} "),
            format!("{id}\n"),
            format!("{id}\0"),
            format!("0x{id:x}"),
            format!("0o{id:o}"),
            format!("{id}.0"),
            format!("{id}x"),
            format!("/{id}"),
            format!("{table}:{id}"),
            format!("{id}e0"),
            format!("{id},{id}"),
            wrapped.to_string(),
            "99999999999999999999".to_owned(),
            "-1".to_owned(),
            String::new(),
        ] {
            let (status, said) = told(&message(name.as_bytes(), rtype));
            assert_eq!((status, said.len()), (2, 2), "{name:?}: {said:?}");
            assert!(said[1].contains(": not the id of a System V object: '"), "{said:?}");
            assert!(line(table, id).is_some(), "{rtype} {name:?}");
        }
    }
}

/// A segment, a set and a queue: the word, the kernel's table, and the id.
fn segment_and_others() -> [(&'static str, &'static str, i32); 3] {
    [
        ("sysv_shm", "shm", segment(0, 4096, 0o600)),
        ("sysv_sem", "sem", semaphores(0, 1, 0o600)),
        ("sysv_msg", "msg", queue(0, 0o600)),
    ]
}

/// No other object is taken for what an id says.
fn an_id_of_nothing() {
    let missing = |id: &str| format!("'{id}': [Errno 2] No such file or directory: '{id}'");
    // Never given to one, and of one that is gone; another object has its place in the kernel's table.
    let gone = segment(0, 4096, 0o600);
    remove_segment(gone);
    let mut next = segment(0, 4096, 0o600);
    while next % 32768 != gone % 32768 {
        remove_segment(next);
        next = segment(0, 4096, 0o600);
    }
    assert_ne!(next, gone);
    for id in [gone, i32::MAX] {
        for rtype in ["sysv_shm", "sysv_sem", "sysv_msg"] {
            let (status, said) = told(&format!("REGISTER:{id}:{rtype}\n"));
            assert_eq!((status, &said[1]), (2, &missing(&id.to_string())), "{rtype}");
        }
    }
    // By its key, and under another type.
    let keyed = segment(0x7777_7777, 4096, 0o600);
    let key = 0x7777_7777.to_string();
    let text =
        format!("REGISTER:{key}:sysv_shm\nREGISTER:{keyed}:sysv_sem\nREGISTER:{keyed}:sysv_msg\n");
    let (status, said) = told(&text);
    assert_eq!((status, &said[1]), (2, &missing(&key)));
    assert!(line("shm", next).is_some() && line("shm", keyed).is_some());
}

fn an_attached_segment() {
    let id = segment(0x66, 4096, 0o600);
    let holder = hold("sysv-attached", Path::new(&id.to_string()));
    let (status, said) = told(&format!("REGISTER:{id}:sysv_shm\n"));
    assert_eq!((status, said.len()), (1, 1), "{said:?}");
    // Marked, and without its key.
    let marked = line("shm", id).unwrap();
    assert_eq!((&*marked[0], &*marked[2]), ("0", "1600"));
    let again = told(&format!("REGISTER:{id}:sysv_shm\n"));
    assert_eq!(again.0, 1, "{again:?}");
    assert!(line("shm", id).is_some());
    drop(holder);
    wait_for("the segment to go with its last user", || line("shm", id).is_none().then_some(()));
    assert_eq!(told(&format!("REGISTER:{id}:sysv_shm\n")).0, 2);
}

/// Sets of semaphores and queues go at once, and whoever waits is told.
fn who_waits_is_woken() {
    let set = semaphores(0, 1, 0o600);
    let waiter = thread::spawn(move || {
        let mut operation = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
        // SAFETY: the kernel reads one structure.
        check(unsafe { libc::semop(set, &mut operation, 1) }).unwrap_err().raw_os_error()
    });
    // SAFETY: the command takes no further argument.
    let waiting = || unsafe { libc::semctl(set, 0, libc::GETNCNT) };
    wait_for("somebody to wait", || (waiting() == 1).then_some(()));
    assert_eq!(told(&format!("REGISTER:{set}:sysv_sem\n")).0, 1);
    assert_eq!(waiter.join().unwrap(), Some(libc::EIDRM));
}

fn files() {
    let made = || {
        fs::write("file", "content").unwrap();
        fs::hard_link("file", "other-name").unwrap();
        fs::create_dir_all("directory/sub").unwrap();
        symlink("target", "link").unwrap();
        symlink("directory", "link-to-a-directory").unwrap();
        symlink("nowhere", "dangling").unwrap();
        nix::unistd::mkfifo("fifo", Mode::S_IRWXU).unwrap();
        drop(UnixListener::bind("socket").unwrap());
        File::create("target").unwrap();
    };
    made();
    // What goes is the name, of whatever kind, and nothing that it leads to.
    let mut text = String::new();
    for name in ["file", "link", "link-to-a-directory", "dangling", "fifo", "./socket"] {
        text += &format!("REGISTER:{name}:file\n");
    }
    let (status, said) = told(&text);
    assert_eq!((status, said.len()), (1, 1), "{said:?}");
    let left: std::collections::BTreeSet<_> =
        fs::read_dir(".").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    for name in ["file", "link", "link-to-a-directory", "dangling", "fifo", "socket"] {
        assert!(!left.contains(std::ffi::OsStr::new(name)), "{name}");
    }
    assert!(exists("other-name") && exists("target") && exists("directory/sub"));

    // No directory, whatever its path looks like.
    for (name, errno) in [
        ("directory", libc::EISDIR),
        ("directory/", libc::EISDIR),
        ("directory/sub", libc::EISDIR),
        ("other-name/", libc::ENOTDIR),
        ("other-name/x", libc::ENOTDIR),
        ("/", libc::EISDIR),
        ("", libc::ENOENT),
        ("no/such", libc::ENOENT),
    ] {
        let (status, said) = told(&format!("REGISTER:{name}:file\n"));
        assert_eq!(status, 2, "{name}");
        assert!(said[1].starts_with(&format!("'{name}': [Errno {errno}] ")), "{said:?}");
        assert!(said[1].ends_with(&format!(": '{name}'")), "{said:?}");
    }
    assert!(exists("other-name") && exists("directory/sub"));
    let (_, said) = told(&message(b"other-name\0", "file"));
    assert_eq!(said[1], "'other-name\\x00': embedded null byte");
    assert!(exists("other-name"));

    // Relative to the daemon's directory, and not to that of whoever sends.
    let mut elsewhere = Daemon::start_with(|command| {
        command.args(["--protocol", "rtrack"]).current_dir("directory");
    });
    fs::write("here", "").unwrap();
    fs::write("directory/here", "").unwrap();
    fs::write("absolute", "").unwrap();
    elsewhere.tell("REGISTER:here:file\n");
    elsewhere.tell(&format!("REGISTER:{}:file\n", scratch().join("absolute").display()));
    assert_eq!(elsewhere.end().0.code(), Some(1));
    assert!(exists("here") && !exists("directory/here") && !exists("absolute"));

    // Whatever bytes it has.
    use std::os::unix::ffi::OsStrExt;
    let odd: &[u8] = b" a:b\n\xff ";
    fs::write(std::ffi::OsStr::from_bytes(odd), "").unwrap();
    assert_eq!(told(&message(odd, "file")).0, 1);
    assert!(!exists(std::ffi::OsStr::from_bytes(odd)));
}

/// An ordinary user's daemon removes what is its own, and nothing else.
fn of_somebody_else() {
    let user = somebody();
    let others = segment_and_others();
    leave_queue("roots", 0);
    fs::create_dir("private").unwrap();
    fs::write("private/f", "").unwrap();
    let by_user = || {
        Daemon::start_with(|command| {
            command.args(["--protocol", "rtrack"]).as_user(user);
        })
    };
    let mut text = "REGISTER:/roots:message_queue\nREGISTER:private/f:file\n".to_owned();
    for (rtype, _, id) in others {
        text += &format!("REGISTER:{id}:{rtype}\n");
    }
    let (status, said) = told_by(by_user(), &text);
    assert_eq!(status, 2);
    let denied = |name: &str| format!("'{name}': [Errno 13] Permission denied: '{name}'");
    let not_permitted = |id: i32| format!("'{id}': [Errno 1] Operation not permitted: '{id}'");
    // The warning about each type is followed by what failed; equal texts are said once.
    assert!(said.contains(&denied("/roots")) && said.contains(&denied("private/f")), "{said:?}");
    for (_, table, id) in others {
        assert!(said.contains(&not_permitted(id)), "{said:?}");
        assert!(line(table, id).is_some());
    }
    assert!(exists("private/f") && queue_names().len() == 1);

    let own = |make: &dyn Fn() -> i32| i32::from(by(user, || make().try_into().unwrap()));
    let (set, messages) = (own(&|| semaphores(0, 1, 0o600)), own(&|| queue(0, 0o600)));
    leave_queue("own", 0);
    give_queue("own", user, 0o600);
    let text = format!(
        "REGISTER:{set}:sysv_sem\nREGISTER:{messages}:sysv_msg\nREGISTER:/own:message_queue\n"
    );
    let (status, said) = told_by(by_user(), &text);
    assert_eq!((status, said.len()), (1, 3), "{said:?}");
    assert!(line("sem", set).is_none() && line("msg", messages).is_none());
    assert_eq!(queue_names().into_iter().collect::<Vec<_>>(), ["roots"]);
}

fn what_is_recorded() {
    leave_queue("q", 0);
    let [(_, _, memory), (_, _, set), (_, _, messages)] = segment_and_others();
    let held = segment(0x77, 8192, 0o640);
    let holder = hold("sysv-attached", Path::new(&held.to_string()));
    fs::write("f", "").unwrap();
    let mut text = String::new();
    for (name, rtype) in [
        ("/q", "message_queue"),
        ("/none", "message_queue"),
        (&*memory.to_string(), "sysv_shm"),
        (&*held.to_string(), "sysv_shm"),
        ("2147483647", "sysv_shm"),
        (&*set.to_string(), "sysv_sem"),
        (&*messages.to_string(), "sysv_msg"),
        ("0x5", "sysv_msg"),
        ("f", "file"),
    ] {
        text += &format!("REGISTER:{name}:{rtype}\n");
    }
    assert_eq!(told_by(daemon(&["--audit", "audit"]), &text).0, 1);
    let lines: Vec<Value> = fs::read_to_string("audit")
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .inspect(validate)
        .collect();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let recorded: Vec<_> = lines
        .iter()
        .map(|line| {
            let object = &line["object"];
            (
                word(&object["id"]),
                word(&object["rtype"]),
                word(&line["outcome"]),
                line["errno"].clone(),
            )
        })
        .collect();
    let gone = || json!(libc::ENOENT);
    let expected = [
        ("mqueue:q".to_owned(), "message_queue", "reaped", Value::Null),
        ("mqueue:none".to_owned(), "message_queue", "gone", gone()),
        (format!("sysv-shm:{memory}"), "sysv_shm", "reaped", Value::Null),
        (format!("sysv-shm:{held}"), "sysv_shm", "reaped", Value::Null),
        ("sysv-shm:2147483647".to_owned(), "sysv_shm", "gone", gone()),
        (format!("sysv-sem:{set}"), "sysv_sem", "reaped", Value::Null),
        (format!("sysv-msg:{messages}"), "sysv_msg", "reaped", Value::Null),
        ("sysv-msg:0x5".to_owned(), "sysv_msg", "failed", Value::Null),
        ("file:f".to_owned(), "file", "reaped", Value::Null),
    ];
    let expected = expected
        .map(|(id, rtype, outcome, errno)| (id, rtype.to_owned(), outcome.to_owned(), errno));
    assert_eq!(recorded, expected);
    let kinds: Vec<_> = lines.iter().map(|line| word(&line["object"]["kind"])).collect();
    assert_eq!(kinds[1..4], ["mqueue", "sysv-shm", "sysv-shm"]);

    // What reap records of such objects.
    let object = &lines[3]["object"];
    let own = nix::unistd::geteuid().as_raw();
    for (field, value) in [
        ("name", json!(held.to_string())),
        ("key", json!("0x00000077")),
        ("mode", json!("0640")),
        ("size", json!(8192)),
        ("uid", json!(own)),
        ("creator_uid", json!(own)),
        ("creator_pid", json!(std::process::id())),
    ] {
        assert_eq!(object[field], value, "{field}");
    }
    assert!(word(&object["changed_at"]).starts_with("20"), "{object}");
    assert!(word(&lines[3]["says"]).contains("the last of 1 attachments"), "{}", lines[3]);
    assert_eq!(lines[5]["object"]["key"], "0x00000000");
    assert_eq!(lines[5]["object"].get("size"), None);
    // Of what is not there nothing is known.
    assert_eq!(lines[4]["object"].get("uid"), None);
    drop(holder);

    let selected = |name: &str| {
        let log = rtrack(["log", "--file", "audit", "--ndjson", name]).finish().expect(0);
        log.text().lines().count()
    };
    assert_eq!(selected(&format!("sysv-shm:{memory}")), 1);
    assert_eq!((selected("sysv-shm:*"), selected("mqueue:*")), (3, 2));
}

/// Runs `rtrack send` with a pipe that nobody is known to read; what was written, and what was said.
fn sent(arguments: &[&str], code: i32) -> (String, String) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = rtrack(["send", "--fd", "5"]);
    let finished = command.args(arguments).inherit(writer, 5).finish().expect(code);
    drop(command);
    (std::io::read_to_string(&mut reader).unwrap(), finished.stderr)
}

fn what_send_takes() {
    for (arguments, line) in [
        (&["REGISTER", "/q", "message_queue"][..], "REGISTER:/q:message_queue\n"),
        (&["REGISTER", "5", "sysv_shm"], "REGISTER:5:sysv_shm\n"),
        (&["REGISTER", "0", "sysv_sem", "--protocol", "rtrack"], "REGISTER:0:sysv_sem\n"),
        (&["UNREGISTER", "5", "sysv_msg"], "UNREGISTER:5:sysv_msg\n"),
        (&["REGISTER", "f", "file", "--protocol", "rtrack"], "REGISTER:f:file\n"),
        (
            &["REGISTER", "/m", "shared_memory", "--protocol", "rtrack"],
            "REGISTER:/m:shared_memory\n",
        ),
        // It may be that somebody registered it so.
        (&["UNREGISTER", "x", "sysv_msg"], "UNREGISTER:x:sysv_msg\n"),
    ] {
        assert_eq!(sent(arguments, 0).0, line);
    }
    let all = "hint: one of noop, dummy, semaphore, shared_memory, message_queue, sysv_shm, sysv_sem, \
               sysv_msg, file";
    for (arguments, error) in [
        (&["REGISTER", "x", "queue"][..], "\"queue\" is no resource type of any tracker"),
        (&["REGISTER", "x", "queue"], all),
        (&["REGISTER", "x", "folder", "--protocol", "rtrack"], "no resource type of this tracker"),
        (&["REGISTER", "x", "folder", "--protocol", "rtrack"], all),
        (&["REGISTER", "x", "semlock", "--protocol", "rtrack"], all),
        (&["REGISTER", "5", "sysv_shm", "--protocol", "cpython"], "no resource type of this"),
        (&["REGISTER", "5", "sysv_shm", "--protocol", "any"], "no resource type of this tracker"),
        (&["REGISTER", "/q", "message_queue", "--protocol", "loky"], "no resource type of this"),
        (
            &["MAYBE_UNLINK", "f", "file", "--protocol", "rtrack"],
            "does not know MAYBE_UNLINK of a file",
        ),
        (&["MAYBE_UNLINK", "5", "sysv_shm"], "does not know MAYBE_UNLINK of a sysv_shm"),
        (&["REGISTER", "0x5", "sysv_shm"], "\"0x5\" is not the id of a System V object"),
        (&["REGISTER", "", "sysv_sem"], "\"\" is not the id of a System V object"),
        (&["REGISTER", "05", "sysv_msg"], "the number that ipcs shows"),
    ] {
        let (written, said) = sent(arguments, 2);
        assert_eq!(written, "");
        assert!(said.contains(error), "{arguments:?}: {said}");
    }
    // A stream, in both forms.
    for (line, code) in [
        ("REGISTER:5:sysv_shm", 0),
        ("REGISTER:5x:sysv_shm", 2),
        (r#"{"cmd":"REGISTER","rtype":"sysv_msg","base64_name":"NQ=="}"#, 0),
        (r#"{"cmd":"REGISTER","rtype":"sysv_msg","base64_name":"YQ=="}"#, 2),
        (r#"{"cmd":"REGISTER","rtype":"folder","base64_name":"YQ=="}"#, 0),
        (r#"{"cmd":"REGISTER","rtype":"bogus","base64_name":"YQ=="}"#, 2),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        fs::write("lines", format!("{line}\n")).unwrap();
        let mut command = rtrack(["send", "--fd", "5", "-"]);
        command.inherit(writer, 5).stdin(File::open("lines").unwrap());
        assert_eq!(command.output().unwrap().status.code(), Some(code), "{line}");
        drop(reader);
    }
}

fn each_daemon_tells_its_dialect() {
    let mut daemon = daemon(&[]);
    daemon.told("PROBE:0:noop\n");
    let pid = daemon.child.id().to_string();
    let send = |arguments: &[&str], code| {
        let mut command = rtrack(["send", "--pid", &pid]);
        command.args(arguments).finish().expect(code).stderr
    };
    fs::write("f", "").unwrap();
    send(&["REGISTER", "f", "file"], 0);
    send(&["REGISTER", "/q", "message_queue"], 0);
    send(&["UNREGISTER", "/q", "message_queue"], 0);
    let said = send(&["REGISTER", "d", "folder"], 2);
    assert!(said.contains("this tracker") && said.contains("sysv_msg, file"), "{said}");
    send(&["MAYBE_UNLINK", "f", "file"], 2);

    let all = rtrack(["probe", "--all", "--json"]).finish().expect(0).json();
    validate(&all);
    let trackers = all["trackers"].as_array().unwrap();
    let found = trackers.iter().find(|tracker| tracker["pid"] == daemon.child.id()).unwrap();
    assert_eq!((&found["kind"], &found["dialect"]), (&json!("rtrack"), &json!("rtrack")));
    let table = rtrack(["probe", "--all", "-o", "pid,kind,dialect"]).finish().expect(0);
    let text = table.text();
    let row = text.lines().find(|line| line.trim_start().starts_with(&pid)).unwrap();
    assert_eq!(row.split_whitespace().skip(1).collect::<Vec<_>>(), ["rtrack", "rtrack", "rtrack"]);
    assert_eq!(daemon.end().0.code(), Some(1));
    assert!(!exists("f"));
}

/// The client library.
fn from_a_program() {
    let client = || {
        let builder = ResourceTracker::builder().program(binary()).dialect(Dialect::Rtrack);
        builder.build().unwrap()
    };
    leave_queue("q", 0);
    fs::write("f", "").unwrap();
    let all = segment_and_others();
    let tracker = client();
    for (rtype, _, id) in all {
        tracker.register(id.to_string(), rtype).unwrap();
        tracker.unregister(id.to_string(), rtype).unwrap();
    }
    tracker.register("/q", "message_queue").unwrap();
    tracker.unregister("/q", "message_queue").unwrap();
    let refused = |name: &str, rtype: &str| tracker.register(name, rtype).unwrap_err();
    assert!(matches!(refused("d", "folder"), ClientError::UnknownType(_)));
    assert!(matches!(refused("d", "semlock"), ClientError::UnknownType(_)));
    for name in ["", "0x5", " 5", "-5", "05", "2147483648"] {
        let error = refused(name, "sysv_shm");
        assert_eq!(error.to_string(), format!("\"{name}\" is not the id of a System V object"));
    }
    assert!(matches!(tracker.maybe_unlink("f", "file"), Err(ClientError::UnknownType(_))));
    assert_eq!(tracker.stop().unwrap().end, End::Exited(0));

    // Killed: what it registered goes.
    let child = fork();
    if child == 0 {
        let tracker = client();
        for (rtype, _, id) in all {
            tracker.register(id.to_string(), rtype).unwrap();
        }
        tracker.register("/q", "message_queue").unwrap();
        tracker.register(scratch().join("f").to_str().unwrap(), "file").unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    wait_for("everything to go", || (!exists("f")).then_some(()));
    assert!(queue_names().is_empty());
    assert!(all.into_iter().all(|(_, table, id)| line(table, id).is_none()));
}

/// The first block of `language` in the README's section about this dialect.
fn example(language: &str) -> String {
    let readme = include_str!("../../README.md");
    let (_, section) = readme.split_once("### Anything else").unwrap();
    let (_, block) = section.split_once(&format!("```{language}\n")).unwrap();
    block.split_once("```").unwrap().0.to_owned()
}

/// What the examples make, as long as it is there.
fn is_clean() -> bool {
    let mut tables = ["shm", "sem", "msg"].into_iter().map(|table| {
        fs::read_to_string(format!("/proc/sysvipc/{table}")).unwrap().lines().count() - 1
    });
    let files = |path: &Path| fs::read_dir(path).unwrap().count() == 0;
    tables.all(|objects| objects == 0)
        && queue_names().is_empty()
        && files(&scratch().join("tmp"))
        && !exists(scratch().join("answers"))
}

/// They run as they stand there, to their end and killed where they say that it may happen.
fn examples_in_the_readme() {
    let mut path = binary().parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    fs::create_dir("tmp").unwrap();
    let run = |what: &str, command: &mut Command, is_killed: bool| {
        let run = command.env("PATH", &path).env("TMPDIR", scratch().join("tmp")).finish();
        // The end of its stderr was that of the tracker.
        assert!(is_clean(), "{what}: {run:?}");
        assert_eq!(run.stderr.contains(" leaked "), is_killed, "{what}: {run:?}");
        assert_eq!(
            run.signal.is_some() || run.code != Some(0),
            is_killed && what != "bash",
            "{run:?}"
        );
    };
    let killed = |text: &str, by: &str| {
        let mut lines: Vec<&str> = text.lines().collect();
        let place = lines.iter().position(|line| line.contains("... and if ")).unwrap();
        lines[place] = by;
        lines.join("\n")
    };

    // What this one leaves, it leaves to the tracker.
    run("bash", Command::new("bash").args(["-euc", &example("bash")]), true);
    run(
        "bash killed",
        Command::new("bash").args(["-euc", &killed(&example("bash"), "kill -9 $$")]),
        true,
    );

    for is_killed in [false, true] {
        let text = example("c");
        let text = if is_killed { killed(&text, "__builtin_trap();") } else { text };
        fs::write("example.c", text).unwrap();
        let mut compile = Command::new("cc");
        compile.args(["-Wall", "-Werror", "-o", "tmp-example", "example.c"]).finish().expect(0);
        run("C", &mut Command::new("./tmp-example"), is_killed);

        let text = example("python");
        let kill = "os.kill(os.getpid(), 9)";
        let text = if is_killed { killed(&text, kill) } else { text };
        for python in pythons() {
            run(&python.to_string(), &mut python.program(&text), is_killed);
        }
    }

    // SAFETY: no other thread reads the environment.
    unsafe { std::env::set_var("PATH", &path) };
    let source = include_str!("anything.rs");
    for line in example("rust").lines().map(str::trim).filter(|line| !line.is_empty()) {
        assert!(source.lines().any(|own| own.trim() == line), "{line}");
    }
    for is_killed in [false, true] {
        let child = fork();
        if child == 0 {
            as_in_the_readme(is_killed).unwrap();
            std::process::exit(0);
        }
        let mut status = 0;
        // SAFETY: the status is one integer.
        check(unsafe { libc::waitpid(child, &mut status, 0) }).unwrap();
        assert_eq!(libc::WIFSIGNALED(status), is_killed);
        wait_for("the queue to go", || is_clean().then_some(()));
    }
}

/// The README's example in Rust, line for line, and what it speaks of.
#[rustfmt::skip]
fn as_in_the_readme(is_killed: bool) -> Result<(), Box<dyn std::error::Error>> {
    use rtrack::tracker::service::client::{Dialect, ResourceTracker};

    let tracker = ResourceTracker::builder().dialect(Dialect::Rtrack).build()?;
    // after mq_open("/jobs.4711", O_CREAT | O_EXCL, ...):
    let made = make_queue("jobs.4711");
    tracker.register("/jobs.4711", "message_queue")?;
    // ... and if the program dies here, the queue goes
    if is_killed {
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)?;
    }
    // before mq_unlink("/jobs.4711"):
    tracker.unregister("/jobs.4711", "message_queue")?;
    fs::remove_file(crate::support::queues().join("jobs.4711"))?;
    drop(made);
    Ok(())
}
