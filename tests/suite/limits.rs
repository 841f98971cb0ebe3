//! What the kernel allows, in an IPC namespace whose limits the case sets.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread;

use nix::unistd::Uid;
use rtrack::tracker::limits::{Amount, Limit, of_namespace};
use serde_json::{Value, json};

use crate::support::{
    Case, Finish, Finished, Need, case, check, faults, mount, object, path, rtrack, scratch, skip,
    somebody,
};
use crate::table::on_terminal;

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("every_limit", every_limit),
        case("segments_and_the_threshold", segments_and_the_threshold),
        case("memory_of_segments", memory_of_segments),
        case("semaphores", semaphores),
        case("queues_of_both_kinds", queues_of_both_kinds),
        case("bytes_and_inodes", bytes_and_inodes),
        case("a_mount_without_limits", a_mount_without_limits),
        case("what_cannot_be_read", what_cannot_be_read),
        case("no_posix_shared_memory", no_posix_shared_memory),
        case("of_other_users", of_other_users).needs(&[Need::RealRoot]),
        case("queues_where_they_are_mounted", queues_where_they_are_mounted)
            .needs(&[Need::RealRoot]),
        case("another_namespace", another_namespace),
        case("columns_and_colours", columns_and_colours),
        case("the_footer_of_list", the_footer_of_list),
    ]
}

/// Sets a limit of the case's own IPC namespace.
fn set(file: &str, value: &str) {
    let file = Path::new("/proc/sys").join(file);
    if let Err(error) = fs::write(&file, value) {
        let denied =
            [libc::EACCES, libc::EPERM, libc::EROFS].contains(&error.raw_os_error().unwrap());
        assert!(denied, "{}: {error}", file.display());
        skip(format_args!("{} cannot be set here: {error}", file.display()));
    }
}

/// A System V segment that nobody has attached, of mode 0600.
fn segment(size: usize) -> i32 {
    // SAFETY: the call touches no memory.
    check(unsafe { libc::shmget(libc::IPC_PRIVATE, size, 0o600) }).unwrap()
}

/// A set of `count` System V semaphores.
fn set_of(count: i32) {
    // SAFETY: the call touches no memory.
    check(unsafe { libc::semget(libc::IPC_PRIVATE, count, 0o600) }).unwrap();
}

/// A POSIX message queue, open.
fn queue(name: &str) -> i32 {
    let name = CString::new(name).unwrap();
    let (flags, mode) = (libc::O_CREAT | libc::O_EXCL | libc::O_RDWR, 0o600);
    let null = std::ptr::null::<libc::mq_attr>();
    // SAFETY: the name is NUL-terminated, and no attributes are given.
    check(unsafe { libc::mq_open(name.as_ptr(), flags, mode, null) }).unwrap()
}

fn unlink_queue(name: &str) {
    let name = CString::new(name).unwrap();
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::mq_unlink(name.as_ptr()) }).unwrap();
}

fn limits(more: &[&str]) -> Finished {
    rtrack(["limits", "--json"]).args(more).finish()
}

#[track_caller]
fn row<'a>(document: &'a Value, name: &str) -> &'a Value {
    let rows = document["limits"].as_array().unwrap();
    let found = rows.iter().find(|row| row["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {document:#}"))
}

/// Use, limit, percent, and whether that is above the threshold.
#[track_caller]
fn expect(document: &Value, name: &str, expected: Value) {
    let row = row(document, name);
    let found = json!([row["used"], row["limit"], row["percent"], row["above"]]);
    assert_eq!(found, expected, "{row:#}");
    assert_eq!(row["unknown"], Value::Null, "{row:#}");
}

