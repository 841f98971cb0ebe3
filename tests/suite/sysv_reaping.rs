//! System V objects: what `reap` does with them, whatever comes between.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::sysv::{
    attach, by, detach, line, mode, operate, queue, remove_segment, segment, semaphores, send,
    set_mode,
};
use crate::support::{
    Case, Finish, Finished, Need, case, hold, inventory, kill, list, rtrack, scratch, somebody,
    stopped_before, stopped_before_each, verdict, wait_for,
};
use crate::sysv::{abandoned, attached, found};

pub(crate) fn tests() -> Vec<Case> {
    const ROOT: &[Need] = &[Need::RealRoot, Need::PidNamespace];
    vec![
        case("each_kind_goes", each_kind_goes),
        case("somebody_waits_for_a_message", somebody_waits_for_a_message).needs(ROOT),
        case("only_what_is_orphaned", only_what_is_orphaned).needs(ROOT),
        case("attached_after_the_judgement", attached_after_the_judgement),
        case("used_after_the_judgement", used_after_the_judgement),
        case("attached_while_it_is_closed", attached_while_it_is_closed).needs(ROOT),
        case("attached_at_the_last_moment", attached_at_the_last_moment),
        case("changed_or_gone_meanwhile", changed_or_gone_meanwhile),
        case("permissions_to_execute", permissions_to_execute),
        case("killed_at_every_call", killed_at_every_call),
        case("plans", plans),
        case("edited_plans", edited_plans),
        case("without_an_archive", without_an_archive),
        case("of_somebody_else", of_somebody_else).needs(ROOT),
        case("what_is_recorded", what_is_recorded),
    ]
}

/// `reap` of one object by force, the operator's word being enough; not yet started.
fn force(name: &str) -> Command {
    let mut reap = rtrack(["reap", "--yes", "--json", "--no-audit", "--grace", "0s"]);
    reap.args(["--force", name]);
    reap
}

fn shm(id: i32) -> String {
    format!("sysv-shm:{id}")
}

/// Runs `command` and calls `meanwhile` before each of its calls about shared memory, with how many there
/// were before; answers with what became of the segment.
fn meanwhile(id: i32, mut work: impl FnMut(u32)) -> String {
    let mut command = force(&shm(id));
    command.stdout(fs::File::create("report").unwrap());
    stopped_before(libc::SYS_shmctl, &mut command, |stops, _| work(stops));
    let report: Value = serde_json::from_slice(&fs::read("report").unwrap()).unwrap();
    crate::support::validate(&report);
    found(&report, &shm(id))["outcome"].as_str().unwrap().to_owned()
}

/// Its calls about a segment, in order.
const LOOK: u32 = 0;
const CLOSE: u32 = 1;
const LOOK_AGAIN: u32 = 2;
const REMOVE: u32 = 3;

fn each_kind_goes() {
    let memory = segment(0, 4096, 0o600);
    let set = semaphores(0, 2, 0o600);
    let messages = queue(0, 0o600);
    send(messages);
    for (name, table, id) in [
        (shm(memory), "shm", memory),
        (format!("sysv-sem:{set}"), "sem", set),
        (format!("sysv-msg:{messages}"), "msg", messages),
    ] {
        let report = force(&name).finish().expect(0).json();
        assert_eq!(found(&report, &name)["outcome"], "reaped");
        assert_eq!(line(table, id), None);
    }
}

/// Root may wait at a queue whose owner is nobody's kin, and no count tells of that.
fn somebody_waits_for_a_message() {
    let user = somebody();
    let make = |key| i32::from(by(user, || queue(key, 0o600).try_into().unwrap()));
    let (waited_at, other) = (make(9), make(10));
    let _waiter = hold("sysv-receiving", attached(waited_at));
    let document = wait_for("somebody who waits for a message", || {
        let document = list();
        let object = found(&document, &format!("sysv-msg:{waited_at}"));
        (object["verdict"] == "held").then_some(document)
    });
    assert_eq!(found(&document, &format!("sysv-msg:{waited_at}"))["reason"], "attached");
    assert_eq!(found(&document, &format!("sysv-msg:{other}"))["reason"], "no-kin");
    let mut reap = rtrack(["reap", "--yes", "--json", "--grace", "0s", "--assume-complete"]);
    reap.finish().expect(0);
    let left = |id| line("msg", id).is_some();
    assert!(left(waited_at) && !left(other));
    // Nor by force.
    let forced = force(&format!("sysv-msg:{waited_at}")).finish().expect(1).json();
    assert_eq!(found(&forced, &format!("sysv-msg:{waited_at}"))["outcome"], "held");
}

