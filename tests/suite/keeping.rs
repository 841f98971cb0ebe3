//! `rtrack daemon --keep-used` and `--report`: what somebody uses stays, and what was left is told.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, pipe};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::listening::{self, Client};
use crate::support::{
    Call, Case, Holder, Inherit, Need, case, fuse, hold, hold_as, identity, inside, kill,
    leave_queue, make_queue, names, object, path, queue_names, rtrack, scratch, sem_open, somebody,
    start, stopped_before_each, sysv, validate, wait_for,
};

pub(crate) fn tests() -> Vec<Case> {
    const ALONE: &[Need] = &[Need::PidNamespace];
    const USERS: &[Need] = &[Need::PidNamespace, Need::RealRoot];
    vec![
        case("what_somebody_uses_stays", what_somebody_uses_stays).needs(ALONE),
        case("a_program_goes_on_working", a_program_goes_on_working).needs(ALONE),
        case("without_the_option_everything_goes", without_the_option).needs(ALONE),
        case("semaphores", semaphores).needs(ALONE),
        case("queues_and_system_v", queues_and_system_v).needs(ALONE),
        case("users_of_other_uids", users_of_other_uids).needs(USERS),
        case("files_wherever_they_lie", files).needs(ALONE),
        case("more_files_than_descriptors", more_files_than_descriptors).needs(ALONE),
        case("folders", folders).needs(ALONE),
        case("folders_that_not_everybody_can_be_seen_to_use", unseen_folders).needs(ALONE),
        case("given_up_by_the_last_user", given_up).needs(ALONE),
        case("where_no_lease_is_granted", without_leases).needs(USERS),
        case("opened_in_the_middle", opened_in_the_middle).needs(ALONE),
        case("what_is_refused_or_gone", refused_or_gone),
        case("report_of_nothing", report_of_nothing),
        case("report_to_a_file", report_to_a_file).needs(ALONE),
        case("report_to_stdout", report_to_stdout),
        case("report_that_cannot_be_written", report_that_cannot_be_written),
        case("report_that_never_answers", report_that_never_answers).needs(&[Need::Fuse]),
        case("each_owner_has_a_line", each_owner_has_a_line).needs(ALONE),
        case("owners_of_other_users", owners_of_other_users).needs(USERS),
        case("many_owners_at_the_end", many_owners_at_the_end).needs(ALONE),
    ]
}

/// A daemon that is told `lines` and ends; its status, what it said, and what it reported.
#[track_caller]
fn run(options: &[&str], lines: &str) -> (Option<i32>, String, Value) {
    let mut daemon = Daemon::start_with(|command| {
        command.args(options).args(["--report", "report", "--protocol", "any"]);
    });
    daemon.tell(lines);
    let (status, said) = daemon.end();
    let document = report();
    fs::remove_file("report").unwrap();
    (status.code(), said, document)
}

/// What was reported, by its schema.
#[track_caller]
fn report() -> Value {
    let document = serde_json::from_slice(&fs::read("report").unwrap()).unwrap();
    validate(&document);
    document
}

/// What was reported of `name`.
#[track_caller]
fn leak<'a>(document: &'a Value, name: &str) -> &'a Value {
    let leaks = document["leaks"].as_array().unwrap();
    leaks.iter().find(|leak| leak["name"] == name).unwrap_or_else(|| panic!("{document:#}"))
}

/// The report says that `holder` uses `name`, as does a warning.
#[track_caller]
fn named(document: &Value, said: &str, name: &str, holder: &Holder) {
    let leak = leak(document, name);
    let holders = leak["holders"].as_array().unwrap();
    assert!(holders.iter().any(|told| told["pid"] == holder.pid), "{leak:#}");
    assert!(said.contains(&format!("'{name}' stays: in use by ")), "{said}");
    assert!(said.contains(&format!("[{}]", holder.pid)), "{said}");
}

const KEEP: &[&str] = &["--keep-used", "--assume-complete"];

