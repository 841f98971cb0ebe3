//! What has no name any more and is held: `df` counts it, `ls` does not show it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use crate::support::{
    Case, Finish, Holder, Need, case, hold, identity, is_real_root, object, path, rtrack, sem_open,
    validate,
};

pub(crate) fn tests() -> Vec<Case> {
    const PIDS: &[Need] = &[Need::PidNamespace];
    vec![
        case("each_way_to_hold_it", each_way_to_hold_it).needs(PIDS),
        case("the_sum_is_that_of_the_file_system", the_sum).needs(PIDS),
        case("what_has_a_name_is_not_deleted", what_has_a_name).needs(PIDS),
        case("a_new_object_of_its_name", a_new_object_of_its_name).needs(PIDS),
        case("never_reaped", never_reaped).needs(PIDS),
        case("memfd", memfd).needs(PIDS),
        case("shown", shown).needs(PIDS),
        case("missing_names", missing_names).needs(PIDS),
        case("of_a_container", of_a_container).needs(PIDS),
    ]
}

const NAME: &str = "psm_0a1b2c3d";

#[track_caller]
fn list(options: &[&str]) -> Value {
    let mut list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
    let document = list.args(options).finish().expect(0).json();
    validate(&document);
    document
}

/// An object of which only its holder is left.
fn deleted(name: &str, size: usize, way: &str) -> Holder {
    object().size(size).make(name);
    let holder = hold(way, path(name));
    fs::remove_file(path(name)).unwrap();
    holder
}

fn objects(document: &Value) -> &Vec<Value> {
    document["objects"].as_array().unwrap()
}

fn each_way_to_hold_it() {
    for way in ["fd-read", "fd-write", "fd-o-path", "map-shared", "own-mounts:map-shared"] {
        let holder = deleted(NAME, 8192, way);
        let document = list(&[]);
        let [object] = &objects(&document)[..] else { panic!("{way}: {document:#}") };
        assert_eq!(object["verdict"], "held", "{way}: {document:#}");
        assert_eq!((&object["deleted"], &object["file"]), (&true.into(), &NAME.into()), "{way}");
        let known = is_real_root() || way.starts_with("fd");
        for key in ["size", "allocated"] {
            let bytes = known.then_some(8192);
            assert_eq!(object[key], Value::from(bytes), "{way}: {key}: {document:#}");
        }
        for key in ["uid", "mode", "changed_at", "age_s"] {
            assert_eq!(object[key].is_null(), !known, "{way}: {key}: {document:#}");
        }
        for evidence in object["evidence"].as_array().unwrap() {
            assert!(!["no-kin", "no-family"].map(Value::from).contains(&evidence["code"]), "{way}");
        }
        assert_eq!(object["holders"][0]["pid"], holder.pid, "{way}: {document:#}");
        drop(holder);
        assert!(objects(&list(&[])).is_empty(), "{way}");
    }
}

fn the_sum() {
    object().size(16_384).make("visible");
    let _holders = [deleted("one", 8192, "map-shared"), deleted("two", 4096, "fd-read")];
    // In nobody's table: only the file system knows.
    let _flying = deleted("three", 4096, "in-flight");
    let document = list(&[]);
    let mount = &document["mounts"][0];
    let number = |key: &str| mount[key].as_u64().unwrap();
    let statfs = nix::sys::statvfs::statvfs("/dev/shm").unwrap();
    let used = (statfs.blocks() - statfs.blocks_free()) * statfs.fragment_size();
    assert_eq!(number("used"), used, "{mount:#}");
    assert_eq!(number("visible") + number("hidden"), used, "{mount:#}");
    // How much is in use of what only a mapping leads to is known to who may follow it.
    let deleted = if is_real_root() { 12_288 } else { 4096 };
    assert_eq!((number("visible"), number("hidden"), number("deleted")), (16_384, 16_384, deleted));
}