fn only_what_is_orphaned() {
    let gone = abandoned(5, 0o600);
    let shared = abandoned(6, 0o644);
    let own = segment(7, 4096, 0o600);
    let held = abandoned(8, 0o600);
    let holder = hold("sysv-attached", attached(held));
    let reap = |more: &[&str]| {
        let mut reap = rtrack(["reap", "--yes", "--json", "--grace", "0s", "--assume-complete"]);
        reap.args(more).finish().expect(0).json()
    };
    let report = reap(&[]);
    assert_eq!(found(&report, &shm(gone))["outcome"], "reaped");
    let left = |id| line("shm", id).is_some();
    assert!(!left(gone) && left(shared) && left(own) && left(held));
    reap(&["--verdict", "orphaned,unclaimed"]);
    assert!(!left(shared) && left(own) && left(held));
    drop(holder);
}

fn attached_after_the_judgement() {
    let id = segment(0, 4096, 0o600);
    let mut address = None;
    let outcome = meanwhile(id, |stops| {
        if stops == CLOSE {
            address = Some(attach(id).unwrap());
        }
    });
    assert_eq!((outcome.as_str(), mode(id).as_deref()), ("opened-meanwhile", Some("600")));
    detach(address.unwrap());
    // Whoever has come and gone may come again: the process tells it, within the second of another use
    // as well.
    for at in [LOOK, CLOSE] {
        let outcome = meanwhile(id, |stops| {
            if stops == at {
                drop(hold("sysv-attached-and-detached", attached(id)));
            }
        });
        assert_eq!((outcome.as_str(), mode(id).as_deref()), ("refused", Some("600")), "{at}");
    }
}

/// Semaphores and queues are looked at once more, and nothing that somebody did meanwhile goes.
fn used_after_the_judgement() {
    let set = semaphores(0, 2, 0o600);
    let messages = queue(0, 0o600);
    let names = [format!("sysv-sem:{set}"), format!("sysv-msg:{messages}")];
    let outcome = |name: &str, call, work: &mut dyn FnMut()| {
        let mut command = force(name);
        command.stdout(fs::File::create("report").unwrap());
        // The calls before are those of the list.
        let before = if call == libc::SYS_semctl { 8 } else { 0 };
        stopped_before(call, &mut command, |stops, _| {
            if stops == before {
                work();
            }
        });
        let report: Value = serde_json::from_slice(&fs::read("report").unwrap()).unwrap();
        found(&report, name)["outcome"].as_str().unwrap().to_owned()
    };
    assert_eq!(outcome(&names[0], libc::SYS_semctl, &mut || operate(set, 1, 1)), "refused");
    let mut waiter = None;
    let mut wait = || {
        waiter = Some(hold("sysv-waiting", attached(set)));
        wait_for("the waiter", || {
            let document = inventory();
            (found(&document, &names[0])["sysv"]["waiting"] == 1).then_some(())
        });
    };
    assert_eq!(outcome(&names[0], libc::SYS_semctl, &mut wait), "held");
    drop(waiter);
    assert_eq!(outcome(&names[1], libc::SYS_msgctl, &mut || send(messages)), "refused");
    assert!(line("sem", set).is_some() && line("msg", messages).is_some());
}

/// Its owner cannot attach a closed segment; root can, and is noticed.
fn attached_while_it_is_closed() {
    let id = abandoned(5, 0o640);
    let mut refused = 0;
    let outcome = meanwhile(id, |stops| {
        if stops > CLOSE && line("shm", id).is_some() {
            assert_eq!(mode(id).unwrap(), "310");
            refused += by(somebody(), || attach(id).is_err().into());
        }
    });
    assert_eq!((outcome.as_str(), refused), ("reaped", 2));

    let id = abandoned(6, 0o640);
    let mut address = None;
    let outcome = meanwhile(id, |stops| {
        if stops == LOOK_AGAIN {
            address = Some(attach(id).unwrap());
        }
    });
    assert_eq!((outcome.as_str(), mode(id).as_deref()), ("opened-meanwhile", Some("640")));
    detach(address.unwrap());
}

