//! What is registered, and what follows for the exit status: pure.

use std::collections::BTreeMap;
use std::fmt;

use super::dialect::{Command, Rtype};
use super::protocol::Message;
use super::python::ReprStr;

/// One registered name.
#[derive(Debug, Clone, Copy)]
pub struct Entry<T> {
    /// How many were registered before it, of all types.
    order: u64,
    /// How often it was registered and not given up. Only loky's dialect looks at it.
    pub count: u64,
    /// What else was known when it was registered first.
    pub more: T,
}

/// The names of one type.
#[derive(Debug)]
pub struct Names<T = ()>(BTreeMap<Box<[u8]>, Entry<T>>);

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Names<T> {
    /// The names with all that is known of them, in the order in which they were registered.
    #[must_use]
    pub fn entries(&self) -> Vec<(&[u8], &Entry<T>)> {
        let mut names: Vec<_> = self.0.iter().map(|(name, entry)| (&**name, entry)).collect();
        names.sort_unstable_by_key(|(_, entry)| entry.order);
        names
    }

    /// The names with their counts in the order in which they were registered, as Python's
    /// dictionaries keep it; its sets have none.
    #[must_use]
    pub fn in_order(&self) -> Vec<(&[u8], u64)> {
        self.entries().into_iter().map(|(name, entry)| (name, entry.count)).collect()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What clients have registered and not taken back, by type. Names are keys as they were sent:
/// `x` and `/x` are two, although they name one object.
#[derive(Debug)]
pub struct Registry<T = ()> {
    names: [Names<T>; Rtype::ALL.len()],
    registered: u64,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self { names: std::array::from_fn(|_| Names::default()), registered: 0 }
    }
}

/// What a message changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// It is registered, so many times now.
    Registered(u64),
    /// It is forgotten.
    Forgotten,
    /// One user less, and so many are left. With none left it is forgotten too, and to be removed.
    Released(u64),
}

/// Something was taken back that is not registered under that type: Python's `KeyError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", ReprStr(.0))]
pub struct NotRegistered(pub Vec<u8>);

impl<T: Default> Registry<T> {
    /// Does what the message says, as [`Registry::apply_with`].
    ///
    /// # Errors
    /// As there.
    pub fn apply(&mut self, message: &Message<'_>) -> Result<Change, NotRegistered> {
        self.apply_with(message, T::default)
    }
}

impl Registry {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl<T> Registry<T> {
    /// Does what the message says. For `UNREGISTER`, registering twice is registering once; for
    /// `MAYBE_UNLINK` it is not. What is registered for the first time is kept with what `more` answers.
    ///
    /// # Errors
    /// What is to be unregistered or given up is not registered.
    pub fn apply_with(
        &mut self,
        message: &Message<'_>,
        more: impl FnOnce() -> T,
    ) -> Result<Change, NotRegistered> {
        let Some(Names(names)) = self.names.get_mut(message.rtype as usize) else {
            return Ok(Change::None);
        };
        let missing = || NotRegistered(message.name.to_vec());
        match message.command {
            Command::Register => {
                if let Some(entry) = names.get_mut(&*message.name) {
                    entry.count = entry.count.saturating_add(1);
                    return Ok(Change::Registered(entry.count));
                }
                let entry = Entry { order: self.registered, count: 1, more: more() };
                self.registered += 1;
                names.insert((*message.name).into(), entry);
                Ok(Change::Registered(1))
            }
            Command::Unregister => {
                names.remove(&*message.name).map(|_| Change::Forgotten).ok_or_else(missing)
            }
            Command::MaybeUnlink => {
                let entry = names.get_mut(&*message.name).ok_or_else(missing)?;
                entry.count = entry.count.saturating_sub(1);
                let left = entry.count;
                if left == 0 {
                    names.remove(&*message.name);
                }
                Ok(Change::Released(left))
            }
            Command::Probe => Ok(Change::None),
        }
    }

    /// What is registered, by type, in the order of cleaning.
    pub fn iter(&self) -> impl Iterator<Item = (Rtype, &Names<T>)> {
        Rtype::ALL.into_iter().zip(&self.names)
    }

    /// Whether that name is registered under that type.
    #[must_use]
    pub fn contains(&self, rtype: Rtype, name: &[u8]) -> bool {
        self.names.get(rtype as usize).is_some_and(|names| names.0.contains_key(name))
    }

    /// What is known of that name under that type, if it is registered.
    #[must_use]
    pub fn get(&self, rtype: Rtype, name: &[u8]) -> Option<&Entry<T>> {
        self.names.get(rtype as usize)?.0.get(name)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, rtype: Rtype, name: &[u8]) -> Option<&mut Entry<T>> {
        self.names.get_mut(rtype as usize)?.0.get_mut(name)
    }

    /// What was known when the name of `message` was registered first, if it is.
    #[must_use]
    pub fn more(&self, message: &Message<'_>) -> Option<T>
    where
        T: Copy,
    {
        let names = self.names.get(message.rtype as usize)?;
        names.0.get(&*message.name).map(|entry| entry.more)
    }

    /// How many names are registered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.iter().map(Names::len).sum()
    }

    /// Whether nothing is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The exit status of a tracker. Whatever happened last decides, in the order: lines, then for
/// each type its leftovers and its failed removals. Before CPython 3.13 it was always 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status(u8);

impl Status {
    /// A line was bad.
    pub fn bad_line(&mut self) {
        self.0 = 3;
    }

    /// A type has leftovers.
    pub fn leftovers(&mut self) {
        self.0 = 1;
    }

