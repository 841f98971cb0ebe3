//! What bad input gets: a clear error, and nothing deleted that should not be.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

use crate::support::{
    Case, Finish, Finished, Need, case, check, evidence, fuse, hold, identity, inventory, leave,
    listed, mount, names, object, path, reap_all, rtrack, run_directory, scratch, skip, somebody,
    verdict, wait_for,
};
use crate::traps::{program_called, runs};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("names_that_a_terminal_obeys", names_that_a_terminal_obeys),
        case("names_in_json", names_in_json),
        case("symlink", symlink_is_not_followed),
        case("fifo_with_a_blocked_writer", fifo_with_a_blocked_writer),
        case("socket", socket),
        case("device", device).needs(&[Need::RealRoot]),
        case("file_and_symlink_take_turns", file_and_symlink_take_turns),
        case("objects_come_and_go", objects_come_and_go),
        case("names_that_change_without_end", names_that_change_without_end),
        case("directory_is_left", directory_is_left),
        case("no_permission", no_permission).needs(&[Need::RealRoot]),
        case("read_only_mount", read_only_mount),
        case("no_free_inodes", no_free_inodes),
        case("full_mount", full_mount),
        case("no_shared_memory_at_all", no_shared_memory_at_all),
        case("removed_while_mounted", removed_while_mounted),
        case("little_address_space", little_address_space),
        case("not_a_tmpfs", not_a_tmpfs),
        case("empty_proc", empty_proc),
        case("hidden_processes", hidden_processes).needs(&[Need::RealRoot]),
        case("pid_namespace", pid_namespace).needs(&[Need::PidNamespace]),
        case("process_that_cannot_be_read", process_that_cannot_be_read)
            .needs(&[Need::Fuse, Need::PidNamespace]),
        case("many_processes_that_cannot_be_read", many_processes_that_cannot_be_read)
            .needs(&[Need::Fuse, Need::PidNamespace]),
        case("locks_that_cannot_be_read", locks_that_cannot_be_read).needs(&[Need::PidNamespace]),
        case("closed_and_full_stdout", closed_and_full_stdout),
        case("reader_that_leaves", reader_that_leaves),
        case("reap_that_nobody_listens_to", reap_that_nobody_listens_to),
        case("closed_stderr", closed_stderr),
        case("nobody_to_ask", nobody_to_ask),
        case("wrong_command_lines", wrong_command_lines),
        case("names_that_are_missing", names_that_are_missing),
    ]
}

/// An object that `reap` may remove whenever nobody holds it.
const ORPHAN: &str = "mpich_shar_tmpAbC123";
/// An object whose proof needs sight of every process.
const NEEDS_SIGHT: &str = "psm_0a1b2c3d";

fn reap() -> Finished {
    rtrack(["reap", "--yes", "--json", "--grace", "0s"]).finish()
}

/// The program failed with `code` in a message of a line, perhaps with a hint, that names `what`.
#[track_caller]
fn complains(finished: Finished, code: i32, what: &str) {
    let finished = finished.expect(code);
    let lines: Vec<&str> = finished.stderr.lines().collect();
    let errors = lines.iter().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{finished:?}");
    assert!(finished.stderr.contains(what), "{what} is not in {finished:?}");
    assert!(!finished.stderr.contains("panicked"), "{finished:?}");
}