fn what_somebody_uses_stays() {
    for (kind, how) in [
        ("map-shared", Some("map")),
        ("map-private", Some("map")),
        ("map-no-access", Some("map")),
        ("fd-read", Some("fd")),
        ("own-pids:fd-write", Some("fd")),
        ("own-mounts:map-shared", Some("map")),
        ("thread-table", Some("fd")),
        // A lease does not tell of these.
        ("fd-o-path", Some("fd")),
        ("fd-without-access", Some("fd")),
        ("bind-mount", None),
        // Nobody has it.
        ("in-flight", None),
    ] {
        let before = object().make("psm_used");
        object().size(5000).make("psm_unused");
        let holder = hold(kind, path("psm_used"));
        let lines = "REGISTER:/psm_used:shared_memory\nREGISTER:/psm_unused:shared_memory\n";
        let (status, said, document) = run(KEEP, lines);
        assert_eq!(status, Some(1), "{kind}: {said}");
        assert_eq!(identity("psm_used"), Some(before), "{kind}: {said}");
        assert_eq!(names().len(), 1, "{kind}: {:?}", names());
        let used = leak(&document, "/psm_used");
        assert_eq!((&used["outcome"], &used["errno"]), (&json!("kept"), &Value::Null), "{used:#}");
        match how {
            Some(how) => {
                named(&document, &said, "/psm_used", &holder);
                assert!(used["holders"][0]["how"].as_array().unwrap().contains(&json!(how)));
            }
            None => assert!(said.contains("'/psm_used' stays: "), "{said}"),
        }
        let unused = leak(&document, "/psm_unused");
        assert_eq!((&unused["outcome"], &unused["size"]), (&json!("removed"), &json!(5000)));
        assert_eq!(unused["holders"], json!([]));
        assert!(unused["age_s"].as_u64().unwrap() < 60, "{unused:#}");
        drop(holder);
        // Nobody uses it any more.
        let (_, said, document) = run(KEEP, lines);
        assert_eq!(leak(&document, "/psm_used")["outcome"], "removed", "{kind}: {said}");
        assert!(names().is_empty(), "{kind}");
    }
}

/// Two programs share memory that one of them has registered: that one dies, the other one goes on, and a third one
/// comes by the name.
fn a_program_goes_on_working() {
    let before = object().make("psm_shared");
    let user = hold("map-shared", path("psm_shared"));
    let mut daemon = Daemon::start_with(|command| {
        command.args(KEEP);
    });
    daemon.told("REGISTER:/psm_shared:shared_memory\n");
    let (status, said) = daemon.end();
    assert_eq!(status.code(), Some(1), "{said}");
    let later = hold("map-shared", path("psm_shared"));
    assert_eq!(identity("psm_shared"), Some(before));
    assert!(said.contains("1 leaked shared_memory objects to clean up at shutdown"), "{said}");
    assert!(said.contains(&format!("[{}]", user.pid)), "{said}");
    // Of what stays there is a record, too.
    let mut daemon = Daemon::start_with(|command| {
        command.args(KEEP).args(["--audit", "audit"]);
    });
    daemon.tell("REGISTER:/psm_shared:shared_memory\n");
    daemon.end();
    let line: Value = serde_json::from_slice(&fs::read("audit").unwrap()).unwrap();
    validate(&line);
    assert_eq!(line["outcome"], "held", "{line:#}");
    drop((user, later));
}

fn without_the_option() {
    object().make("psm_used");
    fs::create_dir("folder").unwrap();
    fs::write("folder/file", "").unwrap();
    let holder = hold("map-shared", path("psm_used"));
    let inside = hold("working-directory", scratch().join("folder"));
    let (status, said, document) =
        run(&[], "REGISTER:/psm_used:shared_memory\nREGISTER:folder:folder\n");
    assert_eq!(status, Some(1), "{said}");
    assert!(names().is_empty() && !Path::new("folder").exists());
    assert!(!said.contains("stays"), "{said}");
    // Who loses it is told.
    let leak = leak(&document, "/psm_used");
    assert_eq!(
        (&leak["outcome"], &leak["holders"][0]["pid"]),
        (&json!("removed"), &json!(holder.pid))
    );
    assert_eq!(document["keep_used"], false);
    drop(inside);
}

fn semaphores() {
    drop((sem_open("/mp-used", 1), sem_open("/mp-unused", 1), sem_open("/loky-used", 0)));
    let holders =
        [hold("map-shared", path("sem.mp-used")), hold("map-shared", path("sem.loky-used"))];
    let (status, said, document) = run(
        KEEP,
        "REGISTER:/mp-used:semaphore\nREGISTER:/mp-unused:semaphore\nREGISTER:/loky-used:semlock\n",
    );
    assert_eq!(status, Some(1), "{said}");
    named(&document, &said, "/mp-used", &holders[0]);
    named(&document, &said, "/loky-used", &holders[1]);
    assert_eq!(leak(&document, "/mp-unused")["outcome"], "removed");
    let left: Vec<_> = names().into_iter().collect();
    assert_eq!(left, ["sem.loky-used", "sem.mp-used"]);
}