/// Each has a row in a fresh namespace, nothing is used, and each says whose it is.
fn every_limit() {
    let document = limits(&["--check"]).expect(0).json();
    let namespace = fs::read_link("/proc/self/ns/ipc").unwrap();
    let namespace = namespace.to_str().unwrap();
    let counted = [
        "kernel.shmmni",
        "kernel.sem semmns",
        "kernel.sem semmni",
        "kernel.msgmni",
        "fs.mqueue.queues_max",
    ];
    for name in counted {
        let row = row(&document, name);
        assert_eq!((&row["used"], &row["percent"]), (&json!(0), &json!(0.0)), "{row:#}");
        assert!(row["limit"].as_u64().unwrap() > 0, "{row:#}");
        assert_eq!(row["at_least"], name == "fs.mqueue.queues_max");
    }
    let single = [
        "kernel.shmmax",
        "kernel.sem semmsl",
        "kernel.sem semopm",
        "kernel.msgmnb",
        "kernel.msgmax",
        "fs.mqueue.msg_max",
        "fs.mqueue.msgsize_max",
    ];
    for name in single {
        let row = row(&document, name);
        assert_eq!((&row["used"], &row["percent"]), (&Value::Null, &Value::Null), "{row:#}");
        assert!(row["limit"].as_u64().unwrap() > 0, "{row:#}");
    }
    for name in counted.iter().chain(&single).chain(&["kernel.shmall"]) {
        let scope = json!({ "kind": "ipc-namespace", "id": namespace });
        assert_eq!(row(&document, name)["scope"], scope);
    }
    // What Linux has unless somebody sets it: no limit, and no overflow when pages become bytes.
    let unset = 18_446_744_073_692_774_399_u64;
    for name in ["kernel.shmall", "kernel.shmmax"] {
        let row = row(&document, name);
        assert_eq!((&row["limit"], &row["unlimited"]), (&json!(unset), &json!(true)), "{row:#}");
    }
    expect(&document, "/dev/shm bytes", json!([0, 256 << 20, 0.0, false]));
    assert_eq!(row(&document, "/dev/shm inodes")["used"], 1);
    assert_eq!(document["limits"].as_array().unwrap().len(), 15);

    // The schema can tell.
    for (place, wrong) in [
        ("/limits/0/used", json!("unknown")),
        ("/limits/0/unit", json!("files")),
        ("/limits/0/scope", json!({ "kind": "mount", "id": "ipc:[1]" })),
        ("/limits/0/percent", json!("80 %")),
        ("/threshold", json!(101)),
    ] {
        let mut document = document.clone();
        *document.pointer_mut(place).unwrap() = wrong.clone();
        assert!(!faults(&document).is_empty(), "{wrong} is allowed at {place}");
    }
}

/// The kernel refuses exactly where this says 100 %.
fn segments_and_the_threshold() {
    set("kernel/shmmni", "10");
    let ids: Vec<i32> = (0..8).map(|_| segment(1)).collect();
    let document = limits(&["--check"]).expect(0).json();
    expect(&document, "kernel.shmmni", json!([8, 10, 80.0, false]));
    segment(1);
    let document = limits(&["--check"]).expect(1).json();
    expect(&document, "kernel.shmmni", json!([9, 10, 90.0, true]));
    // Without --check it is no answer of no.
    limits(&[]).expect(0);
    let document = limits(&["--check", "--threshold", "90"]).expect(0).json();
    expect(&document, "kernel.shmmni", json!([9, 10, 90.0, false]));
    assert_eq!(document["threshold"], 90);
    segment(1);
    expect(&limits(&[]).json(), "kernel.shmmni", json!([10, 10, 100.0, true]));
    limits(&["--check", "--threshold", "100"]).expect(0);
    // SAFETY: the call touches no memory.
    let refused = check(unsafe { libc::shmget(libc::IPC_PRIVATE, 1, 0o600) }).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));

    // A segment that is marked for destruction counts until the last one lets go of it.
    // SAFETY: the kernel chooses an address that is free; nothing is read or written there.
    let at = unsafe { libc::shmat(ids[0], std::ptr::null(), 0) };
    assert_ne!(at as isize, -1);
    let remove = |id| {
        // SAFETY: this command takes no structure.
        check(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).unwrap();
    };
    remove(ids[0]);
    remove(ids[1]);
    expect(&limits(&[]).json(), "kernel.shmmni", json!([9, 10, 90.0, true]));

    // A limit that was lowered since.
    set("kernel/shmmni", "4");
    let document = limits(&["--check", "--threshold", "100"]).expect(1).json();
    expect(&document, "kernel.shmmni", json!([9, 4, 225.0, true]));
    set("kernel/shmmni", "0");
    expect(&limits(&["--check"]).expect(1).json(), "kernel.shmmni", json!([9, 0, null, true]));
}