fn names_that_a_terminal_obeys() {
    let hostile: [&[u8]; 7] = [
        b"new\nline",
        b"\x1b[31mred\x1b]0;title\x07",
        "bidi\u{202e}txt.exe".as_bytes(),
        b"not\xff\xfeutf-8",
        b"-rf",
        b" leading and trailing ",
        "\u{9b}31mc1".as_bytes(),
    ];
    for name in hostile {
        object().make(OsStr::from_bytes(name));
    }
    object().make(OsStr::from_bytes(b"sem.\x1b[2J"));

    for arguments in [&["list"][..], &["list", "--color", "always"], &["reap", "--dry-run"]] {
        let shown = rtrack(arguments).args(["--grace", "0s"]).finish().expect(0);
        let all = [&shown.stdout[..], shown.stderr.as_bytes()].concat();
        let text = String::from_utf8(all).unwrap();
        let obeyed = ["\x1b[31mred", "\x1b]", "\x07", "\u{202e}", "\u{9b}", "\x1b[2J", "new\nline"];
        for sequence in obeyed {
            assert!(!text.contains(sequence), "{arguments:?} shows {sequence:?}");
        }
    }
    let table = rtrack(["list", "--no-headings", "--grace", "0s"]).finish().expect(0).text();
    assert_eq!(table.lines().count(), hostile.len() + 1, "{table}");

    let document = inventory();
    let objects = document["objects"].as_array().unwrap();
    assert_eq!(objects.len(), hostile.len() + 1);
    listed(&document, "new\nline");
    let exact: Vec<_> = objects.iter().filter_map(|o| o.get("name_base64")).collect();
    assert_eq!(exact, ["bm90//51dGYtOA=="]);

    // They are unclaimed, and removable like any other.
    let report = reap_all().finish().expect(0).json();
    assert_eq!(report["totals"]["by_outcome"]["reaped"]["objects"], 8, "{report:#}");
    assert!(names().is_empty(), "{:?}", names());
}

/// JSON on a terminal is obeyed as any text is: what of a name a terminal would obey, or not show,
/// is escaped in it, and is the same name for a program.
fn names_in_json() {
    let hostile: Vec<String> = ["\x7f", "\u{85}", "\u{9b}31m", "\u{9d}0;title\u{9c}", "\u{ad}"]
        .into_iter()
        .chain(["\u{202e}txt", "\u{2066}\u{2069}", "\u{200b}", "\u{2028}", "\u{feff}", "\u{e0041}"])
        .map(|part| format!("größe{part}x"))
        .collect();
    let leftover = ".rtrack.0123456789abcdef";
    let left: Vec<String> = hostile.iter().map(|name| format!("{name}-left")).collect();
    for name in hostile.iter().chain(&left) {
        object().make(name);
    }
    leave(leftover, 0o700, &left.iter().map(String::as_str).collect::<Vec<_>>());
    let is_obeyed = |c: char| {
        let hidden = ['\u{ad}', '\u{200b}', '\u{2028}', '\u{202e}', '\u{2066}', '\u{2069}'];
        c.is_control() && c != '\n' || hidden.contains(&c) || "\u{feff}\u{e0041}".contains(c)
    };
    let both = ["--grace", "0s", "--verdict", "orphaned,unclaimed"];
    let all = [
        &["list", "--json"][..],
        &["list", "--ndjson"],
        &["show", "--json", "*"],
        &["reap", "--json", "-n"],
        &["reap", "--json", "--yes"],
    ];
    for arguments in all {
        let run = rtrack(arguments).args(both).finish().expect(0);
        let text = String::from_utf8(run.stdout.clone()).unwrap();
        if let Some(obeyed) = text.chars().find(|c| is_obeyed(*c)) {
            panic!("{arguments:?} writes {obeyed:?}: {text}");
        }
        assert!(text.contains("größe"), "{arguments:?} escapes what is harmless: {text}");
        let documents: Vec<Value> = match arguments.contains(&"--ndjson") {
            true => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
            false => run.json()["objects"].as_array().unwrap().clone(),
        };
        for name in &hostile {
            assert!(documents.iter().any(|object| object["name"] == **name), "{name:?}: {text}");
        }
        if arguments[0] == "reap" {
            let document = run.json();
            let settled = &document["settled"][0];
            let left = settled["left"].as_array().unwrap().iter().map(|left| &left["name"]);
            let mut told = left.chain(settled["finished"].as_array().unwrap());
            let name = format!("{}-left", hostile[2]);
            assert!(told.any(|told| *told == name), "{document:#}");
        }
    }
    assert!(names().is_empty(), "{:?}", names());
}

/// `name` is listed as some `other` that cannot be probed, and nothing asked of `reap` takes it.
#[track_caller]
fn other_stays(name: &str, file_type: &str) {
    let before = identity(name);
    let document = inventory();
    let object = listed(&document, name);
    assert_eq!(object["kind"], "other");
    assert_eq!(object["file_type"], file_type);
    assert_eq!(object["verdict"], "unknown");
    reap_all().finish().expect(0);
    assert_eq!(identity(name), before);
}

