//! What `reap` would do with each object: a pure function of its verdict.

pub mod document;

use super::evidence::lease::Lease;
use super::reap::Manner;
use super::resource::Kind;
use super::verdict::{Code, Facts, Judgement, KinState, Verdict};

/// What is to be done with one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Remove it so, as long as its verdict does not become weaker than this one.
    Remove(Manner, Verdict),
    /// It was asked for, and will not be done: why.
    Refuse(Verdict, String),
    /// Nothing: its verdict is not among those to reap.
    Leave,
}

/// Plans one object. `verdicts` are those to reap; with `force` the operator has named it and
/// overrides everything but `held`.
#[must_use]
pub fn step(
    kind: Kind,
    lease: Lease,
    judgement: &Judgement,
    verdicts: &[Verdict],
    force: bool,
) -> Step {
    if judgement.verdict == Verdict::Held {
        return if force { Step::Refuse(Verdict::Held, by_whom(judgement)) } else { Step::Leave };
    }
    let asked = judgement.verdict.reapability() > 0 && verdicts.contains(&judgement.verdict);
    if !asked && !force {
        return Step::Leave;
    }
    match kind {
        Kind::Dir => Step::Remove(Manner::Directory, judgement.verdict),
        Kind::Other => Step::Remove(Manner::Unleased, judgement.verdict),
        Kind::SysvShm | Kind::SysvSem | Kind::SysvMsg => {
            Step::Remove(Manner::ById, judgement.verdict)
        }
        Kind::Shm | Kind::Sem | Kind::Mqueue => {
            let manner = match lease {
                // Not asked means that the answer did not matter to a claim: now it does.
                Lease::Granted | Lease::Refused | Lease::NotAsked => Manner::Leased,
                Lease::NoPermission | Lease::Unsupported => Manner::Unleased,
            };
            Step::Remove(manner, judgement.verdict)
        }
    }
}

/// By whom something is held, as far as they were found.
fn by_whom(judgement: &Judgement) -> String {
    let told = [Code::MappedBy, Code::OpenBy, Code::Attached, Code::Mounted];
    let holders = judgement.evidence.iter().filter(|piece| told.contains(&piece.code));
    let holders: Vec<&str> = holders.map(|piece| piece.says.as_str()).collect();
    if holders.is_empty() { judgement.says().to_owned() } else { holders.join("; ") }
}

/// What `reap` does with an object, and what would change that: for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outlook {
    /// What `reap` does.
    pub does: String,
    /// What would change it.
    pub changes: String,
}

/// The outlook of an object, by its verdict and what that was made of.
#[must_use]
pub fn outlook(judgement: &Judgement, facts: &Facts) -> Outlook {
    let does = match judgement.verdict {
        Verdict::Held => "leaves it, and refuses it even by force",
        _ if judgement.reason == Code::NoPermission => {
            "leaves it; only its owner and root can remove it"
        }
        Verdict::Claimed | Verdict::Unknown => "leaves it; reap --force NAME would remove it",
        Verdict::Unclaimed => "leaves it; reap --verdict orphaned,unclaimed would remove it",
        Verdict::Orphaned => "removes it",
    };
    let changes = match judgement.reason {
        Code::LeaseRefused | Code::MappedBy | Code::OpenBy | Code::Attached => {
            "when the last of its holders lets it go, it is judged anew".into()
        }
        Code::Mounted => "when it is mounted nowhere any more, it is judged anew".into(),
        Code::Persistent => "nothing: it is meant to outlive those who use it".into(),
        Code::CreatorAlive => "when the process that made it ends, it is judged anew".into(),
        Code::GuardianAlive => {
            "that process removes it itself, or ends, and it is judged anew".into()
        }
        Code::Registered => "the tracker that it is registered with removes it at its end".into(),
        Code::Unread => "when its messages are read, it is judged anew".into(),
        Code::TooYoung => "with the time, or with a shorter --grace, it is judged anew".into(),
        Code::Locked => "when the lock is given back, it is judged anew".into(),
        Code::NoPermission => "root, or its owner, can ask the kernel".into(),
        Code::PartialHolderSight => "when that mount or overlay is gone, it is judged anew".into(),
        Code::NoLease if !facts.known_kind => {
            "nothing: who uses such a file cannot be found out".into()
        }
        Code::NoLease => "complete sight of all processes would tell who uses it".into(),
        Code::FamilyAlive => "when no such program is alive any more, it is orphaned".into(),
        Code::PartialProcessSight => "with sight of all processes it might be orphaned".into(),
        Code::WeakProducer | Code::UnknownProducer => what_would_prove_it(facts),
        Code::AlwaysHeldProducer | Code::NoFamily | Code::NoKin => {
            "it stays if somebody opens it first, or a program that could come back for it starts"
                .into()
        }
        // Evidence that decides nothing by itself.
        _ => "more evidence".into(),
    };
    Outlook { does: does.into(), changes }
}

