//! What is expected of one object: its verdict, its evidence, and what `reap` does with it. The operator
//! vouches that nothing outside the case's PID namespace uses the mount.

use serde_json::Value;

use super::{Finish, evidence, identity, listed, rtrack, verdict};

/// The list, as somebody sees it who vouches that nothing outside uses the mount.
#[track_caller]
pub(crate) fn list() -> Value {
    let mut list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
    list.finish().expect(0).json()
}

#[track_caller]
pub(crate) fn reap(verdicts: &str) {
    let mut reap = rtrack(["reap", "--yes", "--json", "--grace", "0s", "--assume-complete"]);
    reap.args(["--verdict", verdicts]).finish().expect(0).json();
}

/// The verdict on `name` and its reason; answers with the whole list.
#[track_caller]
pub(crate) fn judged(name: &str, wanted: &str, reason: &str) -> Value {
    let document = list();
    assert_eq!(verdict(&document, name), (wanted, reason), "{name}: {document:#}");
    document
}

/// The list has this piece of evidence about `name`.
#[track_caller]
pub(crate) fn known(document: &Value, name: &str, code: &str) {
    let evidence = evidence(document, name);
    assert!(evidence.contains(&code), "{code} is not in {evidence:?}");
}

/// The list names this process as a holder of `name`.
#[track_caller]
pub(crate) fn named(document: &Value, name: &str, pid: u32) {
    let holders = listed(document, name)["holders"].as_array().unwrap();
    assert!(holders.iter().any(|holder| holder["pid"] == pid), "{pid} holds {document:#}");
}

/// Nothing that `reap` can be asked for takes `name`: it is in use or claimed.
#[track_caller]
pub(crate) fn stays(name: &str) {
    let before = identity(name);
    assert!(before.is_some(), "{name} is not there");
    reap("orphaned,unclaimed");
    assert_eq!(identity(name), before, "{name}");
}

/// `reap` leaves `name` unless it is asked for what is unclaimed.
#[track_caller]
pub(crate) fn stays_by_default(name: &str) {
    let before = identity(name);
    assert!(before.is_some(), "{name} is not there");
    reap("orphaned");
    assert_eq!(identity(name), before, "{name}");
}

/// `name` is orphaned for this reason, and `reap` takes it.
#[track_caller]
pub(crate) fn goes(name: &str, reason: &str) {
    judged(name, "orphaned", reason);
    reap("orphaned");
    assert_eq!(identity(name), None, "{name}");
}