    /// A removal failed.
    pub fn failed_removal(&mut self) {
        self.0 = 2;
    }

    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0
    }
}

/// The warning about what was left of one type.
#[derive(Debug)]
pub struct LeakWarning<'a> {
    rtype: Rtype,
    names: &'a [(&'a [u8], u64)],
    counts: bool,
}

impl<'a> LeakWarning<'a> {
    /// The warning, with the counts or without, unless there is nothing to warn of. `dummy` leaks
    /// silently.
    #[must_use]
    pub fn new(rtype: Rtype, names: &'a [(&'a [u8], u64)], counts: bool) -> Option<Self> {
        (!names.is_empty() && rtype != Rtype::Dummy).then_some(Self { rtype, names, counts })
    }
}

impl fmt::Display for LeakWarning<'_> {
    /// Ends with the `repr()` of a set, or of a dictionary.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "resource_tracker: There appear to be {} leaked {} objects to clean up at shutdown: {{",
            self.names.len(),
            self.rtype,
        )?;
        for (index, (name, count)) in self.names.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { ", " }, ReprStr(name))?;
            if self.counts {
                write!(f, ": {count}")?;
            }
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::service::dialect::Dialect;
    use crate::tracker::service::protocol::parse;

    fn after(lines: &[&str]) -> (Registry, Vec<String>) {
        let mut registry = Registry::new();
        let mut errors = Vec::new();
        for line in lines {
            let message = parse(line.as_bytes(), Dialect::Any).unwrap();
            errors.extend(registry.apply(&message).err().map(|error| error.to_string()));
        }
        (registry, errors)
    }

    fn warnings(registry: &Registry, counts: bool) -> Vec<String> {
        let warning = |(rtype, names): (Rtype, &Names)| {
            LeakWarning::new(rtype, &names.in_order(), counts).map(|warning| warning.to_string())
        };
        registry.iter().filter_map(warning).collect()
    }

    #[test]
    fn a_set_not_a_count() {
        for (lines, left, errors) in [
            (&["REGISTER:a:dummy", "REGISTER:a:dummy", "UNREGISTER:a:dummy"][..], 0, &[][..]),
            (&["UNREGISTER:a:dummy"], 0, &["'a'"]),
            (&["REGISTER:a:dummy", "UNREGISTER:a:noop"], 1, &["'a'"]),
            (&["REGISTER:a:dummy", "REGISTER:/a:dummy", "REGISTER://a:dummy"], 3, &[]),
            (&["REGISTER:a:dummy", "PROBE:a:dummy"], 1, &[]),
        ] {
            let (registry, found) = after(lines);
            assert_eq!(registry.len(), left, "{lines:?}");
            assert_eq!(found, errors, "{lines:?}");
        }
    }

    #[test]
    fn a_count_for_whoever_gives_up() {
        let mut registry = Registry::new();
        for (line, change) in [
            ("REGISTER:a:file", Some(Change::Registered(1))),
            ("REGISTER:a:file", Some(Change::Registered(2))),
            ("REGISTER:a:folder", Some(Change::Registered(1))),
            ("MAYBE_UNLINK:a:file", Some(Change::Released(1))),
            ("PROBE::", Some(Change::None)),
            ("REGISTER:a:file", Some(Change::Registered(2))),
            ("UNREGISTER:a:file", Some(Change::Forgotten)),
            ("MAYBE_UNLINK:a:file", None),
            ("REGISTER:a:file", Some(Change::Registered(1))),
            ("MAYBE_UNLINK:a:file", Some(Change::Released(0))),
            ("MAYBE_UNLINK:a:file", None),
            ("UNREGISTER:a:file", None),
            ("UNREGISTER:a:folder", Some(Change::Forgotten)),
        ] {
            let message = parse(line.as_bytes(), Dialect::Loky).unwrap();
            assert_eq!(registry.apply(&message).ok(), change, "{line}");
        }
        assert!(registry.is_empty());
    }

    #[test]
    fn both_forms_share_a_set() {
        let (registry, errors) = after(&[
            "REGISTER:/a:semaphore",
            r#"{"cmd":"UNREGISTER","rtype":"semaphore","base64_name":"L2E="}"#,
        ]);
        assert!(registry.is_empty() && errors.is_empty());
    }

    #[test]
    fn warnings_name_what_is_left_in_the_order_of_registration() {
        let (registry, _) = after(&[
            "REGISTER:z:semaphore",
            "REGISTER:it's:semaphore",
            "REGISTER:x:dummy",
            "REGISTER:z:semaphore",
            "REGISTER:d:folder",
            "REGISTER:f:file",
        ]);
        let text = |number, rtype, names| {
            format!(
                "resource_tracker: There appear to be {number} leaked {rtype} objects to clean up \
                 at shutdown: {names}"
            )
        };
        assert_eq!(
            warnings(&registry, false),
            [
                text(2, "semaphore", "{'z', \"it's\"}"),
                text(1, "file", "{'f'}"),
                text(1, "folder", "{'d'}"),
            ]
        );
        assert_eq!(warnings(&registry, true)[0], text(2, "semaphore", "{'z': 2, \"it's\": 1}"));
    }

    #[test]
    fn the_last_writer_wins() {
        let mut status = Status::default();
        assert_eq!(status.code(), 0);
        for (event, code) in [
            (Status::bad_line as fn(&mut Status), 3),
            (Status::leftovers, 1),
            (Status::failed_removal, 2),
            (Status::leftovers, 1),
        ] {
            event(&mut status);
            assert_eq!(status.code(), code);
        }
    }
}
