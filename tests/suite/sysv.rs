//! System V objects: what is listed of them, who holds them, and their verdicts.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::sysv::{
    attach, by, detach, line, operate, queue, receive, remove_segment, segment, segment_of,
    semaphores, send, set_mode,
};
use crate::support::{
    Case, Finish, Need, case, hold, hold_as, inside, inventory, known, list, listed, named, object,
    rtrack, somebody, verdict, wait_for,
};

pub(crate) fn tests() -> Vec<Case> {
    const OWN_PIDS: &[Need] = &[Need::PidNamespace];
    const ROOT: &[Need] = &[Need::RealRoot, Need::PidNamespace];
    vec![
        case("what_is_listed", what_is_listed),
        case("how_they_are_named", how_they_are_named),
        case("holders_of_memory", holders_of_memory),
        case("equal_ids_of_another_namespace", equal_ids_of_another_namespace),
        case("removed_and_still_attached", removed_and_still_attached),
        case("semaphores_and_who_waits", semaphores_and_who_waits),
        case("a_set_that_cannot_be_read", a_set_that_cannot_be_read).needs(ROOT),
        case("messages_that_nobody_read", messages_that_nobody_read),
        case("of_no_kin", of_no_kin).needs(ROOT),
        case("of_who_made_it", of_who_made_it).needs(ROOT),
        case("of_who_used_it_last", of_who_used_it_last).needs(ROOT),
        case("of_whom_nobody_sees", of_whom_nobody_sees).needs(ROOT),
        case("of_known_producers", of_known_producers).needs(OWN_PIDS),
        case("of_the_young", of_the_young),
        case("the_third_comes_back", the_third_comes_back).needs(ROOT),
    ]
}

/// The name of a segment that a fixture attaches.
pub(crate) fn attached(id: i32) -> PathBuf {
    id.to_string().into()
}

/// The object of this kind and id in a document.
#[track_caller]
pub(crate) fn found<'a>(document: &'a Value, id: &str) -> &'a Value {
    let objects = document["objects"].as_array().unwrap();
    let object = objects.iter().find(|object| object["id"] == id);
    object.unwrap_or_else(|| panic!("{id} is not in {document:#}"))
}

/// A segment of somebody's, of whom no process is left.
pub(crate) fn abandoned(key: i32, mode: i32) -> i32 {
    by(somebody(), || {
        segment(key, 4096, mode);
        0
    });
    segment_of(key)
}

fn what_is_listed() {
    let memory = segment(-2, 8192, 0o640);
    let set = semaphores(0x1234, 3, 0o600);
    let messages = queue(0, 0o600);
    send(messages);
    send(messages);
    let document = inventory();
    let object = found(&document, &format!("sysv-shm:{memory}"));
    assert_eq!(object["kind"], "sysv-shm");
    assert_eq!((&object["size"], &object["mode"]), (&8192.into(), &"0640".into()));
    assert_eq!((&object["dev"], &object["ino"]), (&"0:0".into(), &memory.into()));
    assert_eq!((&object["born_at"], &object["deleted"]), (&Value::Null, &false.into()));
    let sysv = &object["sysv"];
    assert_eq!((&sysv["key"], &sysv["attachments"]), (&"0xfffffffe".into(), &0.into()));
    assert_eq!((&sysv["attached_at"], &sysv["locked"]), (&Value::Null, &false.into()));
    assert_eq!(object["creator"]["pid"], std::process::id());
    assert_eq!(
        (&object["creator"]["alive"], &object["creator"]["from"]),
        (&true.into(), &"ipc".into())
    );
    let object = found(&document, &format!("sysv-sem:{set}"));
    assert_eq!((&object["sysv"]["semaphores"], &object["sysv"]["waiting"]), (&3.into(), &0.into()));
    let object = found(&document, &format!("sysv-msg:{messages}"));
    assert_eq!((&object["sysv"]["messages"], &object["size"]), (&2.into(), &10.into()));
    assert_eq!(object["sysv"]["sender_pid"], std::process::id());
    assert_eq!(
        (&object["sysv"]["receiver_pid"], &object["sysv"]["received_at"]),
        (&0.into(), &Value::Null)
    );
    let text = rtrack(["show", "--grace", "0s", &format!("sysv-shm:{memory}")]).finish().expect(0);
    for said in ["0xfffffffe", "System V shared memory, mode 0640", "0 times", "last: never"] {
        assert!(text.text().contains(said), "{said}: {}", text.text());
    }
    let text = rtrack(["list", "-o", "id,sysv", "--kind", "sysv-msg"]).finish().expect(0).text();
    assert!(text.contains("(2 messages)") && !text.contains("sysv-shm"), "{text}");
}

