//! What bad input gets: a clear error, and nothing deleted.
use crate::support::Case;

pub(crate) fn tests() -> Vec<Case> {
    vec![]
}
