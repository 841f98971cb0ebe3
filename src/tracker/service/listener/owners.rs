//! Who has registered what: pure.
//!
//! A name that several owners of one user have registered goes with the last of them. What one owner takes back,
//! the others still have. What another user registers under that name changes nothing of that.

use std::collections::{BTreeMap, HashMap};

use super::super::dialect::{Command, Rtype};
use super::super::found;
use super::super::ledger::Inherited;
use super::super::protocol::Message;
use super::super::registry::{Change, NotRegistered, Registry};
use crate::tracker::resource::Identity;
use crate::tracker::sys::Nanoseconds;

/// Numbers owners. No number is given twice.
pub(super) type Id = u64;

/// How much a client may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time. A user other than root gets half of them at most.
    pub clients: usize,
    /// Names that an owner may have registered at a time. A user other than root gets twice as many in all.
    pub registrations: usize,
}

impl Limits {
    /// How many connections the user `uid` may have.
    #[must_use]
    pub const fn clients_of(self, uid: u32) -> usize {
        if uid == 0 { self.clients } else { self.clients.div_ceil(2) }
    }

    const fn registrations_of(self, uid: u32) -> usize {
        if uid == 0 { usize::MAX } else { self.registrations.saturating_mul(2) }
    }
}

/// What was known of an object when its name was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Then {
    /// When that was.
    pub(super) at: Nanoseconds,
    /// What the name belonged to, if it was there already.
    pub(super) identity: Option<Identity>,
}

/// Something that its owner left, and nobody else has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Left {
    /// Its type.
    pub(super) rtype: Rtype,
    /// Its name, as it was registered.
    pub(super) name: Vec<u8>,
    /// How often it was registered and not given up.
    pub(super) count: u64,
    /// What was known then.
    pub(super) then: Then,
}

/// Why a message changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It was taken back and is not registered, by this owner.
    #[error(transparent)]
    NotRegistered(#[from] NotRegistered),
    /// The owner has as many as it may.
    #[error("{0} names are registered, and no more may be")]
    Full(usize),
    /// All owners of that user have.
    #[error("{0} names are registered by this user, and no more may be")]
    UserFull(usize),
}

#[derive(Debug)]
struct Owner {
    uid: u32,
    registry: Registry<Then>,
}