fn attached_at_the_last_moment() {
    let id = segment(0, 4096, 0o600);
    let mut address = None;
    let outcome = meanwhile(id, |stops| {
        if stops == REMOVE {
            address = Some(attach(id).unwrap());
        }
    });
    assert_eq!(outcome, "opened-at-removal");
    // It lives on without a name, as long as somebody has it.
    let document = inventory();
    assert_eq!(found(&document, &shm(id))["deleted"], true);
    assert_eq!(verdict(&document, &id.to_string()).0, "held");
    detach(address.unwrap());
    assert_eq!(line("shm", id), None);
}

fn changed_or_gone_meanwhile() {
    for (at, wanted) in [(LOOK, "gone"), (CLOSE, "gone"), (LOOK_AGAIN, "gone"), (REMOVE, "gone")] {
        let id = segment(0, 4096, 0o600);
        let outcome = meanwhile(id, |stops| {
            if stops == at {
                remove_segment(id);
            }
        });
        assert_eq!(outcome, wanted, "{at}");
    }
    let id = segment(0, 4096, 0o600);
    let outcome = meanwhile(id, |stops| {
        if stops == LOOK {
            set_mode(id, 0o660);
        }
    });
    assert_eq!((outcome.as_str(), mode(id).as_deref()), ("refused", Some("660")));
    // What somebody gives it while it is closed is not taken away again.
    let outcome = meanwhile(id, |stops| {
        if stops == LOOK_AGAIN {
            set_mode(id, 0o666);
        }
    });
    assert_eq!((outcome.as_str(), mode(id).as_deref()), ("refused", Some("666")));
}

/// What they were could not be told afterwards.
fn permissions_to_execute() {
    let id = segment(0, 4096, 0o700);
    let mut seen = Vec::new();
    let outcome = meanwhile(id, |_| seen.extend(mode(id)));
    assert_eq!(outcome, "reaped");
    assert!(seen.iter().all(|mode| mode == "700") && seen.len() == 3, "{seen:?}");
}

/// Whatever the call, it is gone afterwards, or has its permissions again after the next reap.
fn killed_at_every_call() {
    let mut closed = 0;
    for step in 0.. {
        let id = segment(0, 4096, 0o640);
        let (mut began, mut calls) = (false, 0);
        let status = stopped_before_each(&mut force(&shm(id)), |call, pid| {
            began |= call.number == libc::SYS_shmctl;
            if began && calls == step {
                kill(pid);
            }
            calls += usize::from(began);
        });
        match mode(id).as_deref() {
            None | Some("640") => {}
            Some("310") => {
                closed += 1;
                let list = rtrack(["list", "--json"]).finish().expect(0);
                assert!(list.stderr.contains(&format!("{}: closed by", shm(id))), "{list:?}");
                let dry = rtrack(["reap", "-n", "--json"]).finish().expect(0);
                assert!(dry.stderr.contains("gets its permissions back"), "{dry:?}");
                assert_eq!(mode(id).as_deref(), Some("310"));
                let run = rtrack(["reap", "--yes", "--json", "--no-audit"]).finish().expect(0);
                assert_eq!(run.json()["settled"][0]["put_back"], json!([id.to_string()]));
                assert_eq!(mode(id).as_deref(), Some("640"));
            }
            other => panic!("{step}: {other:?}"),
        }
        if line("shm", id).is_some() {
            remove_segment(id);
        }
        if status.code().is_some() {
            break;
        }
    }
    assert!(closed >= 2, "{closed}");
    // One that was to go anyway goes.
    let id = segment(0, 4096, 0o310);
    force(&shm(id)).finish().expect(0);
    assert_eq!(line("shm", id), None);
}

/// A plan for these objects by force.
fn plan(ids: &[i32]) -> Value {
    let mut dry = rtrack(["reap", "--dry-run", "--json", "--grace", "0s"]);
    for id in ids {
        dry.args(["--force", &shm(*id)]);
    }
    dry.finish().expect(0).json()
}

fn carry_out(plan: &Value) -> Finished {
    let place = scratch().join("plan.json");
    fs::write(&place, serde_json::to_vec(plan).unwrap()).unwrap();
    rtrack(["reap", "--yes", "--json", "--no-audit", "--from", place.to_str().unwrap()]).finish()
}

