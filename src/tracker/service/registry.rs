//! What is registered, and what follows for the exit status: pure.

use std::collections::BTreeSet;
use std::fmt;

use super::protocol::{Command, Message, Rtype};
use super::python::ReprStr;

/// The names of one type. The order only makes output reproducible; Python's sets have none.
pub type Names = BTreeSet<Box<[u8]>>;

/// What clients have registered and not taken back, by type. Names are keys as they were sent:
/// `x` and `/x` are two, although they name one object.
#[derive(Debug, Default)]
pub struct Registry {
    sets: [Names; Rtype::ALL.len()],
}

/// Something was taken back that is not registered under that type: Python's `KeyError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", ReprStr(.0))]
pub struct NotRegistered(pub Vec<u8>);

impl Registry {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Does what the message says. Registering twice is registering once.
    ///
    /// # Errors
    /// What is to be unregistered is not registered.
    pub fn apply(&mut self, message: Message<'_>) -> Result<(), NotRegistered> {
        let Some(names) = self.sets.get_mut(message.rtype as usize) else { return Ok(()) };
        match message.command {
            Command::Register => {
                if !names.contains(&*message.name) {
                    names.insert(message.name.into_owned().into_boxed_slice());
                }
            }
            Command::Unregister => {
                if !names.remove(&*message.name) {
                    return Err(NotRegistered(message.name.into_owned()));
                }
            }
            Command::Probe => {}
        }
        Ok(())
    }

    /// What is registered, by type, in the order of cleaning.
    pub fn iter(&self) -> impl Iterator<Item = (Rtype, &Names)> {
        Rtype::ALL.into_iter().zip(&self.sets)
    }

    /// How many names are registered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sets.iter().map(BTreeSet::len).sum()
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
    names: &'a Names,
}

impl<'a> LeakWarning<'a> {
    /// The warning, unless there is nothing to warn of. `dummy` leaks silently.
    #[must_use]
    pub fn new(rtype: Rtype, names: &'a Names) -> Option<Self> {
        (!names.is_empty() && rtype != Rtype::Dummy).then_some(Self { rtype, names })
    }
}

impl fmt::Display for LeakWarning<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "resource_tracker: There appear to be {} leaked {} objects to clean up at shutdown: {}",
            self.names.len(),
            self.rtype,
            ReprSet(self.names),
        )
    }
}

/// `repr()` of a set that is not empty.
#[derive(Debug)]
pub struct ReprSet<'a>(pub &'a Names);

impl fmt::Display for ReprSet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "{" } else { ", " }, ReprStr(name))?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::service::protocol::parse;

    fn after(lines: &[&str]) -> (Registry, Vec<String>) {
        let mut registry = Registry::new();
        let mut errors = Vec::new();
        for line in lines {
            let message = parse(line.as_bytes()).unwrap();
            errors.extend(registry.apply(message).err().map(|error| error.to_string()));
        }
        (registry, errors)
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
    fn both_forms_share_a_set() {
        let (registry, errors) = after(&[
            "REGISTER:/a:semaphore",
            r#"{"cmd":"UNREGISTER","rtype":"semaphore","base64_name":"L2E="}"#,
        ]);
        assert!(registry.is_empty() && errors.is_empty());
    }

    #[test]
    fn warnings() {
        let (registry, _) =
            after(&["REGISTER:b:semaphore", "REGISTER:it's:semaphore", "REGISTER:x:dummy"]);
        let warnings: Vec<String> = registry
            .iter()
            .filter_map(|(rtype, names)| LeakWarning::new(rtype, names))
            .map(|warning| warning.to_string())
            .collect();
        assert_eq!(
            warnings,
            ["resource_tracker: There appear to be 2 leaked semaphore objects to clean up at \
             shutdown: {'b', \"it's\"}"]
        );
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
