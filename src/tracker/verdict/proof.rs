//! The proof that nothing can come back for an object.

use serde_json::json;

use super::{Code, Evidence, Facts, FamilyState, KinState, ProducerFacts, evidence};
use crate::tracker::evidence::lease::Lease;
use crate::tracker::evidence::producers::HeldWhileAlive;

/// The proof that nothing can come back for it; if there is none, what stands in its way.
pub(super) fn proving(facts: &Facts, found: &mut Vec<Evidence>) -> Result<Code, Code> {
    if facts.assumed_complete {
        found.push(evidence(
            Code::AssumedComplete,
            "the operator asserts that nothing outside this PID namespace uses the mount",
            &[],
        ));
    }
    if facts.shared_mode {
        found.push(evidence(
            Code::SharedMode,
            "its mode lets other users open it, so their processes count too",
            &[],
        ));
    }
    // What cannot be read may say of any name that it is kept, or who comes back for it.
    if let Some(broken) = &facts.catalogue_broken {
        let says =
            format!("nothing is proven while the catalogue of producers is broken: mend {broken}");
        found.push(evidence(Code::WeakProducer, says, &[]));
        return Err(Code::WeakProducer);
    }
    let by_producer = match &facts.producer {
        Some(producer) if facts.known_kind => prove_by_producer(facts, producer, found),
        _ => {
            let says = match facts.counts {
                Some(_) => "no known program makes objects of this key",
                None => "no known program makes objects of this name",
            };
            found.push(evidence(Code::UnknownProducer, says, &[]));
            Err(Code::UnknownProducer)
        }
    };
    let by_kin = prove_by_kin(facts, found);
    by_producer.or_else(|obstacle| by_kin.map_err(|_| obstacle))
}

/// `always-held-producer` and `no-family`.
fn prove_by_producer(
    facts: &Facts,
    producer: &ProducerFacts,
    found: &mut Vec<Evidence>,
) -> Result<Code, Code> {
    let fields = [("producer", json!(producer.id))];
    let weak = |found: &mut Vec<Evidence>, says: String| {
        found.push(evidence(Code::WeakProducer, says, &fields));
        Err(Code::WeakProducer)
    };
    let software = &producer.software;
    if !producer.proof {
        return weak(found, format!("the name fits {software}, but that proves nothing"));
    }
    let always = match producer.held {
        HeldWhileAlive::Mapped => Some("mapped"),
        HeldWhileAlive::Open => Some("open"),
        HeldWhileAlive::ByName | HeldWhileAlive::Unknown => None,
    };
    // Of System V objects only memory has holders that the kernel counts.
    let counted = facts.counts.as_ref().is_none_or(|counts| counts.attachments.is_some());
    if let Some(how) = always.filter(|_| counted) {
        // The other half of the proof: where it is missing the verdict is another one already.
        if !nobody_holds(facts) {
            return Err(Code::NoLease);
        }
        let says =
            format!("nobody has it {how}, and a live owner always would; made by {software}");
        found.push(evidence(Code::AlwaysHeldProducer, says, &fields));
        return Ok(Code::AlwaysHeldProducer);
    }
    let owners = if facts.shared_mode { "any user" } else { &facts.owner };
    let family = producer.family.as_deref().unwrap_or("such program");
    match &facts.family {
        FamilyState::NotDefined => {
            weak(found, format!("it may be needed while nobody has it open; made by {software}"))
        }
        // What was held when the processes were looked at is judged by the next look at them.
        FamilyState::NotAsked if facts.lease == Lease::Refused => Err(Code::PartialProcessSight),
        FamilyState::NotAsked => {
            let says = format!("whether a {family} is alive was not asked while it was held");
            found.push(evidence(Code::PartialProcessSight, says, &fields));
            Err(Code::PartialProcessSight)
        }
        FamilyState::Alive(who, count) => {
            let more = if *count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            found.push(evidence(
                Code::FamilyAlive,
                format!("{who}{more} may come back for it; made by {software}"),
                &[("pid", json!(who.pid)), ("count", json!(count))],
            ));
            Err(Code::FamilyAlive)
        }
        FamilyState::Unseen(who) => {
            found.push(evidence(
                Code::PartialProcessSight,
                format!("{who} could not be looked into and may be of its family"),
                &[("pid", json!(who.pid))],
            ));
            Err(Code::PartialProcessSight)
        }
        FamilyState::Gone if !facts.process_blind.is_empty() => {
            partial_process_sight(facts, found);
            Err(Code::PartialProcessSight)
        }
        FamilyState::Gone => match &facts.descendant {
            Some(who) => {
                found.push(evidence(
                    Code::FamilyAlive,
                    format!("{who} descends from the process that made it; made by {software}"),
                    &[("pid", json!(who.pid))],
                ));
                Err(Code::FamilyAlive)
            }
            None => {
                let says = format!(
                    "no {family} of {owners} is alive to come back for it; made by {software}"
                );
                found.push(evidence(Code::NoFamily, says, &fields));
                Ok(Code::NoFamily)
            }
        },
    }
}

/// Whether it is known that nobody holds it: by the kernel's answer, or by sight of everything.
fn nobody_holds(facts: &Facts) -> bool {
    let asked = facts.lease == Lease::Granted
        || facts.lease != Lease::Refused && facts.holder_blind.is_empty();
    asked
        && facts.holders.is_empty()
        && facts.mounted.is_empty()
        && facts.perhaps_mounted.is_empty()
}

/// `no-kin`: whoever made it, nobody of its owner's is left, and nobody else may open it.
fn prove_by_kin(facts: &Facts, found: &mut Vec<Evidence>) -> Result<Code, ()> {
    if !facts.known_kind || facts.shared_mode {
        return Err(());
    }
    match &facts.kin {
        KinState::SystemUser => Err(()),
        KinState::Alive(who, count) => {
            let more = if *count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            found.push(evidence(
                Code::KinAlive,
                format!("processes of {} are alive: {who}{more}", facts.owner),
                &[("pid", json!(who.pid)), ("count", json!(count))],
            ));
            Err(())
        }
        KinState::Gone if !facts.process_blind.is_empty() => {
            partial_process_sight(facts, found);
            Err(())
        }
        KinState::Gone if facts.descendant.is_some() => Err(()),
        KinState::Gone => {
            let says =
                format!("no process of {} is alive, and nobody else may open it", facts.owner);
            found.push(evidence(Code::NoKin, says, &[]));
            Ok(Code::NoKin)
        }
    }
}

fn partial_process_sight(facts: &Facts, found: &mut Vec<Evidence>) {
    if found.iter().all(|evidence| evidence.code != Code::PartialProcessSight) {
        let says = format!("not all processes can be seen: {}", facts.process_blind.join("; "));
        found.push(evidence(Code::PartialProcessSight, says, &[]));
    }
}
