//! Verdicts on real objects, one way to each.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::{
    Case, Finish, Need, case, evidence, inventory, listed, names, object, path, reap_all, rtrack,
    sem_open, verdict,
};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("of_names", of_names).needs(&[Need::PidNamespace]),
        case("of_the_creators_pid", of_the_creators_pid).needs(&[Need::PidNamespace]),
        case("of_the_young", of_the_young),
        case("of_less_sight", of_less_sight).needs(&[Need::PidNamespace]),
        case("fields_of_an_object", fields_of_an_object),
        case("fields_of_a_semaphore", fields_of_a_semaphore),
        case("check_answers_by_status", check_answers_by_status),
        case("selections_of_list", selections_of_list),
        case("groups_of_list", groups_of_list),
    ]
}

/// The name, what must be said of it, and the producer.
fn of_names() {
    let expected = [
        ("mpich_shar_tmpAbC123", "orphaned", "always-held-producer", Some("mpich-shar-tmp")),
        ("pulse-shm-12345", "orphaned", "always-held-producer", Some("pulseaudio")),
        ("libpod_lock", "claimed", "persistent", Some("podman-locks-root")),
        // A catch-all, and one that nobody has verified: they name, and prove nothing.
        ("sem.AbC123", "unclaimed", "weak-producer", Some("glibc-sem-temp")),
        ("Intel_MPI_8jDv5z", "unclaimed", "weak-producer", Some("intel-mpi")),
        ("my_cache", "unclaimed", "unknown-producer", None),
        ("psm_0A1B2C3D", "unclaimed", "unknown-producer", None),
        ("psm_0a1b2c3d.bak", "unclaimed", "unknown-producer", None),
        ("xmpich_shar_tmpAbC123", "unclaimed", "unknown-producer", None),
    ];
    for (name, ..) in expected {
        object().make(name);
    }
    let document = inventory();
    for (name, wanted, reason, producer) in expected {
        assert_eq!(verdict(&document, name), (wanted, reason), "{name}");
        let found = listed(&document, name)["producer"]["id"].as_str();
        assert_eq!(found, producer, "{name}");
    }
    // The same by the table.
    let table = rtrack(["list", "--grace", "0s"]).finish().expect(0).text();
    for (name, wanted, ..) in expected {
        let id = listed(&document, name)["id"].as_str().unwrap();
        let row = table.lines().find(|line| line.split_whitespace().any(|word| word == id));
        let row = row.unwrap_or_else(|| panic!("{id} is not in\n{table}"));
        assert!(row.contains(wanted), "{row}");
    }
}

/// A pid that is in the name: alive, or dead for good.
fn of_the_creators_pid() {
    let mut alive = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let of_the_living = format!("pym-{}-abcdefgh", alive.id());
    let of_the_dead = format!("pym-{}-abcdefgh", dead.id());
    object().make(&of_the_living);
    object().make(&of_the_dead);
    let document = inventory();
    assert_eq!(verdict(&document, &of_the_living), ("claimed", "creator-alive"));
    let creator = &listed(&document, &of_the_living)["creator"];
    assert_eq!((&creator["pid"], &creator["alive"]), (&alive.id().into(), &true.into()));
    assert_eq!(creator["from"], "name");
    assert_eq!(verdict(&document, &of_the_dead), ("orphaned", "always-held-producer"));
    reap_all().finish().expect(0);
    assert_eq!(names().into_iter().collect::<Vec<_>>(), [&*of_the_living]);
    alive.kill().unwrap();
    alive.wait().unwrap();
    reap_all().finish().expect(0);
    assert!(names().is_empty());
}

fn of_the_young() {
    object().make("mpich_shar_tmpAbC123");
    let young = rtrack(["list", "--json"]).finish().expect(0).json();
    assert_eq!(verdict(&young, "mpich_shar_tmpAbC123"), ("claimed", "too-young"));
    for grace in ["1h", "2h30m", "1d"] {
        rtrack(["reap", "--yes", "--grace", grace]).finish().expect(0);
    }
    assert_eq!(names().len(), 1);
    // A change of the content makes it young again: no clock has to be waited for.
    let document = inventory();
    assert!(listed(&document, "mpich_shar_tmpAbC123")["age_s"].as_f64().unwrap() < 3600.0);
}