/// Every segment counts whole pages, and the kernel counts as rtrack does.
fn memory_of_segments() {
    // SAFETY: the call touches no memory.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
    set("kernel/shmall", "6");
    for size in [1, page, page + 1, 0x50] {
        segment(size);
    }
    let document = limits(&["--check"]).expect(1).json();
    expect(&document, "kernel.shmall", json!([5, 6, 83.3, true]));
    assert_eq!(row(&document, "kernel.shmall")["unit_bytes"], page);
    // SAFETY: the call touches no memory.
    let refused = check(unsafe { libc::shmget(libc::IPC_PRIVATE, page + 1, 0o600) }).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    segment(page);
    expect(&limits(&[]).json(), "kernel.shmall", json!([6, 6, 100.0, true]));
    // More memory than addresses can reach.
    set("kernel/shmall", "18446744073692774398");
    expect(
        &limits(&["--check"]).expect(0).json(),
        "kernel.shmall",
        json!([6, 18_446_744_073_692_774_398_u64, 0.0, false]),
    );
}

fn semaphores() {
    set("kernel/sem", "250 20 32 4");
    for count in [1, 10, 7] {
        set_of(count);
    }
    let document = limits(&["--check"]).expect(1).json();
    expect(&document, "kernel.sem semmni", json!([3, 4, 75.0, false]));
    expect(&document, "kernel.sem semmns", json!([18, 20, 90.0, true]));
    expect(&document, "kernel.sem semmsl", json!([null, 250, null, false]));
    expect(&document, "kernel.sem semopm", json!([null, 32, null, false]));
    set_of(2);
    let document = limits(&[]).json();
    expect(&document, "kernel.sem semmni", json!([4, 4, 100.0, true]));
    expect(&document, "kernel.sem semmns", json!([20, 20, 100.0, true]));
}

fn queues_of_both_kinds() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    set("kernel/msgmni", "3");
    set("fs/mqueue/queues_max", "4");
    for _ in 0..3 {
        // SAFETY: the call touches no memory.
        check(unsafe { libc::msgget(libc::IPC_PRIVATE, 0o600) }).unwrap();
    }
    for name in ["/q1", "/q2", "/q3"] {
        queue(name);
    }
    let document = limits(&["--check"]).expect(1).json();
    expect(&document, "kernel.msgmni", json!([3, 3, 100.0, true]));
    expect(&document, "fs.mqueue.queues_max", json!([3, 4, 75.0, false]));
    queue("/q4");
    // Open without a name: the kernel counts it, nobody sees it, and that is said.
    unlink_queue("/q1");
    let document = limits(&[]).expect(0).json();
    expect(&document, "fs.mqueue.queues_max", json!([3, 4, 75.0, false]));
    assert_eq!(row(&document, "fs.mqueue.queues_max")["at_least"], true);
    let text = rtrack(["limits", "-o", "name,used"]).finish().expect(0).text();
    let line = text.lines().find(|line| line.starts_with("fs.mqueue.queues_max ")).unwrap();
    assert!(line.ends_with("  ≥ 3"), "{text}");
    // Nothing is left mounted.
    assert_eq!(mounts(), before);
}

/// Deleted files count as long as somebody has them open.
fn bytes_and_inodes() {
    mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777,size=1M,nr_inodes=20").unwrap();
    let (size, _page) = (1 << 20, 4096);
    object().size(size / 2).make("half");
    for number in 0..15 {
        object().size(0).make(format!("file-{number}"));
    }
    let document = limits(&["--check"]).expect(1).json();
    expect(&document, "/dev/shm bytes", json!([size / 2, size, 50.0, false]));
    // The root of the file system is one.
    expect(&document, "/dev/shm inodes", json!([17, 20, 85.0, true]));
    let scope = &row(&document, "/dev/shm bytes")["scope"];
    assert_eq!((&scope["kind"], &scope["path"]), (&json!("mount"), &json!("/dev/shm")));

    let open = File::open(path("half")).unwrap();
    for name in ["half", "file-1", "file-2"] {
        fs::remove_file(path(name)).unwrap();
    }
    let document = limits(&["--check"]).expect(0).json();
    expect(&document, "/dev/shm bytes", json!([size / 2, size, 50.0, false]));
    expect(&document, "/dev/shm inodes", json!([15, 20, 75.0, false]));
    drop(open);
    let document = limits(&["--check"]).expect(0).json();
    expect(&document, "/dev/shm bytes", json!([0, size, 0.0, false]));
}

fn a_mount_without_limits() {
    mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777,size=0,nr_inodes=0").unwrap();
    object().size(100_000).make("something");
    let document = limits(&["--check", "--threshold", "0"]).expect(0).json();
    for name in ["/dev/shm bytes", "/dev/shm inodes"] {
        expect(&document, name, json!([null, null, null, false]));
        assert_eq!(row(&document, name)["unlimited"], true);
    }
}