fn queues_and_system_v() {
    let held = make_queue("held");
    leave_queue("left", 1);
    let attached = sysv::segment(0, 4096, 0o600);
    let memory = sysv::attach(attached).unwrap();
    let segment = sysv::segment(0, 4096, 0o600);
    let set = sysv::semaphores(0, 1, 0o600);
    let lines = format!(
        "REGISTER:/held:message_queue\nREGISTER:/left:message_queue\nREGISTER:{attached}:sysv_shm\n\
         REGISTER:{segment}:sysv_shm\nREGISTER:{set}:sysv_sem\n"
    );
    let tell = |options: &[&str]| {
        let mut daemon = Daemon::start_with(|command| {
            command.args(options).args(["--protocol", "rtrack"]);
        });
        daemon.tell(&lines);
        daemon.end()
    };
    let (status, said) = tell(KEEP);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("'/held' stays: "), "{said}");
    assert!(
        said.contains(&format!("'{attached}' stays: the kernel says that it is attached 1 times"))
    );
    // Nobody can tell who uses those.
    assert!(said.contains(&format!("'{set}' stays: who uses it cannot be told")), "{said}");
    assert_eq!(queue_names().into_iter().collect::<Vec<_>>(), ["held"]);
    let there = |id: i32, table: &str| {
        let table = fs::read_to_string(format!("/proc/sysvipc/{table}")).unwrap();
        table.lines().any(|line| line.split_whitespace().nth(1) == Some(&id.to_string()))
    };
    assert!(there(attached, "shm") && !there(segment, "shm") && there(set, "sem"));
    sysv::detach(memory);
    drop(held);
    // Without the option everything goes that is still there; the semaphores are the last.
    assert_eq!(tell(&[]).0.code(), Some(1));
    assert!(queue_names().is_empty() && !there(attached, "shm") && !there(set, "sem"));
}

fn users_of_other_uids() {
    let before = object().mode(0o666).make("psm_used");
    let holder = hold_as(61001, "map-shared", path("psm_used"));
    let (status, said, document) = run(KEEP, "REGISTER:/psm_used:shared_memory\n");
    assert_eq!((status, identity("psm_used")), (Some(1), Some(before)), "{said}");
    named(&document, &said, "/psm_used", &holder);
    assert_eq!(leak(&document, "/psm_used")["holders"][0]["uid"], 61001);
    drop(holder);
    // A user's daemon cannot look into the processes of others: the lease tells all the same.
    object().mode(0o666).owner(somebody()).make("psm_own");
    let holder = hold_as(61002, "fd-read", path("psm_own"));
    let mine = || {
        let (reader, writer) = pipe().unwrap();
        let mut command = rtrack(["daemon", "--fd", "0", "--keep-used"]);
        command.arg("--no-warnings");
        let mut child = inside(&format!("user={}", somebody()), &command)
            .stdin(reader)
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut &writer, b"REGISTER:/psm_own:shared_memory\n").unwrap();
        drop(writer);
        child.wait().unwrap().code()
    };
    assert_eq!(mine(), Some(1));
    assert!(identity("psm_own").is_some());
    drop(holder);
    assert_eq!(mine(), Some(1));
    assert!(identity("psm_own").is_none());
}

fn files() {
    for place in [scratch(), "/dev/shm".into()] {
        let used = place.join("used.pkl");
        let make = || {
            fs::write(&used, "12345").unwrap();
            fs::write(place.join("unused.pkl"), "").unwrap();
            symlink(&used, place.join("link")).unwrap();
            nix::unistd::mkfifo(&place.join("fifo"), Mode::S_IRWXU).unwrap();
        };
        for kind in ["map-shared", "fd-o-path", "in-flight"] {
            make();
            let holder = hold(kind, &used);
            let lines = ["used.pkl", "unused.pkl", "link", "fifo"]
                .map(|name| format!("REGISTER:{}/{name}:file\n", place.display()))
                .concat();
            let (status, said, document) = run(KEEP, &lines);
            assert_eq!(status, Some(1), "{said}");
            let outcome = |name: &str| {
                let name = place.join(name);
                let leak = leak(&document, name.to_str().unwrap());
                assert_eq!(name.symlink_metadata().is_ok(), leak["outcome"] == "kept", "{leak:#}");
                leak["outcome"].clone()
            };
            assert_eq!(outcome("used.pkl"), "kept", "{kind}: {said}");
            assert_eq!(leak(&document, used.to_str().unwrap())["size"], 5);
            assert_eq!(outcome("unused.pkl"), "removed", "{kind}: {said}");
            // A link is nobody's; who waits at a FIFO has nothing of it.
            assert_eq!(outcome("link"), "removed");
            assert_eq!(outcome("fifo"), "kept");
            drop(holder);
            fs::remove_file(place.join("fifo")).unwrap();
            fs::remove_file(&used).unwrap();
        }
    }
}

