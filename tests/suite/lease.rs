//! Whoever holds an object, in whatever way, keeps it.
use crate::support::Case;

pub(crate) fn tests() -> Vec<Case> {
    vec![]
}