/// Puts a file of the case's over one of `/proc`.
fn replace(file: &str, text: &str) {
    let own = scratch().join(file.replace('/', "-"));
    fs::write(&own, text).unwrap();
    mount(own.to_str().unwrap(), file, "", libc::MS_BIND, "").unwrap();
}

/// Unknown is said, is never zero, does not hide the rest, and goes before a no.
fn what_cannot_be_read() {
    set("kernel/sem", "250 20 32 1");
    set_of(3);
    replace("/proc/sysvipc/shm", "");
    replace("/proc/sysvipc/msg", "       key      msqid perms\n1 2 3\n1 2\n");
    replace("/proc/sys/kernel/shmmax", "lots\n");
    let run = limits(&["--check"]).expect(3);
    let document = run.json();
    for (name, limit, why) in [
        ("kernel.shmmni", true, "/proc/sysvipc/shm: no column shmid"),
        ("kernel.shmall", true, "/proc/sysvipc/shm: no column shmid"),
        ("kernel.msgmni", true, "/proc/sysvipc/msg: line 3 is not of the table's form"),
        ("kernel.shmmax", false, "/proc/sys/kernel/shmmax: not 1 numbers"),
    ] {
        let row = row(&document, name);
        assert_eq!((&row["used"], &row["percent"]), (&Value::Null, &Value::Null), "{row:#}");
        assert_eq!((row["limit"].is_u64(), &row["unknown"]), (limit, &json!(why)), "{row:#}");
        assert!(run.stderr.contains(&format!("error: {name}: {why}\n")), "{run:?}");
    }
    expect(&document, "kernel.sem semmni", json!([1, 1, 100.0, true]));
    let text = rtrack(["limits"]).finish().expect(3).text();
    let line = text.lines().find(|line| line.starts_with("kernel.shmmni ")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[1], "unknown", "{line}");
    assert!(line.ends_with("; /proc/sysvipc/shm: no column shmid"), "{line}");
}

/// Something else on /dev/shm takes nothing away from System V.
fn no_posix_shared_memory() {
    mount("ramfs", "/dev/shm", "ramfs", 0, "").unwrap();
    segment(1);
    let run = limits(&[]).expect(3);
    let document = run.json();
    let bytes = row(&document, "/dev/shm bytes");
    assert_eq!((&bytes["used"], &bytes["limit"]), (&Value::Null, &Value::Null));
    assert!(bytes["unknown"].as_str().unwrap().contains("not a tmpfs"), "{bytes:#}");
    assert_eq!(row(&document, "kernel.shmmni")["used"], 1);
}

/// Whose the objects are, and who asks, makes no difference but for the message queues.
fn of_other_users() {
    set("kernel/shmmni", "10");
    for _ in 0..9 {
        segment(100);
    }
    set_of(5);
    object().mode(0o600).make("private");
    queue("/private");
    let all = limits(&[]).expect(0).json();
    let run = rtrack(["limits", "--json", "--check"]).as_user(somebody()).finish().expect(3);
    let seen = run.json();
    let queues = "fs.mqueue.queues_max";
    let (of_all, of_seen) = (all["limits"].as_array().unwrap(), seen["limits"].as_array().unwrap());
    assert_eq!(of_all.len(), of_seen.len());
    for (ours, theirs) in of_all.iter().zip(of_seen).filter(|(row, _)| row["name"] != queues) {
        assert_eq!(ours, theirs);
    }
    expect(
        &all,
        queues,
        json!([1, row(&all, queues)["limit"], row(&all, queues)["percent"], false]),
    );
    // Of another namespace's mount, if the machine has one, there is a note.
    let row = row(&seen, queues);
    assert!(row["unknown"].is_string() || row["note"].is_string(), "{row:#}");
}

fn used(limits: &[Limit], name: &str) -> Amount {
    limits.iter().find(|row| row.name == name).unwrap().used.clone()
}