fn how_they_are_named() {
    let (memory, set) = (segment(1, 1, 0o600), semaphores(1, 1, 0o600));
    assert_eq!(memory, set, "the first of each");
    object().make(memory.to_string());
    let show = |name: &str| rtrack(["show", "--json", "--grace", "0s", name]).finish();
    let ids = |name: &str| {
        let document = show(name).expect(0).json();
        let ids = document["objects"].as_array().unwrap().iter().map(|o| o["id"].to_string());
        ids.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ids(&format!("sysv-sem:{set}")), format!("\"sysv-sem:{set}\""));
    assert_eq!(ids(&format!("/dev/shm/{memory}")), format!("\"shm:{memory}\""));
    assert_eq!(ids(&format!("/{memory}")), format!("\"shm:{memory}\""));
    assert_eq!(ids("sysv-shm:*"), format!("\"sysv-shm:{memory}\""));
    let several = show(&memory.to_string()).expect(2);
    assert!(several.stderr.contains("sysv-sem:"), "{several:?}");
    let none = show("sysv-shm:999").expect(1);
    assert!(none.stderr.contains("no such object") && !none.stderr.contains("only"), "{none:?}");
    let kinds = rtrack(["list", "--kind", "sysv-shm,sysv-sem", "-0"]).finish().expect(0).text();
    assert_eq!(kinds.matches('\0').count(), 2, "{kinds}");
    rtrack(["reap", "--yes", "--no-audit", "--exact", "--force", &format!("sysv-sem:{set}")])
        .finish()
        .expect(0);
    assert!(line("sem", set).is_none() && line("shm", memory).is_some());
}

fn holders_of_memory() {
    let id = segment(0, 4096, 0o600);
    let name = id.to_string();
    let holders = [hold("sysv-attached", attached(id)), hold("sysv-attached", attached(id))];
    let twice = hold("sysv-attached-by-a-child-too", attached(id));
    let document = inventory();
    assert_eq!(verdict(&document, &name), ("held", "mapped-by"));
    known(&document, &name, "attached");
    assert_eq!(listed(&document, &name)["sysv"]["attachments"], 4);
    for holder in &holders {
        named(&document, &name, holder.pid);
    }
    named(&document, &name, twice.pid);
    let text = rtrack(["show", &name]).finish().expect(0).text();
    assert!(text.contains("shared map rw- of 4.0 KiB"), "{text}");
    rtrack(["reap", "--yes", "--no-audit", "--force", &name]).finish().expect(1);
    drop((holders, twice));
    wait_for("their end", || (line("shm", id)?[6] == "0").then_some(()));
    let document = inventory();
    assert_eq!(listed(&document, &name)["holders"], Value::Array(Vec::new()));
    assert_ne!(verdict(&document, &name).0, "held");
}

/// Ids begin anew in each IPC namespace.
fn equal_ids_of_another_namespace() {
    let id = segment(0, 4096, 0o600);
    let other = hold("own-ipc:sysv-made-and-attached", attached(id));
    let memfd = hold("memfd-under-the-number", attached(id));
    let document = inventory();
    let object = listed(&document, &id.to_string());
    assert_eq!(object["holders"], Value::Array(Vec::new()), "{object:#}");
    assert_eq!(object["sysv"]["attachments"], 0);
    drop((other, memfd));
}

