//! POSIX message queues in `list` and `show`: what is in them, who holds them, and where they are
//! looked for.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Case, Finish, Need, case, check, empty_dev_mqueue, evidence, fuse, give_queue, hold, hold_as,
    is_real_root, judged, known, leave_queue, list, listed, make_queue, mount, named, names,
    object, queue_inode, queue_names, queues, rtrack, somebody, verdict,
};

pub(crate) fn tests() -> Vec<Case> {
    const OWN_PIDS: &[Need] = &[Need::PidNamespace];
    const OWN_PIDS_AS_ROOT: &[Need] = &[Need::PidNamespace, Need::RealRoot];
    vec![
        case("what_is_in_them", what_is_in_them).needs(OWN_PIDS),
        case("every_kind_of_holder", every_kind_of_holder).needs(OWN_PIDS),
        case("who_waits_to_be_told", who_waits_to_be_told).needs(OWN_PIDS),
        case("creator_in_the_name", creator_in_the_name).needs(OWN_PIDS),
        case("looking_changes_nothing", looking_changes_nothing).needs(OWN_PIDS),
        case("any_bytes_are_a_name", any_bytes_are_a_name).needs(OWN_PIDS),
        case("every_way_to_name_one", every_way_to_name_one).needs(OWN_PIDS),
        case("shown_whole", shown_whole).needs(OWN_PIDS),
        case("seen_by_an_ordinary_user", seen_by_an_ordinary_user).needs(OWN_PIDS_AS_ROOT),
        case("no_kin", no_kin).needs(OWN_PIDS_AS_ROOT),
        case("not_seen_without_a_mount", not_seen_without_a_mount).needs(OWN_PIDS_AS_ROOT),
        case("mounted_as_usual", mounted_as_usual).needs(OWN_PIDS),
        case("of_another_namespace_at_the_usual_place", of_another_namespace_at_the_usual_place)
            .needs(OWN_PIDS),
        case("something_else_at_the_usual_place", something_else_at_the_usual_place)
            .needs(&[Need::PidNamespace, Need::Fuse]),
        case("a_mount_over_one", a_mount_over_one).needs(OWN_PIDS_AS_ROOT),
    ]
}

/// What is known of one as an object of the list.
fn queue<'a>(document: &'a Value, name: &str) -> &'a Value {
    let object = listed(document, name);
    assert_eq!(object["kind"], "mqueue", "{object:#}");
    &object["queue"]
}

fn what_is_in_them() {
    let ino = leave_queue("empty", 0);
    leave_queue("one", 1);
    leave_queue("full", 10);
    let document = list();
    for (name, messages) in [("empty", 0), ("one", 1), ("full", 10)] {
        let found = queue(&document, name);
        assert_eq!(found["messages"], messages, "{found:#}");
        assert_eq!(found["bytes"], 5 * messages, "{found:#}");
        assert_eq!(found["max_messages"], 10, "{found:#}");
        assert!(found["message_size"].as_u64().unwrap() >= 5, "{found:#}");
        assert_eq!(found["notify_pid"], Value::Null, "{found:#}");
        assert_eq!(listed(&document, name)["size"], 5 * messages);
        assert_eq!(listed(&document, name)["born_at"], Value::Null);
    }
    assert_eq!(listed(&document, "empty")["ino"], ino);
    assert_eq!(verdict(&document, "empty"), ("unclaimed", "unknown-producer"));
    known(&document, "empty", "lease-granted");
    for name in ["one", "full"] {
        assert_eq!(verdict(&document, name), ("claimed", "unread"));
    }
    assert_eq!(document["sight"]["reasons"], json!([]), "{document:#}");
    assert_eq!(document["sight"]["lease"], "working");
}