/// A user, and what a name means.
type Key = (u32, &'static str, Box<[u8]>);

fn key(uid: u32, rtype: Rtype, name: &[u8]) -> Key {
    let (class, name) = found::meaning(rtype, name);
    (uid, class, name)
}

/// All owners.
#[derive(Debug)]
pub(super) struct Owners {
    limits: Limits,
    next: Id,
    owners: BTreeMap<Id, Owner>,
    /// How often an object is registered by owners of a user, whatever it is spelled like.
    registered: HashMap<Key, u32>,
    /// How many names the owners of a user have, and have left that are not dealt with.
    of_user: HashMap<u32, usize>,
}

impl Owners {
    /// None; `next` is the number of the first one.
    #[must_use]
    pub(super) fn new(limits: Limits, next: Id) -> Self {
        let (owners, registered, of_user) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { limits, next, owners, registered, of_user }
    }

    /// An owner of a predecessor's, with what it has registered, whatever the limits say.
    pub(super) fn restore(&mut self, id: Id, uid: u32, entries: &[Inherited]) {
        let mut registry = Registry::default();
        for Inherited { rtype, name, count, identity, at } in entries {
            let then = Then { at: *at, identity: *identity };
            let (command, name, rtype) = (Command::Register, name.as_slice().into(), *rtype);
            let message = Message { command, name, rtype };
            for _ in 0..(*count).max(1) {
                // A registration is never refused by a registry.
                registry.apply_with(&message, || then).map(drop).unwrap_or(());
            }
            *self.registered.entry(key(uid, rtype, &message.name)).or_insert(0) += 1;
            *self.of_user.entry(uid).or_insert(0) += 1;
        }
        self.owners.insert(id, Owner { uid, registry });
    }

    /// One more, of the user `uid`.
    pub(super) fn add(&mut self, uid: u32) -> Id {
        let id = self.next;
        self.next += 1;
        self.owners.insert(id, Owner { uid, registry: Registry::default() });
        id
    }

    /// Does what a message of owner `id` says; `then` is asked when a name is registered for the first time.
    /// Answers with what that changed, and what has to be removed at once: what the last user of it has given up.
    ///
    /// # Errors
    /// See [`Refused`].
    pub(super) fn apply(
        &mut self,
        id: Id,
        message: &Message<'_>,
        then: impl FnOnce() -> Then,
    ) -> Result<(Change, Option<Left>), Refused> {
        let Some(owner) = self.owners.get_mut(&id) else { return Ok((Change::None, None)) };
        let uid = owner.uid;
        let of_user = self.of_user.entry(uid).or_insert(0);
        let (own, all) = (owner.registry.len(), self.limits.registrations_of(uid));
        let is_new = message.command == Command::Register
            && !owner.registry.contains(message.rtype, &message.name);
        if is_new && own >= self.limits.registrations {
            return Err(Refused::Full(own));
        }
        if is_new && *of_user >= all {
            return Err(Refused::UserFull(*of_user));
        }
        let known = owner.registry.more(message);
        // Registered again, it is what has the name now.
        let then = match known {
            Some(known) if message.command != Command::Register => known,
            _ => then(),
        };
        let change = owner.registry.apply_with(message, || then)?;
        let key = || key(uid, message.rtype, &message.name);
        match change {
            Change::Registered(_) if is_new => {
                *of_user += 1;
                *self.registered.entry(key()).or_insert(0) += 1;
            }
            Change::Registered(_) => {
                if let Some(entry) = owner.registry.get_mut(message.rtype, &message.name)
                    && then.identity.is_some()
                {
                    entry.more = then;
                }
            }
            Change::Forgotten => {
                *of_user = of_user.saturating_sub(1);
                self.let_go(key());
            }
            Change::Released(0) => {
                if !self.let_go(key()) {
                    self.settled(uid, 1);
                } else {
                    let (rtype, name) = (message.rtype, message.name.to_vec());
                    return Ok((change, Some(Left { rtype, name, count: 0, then })));
                }
            }
            _ => {}
        }
        Ok((change, None))
    }

    /// The owner is gone. Answers with what it left, in the order of cleaning, but for what others have
    /// registered too.
    pub(super) fn end(&mut self, id: Id) -> Vec<Left> {
        let Some(owner) = self.owners.remove(&id) else { return Vec::new() };
        let mut left = Vec::new();
        for (rtype, names) in owner.registry.iter() {
            for (name, entry) in names.entries() {
                if self.let_go(key(owner.uid, rtype, name)) {
                    let name = name.to_vec();
                    left.push(Left { rtype, name, count: entry.count, then: entry.more });
                }
            }
        }
        // What is left counts until it is dealt with: its owner's user could make ever more of it.
        self.settled(owner.uid, owner.registry.len() - left.len());
        left
    }

    /// So many names of a user are dealt with.
    pub(super) fn settled(&mut self, uid: u32, count: usize) {
        if let Some(of_user) = self.of_user.get_mut(&uid) {
            *of_user = of_user.saturating_sub(count);
            if *of_user == 0 {
                self.of_user.remove(&uid);
            }
        }
    }

    /// One owner less has it registered: whether none is left.
    fn let_go(&mut self, key: Key) -> bool {
        match self.registered.get_mut(&key) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => {
                self.registered.remove(&key);
                true
            }
        }
    }

    /// What an owner has registered, by type and in order.
    pub(super) fn of(&self, id: Id) -> impl Iterator<Item = (Rtype, &[u8], u64, Then)> {
        let registry = self.owners.get(&id).map(|owner| &owner.registry);
        registry.into_iter().flat_map(Registry::iter).flat_map(|(rtype, names)| {
            let entries = names.entries().into_iter();
            entries.map(move |(name, entry)| (rtype, name, entry.count, entry.more))
        })
    }

    /// The owners that there are.
    pub(super) fn ids(&self) -> impl Iterator<Item = Id> {
        self.owners.keys().copied()
    }

    /// How many names an owner has registered.
    #[must_use]
    pub(super) fn len_of(&self, id: Id) -> usize {
        self.owners.get(&id).map_or(0, |owner| owner.registry.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::service::dialect::Dialect;
    use crate::tracker::service::protocol::parse;

    const LIMITS: Limits = Limits { clients: 10, registrations: 3 };
    const THEN: Then =
        Then { at: 7, identity: Some(Identity { dev: 1, ino: 2, born: None, sysv: None }) };

    fn say(owners: &mut Owners, id: Id, line: &str) -> Result<Option<Left>, Refused> {
        let message = parse(line.as_bytes(), Dialect::Any).unwrap();
        owners.apply(id, &message, || THEN).map(|(_, left)| left)
    }

    fn names(left: &[Left]) -> Vec<&str> {
        left.iter().map(|left| std::str::from_utf8(&left.name).unwrap()).collect()
    }

    #[test]
    fn what_an_owner_left_goes_with_it_and_with_the_last() {
        let mut owners = Owners::new(LIMITS, 1);
        let (first, second) = (owners.add(1000), owners.add(1000));
        let stranger = owners.add(1001);
        for (id, line) in [
            (first, "REGISTER:/a:shared_memory"),
            (first, "REGISTER:/both:shared_memory"),
            (first, "REGISTER:/both:shared_memory"),
            (second, "REGISTER:/both:shared_memory"),
            (second, "REGISTER:/a:semaphore"),
            (stranger, "REGISTER:/a:shared_memory"),
        ] {
            assert_eq!(say(&mut owners, id, line), Ok(None), "{line}");
        }
        let other = say(&mut owners, second, "UNREGISTER:/a:shared_memory");
        assert!(matches!(other, Err(Refused::NotRegistered(_))));
        assert_eq!(names(&owners.end(first)), ["/a"]);
        assert_eq!(owners.of(second).count(), 2);
        let left = owners.end(second);
        assert_eq!(names(&left), ["/a", "/both"]);
        assert_eq!(left[0].then, THEN);
        assert_eq!(names(&owners.end(stranger)), ["/a"]);
        assert!(owners.end(second).is_empty() && owners.ids().next().is_none());
        assert!(owners.registered.is_empty());
        // Until it is dealt with, it counts.
        assert_eq!((owners.of_user[&1000], owners.of_user[&1001]), (3, 1));
        owners.settled(1000, 3);
        owners.settled(1001, 1);
        assert!(owners.of_user.is_empty());
    }

    #[test]
    fn however_it_is_spelled() {
        let mut owners = Owners::new(LIMITS, 1);
        let (first, second) = (owners.add(1000), owners.add(1000));
        for (id, line) in [
            (first, "REGISTER:/n:shared_memory"),
            (first, "REGISTER:sem.k:shared_memory"),
            (second, "REGISTER:n:shared_memory"),
            (second, "REGISTER:/k:semaphore"),
        ] {
            say(&mut owners, id, line).unwrap();
        }
        assert!(owners.end(first).is_empty());
        assert_eq!(names(&owners.end(second)), ["/k", "n"]);
    }

    #[test]
    fn registered_again_it_is_what_has_the_name_now() {
        let mut owners = Owners::new(LIMITS, 1);
        let id = owners.add(0);
        let now = Identity { dev: 1, ino: 9, born: None, sysv: None };
        say(&mut owners, id, "REGISTER:/n:shared_memory").unwrap();
        let message = parse(b"REGISTER:/n:shared_memory", Dialect::Any).unwrap();
        owners.apply(id, &message, || Then { at: 8, identity: Some(now) }).unwrap();
        assert_eq!(owners.end(id)[0].then.identity, Some(now));
    }

    #[test]
    fn who_gives_up_removes_only_what_nobody_else_has() {
        let mut owners = Owners::new(LIMITS, 1);
        let (first, second) = (owners.add(0), owners.add(0));
        for id in [first, second] {
            say(&mut owners, id, "REGISTER:/f:file").unwrap();
        }
        assert_eq!(say(&mut owners, first, "MAYBE_UNLINK:/f:file"), Ok(None));
        let given_up = say(&mut owners, second, "MAYBE_UNLINK:/f:file").unwrap().unwrap();
        assert_eq!((&given_up.name[..], given_up.then), (&b"/f"[..], THEN));
    }

    #[test]
    fn no_more_than_may_be() {
        let mut owners = Owners::new(LIMITS, 1);
        let ids = [owners.add(5), owners.add(5), owners.add(5), owners.add(6)];
        let mut told = Vec::new();
        for id in ids {
            for number in 0..4 {
                let line = format!("REGISTER:/{id}-{number}:dummy");
                told.push(say(&mut owners, id, &line).is_ok());
            }
        }
        let (full, none) = ([true, true, true, false], [false; 4]);
        assert_eq!(told, [full, full, none, full].concat());
        // Again, or after one was taken back, it may.
        assert_eq!(say(&mut owners, ids[0], "REGISTER:/1-0:dummy"), Ok(None));
        assert_eq!(say(&mut owners, ids[0], "UNREGISTER:/1-1:dummy"), Ok(None));
        assert_eq!(say(&mut owners, ids[2], "REGISTER:/x:dummy"), Ok(None));
        assert_eq!(say(&mut owners, ids[0], "REGISTER:/1-1:dummy"), Err(Refused::UserFull(6)));
    }
}
