//! Plans: made by a dry run, read back, carried out exactly, or refused whole.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::reaping::{exactly, make_orphans, orphan};
use crate::support::{
    Case, Finish, Finished, Need, case, hold, identity, listed, mount, names, object, path, rtrack,
    scratch,
};

pub(crate) fn tests() -> Vec<Case> {
    const ALONE: &[Need] = &[Need::PidNamespace];
    vec![
        case("exactly_the_untouched_ones_go", exactly_the_untouched_ones_go).needs(ALONE),
        case("of_another_boot_host_or_mount", of_another_boot_host_or_mount),
        case("that_makes_no_sense", that_makes_no_sense),
        case("without_any_one_field", without_any_one_field),
        case("with_a_part_taken_out", with_a_part_taken_out),
        case("forced", forced),
        case("of_everything_else_that_is_json", of_everything_else_that_is_json),
        case("beside_what_selects", beside_what_selects),
    ]
}

/// A plan for everything that can go.
fn make(more: &[&str]) -> Value {
    let mut plan = rtrack(["reap", "--dry-run", "--json", "--grace", "0s"]);
    plan.args(more).finish().expect(0).json()
}

fn write(plan: &Value) -> PathBuf {
    let place = scratch().join("plan.json");
    fs::write(&place, serde_json::to_vec(plan).unwrap()).unwrap();
    place
}

fn carry_out(plan: &Value) -> Finished {
    let place = write(plan);
    rtrack(["reap", "--yes", "--json", "--from", place.to_str().unwrap()]).finish()
}

/// The plan is refused whole: nothing is removed, and the field is named.
#[track_caller]
fn refused(plan: &Value, field: &str) {
    let before = names();
    let run = carry_out(plan).expect(3);
    assert!(run.stderr.contains(&format!("plan is refused: {field}: ")), "{field}: {run:?}");
    assert!(run.stdout.is_empty(), "{run:?}");
    assert_eq!(names(), before, "{field}");
}