fn symlink_is_not_followed() {
    let target = scratch().join("precious");
    fs::write(&target, "precious").unwrap();
    symlink(&target, path(ORPHAN)).unwrap();
    symlink("/nonexistent", path("psm_ffffffff")).unwrap();
    other_stays(ORPHAN, "symlink");
    other_stays("psm_ffffffff", "symlink");
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}

fn make_node(name: &str, mode: libc::mode_t, device: libc::dev_t) {
    let path = CString::new(path(name).as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is NUL-terminated and outlives the call.
    check(unsafe { libc::mknod(path.as_ptr(), mode, device) }).unwrap();
}

/// Whoever opens the FIFO to read and closes it kills the writer, which waits in `open`.
fn fifo_with_a_blocked_writer() {
    make_node(ORPHAN, libc::S_IFIFO | 0o600, 0);
    let mut writer = Command::new("/bin/sh")
        .args(["-c", "echo 'from the writer' > \"$0\"; echo done"])
        .arg(path(ORPHAN))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Waiting in openat(2), which only a reader ends.
    let system_call = format!("/proc/{}/syscall", writer.id());
    wait_for("the writer to block", || {
        let call = fs::read_to_string(&system_call).unwrap();
        call.starts_with(&format!("{} ", libc::SYS_openat)).then_some(())
    });
    other_stays(ORPHAN, "fifo");
    rtrack(["reap", "--yes", "--grace", "0s", "--force", ORPHAN]).finish();
    assert!(writer.try_wait().unwrap().is_none(), "the writer was woken");
    if identity(ORPHAN).is_some() {
        assert_eq!(fs::read_to_string(path(ORPHAN)).unwrap(), "from the writer\n");
        let mut said = String::new();
        writer.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "done\n");
    }
    writer.kill().unwrap_or(());
    writer.wait().unwrap();
}

fn socket() {
    let _listener = UnixListener::bind(path(ORPHAN)).unwrap();
    other_stays(ORPHAN, "socket");
}

fn device() {
    make_node(ORPHAN, libc::S_IFCHR | 0o600, libc::makedev(1, 3));
    make_node("mpich_shar_tmpDeF456", libc::S_IFBLK | 0o600, libc::makedev(7, 0));
    other_stays(ORPHAN, "device");
    other_stays("mpich_shar_tmpDeF456", "device");
}

/// Runs `body` while another thread repeats `disturb`.
fn meanwhile(disturb: impl Fn() + Sync, body: impl FnOnce()) {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                disturb();
            }
        });
        let _stop = Stop(&stop);
        body();
    });
}

/// The name is an orphan, then a symlink to something precious, and so on.
fn file_and_symlink_take_turns() {
    let target = scratch().join("precious");
    fs::write(&target, "precious").unwrap();
    let before = identity(&target);
    let disturb = || {
        fs::write(path("next"), "an orphan").unwrap();
        fs::rename(path("next"), path(ORPHAN)).unwrap();
        symlink(&target, path("next")).unwrap();
        fs::rename(path("next"), path(ORPHAN)).unwrap();
    };
    meanwhile(disturb, || {
        for _ in 0..30 {
            rtrack(["list", "--grace", "0s"]).finish().expect(0);
            // The disturber's own `next` must survive for its next rename: only orphans.
            let run = reap();
            assert!(matches!(run.code, Some(0 | 1)), "{run:?}");
            let report = run.json();
            for object in report["objects"].as_array().unwrap() {
                assert_ne!(object["outcome"], "failed", "{object:#}");
            }
        }
    });
    assert_eq!(identity(&target), before);
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}

fn objects_come_and_go() {
    let disturb = || {
        for number in 0..50 {
            fs::write(path(format!("mpich_shar_tmpXXXX{number:02}")), "").unwrap();
        }
        for number in 0..50 {
            fs::remove_file(path(format!("mpich_shar_tmpXXXX{number:02}"))).unwrap_or(());
        }
    };
    meanwhile(disturb, || {
        for _ in 0..30 {
            inventory();
            let run = reap();
            assert!(matches!(run.code, Some(0 | 1)), "{run:?}");
            for object in run.json()["objects"].as_array().unwrap() {
                assert_ne!(object["outcome"], "failed", "{object:#}");
            }
        }
    });
    reap();
    assert!(names().is_empty(), "{:?}", names());
}