fn more_files_than_descriptors() {
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_NOFILE, 100, 100).unwrap();
    let mut lines = String::new();
    for number in 0..300 {
        fs::write(format!("file-{number}"), "").unwrap();
        lines.push_str(&format!("REGISTER:file-{number}:file\n"));
    }
    let holder = hold("fd-read", scratch().join("file-250"));
    let (status, said, document) = run(KEEP, &lines);
    assert_eq!(status, Some(1), "{said}");
    named(&document, &said, "file-250", &holder);
    let left = (0..300).filter(|number| Path::new(&format!("file-{number}")).exists());
    assert_eq!(left.collect::<Vec<_>>(), [250]);
}

/// A folder with this in it, at `place`.
fn make_folder(place: &Path) {
    fs::create_dir_all(place.join("below")).unwrap();
    fs::write(place.join("inside"), vec![0; 4096]).unwrap();
    fs::write(place.join("below/deep"), vec![0; 4096]).unwrap();
}

fn folders() {
    for place in [scratch().join("folder"), path("folder")] {
        let lines = format!("REGISTER:{}:folder\n", place.display());
        for (kind, inside, shown) in [
            ("fd-read", "", true),
            ("fd-read", "inside", true),
            ("map-shared", "below/deep", true),
            ("fd-o-path", "below", true),
            ("working-directory", "", true),
            ("own-mounts:working-directory", "below", true),
            ("root-directory", "below", true),
            ("thread-working-directory", "below", true),
            ("in-flight", "below/deep", false),
            ("bind-mount", "inside", false),
            ("own-mounts:mount-point", "below", false),
            ("own-mounts:overlay-lower", "", false),
        ] {
            make_folder(&place);
            let holder = hold(kind, place.join(inside));
            let (status, said, document) = run(KEEP, &lines);
            assert_eq!(status, Some(1), "{kind}: {said}");
            assert!(place.join("below/deep").exists() && place.join("inside").exists(), "{kind}");
            let leak = leak(&document, place.to_str().unwrap());
            assert_eq!((&leak["outcome"], &leak["size"]), (&json!("kept"), &json!(8192)), "{kind}");
            if shown {
                named(&document, &said, place.to_str().unwrap(), &holder);
            }
            drop(holder);
        }
        let (status, said, document) = run(KEEP, &lines);
        assert_eq!(status, Some(1), "{said}");
        assert!(!place.exists(), "{said}");
        assert_eq!(leak(&document, place.to_str().unwrap())["outcome"], "removed");
        // As joblib does it: the files in it are registered, too, and go before.
        make_folder(&place);
        let inside =
            format!("REGISTER:{0}/inside:file\nREGISTER:{0}/below/deep:file\n", place.display());
        let (_, said, _) = run(KEEP, &[lines.clone(), inside].concat());
        assert!(!place.exists(), "{said}");
        // Who waits at a socket has nothing of it open.
        make_folder(&place);
        let listener = UnixListener::bind(place.join("below/socket")).unwrap();
        let (_, said, _) = run(KEEP, &lines);
        assert!(place.join("inside").exists() && said.contains("FIFO, socket or device"), "{said}");
        drop(listener);
        fs::remove_dir_all(&place).unwrap();
    }
}

fn unseen_folders() {
    let place = scratch().join("folder");
    make_folder(&place);
    // This is not the first PID namespace: somebody outside may use it.
    let lines = format!("REGISTER:{}:folder\nREGISTER:/psm_1:shared_memory\n", place.display());
    object().make("psm_1");
    let (status, said, document) = run(&["--keep-used"], &lines);
    assert_eq!(status, Some(1), "{said}");
    assert!(place.join("below/deep").exists());
    assert!(said.contains("who uses it cannot be told: processes outside"), "{said}");
    let kept = leak(&document, place.to_str().unwrap());
    assert_eq!((&kept["outcome"], &kept["holders"]), (&json!("kept"), &json!([])), "{kept:#}");
    // A lease tells of them as well.
    assert_eq!(leak(&document, "/psm_1")["outcome"], "removed");
}