fn removed_and_still_attached() {
    let id = segment(0x77, 4096, 0o600);
    let holder = hold("sysv-attached", attached(id));
    remove_segment(id);
    let name = format!("sysv-shm:{id}");
    let document = inventory();
    let object = found(&document, &name);
    assert_eq!((&object["deleted"], &object["verdict"]), (&true.into(), &"held".into()));
    named(&document, &id.to_string(), holder.pid);
    let run =
        rtrack(["reap", "--yes", "--json", "--no-audit", "--force", &name]).finish().expect(1);
    assert_eq!(found(&run.json(), &name)["outcome"], "held");
    let text = rtrack(["show", &name]).finish().expect(0).text();
    assert!(text.contains("removed already") && text.contains(&holder.pid.to_string()), "{text}");
    drop(holder);
    wait_for("its end", || line("shm", id).is_none().then_some(()));
}

fn semaphores_and_who_waits() {
    let set = semaphores(0, 70, 0o600);
    operate(set, 2, 5);
    let name = format!("sysv-sem:{set}");
    let waiter = hold("sysv-waiting", attached(set));
    let asked = wait_for("the waiter", || {
        let document = inventory();
        (found(&document, &name)["sysv"]["waiting"] == 1).then_some(document)
    });
    assert_eq!(verdict(&asked, &set.to_string()), ("held", "attached"));
    let show = rtrack(["show", "--json", &name]).finish().expect(0).json();
    let all = found(&show, &name)["semaphores"].as_array().unwrap().clone();
    assert_eq!((all.len(), &all[0]["waiting"]), (64, &1.into()));
    assert_eq!((&all[2]["value"], &all[2]["pid"]), (&5.into(), &std::process::id().into()));
    let text = rtrack(["show", &name]).finish().expect(0).text();
    for said in ["70 semaphores", "0: value 0, 1 waiting", "and 6 more"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let run = rtrack(["reap", "--yes", "--no-audit", "--force", &name]).finish().expect(1);
    assert!(run.text().contains("held"), "{run:?}");
    drop(waiter);
    assert_ne!(verdict(&inventory(), &set.to_string()).0, "held");
}

/// Who waits at a set is told to those only who may read it.
fn a_set_that_cannot_be_read() {
    let set = semaphores(0, 1, 0o600);
    let mut list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
    let document = list.as_user(somebody()).finish().expect(0).json();
    assert_eq!(verdict(&document, &set.to_string()), ("unknown", "no-permission"));
    assert_ne!(verdict(&inventory(), &set.to_string()).0, "unknown");
}

fn messages_that_nobody_read() {
    let id = queue(0, 0o600);
    let name = id.to_string();
    // The claim of whoever sent it last would hide the other one.
    let child = hold("sysv-sending", attached(id));
    drop(child);
    let document = inventory();
    known(&document, &name, "unread");
    assert_eq!(verdict(&document, &name), ("claimed", "unread"));
    receive(id);
    assert_eq!(verdict(&inventory(), &name), ("claimed", "creator-alive"));
}

fn of_no_kin() {
    let id = abandoned(5, 0o600);
    let name = id.to_string();
    let set = by(somebody(), || u8::try_from(semaphores(6, 1, 0o600)).unwrap());
    let document = list();
    assert_eq!(verdict(&document, &name), ("orphaned", "no-kin"));
    assert_eq!(found(&document, &format!("sysv-sem:{set}"))["verdict"], "orphaned");
    known(&document, &name, "creator-dead");
    // With anybody of the owner's, or of whoever made it, it is not.
    let kin = hold_as(somebody(), "nothing", "none");
    let document = list();
    assert_eq!(verdict(&document, &name), ("unclaimed", "unknown-producer"));
    known(&document, &name, "kin-alive");
    drop(kin);
    set_mode(id, 0o666);
    assert_eq!(verdict(&list(), &name), ("unclaimed", "unknown-producer"));
    set_mode(id, 0o600);
    assert_eq!(verdict(&list(), &name), ("orphaned", "no-kin"));
    // Without sight of all processes nothing is proven.
    assert_eq!(verdict(&inventory(), &name), ("unclaimed", "unknown-producer"));
}

/// A daemon that took somebody's uid and group to make it, and gave them back, leaves a trace.
fn of_who_made_it() {
    let maker = hold("effective-uid-for-a-moment", somebody().to_string());
    let id = segment_of(0x66);
    let owner = line("shm", id).unwrap();
    assert_eq!(owner[7], somebody().to_string(), "{owner:?}");
    assert_eq!(verdict(&list(), &id.to_string()), ("claimed", "creator-alive"));
    drop(maker);
    assert_eq!(verdict(&list(), &id.to_string()), ("orphaned", "no-kin"));
}

/// A process of root's that used it last may use it again.
fn of_who_used_it_last() {
    let id = abandoned(5, 0o600);
    let user = hold("sysv-attached-and-detached", attached(id));
    let document = list();
    assert_eq!(verdict(&document, &id.to_string()), ("claimed", "creator-alive"));
    drop(user);
    assert_eq!(verdict(&list(), &id.to_string()), ("orphaned", "no-kin"));
}

/// A process that is not visible here is not gone.
fn of_whom_nobody_sees() {
    let id = abandoned(5, 0o600);
    let list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
    let document = inside("own-pids:own-proc", &list).finish().expect(0).json();
    let object = listed(&document, &id.to_string());
    assert_eq!((&object["sysv"]["creator_pid"], &object["creator"]), (&0.into(), &Value::Null));
    assert_eq!(object["verdict"], "unclaimed", "{object:#}");
    known(&document, &id.to_string(), "partial-process-sight");
}

/// The catalogue knows them by key and size.
fn of_known_producers() {
    for (key, size, wanted) in [
        (0x0000_dada, 4096, ("claimed", "persistent", Some("psrdada"))),
        (0x4e54_5030, 96, ("claimed", "persistent", Some("ntp-refclock"))),
        (0, 4096, ("claimed", "creator-alive", Some("ipc-private-shm"))),
        (0x2000_0001, 4096, ("claimed", "creator-alive", None)),
    ] {
        let id = segment(key, size, 0o600).to_string();
        let document = list();
        let (word, reason) = verdict(&document, &id);
        let producer = listed(&document, &id)["producer"]["id"].as_str();
        assert_eq!((word, reason, producer), wanted, "{key:x}");
    }
    let set = semaphores(0x0028_2929, 1, 0o600);
    let document = list();
    let object = found(&document, &format!("sysv-sem:{set}"));
    assert_eq!(object["producer"]["id"], "jack-registry-sem");
}

fn of_the_young() {
    let id = segment(0, 4096, 0o600);
    let list = rtrack(["list", "--json"]).finish().expect(0).json();
    known(&list, &id.to_string(), "too-young");
    detach(attach(id).unwrap());
    let times = line("shm", id).unwrap();
    assert_ne!((&times[11], &times[12]), (&"0".to_owned(), &"0".to_owned()), "{times:?}");
}

/// Creator and last user are dead, and a third process of the same user comes back; with less sight too.
fn the_third_comes_back() {
    let uid = somebody();
    let third = hold_as(uid, "nothing", "none");
    let id = abandoned(5, 0o600);
    let name = id.to_string();
    by(uid, || {
        detach(attach(id).unwrap());
        0
    });
    let document = list();
    assert_eq!(verdict(&document, &name), ("unclaimed", "unknown-producer"));
    for code in ["creator-dead", "kin-alive"] {
        known(&document, &name, code);
    }
    let reap = rtrack(["reap", "--yes", "--no-audit", "--grace", "0s", "--assume-complete"]);
    inside("own-pids:own-proc", &reap).finish().expect(0);
    inside("", &reap).finish().expect(0);
    by(uid, || {
        detach(attach(id).unwrap());
        0
    });
    drop(third);
}