fn exactly_the_untouched_ones_go() {
    make_orphans(100);
    let directories = ["parked", "written"];
    for directory in directories {
        DirBuilder::new().mode(0o700).create(path(directory)).unwrap();
        object().make(format!("{directory}/inside"));
    }
    let more = ["--verdict", "orphaned,unclaimed", "--assume-complete"];
    let plan = make(&more);
    // A tenth of them, and one of the directories.
    fs::remove_file(path(orphan(0))).unwrap();
    fs::remove_file(path(orphan(10))).unwrap();
    object().size(64).make(orphan(10));
    fs::rename(path(orphan(20)), path(orphan(30))).unwrap();
    let _holder = hold("fd-read", path(orphan(40)));
    fs::set_permissions(path(orphan(50)), Permissions::from_mode(0o644)).unwrap();
    // There and back leaves a mark as well.
    for mode in [0o644, 0o600] {
        fs::set_permissions(path(orphan(60)), Permissions::from_mode(mode)).unwrap();
    }
    fs::write(path(orphan(70)), [1; 64]).unwrap();
    fs::hard_link(path(orphan(80)), path("another")).unwrap();
    fs::remove_file(path(orphan(90))).unwrap();
    nix::unistd::mkfifo(&path(orphan(90)), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(path("written/inside"), "written").unwrap();
    object().size(64).make(orphan(100));
    let run = carry_out(&plan).expect(1);
    let report = run.json();
    for (number, outcome) in [
        (0, "gone"),
        (10, "changed"),
        (20, "gone"),
        (30, "changed"),
        (40, "held"),
        (50, "refused"),
        (60, "refused"),
        (70, "refused"),
        (80, "refused"),
        (90, "changed"),
        (1, "reaped"),
    ] {
        assert_eq!(listed(&report, &orphan(number))["outcome"], outcome, "{number}");
    }
    assert_eq!(listed(&report, "parked")["outcome"], "reaped");
    assert_eq!(listed(&report, "written")["outcome"], "refused");
    let left: Vec<String> = [10, 30, 40, 50, 60, 70, 80, 90, 100].map(orphan).into();
    let mut left: Vec<&str> = left.iter().map(String::as_str).collect();
    left.extend(["another", "written"]);
    exactly(&left);
    assert_eq!(report["objects"].as_array().unwrap().len(), 102);
    assert_eq!(report["plan_id"], plan["plan_id"]);
    assert!(plan["plan_id"].is_string());
    // What it was, not what is there now.
    assert_eq!(listed(&report, &orphan(10))["ino"], listed(&plan, &orphan(10))["ino"]);
}

fn of_another_boot_host_or_mount() {
    make_orphans(3);
    let plan = make(&[]);
    for (field, value) in [
        ("schema", json!("rtrack.reap/2")),
        ("schema", json!("rtrack.inventory/1")),
        ("boot_id", json!("00000000-0000-0000-0000-000000000000")),
        ("boot_id", Value::Null),
        ("host", json!("elsewhere")),
        ("taken_at", json!("2999-01-01T00:00:00Z")),
        ("taken_at", json!("yesterday")),
        ("dry_run", json!(false)),
        ("grace_s", json!(-1)),
        ("grace_s", json!("0")),
        ("objects", json!({})),
        ("mounts", json!([])),
    ] {
        let mut other = plan.clone();
        other[field] = value;
        refused(&other, field);
    }
    for (field, value) in [("dev", json!("0:1")), ("path", json!("/run/shm"))] {
        let mut other = plan.clone();
        other["mounts"][0][field] = value;
        refused(&other, &format!("mounts[0].{field}"));
    }
    // Another mount in the same place: its first inodes have the same numbers.
    mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777").unwrap();
    make_orphans(3);
    refused(&plan, "mounts[0].dev");
    // And text for a terminal is no text of ours.
    let mut other = plan;
    other["host"] = json!("\u{1b}[31mred");
    let run = carry_out(&other).expect(3);
    assert!(!run.stderr.contains('\u{1b}'), "{run:?}");
}

fn that_makes_no_sense() {
    make_orphans(3);
    let plan = make(&[]);
    for (field, value) in [
        ("ino", json!(0)),
        ("ino", json!("7")),
        ("ino", json!(-7)),
        ("ino", json!(7.5)),
        ("dev", json!("0:1")),
        ("kind", json!("sem")),
        ("kind", json!("mqueue")),
        ("name", json!("../etc/passwd")),
        ("name", json!("/dev/shm/x")),
        ("name", json!("..")),
        ("name", json!("")),
        ("name", json!("another")),
        ("name_base64", json!("Li4v")),
        ("name_base64", json!("!")),
        ("file", json!("sem.x")),
        ("id", json!("shm:another")),
        ("mode", json!("rw-")),
        ("mode", json!("77777")),
        ("mode", json!(384)),
        ("uid", json!(-1)),
        ("uid", json!(4_294_967_296_u64)),
        ("gid", json!("root")),
        ("size", json!("64")),
        ("born_at", json!("now")),
        ("changed_at", json!(0)),
        ("verdict", json!("dead")),
        ("verdict", json!("held")),
        ("verdict", json!("claimed")),
        ("verdict", json!("unclaimed")),
        ("reason", json!("no-kin")),
        ("reason", json!("because")),
        ("evidence", json!([])),
        ("evidence", json!("none")),
        ("outcome", json!("gone-for-good")),
        ("outcome", json!("reaped")),
        ("forced", json!("yes")),
    ] {
        let mut other = plan.clone();
        other["objects"][1][field] = value.clone();
        let before = names();
        let run = carry_out(&other).expect(3);
        assert!(
            run.stderr.contains("plan is refused: objects[1]."),
            "{field} {value}: {}",
            run.stderr
        );
        assert_eq!(names(), before, "{field}");
    }
    let mut twice = plan.clone();
    twice["objects"][2] = plan["objects"][1].clone();
    refused(&twice, "objects[2].id");
}

/// Whatever is missing, no more is removed than the plan says, and most often nothing.
fn without_any_one_field() {
    make_orphans(2);
    object().make("wanted");
    let plan = make(&[]);
    let keys: Vec<String> = plan["objects"][0].as_object().unwrap().keys().cloned().collect();
    let mut survived = 0;
    for key in &keys {
        let mut other = plan.clone();
        other["objects"][0].as_object_mut().unwrap().shift_remove(key);
        let run = carry_out(&other);
        survived += u32::from(run.code == Some(3));
        for number in 0..2 {
            if identity(orphan(number)).is_none() {
                object().size(64).make(orphan(number));
            }
        }
        assert!(identity("wanted").is_some(), "{key}");
    }
    // The first removal has made all others' identities old: what is not refused, is changed.
    assert!(survived > 15, "{survived} of {keys:?}");
}

/// An operator takes a line out of the plan, or adds a note: then it is that plan.
fn with_a_part_taken_out() {
    make_orphans(3);
    let mut plan = make(&[]);
    plan["objects"].as_array_mut().unwrap().remove(0);
    plan["note"] = json!("all but the first");
    plan["objects"][0]["note"] = json!("this one");
    carry_out(&plan).expect(0);
    exactly(&[&orphan(0)]);
}

fn forced() {
    object().make("wanted");
    object().make("held");
    let plan = make(&["--force", "wanted", "--force", "held"]);
    assert_eq!(listed(&plan, "wanted")["forced"], true);
    let _holder = hold("map-shared", path("held"));
    let run = carry_out(&plan).expect(1);
    assert!(run.stderr.contains("shm:wanted: forced, although it is unclaimed"), "{run:?}");
    assert_eq!(listed(&run.json(), "held")["outcome"], "held");
    exactly(&["held"]);
    // What is claimed takes an operator's word.
    object().make("young");
    let mut plan = rtrack(["reap", "--dry-run", "--json", "--force", "young"]);
    let mut plan = plan.finish().expect(0).json();
    plan["objects"][0].as_object_mut().unwrap().shift_remove("forced");
    refused(&plan, "objects[0].verdict");
    plan["objects"][0]["forced"] = json!(true);
    carry_out(&plan).expect(0);
    exactly(&["held"]);
}

fn of_everything_else_that_is_json() {
    make_orphans(1);
    for text in ["", "{", "[]", "null", "7", "\"plan\"", "{}", "{}{}", "\u{0}"] {
        let place = scratch().join("plan.json");
        fs::write(&place, text).unwrap();
        let run = rtrack(["reap", "--yes", "--from", place.to_str().unwrap()]).finish().expect(3);
        assert!(run.stderr.contains("the plan is refused: "), "{text}: {run:?}");
    }
    let run = rtrack(["reap", "--yes", "--from", "missing.json"]).finish().expect(3);
    assert!(run.stderr.contains("read the plan missing.json"), "{run:?}");
    // The report of a removal is no plan.
    let report = rtrack(["reap", "--yes", "--json", "--grace", "0s"]).finish().expect(0).json();
    refused(&report, "dry_run");
}

/// A plan says everything by itself.
fn beside_what_selects() {
    make_orphans(1);
    let place = write(&make(&[]));
    let place = place.to_str().unwrap();
    for more in [
        &["--verdict", "orphaned"][..],
        &["--kind", "shm"],
        &["--grace", "0s"],
        &["--assume-complete"],
        &["--force", "x"],
        &["x"],
    ] {
        rtrack(["reap", "--yes", "--from", place]).args(more).finish().expect(2);
    }
    rtrack(["reap", "--from", place]).finish().expect(2);
    let run = rtrack(["reap", "--dry-run", "--json", "--from", place]).finish().expect(0);
    assert_eq!(listed(&run.json(), &orphan(0))["outcome"], "would-reap");
    exactly(&[&orphan(0)]);
    rtrack(["reap", "--yes", "--from", place, "--sort", "name"]).finish().expect(0);
    exactly(&[]);
}