fn given_up() {
    let (used, unused) = (scratch().join("used.pkl"), scratch().join("unused.pkl"));
    let folder = scratch().join("folder");
    fs::write(&used, "x").unwrap();
    fs::write(&unused, "x").unwrap();
    make_folder(&folder);
    drop((sem_open("/loky-1", 1), sem_open("/loky-2", 1)));
    let holders = [
        hold("map-shared", &used),
        hold("working-directory", folder.join("below")),
        hold("map-shared", path("sem.loky-1")),
    ];
    let give_up =
        |name: &str, rtype: &str| format!("REGISTER:{name}:{rtype}\nMAYBE_UNLINK:{name}:{rtype}\n");
    let [used_name, unused_name, folder_name] =
        [&used, &unused, &folder].map(|path| path.to_str().unwrap());
    let lines = [
        give_up(used_name, "file"),
        give_up(unused_name, "file"),
        give_up(folder_name, "folder"),
        give_up("/loky-1", "semlock"),
        give_up("/loky-2", "semlock"),
        give_up("/loky-gone", "semlock"),
    ];
    let (status, said, document) = run(KEEP, &lines.concat());
    assert_eq!(status, Some(0), "{said}");
    assert!(used.exists() && !unused.exists() && folder.join("below/deep").exists());
    assert!(identity("sem.loky-1").is_some() && identity("sem.loky-2").is_none());
    for (name, holder) in [used_name, folder_name, "/loky-1"].into_iter().zip(&holders) {
        named(&document, &said, name, holder);
        assert_eq!(leak(&document, name)["given_up"], true);
    }
    assert_eq!(document["leaks"].as_array().unwrap().len(), 3, "{document:#}");
    drop(holders);
    let (_, said, document) = run(KEEP, &lines.concat());
    assert!(!used.exists() && !folder.exists() && identity("sem.loky-1").is_none(), "{said}");
    assert_eq!(document["leaks"], json!([]));
}

