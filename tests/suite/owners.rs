//! Who may open an object as its owner, where uids do not say so plainly: user namespaces, threads
//! with uids of their own, mounts that show other owners.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{
    Case, Finish, Need, case, goes, hold, identity, inside, is_real_root, judged, known, list,
    object, path, rtrack, scratch, skip, somebody, stays_by_default, verdict,
};
use crate::traps::{program_called, runs};

pub(crate) fn tests() -> Vec<Case> {
    const ALONE: &[Need] = &[Need::PidNamespace];
    const USERS: &[Need] = &[Need::PidNamespace, Need::RealRoot];
    vec![
        case("root_over_a_subordinate_uid", root_over_a_subordinate_uid).needs(USERS),
        case("family_over_a_subordinate_uid", family_over_a_subordinate_uid).needs(USERS),
        case("thread_with_a_users_uid", thread_with_a_users_uid).needs(USERS),
        case("mount_with_other_owners", mount_with_other_owners).needs(ALONE),
    ]
}

/// A name that no producer gives: all that can be proven of it is that its owner has no process.
const UNKNOWN: &str = "unheard_of";
/// A name of Python's memory: the proof is that no Python could open it.
const PYTHONS: &str = "psm_0a1b2c3d";
/// A name of a producer whose live owners always hold its objects.
const ALWAYS_HELD: &str = "mpich_shar_tmpOwner1";

/// While `kind` runs, the object of `owner` is wanted, perhaps; then it is not.
fn kin_as_long_as(kind: &str, owner: u32) {
    object().owner(owner).make(UNKNOWN);
    judged(UNKNOWN, "orphaned", "no-kin");
    let process = hold(kind, "/");
    let document = judged(UNKNOWN, "unclaimed", "unknown-producer");
    known(&document, UNKNOWN, "kin-alive");
    stays_by_default(UNKNOWN);
    drop(process);
    goes(UNKNOWN, "no-kin");
}

/// The root of a container without root, whose own uid is another one: to it, the object is one of
/// a user of the container.
fn root_over_a_subordinate_uid() {
    let owner = somebody() + 1;
    kin_as_long_as(&format!("subordinate-uid={owner}:nothing"), owner);
    // It may open nobody else's.
    let _process = hold(&format!("subordinate-uid={owner}:nothing"), "/");
    object().owner(owner + 1).make(UNKNOWN);
    goes(UNKNOWN, "no-kin");
}

fn family_over_a_subordinate_uid() {
    let owner = somebody() + 1;
    object().owner(owner).make(PYTHONS);
    judged(PYTHONS, "orphaned", "no-family");
    let mut python = Command::new(program_called("python3", "sleep"));
    let python = inside(&format!("subordinate-uid={owner}"), python.arg("1000"))
        .stdin(Stdio::null())
        .spawn();
    let mut python = python.unwrap();
    runs(python.id(), "python3");
    judged(PYTHONS, "unclaimed", "family-alive");
    stays_by_default(PYTHONS);
    python.kill().unwrap();
    python.wait().unwrap();
    goes(PYTHONS, "no-family");
}

/// A server whose worker thread alone is the user, by raw system calls; the kernel keeps uids for
/// each thread.
fn thread_with_a_users_uid() {
    for place in ["thread-uid", "thread-fs-uid"] {
        kin_as_long_as(&format!("{place}={}:nothing", somebody()), somebody());
    }
}

/// Where the mount is idmapped, whoever has the owner's uid there has another one here.
fn mount_with_other_owners() {
    object().make(PYTHONS);
    judged(PYTHONS, "orphaned", "no-family");
    // An owner that no process has; as an ordinary user there is one only.
    let others = is_real_root();
    if others {
        object().owner(somebody()).make(UNKNOWN);
        judged(UNKNOWN, "orphaned", "no-kin");
    }
    let nothing_by_uid = || {
        object().make(ALWAYS_HELD);
        let document = list();
        let sight = &document["sight"];
        assert_eq!(sight["processes"], "partial", "{sight:#}");
        assert!(sight["reasons"].as_array().unwrap().contains(&"idmapped-mount".into()));
        assert_eq!(verdict(&document, PYTHONS), ("unclaimed", "partial-process-sight"));
        known(&document, PYTHONS, "partial-process-sight");
        if others {
            assert_eq!(verdict(&document, UNKNOWN), ("unclaimed", "unknown-producer"));
        }
        // The kernel's word is about every mount.
        assert_eq!(verdict(&document, ALWAYS_HELD), ("orphaned", "always-held-producer"));
        stays_by_default(PYTHONS);
        assert_eq!(identity(UNKNOWN).is_some(), others);
        assert_eq!(identity(ALWAYS_HELD), None);
        let list = ["list", "--grace", "0s", "--assume-complete"];
        let run = rtrack(list).arg("--strict").finish().expect(3);
        assert!(run.stderr.contains("idmapped"), "{run:?}");
    };
    let here = scratch().join("idmapped-here");
    if let Err(error) = crate::hold::idmapped_mount(Path::new("/dev/shm"), &here) {
        skip(format_args!("no idmapped mount: {error}"));
    }
    nothing_by_uid();
    nix::mount::umount(&here).unwrap();
    judged(PYTHONS, "orphaned", "no-family");
    // In another mount namespace it is the same.
    let elsewhere = hold("own-mounts:idmapped-mount", path(""));
    nothing_by_uid();
    drop(elsewhere);
    if others {
        goes(UNKNOWN, "no-kin");
        object().make(PYTHONS);
    }
    goes(PYTHONS, "no-family");
}