/// What would prove that nobody wants an object about which the catalogue says nothing.
fn what_would_prove_it(facts: &Facts) -> String {
    if let Some(broken) = &facts.catalogue_broken {
        return format!("when {broken} is mended, it is judged anew");
    }
    if facts.kin == KinState::SystemUser {
        return "an entry in /etc/rtrack/producers.d that says how its producer holds it: it belongs \
                to a system user, of whom no absence proves anything"
            .into();
    }
    let mode = if facts.shared_mode { " and its mode lets nobody else in" } else { "" };
    format!("when no process of {} is alive{mode}, it is orphaned", facts.owner)
}

/// Whether an object of this new verdict may still go, as it was planned for `planned`.
///
/// # Errors
/// Why not.
pub fn still_goes(planned: Verdict, now: &Judgement, force: bool) -> Result<(), String> {
    let goes = if force {
        now.verdict != Verdict::Held
    } else {
        now.verdict.reapability() >= planned.reapability()
    };
    if goes { Ok(()) } else { Err(format!("{} now: {}", now.verdict, now.says())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(verdict: Verdict) -> Judgement {
        Judgement { verdict, reason: Code::UnknownProducer, evidence: Vec::new() }
    }

    #[test]
    fn nothing_held_goes_and_force_is_needed_for_what_is_claimed() {
        let default = [Verdict::Orphaned];
        let both = [Verdict::Orphaned, Verdict::Unclaimed];
        let removes = |verdict, verdicts: &[Verdict], force| {
            matches!(
                step(Kind::Shm, Lease::Granted, &judged(verdict), verdicts, force),
                Step::Remove(..)
            )
        };
        for (verdict, by_default, when_asked, by_force) in [
            (Verdict::Held, false, false, false),
            (Verdict::Claimed, false, false, true),
            (Verdict::Unknown, false, false, true),
            (Verdict::Unclaimed, false, true, true),
            (Verdict::Orphaned, true, true, true),
        ] {
            assert_eq!(removes(verdict, &default, false), by_default, "{verdict}");
            assert_eq!(removes(verdict, &both, false), when_asked, "{verdict}");
            assert_eq!(removes(verdict, &Verdict::ALL, false), when_asked, "{verdict}");
            assert_eq!(removes(verdict, &default, true), by_force, "{verdict}");
        }
    }

    #[test]
    fn a_verdict_that_became_weaker_stops_it() {
        assert!(still_goes(Verdict::Orphaned, &judged(Verdict::Orphaned), false).is_ok());
        assert!(still_goes(Verdict::Orphaned, &judged(Verdict::Unclaimed), false).is_err());
        assert!(still_goes(Verdict::Unclaimed, &judged(Verdict::Orphaned), false).is_ok());
        assert!(still_goes(Verdict::Claimed, &judged(Verdict::Claimed), true).is_ok());
        assert!(still_goes(Verdict::Claimed, &judged(Verdict::Held), true).is_err());
    }
}