/// The file is root's and the daemon is a user's, who may remove it and not lease it.
fn without_leases() {
    let shared = scratch().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions("/dev/shm", Permissions::from_mode(0o777)).unwrap();
    let file = shared.join("file");
    let run = |places: &str, options: &[&str]| {
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        if identity("psm_1").is_none() {
            object().mode(0o644).make("psm_1");
        }
        let (reader, writer) = pipe().unwrap();
        let mut command = rtrack(["daemon", "--fd", "0", "--protocol", "any", "--keep-used"]);
        command.args(options);
        let child = inside(&format!("{places}user={}", somebody()), &command)
            .stdin(reader)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = format!("REGISTER:{}:file\nREGISTER:/psm_1:shared_memory\n", file.display());
        std::io::Write::write_all(&mut &writer, lines.as_bytes()).unwrap();
        drop(writer);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for options in [&[][..], &["--assume-complete"]] {
        let said = run("", options);
        assert!(file.exists() && identity("psm_1").is_some(), "{said}");
        assert_eq!(said.matches("who uses it cannot be told: ").count(), 2, "{said}");
    }
    // Where it sees every process there is, that is enough.
    let said = run("own-pids:own-proc:", &["--assume-complete"]);
    assert!(!file.exists() && names().is_empty(), "{said} {:?}", names());
}

/// Whoever opens it while it is removed finds it back under its name, and it is told.
fn opened_in_the_middle() {
    for name in ["psm_1", "file"] {
        let place = if name == "psm_1" { path(name) } else { scratch().join(name) };
        let rtype = if name == "psm_1" { "shared_memory" } else { "file" };
        let told = if name == "psm_1" { "/psm_1" } else { place.to_str().unwrap() };
        fs::write(&place, "x").unwrap();
        fs::write("lines", format!("REGISTER:{told}:{rtype}\n")).unwrap();
        let mut command =
            rtrack(["daemon", "--fd", "5", "--protocol", "any", "--report", "report"]);
        command.args(KEEP).inherit(File::open("lines").unwrap(), 5).stderr(Stdio::null());
        let mut opener = None;
        // It is asked whether the lease is whole: the one of the removal, then.
        let asks = |call: &Call| {
            call.number == libc::SYS_fcntl && call.arguments[1] == libc::F_GETLEASE as u64
        };
        let opened = place.clone();
        stopped_before_each(&mut command, |call, _| {
            if asks(&call) && opener.is_none() {
                let place = opened.clone();
                // It waits for the lease to be given back.
                opener = Some(thread::spawn(move || File::open(place).unwrap()));
                thread::sleep(Duration::from_millis(50));
            }
        });
        let file = opener.expect("no lease was asked for").join().unwrap();
        assert!(place.exists(), "{name}");
        let document = report();
        let leak = leak(&document, told);
        assert_eq!(leak["outcome"], "kept", "{leak:#}");
        assert!(leak["says"].as_str().unwrap().contains("open"), "{leak:#}");
        drop(file);
        fs::remove_file("report").unwrap();
    }
}

fn refused_or_gone() {
    fs::create_dir(path("directory")).unwrap();
    for options in [&[][..], KEEP] {
        let (status, said, document) = run(
            options,
            "REGISTER:/gone:shared_memory\nREGISTER:/a/b:semaphore\nREGISTER:/directory:shared_memory\n\
             REGISTER:gone.pkl:file\nREGISTER:gone:folder\nREGISTER:x:dummy\n\
             {\"cmd\":\"REGISTER\",\"rtype\":\"shared_memory\",\"base64_name\":\"L/8=\"}\n",
        );
        assert_eq!(status, Some(2), "{said}");
        for (name, outcome, errno) in [
            ("/gone", "gone", json!(libc::ENOENT)),
            ("/directory", "failed", json!(libc::EISDIR)),
            ("gone.pkl", "gone", json!(libc::ENOENT)),
            ("gone", "gone", json!(libc::ENOENT)),
            ("x", "removed", Value::Null),
            ("/\u{fffd}", "failed", Value::Null),
        ] {
            let leak = leak(&document, name);
            assert_eq!((&leak["outcome"], &leak["errno"]), (&json!(outcome), &errno), "{leak:#}");
        }
        assert_eq!(leak(&document, "/\u{fffd}")["name_base64"], "L/8=");
        // In Python's words, with the option and without.
        for text in ["'/gone': [Errno 2] No such file or directory: '/gone'", "Is a directory"] {
            assert!(said.contains(text), "{said}");
        }
    }
}

fn report_of_nothing() {
    let (status, said, document) = run(KEEP, "PROBE:0:noop\n");
    assert_eq!((status, &*said), (Some(0), ""));
    assert_eq!((&document["leaks"], &document["owner"]), (&json!([]), &Value::Null));
    assert_eq!(document["keep_used"], true);
}

fn report_to_a_file() {
    object().make("a");
    object().make("b\x1b[31m");
    let holder = hold("map-shared", path("a"));
    run(&[], "REGISTER:/a:shared_memory\nREGISTER:/b\x1b[31m:shared_memory\n");
    let mut daemon = Daemon::start_with(|command| {
        command.args(["--report", "report"]);
    });
    daemon.told("REGISTER:/x:dummy\n");
    assert_eq!(fs::metadata("report").unwrap().permissions().mode() & 0o777, 0o600);
    daemon.end();
    // Appended, and the next one after it.
    let first = fs::read("report").unwrap();
    Daemon::start_with(|command| {
        command.args(["--report", "report"]);
    })
    .end();
    let both = fs::read("report").unwrap();
    assert!(both.starts_with(&first) && !first.contains(&0x1b));
    let documents = serde_json::Deserializer::from_slice(&both).into_iter::<Value>();
    let documents: Vec<Value> = documents.map(Result::unwrap).collect();
    documents.iter().for_each(validate);
    assert_eq!(documents.len(), 2);
    drop(holder);
}

fn report_to_stdout() {
    object().make("a");
    let (mut answer, stdout) = pipe().unwrap();
    let mut daemon = Daemon::start_with(|command| {
        command.args(["--report", "-"]).stdout(stdout);
    });
    daemon.told("REGISTER:/a:shared_memory\n");
    assert_eq!(daemon.end().0.code(), Some(1));
    let mut text = String::new();
    answer.read_to_string(&mut text).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    validate(&document);
    assert_eq!(leak(&document, "/a")["outcome"], "removed");
    // The same pipe cannot be both, and a FIFO that is open for both would never end.
    let mut command = rtrack(["daemon", "--fd", "1", "--report", "-"]);
    let run = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(run.status.code(), Some(64), "{run:?}");
    let fifo = scratch().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let both = || OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let file = both();
    std::io::Write::write_all(&mut &file, b"REGISTER:x:dummy\n").unwrap();
    let mut command = rtrack(["daemon", "--fd", "5", "--report", "-"]);
    command.inherit(both(), 5).stdout(file).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(command);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    // Nobody reads it.
    object().make("a");
    let (reader, stdout) = pipe().unwrap();
    drop(reader);
    let mut daemon = Daemon::start_with(|command| {
        command.args(["--report", "-"]).stdout(stdout);
    });
    daemon.tell("REGISTER:/a:shared_memory\n");
    let (status, said) = daemon.end();
    assert_eq!((status.code(), names().len()), (Some(1), 0));
    assert!(said.contains("report standard output: write: Broken pipe"), "{said}");
}

fn report_that_cannot_be_written() {
    let fifo = scratch().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let silent = scratch().join("silent");
    nix::unistd::mkfifo(&silent, Mode::S_IRWXU).unwrap();
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&silent);
    let reader = reader.unwrap();
    // It is full before anything is reported.
    let mut filler =
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&silent).unwrap();
    while std::io::Write::write(&mut filler, &[0; 4096]).is_ok() {}
    symlink("target", "link").unwrap();
    for (file, warning) in [
        ("/dev/full", "write: No space left on device (os error 28): not everything is reported"),
        ("fifo", "open: No such device or address (os error 6): nothing is reported"),
        ("silent", "not everything is reported"),
        ("missing/report", "open: No such file or directory"),
        ("link", "open: Too many levels of symbolic links"),
        (".", "open: Is a directory"),
    ] {
        object().make("psm_1");
        let mut daemon = Daemon::start_with(|command| {
            command.args(["--report", file]).args(KEEP);
        });
        daemon.told("REGISTER:/psm_1:shared_memory\n");
        let began = Instant::now();
        let (status, said) = daemon.end();
        assert!(began.elapsed() < Duration::from_secs(15), "{file}");
        assert_eq!((status.code(), names().len()), (Some(1), 0), "{file}: {said}");
        assert!(said.contains(&format!("UserWarning: report {file}: ")), "{said}");
        assert!(said.contains(warning), "{said}");
    }
    assert!(!Path::new("target").exists());
    drop(reader);
}