fn every_kind_of_holder() {
    leave_queue("q", 0);
    let at = queues().join("q");
    for kind in ["message-queue", "fd-read", "thread-table"] {
        let holder = hold(kind, &at);
        let document = judged("q", "held", "lease-refused");
        named(&document, "q", holder.pid);
        known(&document, "q", "open-by");
    }
    let holder = hold("message-queue-in-flight", &at);
    let document = judged("q", "held", "lease-refused");
    assert!(!evidence(&document, "q").contains(&"open-by"), "{document:#}");
    drop(holder);
    // No lease tells of this one.
    let holder = hold("fd-o-path", &at);
    named(&judged("q", "held", "open-by"), "q", holder.pid);
    drop(holder);
    judged("q", "unclaimed", "unknown-producer");
    // Whoever holds one that is not empty is found in /proc.
    leave_queue("full", 2);
    let holder = hold("message-queue", queues().join("full"));
    named(&judged("full", "held", "open-by"), "full", holder.pid);
}

fn who_waits_to_be_told() {
    leave_queue("q", 0);
    for kind in ["told-of-messages", "told-of-messages-by-signal"] {
        let holder = hold(kind, queues().join("q"));
        let document = judged("q", "held", "lease-refused");
        assert_eq!(queue(&document, "q")["notify_pid"], holder.pid);
    }
    let document = judged("q", "unclaimed", "unknown-producer");
    assert_eq!(queue(&document, "q")["notify_pid"], Value::Null);
}

/// The catalogue has queues too, and pids in their names.
fn creator_in_the_name() {
    let own = format!("{}.CFE_SB_PIPE", std::process::id());
    leave_queue(&own, 0);
    leave_queue("4194300.CFE_SB_PIPE", 0);
    let document = list();
    assert_eq!(verdict(&document, &own), ("claimed", "creator-alive"));
    assert_eq!(listed(&document, &own)["producer"]["id"], "nasa-osal-mq");
    assert_eq!(verdict(&document, "4194300.CFE_SB_PIPE"), ("unclaimed", "weak-producer"));
    known(&document, "4194300.CFE_SB_PIPE", "creator-dead");
}

/// Reading a queue sets the time of its inode's last change: that must not make it look young.
fn looking_changes_nothing() {
    leave_queue("q", 0);
    let first = list();
    thread::sleep(Duration::from_millis(1100));
    list();
    thread::sleep(Duration::from_millis(1100));
    let last = list();
    assert_eq!(listed(&first, "q")["changed_at"], listed(&last, "q")["changed_at"]);
    let young = rtrack(["list", "--json", "--assume-complete", "--grace", "2s"]).finish().expect(0);
    assert_eq!(verdict(&young.json(), "q"), ("unclaimed", "unknown-producer"));
    make_queue("young");
    let young = rtrack(["list", "--json", "--assume-complete"]).finish().expect(0).json();
    assert_eq!(verdict(&young, "young"), ("claimed", "too-young"));
    // It was not even asked about, since a lease is felt by who opens it.
    assert!(!evidence(&young, "young").contains(&"lease-granted"));
    assert_eq!(queue_names().len(), 2);
}

fn any_bytes_are_a_name() {
    let long = "x".repeat(255);
    for name in [&b"a\x1b[31m\nb"[..], b"\xff\xfe", b" ", b"-rf", b"sem.q", long.as_bytes()] {
        leave_queue(OsStr::from_bytes(name), 0);
    }
    let document = list();
    assert_eq!(document["objects"].as_array().unwrap().len(), 6);
    assert_eq!(listed(&document, "sem.q")["id"], "mqueue:sem.q");
    assert_eq!(listed(&document, "\u{fffd}\u{fffd}")["name_base64"], "//4=");
    let table = rtrack(["list", "--assume-complete"]).finish().expect(0).text();
    assert!(table.contains("mqueue:a\\x1b[31m\\nb") && table.contains("mqueue:\\xff\\xfe"));
    assert!(!table.contains('\x1b'), "{table}");
}