/// The C library's semaphores are mapped under a name that they no longer have, and what has another
/// name, wherever that is, is not deleted.
fn what_has_a_name() {
    let _semaphore = sem_open("/mp-abcdefgh", 1);
    object().make("first");
    fs::hard_link(path("first"), path("second")).unwrap();
    fs::create_dir(path("directory")).unwrap();
    object().make("third");
    fs::rename(path("third"), path("directory/third")).unwrap();
    let _holders = ["first", "directory/third"].map(|name| hold("map-shared", path(name)));
    fs::remove_file(path("first")).unwrap();
    for options in [&[][..], &["second"], &["--kind", "sem"], &["--min-size", "1GiB"]] {
        let document = list(options);
        let deleted = objects(&document).iter().filter(|object| object["deleted"] == true);
        assert_eq!(deleted.count(), 0, "{options:?}: {document:#}");
    }
}

fn a_new_object_of_its_name() {
    let _first = deleted(NAME, 4096, "map-shared");
    let _second = deleted(NAME, 4096, "map-shared");
    object().make(NAME);
    let document = list(&[NAME]);
    let mut ids: Vec<&str> =
        objects(&document).iter().map(|object| object["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3, "{document:#}");
    assert_eq!(ids[0], format!("shm:{NAME}"));
}

fn never_reaped() {
    let _held = deleted(NAME, 4096, "map-shared");
    let kept = object().make(NAME);
    let document = list(&[]);
    let gone = objects(&document).iter().find(|object| object["deleted"] == true).unwrap();
    let id = gone["id"].as_str().unwrap().to_owned();
    rtrack(["reap", "--yes", "--exact", "--force", &id, "--assume-complete"]).finish().expect(1);
    assert_eq!(identity(NAME), Some(kept));
    let mut reap = rtrack(["reap", "--yes", "--grace", "0s", "--assume-complete"]);
    reap.args(["--verdict", "orphaned,unclaimed"]).finish().expect(0);
    assert_eq!(identity(NAME), None);
    assert!(objects(&list(&[])).iter().all(|object| object["deleted"] == true));
}

fn memfd() {
    let name = c"leak";
    let file = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::empty()).unwrap();
    let mut file = File::from(file);
    file.write_all(&[1; 8192]).unwrap();
    // It belongs to no mount.
    assert!(objects(&list(&[])).is_empty());
    let document = list(&["-A"]);
    let ino = file.metadata().unwrap().ino();
    let found = objects(&document).iter().find(|object| object["ino"] == ino).unwrap();
    assert_eq!((&found["verdict"], &found["deleted"]), (&"held".into(), &true.into()));
    assert_eq!(found["file"], "memfd:leak", "{found:#}");
    assert_eq!((&found["size"], &found["allocated"]), (&8192.into(), &8192.into()), "{found:#}");
}

fn shown() {
    let holder = deleted(NAME, 4096, "map-shared");
    let text = rtrack(["show", NAME, "--assume-complete"]).finish().expect(0);
    let text = String::from_utf8(text.stdout).unwrap();
    for part in
        ["which it has lost", "deleted ", &format!("[{}]", holder.pid), "no name that could"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let show = rtrack(["show", NAME, "--json", "--assume-complete"]).finish().expect(0);
    validate(&show.json());
}

fn missing_names() {
    let _held = deleted(NAME, 4096, "map-shared");
    let run = rtrack(["list", NAME, "nowhere", "--assume-complete"]).finish().expect(1);
    assert!(run.stderr.contains("nowhere: no such object"), "{run:?}");
    assert!(!run.stderr.contains(&format!("{NAME}: no such")), "{run:?}");
    rtrack(["list", "nowhere", "--assume-complete"]).finish().expect(1);
}

fn of_a_container() {
    let way = format!("own-shm={NAME}:map-shared-and-deleted");
    let holder = hold(&way, path(NAME));
    let document = list(&["-A"]);
    let [object] = &objects(&document)[..] else { panic!("{document:#}") };
    assert_eq!(object["namespace"]["pid"], holder.pid, "{document:#}");
    assert_eq!((&object["deleted"], &object["verdict"]), (&true.into(), &"held".into()));
}
