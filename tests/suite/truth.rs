//! Every kind of object at once, compared one by one with the truth about it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Case, Finish, Need, case, inside, kill, rtrack, wait_for};

pub(crate) fn tests() -> Vec<Case> {
    const PIDS: &[Need] = &[Need::PidNamespace];
    const ROOT: &[Need] = &[Need::PidNamespace, Need::RealRoot];
    vec![
        case("told_to_root", told_to_root).needs(PIDS),
        case("told_to_an_ordinary_user", told_to_an_ordinary_user).needs(ROOT),
        case("nothing_of_it_stays", nothing_of_it_stays).needs(PIDS),
    ]
}

/// The workload; it ends when this is dropped.
struct Workload {
    child: Child,
    truth: Value,
}

fn start() -> Workload {
    let mut command = Command::new("/proc/self/exe");
    let command = command.arg("__truth").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let truth = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    Workload { child, truth }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
    }
}

/// What has to be listed, or is, by namespace and id.
type Objects = BTreeMap<(Vec<u64>, String), Value>;

/// Nothing stands for the namespaces of whoever looks.
fn key(object: &Value) -> (Vec<u64>, String) {
    let namespace = ["mnt", "ipc"].iter().filter_map(|name| object["namespace"][name].as_u64());
    (namespace.collect(), object["id"].as_str().unwrap().to_owned())
}

/// What `viewer` has to be told.
fn expected(truth: &Value, viewer: &str) -> Objects {
    let objects = truth["objects"].as_array().unwrap().iter();
    let objects = objects.filter(|object| !object[viewer].is_null()).map(|object| {
        let answer = &object[viewer];
        let expected = json!({
            "kind": object["kind"],
            "deleted": object["deleted"],
            "uid": answer["uid"],
            "size": answer["size"],
            "whole": answer["whole"],
            "verdict": answer["verdict"],
            "reason": answer["reason"],
            "holders": answer["holders"],
        });
        (key(object), expected)
    });
    let all: Vec<_> = objects.collect();
    let number = all.len();
    let objects = Objects::from_iter(all);
    assert_eq!(objects.len(), number, "each once");
    objects
}

/// What a document tells.
fn told(document: &Value) -> Objects {
    let objects = document["objects"].as_array().unwrap().iter().map(|object| {
        let holders = object["holders"].as_array().unwrap().iter();
        let mut holders: Vec<_> = holders.map(|holder| holder["pid"].as_u64().unwrap()).collect();
        holders.sort_unstable();
        let told = json!({
            "kind": object["kind"],
            "deleted": object["deleted"],
            "uid": object["uid"],
            "size": object["size"],
            "whole": object["truncated"] != true,
            "verdict": object["verdict"],
            "reason": object["reason"],
            "holders": holders,
        });
        (key(object), told)
    });
    let all: Vec<_> = objects.collect();
    let number = all.len();
    let objects = Objects::from_iter(all);
    assert_eq!(objects.len(), number, "an object is listed twice: {document:#}");
    objects
}

/// Fails the case with every difference, not only the first one.
#[track_caller]
fn compare(truth: &Value, viewer: &str, document: &Value) {
    let (expected, told) = (expected(truth, viewer), told(document));
    let mut faults = Vec::new();
    for (key, expected) in &expected {
        match told.get(key) {
            None => faults.push(format!("{key:?} is not listed: {expected}")),
            Some(told) if told != expected => {
                faults.push(format!("{key:?}\n  is   {expected}\n  said {told}"));
            }
            Some(_) => {}
        }
    }
    let more = told.iter().filter(|(key, _)| !expected.contains_key(key));
    faults.extend(more.map(|(key, told)| format!("{key:?} is listed: {told}")));
    assert!(faults.is_empty(), "{viewer}:\n{}", faults.join("\n"));
}

fn list(workload: &Workload, places: &str) -> Value {
    let truth = &workload.truth;
    let grace = truth["grace"].as_str().unwrap();
    let list = rtrack(["list", "-A", "--json", "--assume-complete", "--grace", grace]);
    inside(&format!("join={}{places}", truth["inside"]), &list).finish().expect(0).json()
}

fn told_to_root() {
    let workload = start();
    let document = list(&workload, "");
    compare(&workload.truth, "root", &document);
    let listed = document["objects"].as_array().unwrap();
    let mut compared = 0;
    for object in workload.truth["objects"].as_array().unwrap() {
        for (what, number) in object["counted"].as_object().into_iter().flatten() {
            let found = listed.iter().find(|found| key(found) == key(object)).unwrap();
            let of = if found["kind"] == "mqueue" { "queue" } else { "sysv" };
            assert_eq!(&found[of][what], number, "{what}: {found:#}");
            compared += 1;
        }
    }
    assert!(compared >= 7, "{compared}");
}

fn told_to_an_ordinary_user() {
    let workload = start();
    let user = format!(":user={}", workload.truth["user"]);
    compare(&workload.truth, "user", &list(&workload, &user));
    let places = format!("join={}{user}", workload.truth["inside"]);
    let show = inside(&places, &rtrack(["show", "users-gone*"])).finish().expect(0).text();
    assert!(show.contains("owner     not known") && !show.contains("4294967295"), "{show}");
}

/// Killed, it cleans up nothing itself; neither does it when who asked for it is gone.
fn nothing_of_it_stays() {
    let processes = || {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.collect::<Vec<_>>()
    };
    let shm = || fs::read_dir("/dev/shm").unwrap().count();
    let before = processes();
    let workload = start();
    let most = processes();
    assert!(most.len() > before.len() + 20, "{most:?}");
    kill(workload.child.id());
    wait_for("the end of everything", || {
        let left = processes();
        left.iter().all(|pid| before.contains(pid) || *pid == workload.child.id()).then_some(())
    });
    drop(workload);
    assert_eq!(shm(), 0);
    for table in ["shm", "sem", "msg"] {
        let lines = fs::read_to_string(format!("/proc/sysvipc/{table}")).unwrap();
        assert_eq!(lines.lines().count(), 1, "{lines}");
    }
    // Its stdin ends.
    let mut workload = start();
    drop(workload.child.stdin.take());
    assert_eq!(workload.child.wait().unwrap().code(), Some(0));
    assert_eq!(processes(), before);
}