fn plans() {
    let ids: Vec<i32> = (1..=5).map(|key| segment(key, 4096, 0o600)).collect();
    let plan = plan(&ids);
    remove_segment(ids[1]);
    set_mode(ids[2], 0o660);
    let address = attach(ids[3]).unwrap();
    detach(attach(ids[4]).unwrap());
    let report = carry_out(&plan).expect(1).json();
    for (id, wanted) in ids.iter().zip(["reaped", "gone", "refused", "held", "refused"]) {
        assert_eq!(found(&report, &shm(*id))["outcome"], wanted, "{report:#}");
    }
    detach(address);
}

fn edited_plans() {
    let id = segment(5, 4096, 0o600);
    let plan = plan(&[id]);
    for (field, value) in [
        ("key", json!("0x00000006")),
        ("creator_uid", json!(4711)),
        ("creator_pid", json!(4711)),
        ("creator_pid", Value::Null),
    ] {
        let mut edited = plan.clone();
        edited["objects"][0]["sysv"][field] = value;
        let report = carry_out(&edited).expect(1).json();
        assert_eq!(found(&report, &shm(id))["outcome"], "changed", "{field}");
    }
    let mut edited = plan.clone();
    edited["objects"][0]["changed_at"] = json!("2001-01-01T00:00:00Z");
    let report = carry_out(&edited).expect(1).json();
    assert_eq!(found(&report, &shm(id))["outcome"], "refused");
    for (pointer, value, field) in [
        ("/sysv", Value::Null, "sysv"),
        ("/sysv/key", json!("5"), "sysv.key"),
        ("/sysv/locked", Value::Null, "sysv.locked"),
        ("/ino", json!(id + 1), "name"),
        ("/dev", json!("0:1"), "dev"),
        ("/kind", json!("shm"), "dev"),
    ] {
        let mut edited = plan.clone();
        *edited["objects"][0].pointer_mut(pointer).unwrap() = value;
        let run = carry_out(&edited).expect(3);
        let said = format!("plan is refused: objects[0].{field}: ");
        assert!(run.stderr.contains(&said), "{pointer}: {run:?}");
    }
    assert!(line("shm", id).is_some());
    carry_out(&plan).expect(0);
    assert_eq!(line("shm", id), None);
}

fn without_an_archive() {
    let id = segment(0, 4096, 0o600);
    let mut reap = force(&shm(id));
    let run = reap.args(["--archive", "archive"]).finish().expect(1);
    assert_eq!(found(&run.json(), &shm(id))["outcome"], "refused");
    assert!(run.text().contains("--archive cannot save it"), "{run:?}");
    assert!(line("shm", id).is_some());
}

/// Only its owner, who made it, and root may remove it; nobody else plans to.
fn of_somebody_else() {
    let id = abandoned(5, 0o600);
    let other = somebody() + 1;
    let mut reap = rtrack(["reap", "--yes", "--grace", "0s", "--assume-complete", "--no-audit"]);
    let run = reap.as_user(other).finish().expect(0);
    assert!(line("shm", id).is_some(), "{run:?}");
    let run = force(&shm(id)).as_user(other).finish().expect(1);
    assert!(run.text().contains("only its owner"), "{run:?}");
    // Its owner can, and cannot look at what is closed: that is not needed.
    force(&shm(id)).as_user(somebody()).finish().expect(0);
    assert_eq!(line("shm", id), None);
}

fn what_is_recorded() {
    let id = segment(0x77, 4096, 0o600);
    let mut reap = rtrack(["reap", "--yes", "--audit", "audit.jsonl", "--force", &shm(id)]);
    reap.finish().expect(0);
    let text = fs::read_to_string("audit.jsonl").unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{text}");
    for line in &lines {
        crate::support::validate(line);
        assert_eq!(
            (&line["object"]["id"], &line["object"]["key"]),
            (&shm(id).into(), &"0x00000077".into())
        );
        assert_eq!(line["object"]["creator_pid"], std::process::id());
    }
    let log = rtrack(["log", "--audit", "audit.jsonl", &shm(id)]).finish();
    assert!(log.text().contains(&shm(id)), "{log:?}");
}