/// Whoever renames what lies there, which puts it at the end of the directory once more, keeps nobody at it.
fn names_that_change_without_end() {
    const DIRECTORIES: usize = 300;
    let name = |place: &str, number: usize| format!("{place}{number:03}-{}", "x".repeat(200));
    for number in 0..DIRECTORIES {
        fs::create_dir(path(name("a", number))).unwrap();
        for inside in 0..200 {
            File::create(path(name("a", number)).join(inside.to_string())).unwrap();
        }
    }
    let disturb = || {
        for (from, to) in [("a", "b"), ("b", "a")] {
            for number in 0..DIRECTORIES {
                fs::rename(path(name(from, number)), path(name(to, number))).unwrap();
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    meanwhile(disturb, || {
        for _ in 0..5 {
            let list = rtrack(["list", "-0", "--grace", "0s"]).finish().expect(0);
            let mut ids: Vec<&[u8]> = list.stdout.split_inclusive(|byte| *byte == 0).collect();
            let all = ids.len();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), all);
        }
    });
}

/// A plain `reap` takes files only; what a directory holds is counted.
fn directory_is_left() {
    fs::create_dir_all(path("parked/below")).unwrap();
    object().size(10_000).make("parked/below/one");
    object().size(20_000).make("parked/two");
    symlink("/", path("parked/root")).unwrap();
    let document = inventory();
    let object = listed(&document, "parked");
    assert_eq!(object["kind"], "dir");
    assert_eq!(object["entries"], 4, "{object:#}");
    assert!(object["size"].as_u64().unwrap() >= 30_000, "{object:#}");
    assert_ne!(object["verdict"], "orphaned");
    reap().expect(0);
    assert!(identity("parked/below/one").is_some() && identity("parked/two").is_some());
}

fn no_permission() {
    object().make(ORPHAN);
    object().mode(0o666).make("mpich_shar_tmpDeF456");
    object().owner(somebody()).make("mpich_shar_tmpGhI789");
    let mut list = rtrack(["list", "--json", "--grace", "0s"]);
    let document = list.as_user(somebody()).finish().expect(0).json();
    for name in [ORPHAN, "mpich_shar_tmpDeF456"] {
        assert_eq!(verdict(&document, name), ("unknown", "no-permission"), "{document:#}");
    }
    assert_eq!(verdict(&document, "mpich_shar_tmpGhI789"), ("orphaned", "always-held-producer"));
    reap_all().as_user(somebody()).finish().expect(0);
    assert_eq!(names().len(), 2);
    // Told to: it tries, and says what the kernel said.
    let mut force = rtrack(["reap", "--yes", "--grace", "0s", "--force", ORPHAN]);
    let run = force.as_user(somebody()).finish();
    assert!(matches!(run.code, Some(1 | 3)), "{run:?}");
    assert_eq!(names().len(), 2);
}

fn read_only_mount() {
    object().make(ORPHAN);
    mount("none", "/dev/shm", "", libc::MS_REMOUNT | libc::MS_RDONLY, "").unwrap();
    assert_eq!(verdict(&inventory(), ORPHAN).0, "orphaned");
    let run = reap().expect(3);
    let report = run.json();
    let object = listed(&report, ORPHAN);
    assert_eq!((&object["outcome"], &object["errno"]), (&"failed".into(), &libc::EROFS.into()));
    assert!(run.stderr.contains("Read-only file system"), "{run:?}");
    assert!(identity(ORPHAN).is_some());
}

/// Another tmpfs on /dev/shm, with `options`.
fn remount(options: &str) {
    mount("tmpfs", "/dev/shm", "tmpfs", 0, options).unwrap();
}

/// Any user can use up the inodes; then no directory can be made to move an object to.
fn no_free_inodes() {
    remount("mode=1777,size=16M,nr_inodes=20");
    object().make(ORPHAN);
    object().make("mpich_shar_tmpDeF456");
    object().make("precious");
    let full = (0..100).find(|number| File::create_new(path(format!("fill-{number}"))).is_err());
    assert!(full.is_some());
    let before = names().len();
    assert_eq!(verdict(&inventory(), ORPHAN).0, "orphaned");
    let report = reap().expect(0).json();
    assert_eq!(report["totals"]["by_outcome"]["reaped"]["objects"], 2, "{report:#}");
    assert_eq!(names().len(), before - 2);
    assert!(identity("precious").is_some());
}

fn full_mount() {
    remount("mode=1777,size=64k");
    object().make(ORPHAN);
    let fill = fs::write(path("fill"), vec![1; 1 << 20]);
    assert_eq!(fill.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(verdict(&inventory(), ORPHAN).0, "orphaned");
    reap().expect(0);
    assert!(identity(ORPHAN).is_none() && identity("fill").is_some());
}

/// A /dev without shm.
fn no_shared_memory_at_all() {
    let dev = scratch().join("dev");
    fs::create_dir(&dev).unwrap();
    for name in ["null", "full", "zero"] {
        fs::write(dev.join(name), "").unwrap();
        let (from, to) = (format!("/dev/{name}"), dev.join(name));
        mount(&from, to.to_str().unwrap(), "", libc::MS_BIND, "").unwrap();
    }
    mount(dev.to_str().unwrap(), "/dev", "", libc::MS_BIND | libc::MS_REC, "").unwrap();
    complains(rtrack(["list"]).finish(), 3, "/dev/shm");
    complains(reap_all().finish(), 3, "/dev/shm");
}

/// A directory that was removed is empty.
fn removed_while_mounted() {
    let other = scratch().join("other");
    let below = other.join("below");
    fs::create_dir(&other).unwrap();
    mount("tmpfs", other.to_str().unwrap(), "tmpfs", 0, "").unwrap();
    fs::create_dir(&below).unwrap();
    mount(below.to_str().unwrap(), "/dev/shm", "", libc::MS_BIND, "").unwrap();
    fs::remove_dir(&below).unwrap();
    assert_eq!(inventory()["objects"].as_array().map(Vec::len), Some(0));
}

/// A limit that leaves room for one heap is no reason to end.
fn little_address_space() {
    for number in 0..300 {
        object().make(format!("little-{number}"));
    }
    // In KiB: that of the program, and some.
    for room in [40_000, 60_000, 80_000, 100_000, 200_000] {
        let script = format!("ulimit -v {room} && exec \"$0\" \"$@\"");
        let list = shell(&script, &["list", "-o", "id,verdict", "--grace", "0s", "--no-headings"]);
        assert_eq!(list.expect(0).text().lines().count(), 300, "{room}");
    }
}

fn not_a_tmpfs() {
    let plain = run_directory().join(format!("plain-{}", std::process::id()));
    fs::create_dir(&plain).unwrap();
    mount(plain.to_str().unwrap(), "/dev/shm", "", libc::MS_BIND, "").unwrap();
    let mut statfs = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    let shm = File::open("/dev/shm").unwrap();
    // SAFETY: the kernel writes one statfs, which is integers only.
    let statfs = unsafe {
        check(libc::fstatfs(shm.as_raw_fd(), statfs.as_mut_ptr())).unwrap();
        statfs.assume_init()
    };
    if statfs.f_type == libc::TMPFS_MAGIC {
        skip("the temporary directory is a tmpfs");
    }
    object().make(ORPHAN);
    complains(rtrack(["list"]).finish(), 3, "/dev/shm");
    complains(reap_all().finish(), 3, "/dev/shm");
    assert!(identity(ORPHAN).is_some());
}

/// Nothing can be seen, so nothing that needs sight is proven.
fn empty_proc() {
    object().make(NEEDS_SIGHT);
    object().make("unheard_of");
    mount("tmpfs", "/proc", "tmpfs", 0, "mode=755").unwrap();
    let run = rtrack(["list", "--json", "--grace", "0s"]).finish();
    match run.code {
        Some(0) => {
            let document = run.json();
            assert_eq!(document["sight"]["processes"], "partial");
            for name in [NEEDS_SIGHT, "unheard_of"] {
                assert_ne!(verdict(&document, name).0, "orphaned", "{document:#}");
            }
        }
        _ => complains(run, 3, "/proc"),
    }
    reap();
    assert_eq!(names().len(), 2);
}

/// What partial sight means for an object that nobody holds and whose proof needs sight.
#[track_caller]
fn sight_is_partial(list: impl Fn(&[&str]) -> Finished, reason: &str) {
    let run = list(&["--json", "--grace", "0s"]).expect(0);
    assert!(!run.stderr.is_empty(), "what was not seen is always said");
    let document = run.json();
    assert_eq!(document["sight"]["processes"], "partial", "{document:#}");
    let reasons = document["sight"]["reasons"].as_array().unwrap();
    assert!(reasons.iter().any(|given| given == reason), "{reasons:?}");
    assert_eq!(verdict(&document, NEEDS_SIGHT).0, "unclaimed", "{document:#}");
    assert!(evidence(&document, NEEDS_SIGHT).contains(&"partial-process-sight"), "{document:#}");
    // The kernel's word needs no sight of processes.
    assert_eq!(verdict(&document, ORPHAN), ("orphaned", "always-held-producer"));
    list(&["--strict", "--grace", "0s"]).expect(3);
    let quiet = list(&["-q", "--grace", "0s"]).expect(0);
    assert_eq!(quiet.stderr, "");
}

fn hidden_processes() {
    // Nobody whose processes another case starts: they would be evidence here.
    let user = somebody() + 1;
    object().owner(user).make(NEEDS_SIGHT);
    object().owner(user).make(ORPHAN);
    mount("proc", "/proc", "proc", 0, "hidepid=2").unwrap();
    let list = |more: &[&str]| rtrack(["list"]).args(more).as_user(user).finish();
    sight_is_partial(list, "hidepid");
    reap().expect(0);
    let mut reap = rtrack(["reap", "--yes", "--grace", "0s"]);
    reap.as_user(user).finish().expect(0);
}

fn pid_namespace() {
    object().make(NEEDS_SIGHT);
    object().make(ORPHAN);
    let list = |more: &[&str]| rtrack(["list"]).args(more).finish();
    sight_is_partial(list, "pid-namespace");
    reap().expect(0);
    assert_eq!(names().into_iter().collect::<Vec<_>>(), [NEEDS_SIGHT]);

    let document = list(&["--assume-complete", "--json", "--grace", "0s"]).expect(0).json();
    assert_eq!(verdict(&document, NEEDS_SIGHT), ("orphaned", "no-family"), "{document:#}");
    assert!(evidence(&document, NEEDS_SIGHT).contains(&"assumed-complete"));
    let reap = ["reap", "--yes", "--assume-complete", "--grace", "0s"];
    rtrack(reap).finish().expect(0);
    assert!(names().is_empty());
}

/// The process has a file over its own arguments, whose server never answers: whoever reads its
/// `cmdline` waits for ever.
fn process_that_cannot_be_read() {
    object().make(NEEDS_SIGHT);
    object().make(ORPHAN);
    let list = || {
        let mut list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
        list.finish().expect(0).json()
    };
    assert_eq!(verdict(&list(), NEEDS_SIGHT), ("orphaned", "no-family"));
    let _silent = fuse::process_without_cmdline();
    let document = list();
    assert_eq!(verdict(&document, ORPHAN), ("orphaned", "always-held-producer"));
    // It may be a Python: nobody can say that there is none.
    // It may be a tracker as well, one that will clean the object.
    assert_eq!(verdict(&document, NEEDS_SIGHT), ("claimed", "guardian-alive"), "{document:#}");
    reap().expect(0);
    assert!(identity(ORPHAN).is_none());
}

/// What the evidence `code` about `name` says, and the pid in it.
#[track_caller]
fn told(document: &Value, name: &str, code: &str) -> (String, Value) {
    let evidence = listed(document, name)["evidence"].as_array().unwrap();
    let piece = evidence.iter().find(|piece| piece["code"] == code);
    let piece = piece.unwrap_or_else(|| panic!("no {code} in {evidence:#?}"));
    (piece["says"].as_str().unwrap().to_owned(), piece["pid"].clone())
}

/// Whoever keeps many processes from saying what they are hides no guardian among them: it is
/// found, and without it each of them may be one.
fn many_processes_that_cannot_be_read() {
    const TORCH: &str = "torch_4194399_1653482963_7";
    object().make(TORCH);
    let list = || {
        let mut list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
        list.finish().expect(0).json()
    };
    let stays = |before| {
        let mut reap = reap_all();
        reap.arg("--assume-complete").finish().expect(0);
        assert_eq!(identity(TORCH), before);
    };
    let before = identity(TORCH);
    assert_eq!(verdict(&list(), TORCH), ("orphaned", "no-family"));
    let manager = program_called("torch_shm_manager", "sleep");
    for started_first in [true, false] {
        let start = || {
            let manager = Command::new(&manager).arg("1000").spawn().unwrap();
            runs(manager.id(), "torch_shm_manager");
            manager
        };
        let first = started_first.then(start);
        let silent = fuse::processes_without_cmdline(60);
        let mut known = first.unwrap_or_else(start);
        let document = list();
        assert_eq!(verdict(&document, TORCH), ("claimed", "guardian-alive"), "{document:#}");
        let (says, pid) = told(&document, TORCH, "guardian-alive");
        assert!(says.starts_with("PyTorch's torch_shm_manager is alive"), "{says}");
        assert_eq!(pid, known.id(), "{says}");
        stays(before);
        known.kill().unwrap();
        known.wait().unwrap();
        let document = list();
        assert_eq!(verdict(&document, TORCH), ("claimed", "guardian-alive"), "{document:#}");
        let (says, pid) = told(&document, TORCH, "guardian-alive");
        assert!(says.contains("does not say what it is"), "{says}");
        assert!(says.contains("PyTorch's torch_shm_manager"), "{says}");
        assert_ne!(pid, known.id(), "{says}");
        stays(before);
        drop(silent);
    }
    assert_eq!(verdict(&list(), TORCH), ("orphaned", "no-family"));
}

/// A producer's own lock beside its object claims it; where the locks cannot be read, or not in
/// time, it may have one.
fn locks_that_cannot_be_read() {
    const SEGMENT: &str = "fastdds_0f1e2d3c4b5a6978";
    let lock = format!("{SEGMENT}_el");
    object().make(SEGMENT);
    object().size(0).make(&lock);
    let judged = |wanted, reason| {
        let mut list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
        let document = list.finish().expect(0).json();
        assert_eq!(verdict(&document, SEGMENT), (wanted, reason), "{document:#}");
        document
    };
    let owner = hold("file-lock", path(&lock));
    let document = judged("claimed", "locked");
    let (says, _) = told(&document, SEGMENT, "locked");
    assert_eq!(says, format!("process {} has a lock on {lock}", owner.pid));
    reap_all().arg("--assume-complete").finish().expect(0);
    assert!(identity(SEGMENT).is_some());
    drop(owner);
    judged("orphaned", "always-held-producer");

    // Whoever opens the first waits; the second cannot be opened.
    let silent = scratch().join("silent-locks");
    nix::unistd::mkfifo(&silent, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let unreadable = scratch().join("unreadable-locks");
    let _listener = UnixListener::bind(&unreadable).unwrap();
    for cover in [&silent, &unreadable] {
        mount(cover.to_str().unwrap(), "/proc/locks", "", libc::MS_BIND, "").unwrap();
        let document = judged("claimed", "locked");
        let (says, _) = told(&document, SEGMENT, "locked");
        assert!(says.starts_with(&format!("{lock} may be locked")), "{says}");
        // By name, so that the lock file, which nobody has open, stays.
        let report = reap_all().args(["--assume-complete", SEGMENT]).finish().expect(1).json();
        assert_eq!(listed(&report, SEGMENT)["outcome"], "refused", "{report:#}");
        assert!(identity(SEGMENT).is_some());
        // Without a lock file there is nothing that could be locked.
        fs::remove_file(path(&lock)).unwrap();
        judged("orphaned", "always-held-producer");
        object().size(0).make(&lock);
        nix::mount::umount("/proc/locks").unwrap();
    }
    judged("orphaned", "always-held-producer");
    reap_all().arg("--assume-complete").finish().expect(0);
    assert!(names().is_empty(), "{:?}", names());
}

fn shell(script: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg(rtrack([""; 0]).get_program()).args(arguments).finish()
}

fn closed_and_full_stdout() {
    object().make(ORPHAN);
    for arguments in [
        &["list"][..],
        &["list", "--json"],
        &["list", "--ndjson"],
        &["reap", "-n"],
        &["reap", "--yes"],
        &["reap", "--yes", "--json"],
    ] {
        let arguments = [arguments, &["--grace", "0s"]].concat();
        complains(shell("exec \"$0\" \"$@\" >&-", &arguments), 3, "stdout");
        complains(shell("exec \"$0\" \"$@\" > /dev/full", &arguments), 3, "stdout");
    }
    assert!(identity(ORPHAN).is_some());
}

/// A reader that has seen enough is no error.
fn reader_that_leaves() {
    for number in 0..3000 {
        object().size(0).make(format!("psm_{number:08x}"));
    }
    let script = "{ \"$0\" \"$@\"; echo $? >&2; } | head -n 1 > /dev/null";
    for arguments in [&["list", "-q"][..], &["list", "-q", "--json"], &["list", "-q", "--ndjson"]] {
        assert_eq!(shell(script, arguments).expect(0).stderr, "0\n", "{arguments:?}");
    }
}

/// Whose report nobody reads, from the start on, removes nothing.
fn reap_that_nobody_listens_to() {
    object().make(ORPHAN);
    for arguments in [&["reap", "-q", "--yes"][..], &["reap", "-q", "--yes", "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut reap = rtrack([arguments, &["--grace", "0s"]].concat());
        let run = reap.stdout(writer).output().unwrap();
        assert_eq!(run.status.code(), Some(3), "{run:?}");
        assert!(String::from_utf8_lossy(&run.stderr).contains("Broken pipe"), "{run:?}");
    }
    assert!(identity(ORPHAN).is_some());
}

fn closed_stderr() {
    object().make(ORPHAN);
    let script = "exec \"$0\" \"$@\" 2>&-";
    shell(script, &["list", "--grace", "0s"]).expect(0);
    shell(script, &["reap", "--yes", "--grace", "0s"]).expect(0);
    assert!(names().is_empty());
}

/// Without a terminal and without `--yes`.
fn nobody_to_ask() {
    object().make(ORPHAN);
    let run = rtrack(["reap", "--grace", "0s"]).finish();
    assert!(run.stderr.contains("--yes"), "{run:?}");
    complains(run, 2, "--yes");
    assert!(identity(ORPHAN).is_some());
}

fn wrong_command_lines() {
    object().make(ORPHAN);
    for arguments in [
        &["reap", "--yes", "--verdict", "held"][..],
        &["reap", "--yes", "--verdict", "orphaned,claimed"],
        &["reap", "--yes", "--verdict", "unknown"],
        &["reap", "--yes", "--grace", "soon"],
        &["reap", "--yes", "--nonsense"],
        &["list", "--verdict", "dead"],
        &["list", "--json", "--ndjson"],
        &["lst"],
        &[],
    ] {
        let run = rtrack(arguments).finish().expect(2);
        assert!(!run.stderr.is_empty(), "{run:?}");
    }
    assert!(identity(ORPHAN).is_some());
}

fn names_that_are_missing() {
    object().make(NEEDS_SIGHT);
    let run = rtrack(["list", "psm_0a1b2c3e"]).finish();
    assert!(run.stderr.contains(NEEDS_SIGHT), "the nearest name is a hint: {run:?}");
    complains(run, 1, "psm_0a1b2c3e");
    complains(rtrack(["reap", "--yes", "shm:nothing"]).finish(), 1, "nothing");
    complains(rtrack(["reap", "--yes", "../etc/passwd"]).finish(), 1, "passwd");
    rtrack(["list", "nothing*"]).finish().expect(0);
    for name in [NEEDS_SIGHT, "/psm_0a1b2c3d", "/dev/shm/psm_0a1b2c3d", "shm:psm_0a1b2c3d"] {
        let document = rtrack(["list", "--json", name]).finish().expect(0).json();
        assert_eq!(document["objects"].as_array().map(Vec::len), Some(1), "{name}");
    }
    assert!(identity(NEEDS_SIGHT).is_some());
}
