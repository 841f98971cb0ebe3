//! Who the owners are, by the user database.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use crate::tracker::evidence::processes::words;
use crate::tracker::resource::Name;

/// The uid of nobody, which also stands for every uid that has no name here.
const NOBODY: u32 = 65534;

/// What the user database says of the owners of the objects. It is asked once, and never under a
/// lease: a name service may take its time.
#[derive(Debug, Default)]
pub(super) struct Owners(HashMap<u32, Owner>);

#[derive(Debug)]
struct Owner {
    /// The name, or the number where there is none.
    name: String,
    /// The primary group.
    gid: Option<u32>,
}

impl Owners {
    pub(super) fn look_up(uids: HashSet<u32>) -> Self {
        Self(uids.into_iter().map(|uid| (uid, Owner::look_up(uid))).collect())
    }

    pub(super) fn name(&self, uid: u32) -> &str {
        self.0.get(&uid).map_or("", |owner| owner.name.as_str())
    }

    /// For a sentence: the name, or `uid N`.
    pub(super) fn says(&self, uid: u32) -> String {
        match self.name(uid) {
            name if name.parse::<u32>().is_ok() => format!("uid {name}"),
            name => name.to_owned(),
        }
    }

    pub(super) fn primary_group(&self, uid: u32) -> Option<u32> {
        self.0.get(&uid)?.gid
    }
}

impl Owner {
    fn look_up(uid: u32) -> Self {
        match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
            Ok(Some(user)) => {
                Self { name: Name::new(user.name).to_string(), gid: Some(user.gid.as_raw()) }
            }
            _ => Self { name: uid.to_string(), gid: None },
        }
    }
}

/// The user name of a uid, or the number where there is none.
#[must_use]
pub fn owner_name(uid: u32) -> String {
    Owner::look_up(uid).name
}

/// Whether a uid belongs to the system and not to a person: up to `SYS_UID_MAX` of login.defs(5),
/// 999 where that is not set, as logind has it for RemoveIPC; and nobody's.
pub(super) fn is_system_uid(uid: u32) -> bool {
    static MOST: OnceLock<u32> = OnceLock::new();
    let most = *MOST.get_or_init(|| {
        let text = std::fs::read("/etc/login.defs").unwrap_or_default();
        text.split(|b| *b == b'\n').find_map(system_uid_max).unwrap_or(999)
    });
    uid <= most || uid == NOBODY
}

fn system_uid_max(line: &[u8]) -> Option<u32> {
    let mut fields = words(line);
    if fields.next()? != b"SYS_UID_MAX" {
        return None;
    }
    std::str::from_utf8(fields.next()?).ok()?.parse().ok()
}