fn every_way_to_name_one() {
    leave_queue("q", 0);
    leave_queue("other", 0);
    object().make("other");
    let ids = |selectors: &[&str]| {
        let mut list = rtrack(["list", "--assume-complete", "--no-headings", "-o", "id"]);
        let text = list.args(["--sort", "name"]).args(selectors).finish().expect(0).text();
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    for one in ["q", "/q", "mqueue:q", "mqueue:/q", "/dev/mqueue/q", "q*", "/dev/mqueue/q*"] {
        assert_eq!(ids(&[one]), ["mqueue:q"], "{one}");
    }
    assert_eq!(ids(&["--exact", "mqueue:other"]), ["mqueue:other"]);
    assert_eq!(ids(&["/dev/shm/other"]), ["shm:other"]);
    assert_eq!(ids(&["/dev/mqueue/other"]), ["mqueue:other"]);
    assert_eq!(ids(&["/dev/shm/*"]), ["shm:other"]);
    assert_eq!(ids(&["--kind", "mqueue"]), ["mqueue:other", "mqueue:q"]);
    let run = rtrack(["list", "other"]).finish().expect(2);
    assert!(run.stderr.contains("mqueue:other"), "{run:?}");
    let run = rtrack(["list", "mqueue:qq"]).finish().expect(1);
    assert!(run.stderr.contains("did you mean mqueue:q?"), "{run:?}");
}

fn shown_whole() {
    leave_queue("q", 3);
    let holder = hold("told-of-messages", queues().join("q"));
    let show = rtrack(["show", "--assume-complete", "mqueue:q"]).finish().expect(0);
    let text = show.text();
    assert!(text.contains("message queue, mode 0600"), "{text}");
    assert!(text.contains("3 messages of at most 10, 15 bytes in all; each at most"), "{text}");
    let told = format!("process {} waits to be told of the next one", holder.pid);
    assert!(text.contains(&told), "{text}");
    let show = rtrack(["show", "--assume-complete", "--json", "mqueue:q"]).finish().expect(0);
    assert_eq!(queue(&show.json(), "q")["notify_pid"], holder.pid);
    let dump = rtrack(["show", "--assume-complete", "--hexdump", "9", "mqueue:q"]).finish();
    assert!(dump.code == Some(3) && dump.stderr.contains("receive"), "{dump:?}");
}

/// What may not be opened is unknown, and never empty.
fn seen_by_an_ordinary_user() {
    mount("mqueue", empty_dev_mqueue().to_str().unwrap(), "mqueue", 0, "").unwrap();
    leave_queue("of_root", 0);
    leave_queue("own", 0);
    leave_queue("readable", 1);
    give_queue("own", somebody(), 0o600);
    give_queue("readable", 0, 0o644);
    let mut list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
    let document = list.as_user(somebody()).finish().expect(0).json();
    let of_root = listed(&document, "of_root");
    assert_eq!(of_root["queue"]["messages"], Value::Null, "{of_root:#}");
    assert_eq!((&of_root["size"], &of_root["allocated"]), (&Value::Null, &Value::Null));
    assert_eq!(verdict(&document, "of_root"), ("unknown", "no-permission"));
    assert_eq!(queue(&document, "readable")["messages"], 1);
    assert_eq!(verdict(&document, "readable"), ("claimed", "unread"));
    assert_eq!(queue(&document, "own")["messages"], 0);
    known(&document, "own", "lease-granted");
    assert_eq!(document["sight"]["reasons"], json!(["unreadable-processes"]), "{document:#}");
}

fn no_kin() {
    assert!(is_real_root());
    for (name, mode) in [("alone", 0o600), ("shared", 0o666)] {
        leave_queue(name, 0);
        give_queue(name, somebody(), mode);
    }
    leave_queue("unread", 1);
    give_queue("unread", somebody(), 0o600);
    let document = list();
    assert_eq!(verdict(&document, "alone"), ("orphaned", "no-kin"));
    assert_eq!(verdict(&document, "shared"), ("unclaimed", "unknown-producer"));
    assert_eq!(verdict(&document, "unread"), ("claimed", "unread"));
    let _kin = hold_as(somebody(), "nothing", "/");
    assert_eq!(verdict(&list(), "alone").0, "unclaimed");
}

/// An ordinary user may mount nothing: then they are said to be not seen.
fn not_seen_without_a_mount() {
    empty_dev_mqueue();
    leave_queue("q", 0);
    let list = |more: &[&str]| {
        let mut list = rtrack(["list", "--json", "--assume-complete"]);
        list.args(more).as_user(somebody()).finish()
    };
    let run = list(&[]).expect(0);
    let document = run.json();
    assert_eq!(document["objects"], json!([]), "{document:#}");
    let reasons = document["sight"]["reasons"].as_array().unwrap();
    assert!(reasons.contains(&json!("message-queues")), "{document:#}");
    assert!(run.stderr.contains("message queues are not mounted at /dev/mqueue"), "{run:?}");
    list(&["--strict"]).expect(3);
}

fn mounted_as_usual() {
    let usual = empty_dev_mqueue();
    mount("mqueue", usual.to_str().unwrap(), "mqueue", 0, "").unwrap();
    leave_queue("q", 0);
    let document = list();
    // One file system counts once.
    assert_eq!(document["objects"].as_array().unwrap().len(), 1, "{document:#}");
    let show = rtrack(["show", "--assume-complete", "q"]).finish().expect(0).text();
    assert!(show.contains("/dev/mqueue/q"), "{show}");
}

/// After `unshare -i` /dev/mqueue is still that of the namespace outside: both are there.
fn of_another_namespace_at_the_usual_place() {
    let usual = empty_dev_mqueue().to_str().unwrap();
    mount("mqueue", usual, "mqueue", 0, "").unwrap();
    leave_queue("outside", 0);
    // SAFETY: this process has a single thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWIPC) }).unwrap();
    let inside = make_queue("inside");
    drop(inside);
    let document = list();
    let ids = ["inside", "outside"].map(|name| listed(&document, name)["dev"].clone());
    assert_ne!(ids[0], ids[1], "{document:#}");
}

/// What never answers is not asked, and what is no mount of queues is none.
fn something_else_at_the_usual_place() {
    let usual = empty_dev_mqueue();
    leave_queue("q", 0);
    mount("tmpfs", usual.to_str().unwrap(), "tmpfs", 0, "").unwrap();
    File::create(usual.join("no-queue")).unwrap();
    assert_eq!(list()["objects"].as_array().unwrap().len(), 1);
    let _server = fuse::never_answers(usual);
    assert_eq!(list()["objects"].as_array().unwrap().len(), 1);
    if is_real_root() {
        let mut list = rtrack(["list", "--json"]);
        let document = list.as_user(somebody()).finish().expect(0).json();
        assert_eq!(document["objects"], json!([]), "{document:#}");
    }
}

/// Something else lies over a queue, for those who look at the mount.
fn a_mount_over_one() {
    let usual = empty_dev_mqueue();
    mount("mqueue", usual.to_str().unwrap(), "mqueue", 0, "").unwrap();
    leave_queue("q", 0);
    give_queue("q", somebody(), 0o600);
    let hidden = Path::new("hidden");
    fs::write(hidden, "x").unwrap();
    let over = usual.join("q");
    mount(hidden.to_str().unwrap(), over.to_str().unwrap(), "", libc::MS_BIND, "").unwrap();
    // Root has a mount of its own, in which nothing lies over it.
    judged("q", "held", "mounted");
    assert!(queue_inode("q").is_some() && names().is_empty());
    let mut list = rtrack(["list", "--json", "--grace", "0s"]);
    let document = list.as_user(somebody()).finish().expect(0).json();
    assert_eq!(listed(&document, "q")["kind"], "other", "{document:#}");
}