/// Those who may not mount the queues count them where they are mounted, if they are.
fn queues_where_they_are_mounted() {
    let place = scratch().join("queues");
    let place = place.as_path();
    fs::create_dir(place).unwrap();
    queue("/q1");
    queue("/q2");
    mount("mqueue", place.to_str().unwrap(), "mqueue", 0, "").unwrap();
    let elsewhere = scratch();
    let name = "fs.mqueue.queues_max";
    nix::unistd::setuid(Uid::from_raw(somebody())).unwrap();
    let proc = Path::new("/proc");

    let counted = of_namespace(proc, Some(place));
    let row = counted.iter().find(|row| row.name == name).unwrap();
    assert_eq!(row.used, Amount::Known(2));
    assert!(row.note.as_ref().unwrap().contains(place.to_str().unwrap()), "{row:?}");
    for (place, why) in [
        (None, "mounting the message queues failed: "),
        (Some(elsewhere.as_path()), "is tmpfs, no mqueue"),
        (Some(Path::new("/nowhere")), "no message queues are mounted at /nowhere"),
    ] {
        match used(&of_namespace(proc, place), name) {
            Amount::Unknown(says) => assert!(says.contains(why), "{says}"),
            other => panic!("{place:?}: {other:?}"),
        }
    }
}

/// A thread that has entered another namespace reads the limits of that one.
fn another_namespace() {
    set("kernel/shmmni", "10");
    segment(1);
    queue("/here");
    let proc = Path::new("/proc");
    let there = thread::spawn(move || {
        // SAFETY: this changes the namespace of this thread only.
        check(unsafe { libc::unshare(libc::CLONE_NEWIPC) }).unwrap();
        set("kernel/shmmni", "20");
        for name in ["/one", "/two"] {
            queue(name);
            segment(1);
        }
        segment(1);
        of_namespace(proc, None)
    });
    let there = there.join().unwrap();
    let here = of_namespace(proc, None);
    for (limits, segments, most, queues) in [(&here, 1, 10, 1), (&there, 3, 20, 2)] {
        assert_eq!(used(limits, "kernel.shmmni"), Amount::Known(segments));
        assert_eq!(limits[0].limit, Amount::Known(most));
        assert_eq!(used(limits, "fs.mqueue.queues_max"), Amount::Known(queues));
    }
    assert_ne!(here[0].scope, there[0].scope);
}

fn columns_and_colours() {
    set("kernel/shmmni", "11");
    for _ in 0..10 {
        segment(4096);
    }
    let table = |more: &[&str]| {
        let run = rtrack(["limits"]).args(more).finish();
        let text = run.text();
        text.lines().find(|line| line.contains("shmmni")).unwrap_or_default().to_owned()
    };
    let ipc = fs::read_link("/proc/self/ns/ipc").unwrap();
    let ipc = ipc.to_str().unwrap();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&table(&[]))[..5], ["kernel.shmmni", "10", "11", "!90", ipc]);
    assert_eq!(words(&table(&["--threshold", "95"]))[3], "90");
    assert_eq!(
        table(&["-o", "name,percent,above,unit", "--threshold", "90"]),
        "kernel.shmmni          !90  true   segments"
    );
    assert!(table(&["--color", "always"]).contains("\x1b[38;5;9m"));
    assert!(!table(&["--color", "always", "--threshold", "95"]).contains("\x1b[38;5;9m"));
    let text = |more: &[&str]| rtrack(["limits"]).args(more).finish().expect(0).text();
    assert!(text(&[]).starts_with("NAME  "));
    assert!(text(&["--no-headings"]).starts_with("kernel.shmmni  "));
    let shown = on_terminal(&["limits", "--color", "never"], 90);
    assert!(shown.lines().all(|line| line.chars().count() <= 90), "{shown}");
    assert!(shown.contains('…'), "{shown}");

    for wrong in [
        &["-o", "name,\x1bsize"][..],
        &["--threshold", "101"],
        &["--threshold", "-1"],
        &["--json", "-o", "name"],
        &["kernel.shmmni"],
    ] {
        let run = rtrack(["limits"]).args(wrong).finish().expect(2);
        assert!(!run.stderr.contains('\x1b'), "{run:?}");
    }
    let full = io::Error::from_raw_os_error(libc::ENOSPC).to_string();
    let mut command = rtrack(["limits"]);
    let run =
        command.stdout(File::options().write(true).open("/dev/full").unwrap()).output().unwrap();
    assert_eq!(run.status.code(), Some(3));
    assert!(String::from_utf8(run.stderr).unwrap().contains(&full));
}

/// What is nearly used up is said below the list, to people.
fn the_footer_of_list() {
    set("kernel/shmmni", "10");
    for _ in 0..8 {
        segment(1);
    }
    let said = || on_terminal(&["list", "--color", "never"], 80);
    assert!(!said().contains("kernel."), "{}", said());
    segment(1);
    let shown = said();
    assert!(shown.contains("\nkernel.shmmni: 9 of 10 (90 %)\n"), "{shown}");
}