/// Less sight never makes more of an object reapable.
fn of_less_sight() {
    for name in ["psm_0a1b2c3d", "mpich_shar_tmpAbC123", "my_cache", "libpod_lock"] {
        object().make(name);
    }
    let rank = |verdict: &str| ["unclaimed", "orphaned"].iter().position(|v| *v == verdict);
    let partial = inventory();
    let mut vouched = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
    let vouched = vouched.finish().expect(0).json();
    for name in ["psm_0a1b2c3d", "mpich_shar_tmpAbC123", "my_cache", "libpod_lock"] {
        let (less, more) = (verdict(&partial, name).0, verdict(&vouched, name).0);
        assert!(rank(less) <= rank(more), "{name}: {less} with less sight, {more} with more");
    }
    assert_eq!(verdict(&vouched, "psm_0a1b2c3d"), ("orphaned", "no-family"));
    assert!(evidence(&partial, "psm_0a1b2c3d").contains(&"partial-process-sight"));
}

fn fields_of_an_object() {
    let (_, inode) = object().size(10_000).mode(0o640).make("psm_0a1b2c3d");
    let document = inventory();
    let found = listed(&document, "psm_0a1b2c3d");
    for (field, wanted) in
        [("id", "shm:psm_0a1b2c3d"), ("kind", "shm"), ("file", "psm_0a1b2c3d"), ("mode", "0640")]
    {
        assert_eq!(found[field], wanted, "{field}");
    }
    assert_eq!(found["ino"], inode);
    assert_eq!((&found["uid"], &found["gid"]), (&0.into(), &0.into()));
    assert_eq!((&found["size"], &found["allocated"]), (&10_000.into(), &12_288.into()));
    assert_eq!((&found["namespace"], &found["deleted"]), (&().into(), &false.into()));
    let age = found["age_s"].as_f64().unwrap();
    assert!((0.0..120.0).contains(&age), "{age}");
    let mount = &document["mounts"][0];
    assert_eq!(mount["path"], "/dev/shm");
    assert_eq!(mount["size"], 256 << 20);
    assert_eq!(mount["dev"], found["dev"]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let device = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/dev/shm")).unwrap();
    assert_eq!(found["dev"], device.split(' ').nth(2).unwrap());
    assert_eq!(document["totals"]["objects"], 1);
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(document["boot_id"], boot.trim());
}

fn fields_of_a_semaphore() {
    let semaphore = sem_open("/mp-abcdefgh", 0);
    let mut waiter = Command::new("/proc/self/exe");
    let waiter = waiter.args(["__hold", "semaphore", "/mp-abcdefgh"]).stdin(Stdio::piped()).spawn();
    let mut waiter = waiter.unwrap();
    crate::support::wait_for("the waiter to wait", || {
        let document = inventory();
        let state = listed(&document, "mp-abcdefgh")["semaphore"].clone();
        assert_eq!(state["value"], 0);
        (state["waiters"] == 1).then_some(())
    });
    semaphore.post();
    assert!(waiter.wait().unwrap().success());
    // A file of that name that is no semaphore has no state, and harms nobody.
    drop(semaphore);
    fs::write(path("sem.short"), "x").unwrap();
    fs::write(path("sem.empty"), "").unwrap();
    let document = inventory();
    for name in ["short", "empty"] {
        assert_eq!(listed(&document, name)["kind"], "sem");
        assert!(listed(&document, name).get("semaphore").is_none_or(serde_json::Value::is_null));
    }
}

fn check_answers_by_status() {
    let check = || rtrack(["list", "--check", "--grace", "0s"]).finish();
    check().expect(0);
    object().make("my_cache");
    check().expect(0);
    object().make("mpich_shar_tmpAbC123");
    check().expect(1);
    // Young objects are no orphans.
    rtrack(["list", "--check"]).finish().expect(0);
}

fn selections_of_list() {
    object().size(1 << 20).make("mpich_shar_tmpAbC123");
    object().size(10).make("my_cache");
    object().size(32).make("sem.mine");
    fs::create_dir(path("parked")).unwrap();
    let ids = |arguments: &[&str]| -> Vec<String> {
        let mut list = rtrack(["list", "-0", "--grace", "0s"]);
        let run = list.args(arguments).finish().expect(0);
        let text = run.text();
        assert!(text.is_empty() || text.ends_with('\0'), "{text:?}");
        text.split_terminator('\0').map(str::to_owned).collect()
    };
    assert_eq!(ids(&["--kind", "shm"]), ["shm:mpich_shar_tmpAbC123", "shm:my_cache"]);
    assert_eq!(ids(&["--kind", "shm", "--reverse"])[0], "shm:my_cache");
    assert_eq!(ids(&["--kind", "sem"]), ["sem:mine"]);
    assert_eq!(ids(&["--kind", "dir"]), ["dir:parked"]);
    assert_eq!(ids(&["--verdict", "orphaned"]), ["shm:mpich_shar_tmpAbC123"]);
    assert_eq!(ids(&["--min-size", "1MiB"]), ["shm:mpich_shar_tmpAbC123"]);
    assert_eq!(ids(&["m*"]).len(), 3);
    assert_eq!(ids(&["shm:m*"]).len(), 2);
    assert_eq!(ids(&["--older-than", "1h"]), [""; 0]);
    assert_eq!(ids(&["--user", "0", "--kind", "sem"]), ["sem:mine"]);
    assert_eq!(ids(&["--user", "12345"]), [""; 0]);
    // An empty list of ids is no list of everything.
    for command in [&["list", "--exact"][..], &["reap", "--yes", "--exact"]] {
        let run = rtrack(command).finish().expect(2);
        assert!(
            run.stderr.starts_with("error: --exact needs the ids of objects\nhint: "),
            "{run:?}"
        );
    }

    let mut columns = rtrack(["list", "-o", "id,uid,kind", "--no-headings", "sem:*"]);
    let row = columns.finish().expect(0).text();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["sem:mine", "0", "sem"]);
    let lines = rtrack(["list", "--ndjson", "--grace", "0s"]).finish().expect(0).text();
    assert_eq!(lines.lines().count(), 4);
    for line in lines.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

fn groups_of_list() {
    object().size(1 << 20).make("mpich_shar_tmpAbC123");
    object().size(1 << 20).make("mpich_shar_tmpDeF456");
    object().size(5000).make("my_cache");
    let list =
        |arguments: &[&str]| rtrack(["list", "--grace", "0s"]).args(arguments).finish().expect(0);
    let document = list(&["--group-by", "producer", "--json"]).json();
    assert_eq!(document["group_by"], "producer");
    let groups = document["groups"].as_array().unwrap();
    assert_eq!(
        (&groups[0]["producer"], groups[0]["objects"].as_u64()),
        (&"mpich-shar-tmp".into(), Some(2))
    );
    assert_eq!(groups[0]["by_verdict"]["orphaned"]["bytes"], 2 << 20);
    assert_eq!(
        (&groups[1]["producer"], groups[1]["bytes"].as_u64()),
        (&"unknown".into(), Some(8192))
    );
    let text = list(&["--group-by", "verdict"]).text();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["VERDICT", "OBJECTS", "USED", "ORPHANED", "RECLAIMABLE"]);
    assert_eq!(rows[1], ["orphaned", "2", "2.0", "MiB", "2", "2.0", "MiB"]);
    assert_eq!(rows[2], ["unclaimed", "1", "8.0", "KiB", "0", "0", "B"]);
    let lines = list(&["--group-by", "user", "--ndjson"]).text();
    let group: serde_json::Value = serde_json::from_str(&lines).unwrap();
    assert_eq!((&group["user"], group["objects"].as_u64()), (&"root".into(), Some(3)));
}