fn report_that_never_answers() {
    let silent = scratch().join("silent");
    let server = fuse::never_opens(&silent);
    object().make("psm_1");
    let mut daemon = Daemon::start_with(|command| {
        command.arg("--report").arg(&silent);
    });
    daemon.tell("REGISTER:/psm_1:shared_memory\n");
    let (status, said) = daemon.end();
    assert_eq!((status.code(), names().len()), (Some(1), 0), "{said}");
    assert!(said.contains("no answer in time: nothing is reported"), "{said}");
    drop(server);
}

/// The lines of a report, each by its schema.
#[track_caller]
fn lines() -> Vec<Value> {
    let text = fs::read_to_string("report").unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.inspect(validate).collect()
}

fn each_owner_has_a_line() {
    let daemon = listening::Daemon::start(&[
        "--report",
        "report",
        "--keep-used",
        "--assume-complete",
        "--protocol",
        "any",
    ]);
    for name in ["used", "unused", "other", "given-up"] {
        object().make(name);
    }
    drop(sem_open("/loky-used", 1));
    let holders = [hold("map-shared", path("used")), hold("fd-read", path("sem.loky-used"))];
    let mut first = Client::new();
    first.tell("REGISTER:/used:shared_memory\nREGISTER:/unused:shared_memory\n");
    first.tell("REGISTER:/loky-used:semlock\nMAYBE_UNLINK:/loky-used:semlock\n").done();
    let mut second = Client::new();
    second.tell("REGISTER:/other:shared_memory\nREGISTER:/replaced:shared_memory\n").done();
    wait_for("what was given up", || (fs::metadata("report").unwrap().len() > 0).then_some(()));
    let told = lines();
    assert_eq!(told.len(), 1);
    assert_eq!(leak(&told[0], "/loky-used")["given_up"], true);
    drop(first);
    wait_for("the first line", || (lines().len() == 2).then_some(()));
    assert!(identity("used").is_some() && identity("unused").is_none());
    drop(second);
    wait_for("the second line", || (lines().len() == 3).then_some(()));
    let told = lines();
    for line in &told {
        assert_eq!(line["owner"]["pid"], std::process::id(), "{line:#}");
        assert_eq!(line["owner"]["uid"], nix::unistd::geteuid().as_raw());
    }
    let used = leak(&told[1], "/used");
    assert_eq!(
        (&used["outcome"], &used["holders"][0]["pid"]),
        (&json!("kept"), &json!(holders[0].pid))
    );
    assert!(used["registered_at"].as_str().unwrap().starts_with('2'), "{used:#}");
    assert_eq!(leak(&told[1], "/unused")["outcome"], "removed");
    assert_eq!(leak(&told[2], "/replaced")["outcome"], "gone");
    // Who left nothing has no line.
    Client::new().tell("REGISTER:/x:dummy\nUNREGISTER:/x:dummy\n").done();
    // What others have now is no leak of this owner's.
    let mut third = Client::new();
    third.tell("REGISTER:/given-up:shared_memory\n").done();
    fs::remove_file(path("given-up")).unwrap();
    let new = object().make("given-up");
    drop(third);
    let (status, said) = daemon.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("'/used' stays: in use by "), "{said}");
    let told = lines();
    assert_eq!((told.len(), leak(&told[3], "/given-up")["outcome"].as_str()), (4, Some("changed")));
    assert_eq!(identity("given-up"), Some(new));
}

/// With the rights of who registered: those are enough for a lease, and the processes are looked at with the
/// daemon's own.
fn owners_of_other_users() {
    let daemon = listening::Daemon::start(&[
        "--report",
        "report",
        "--keep-used",
        "--assume-complete",
        "--protocol",
        "any",
    ]);
    fs::set_permissions(scratch(), Permissions::from_mode(0o755)).unwrap();
    for name in ["used", "unused"] {
        object().owner(61001).mode(0o666).make(name);
    }
    let home = scratch().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(61001), Some(61001)).unwrap();
    let folders = ["used-folder", "unused-folder"].map(|name| home.join(name));
    for folder in &folders {
        make_folder(folder);
        for entry in ["", "below", "inside", "below/deep"] {
            std::os::unix::fs::chown(folder.join(entry), Some(61001), Some(61001)).unwrap();
        }
    }
    let holders = [
        hold_as(61002, "map-shared", path("used")),
        hold_as(61002, "working-directory", folders[0].join("below")),
    ];
    let mut client = std::process::Command::new("/proc/self/exe");
    client.args(["__hold", "nothing", "x"]);
    let owner = start(crate::support::Finish::as_user(&mut client, 61001));
    let lines_of = |lines: &str| {
        let mut send = rtrack(["send", "-", "--protocol", "any", "--socket", "socket", "--owner"]);
        send.arg(owner.pid.to_string());
        fs::write("lines", lines).unwrap();
        let mut send = inside("user=61001", &send);
        let output = send.stdin(File::open("lines").unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    };
    let [used, unused] = folders.each_ref().map(|folder| folder.to_str().unwrap());
    lines_of(&format!(
        "REGISTER:/used:shared_memory\nREGISTER:/unused:shared_memory\nREGISTER:{used}:folder\nREGISTER:{unused}:folder\n"
    ));
    let pid = owner.pid;
    kill(pid);
    wait_for("the line", || (lines().len() == 1).then_some(()));
    let told = lines();
    assert_eq!((&told[0]["owner"]["pid"], &told[0]["owner"]["uid"]), (&json!(pid), &json!(61001)));
    for (name, holder) in ["/used", used].into_iter().zip(&holders) {
        let leak = leak(&told[0], name);
        assert_eq!(leak["outcome"], "kept", "{leak:#}");
        let told = &leak["holders"][0];
        assert_eq!((&told["pid"], &told["uid"]), (&json!(holder.pid), &json!(61002)), "{leak:#}");
    }
    for name in ["/unused", unused] {
        let leak = leak(&told[0], name);
        assert_eq!(leak["outcome"], "removed", "{leak:#}");
    }
    assert_eq!(names().into_iter().collect::<Vec<_>>(), ["used"]);
    assert!(folders[0].join("below/deep").exists() && !folders[1].exists());
    drop((holders, owner));
    assert_eq!(daemon.end().0, Some(0));
}

/// One look at the processes for all that end together.
fn many_owners_at_the_end() {
    let daemon = listening::Daemon::start(&["--keep-used", "--report", "report"]);
    let mut clients = Vec::new();
    for number in 0..200 {
        object().size(1).make(format!("o-{number}"));
        let mut client = Client::new();
        client.tell(&format!("REGISTER:/o-{number}:shared_memory\n")).done();
        clients.push(client);
    }
    // To look at this one takes its time.
    let holder = hold("fd-o-path-among-many", path("o-150"));
    let began = Instant::now();
    let (status, said) = daemon.end();
    assert_eq!(status, Some(1), "{said}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(names().into_iter().collect::<Vec<_>>(), ["o-150"]);
    assert_eq!(lines().len(), 200);
    drop((holder, clients));
}
