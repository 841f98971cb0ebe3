//! The options by which `list`, `show` and `reap` select objects.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use super::error::{CommandError, Kind as ErrorKind};
use super::values;
use crate::tracker::evidence::producers::Catalogue;
use crate::tracker::inventory::Object;
use crate::tracker::resource::Kind;
use crate::tracker::select::{self, Filter, Found, Names, SelectError};
use crate::tracker::survey::{Judging, Sought};
use crate::tracker::world::Scope;

/// Which objects, and how they are judged.
#[derive(Debug, clap::Args)]
pub struct SelectArgs {
    /// Names: psm_x, /psm_x, /dev/shm/psm_x, shm:psm_x, mqueue:q, sysv-shm:32768, or globs of these;
    /// all objects if none
    #[arg(value_name = "NAME", allow_hyphen_values = false)]
    pub names: Vec<OsString>,

    /// Names are ids as `list -0` prints them, and nothing else: no globs, no paths; at least one
    #[arg(long)]
    pub exact: bool,

    /// Objects of every namespace of the machine, those of containers too
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,

    /// Only objects of these namespaces: the pid of a process inside, the number of the namespace, or the
    /// container (its id, its first 12 digits, its name)
    #[arg(long, value_delimiter = ',', value_name = "ID|PID|CONTAINER")]
    pub namespace: Vec<String>,

    /// Only these kinds
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    pub kind: Vec<Kind>,

    /// Only what belongs to these users (names or uids)
    #[arg(long, value_delimiter = ',', value_name = "USER")]
    pub user: Vec<String>,

    /// Only what these producers make (ids, as rtrack producers lists them)
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    pub producer: Vec<String>,

    /// Only what was made at least so long ago, e.g. 2h30m
    #[arg(long, value_parser = values::duration, value_name = "AGE")]
    pub older_than: Option<Duration>,

    /// Only what has at least this size, e.g. 1MiB
    #[arg(long, value_parser = values::size, value_name = "SIZE")]
    pub min_size: Option<u64>,

    /// Sort by this
    #[arg(long, value_enum, default_value_t, value_name = "KEY")]
    pub sort: SortKey,

    /// Sort the other way round
    #[arg(long)]
    pub reverse: bool,

    /// Take what was made or changed less than this ago for claimed, and leave it alone
    #[arg(long, value_parser = values::duration, default_value = "60s", value_name = "AGE")]
    pub grace: Duration,

    /// In a container: assert that nothing outside of it uses its /dev/shm or its System V objects
    #[arg(long)]
    pub assume_complete: bool,
}

/// What `--sort` sorts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum SortKey {
    /// Largest first
    #[default]
    Size,
    /// By name
    Name,
    /// Oldest first
    Age,
    /// By owner
    User,
    /// By kind
    Kind,
    /// Most removable first
    Verdict,
}

impl SelectArgs {
    /// Which namespaces are looked at.
    #[must_use]
    pub fn scope(&self) -> Scope {
        if !self.namespace.is_empty() {
            Scope::Named(self.namespace.clone())
        } else if self.all_namespaces {
            Scope::All
        } else {
            Scope::Own
        }
    }

    /// How objects are judged.
    #[must_use]
    pub fn judging(&self) -> Judging {
        Judging {
            grace: self.grace,
            assume_complete: self.assume_complete,
            thorough: false,
            sought: Sought::All,
        }
    }

    /// Whether anything is said about which objects, so that not all of them are selected.
    #[must_use]
    pub fn narrows(&self) -> bool {
        let Self { names, kind, user, producer, older_than, min_size, .. } = self;
        !(names.is_empty() && kind.is_empty() && user.is_empty() && producer.is_empty())
            || older_than.is_some()
            || min_size.is_some()
    }

    /// Keeps what was selected, at `now` in nanoseconds since 1970; and says which names no object
    /// has, so that they hide nothing of the others.
    ///
    /// # Errors
    /// A name that fits several objects, or a user that is unknown: status 2.
    pub fn select(
        &self,
        objects: Vec<Object>,
        now: i128,
    ) -> Result<(Vec<Object>, Vec<SelectError>), CommandError> {
        let filter = self.filter()?;
        let Found { indices, missing } = self.find(&objects, &self.names)?;
        let selected = objects
            .into_iter()
            .enumerate()
            .filter(|(index, object)| indices.contains(index) && filter.passes(object, now));
        let selected = selected.map(|(_, object)| object).collect();
        Ok((selected, missing))
    }

    /// Whether an object, which is not in the inventory, is selected; seen at `now`.
    ///
    /// # Errors
    /// As [`SelectArgs::select`].
    pub fn test(&self, now: i128) -> Result<impl Fn(&Object) -> bool, CommandError> {
        let filter = self.filter()?;
        let names = Names::known(if self.exact { &[] } else { &self.names });
        let ids = if self.exact { self.names.clone() } else { Vec::new() };
        Ok(move |object: &Object| {
            let named = ids.is_empty()
                || !select::by_ids(std::slice::from_ref(object), &ids).indices.is_empty();
            named && names.mean(object) && filter.passes(object, now)
        })
    }

    /// Leaves of the names that no object had those that none of `objects` has either.
    pub fn still_missing(&self, missing: &mut Vec<SelectError>, objects: &[Object]) {
        for name in &self.names {
            let found = self.find(objects, std::slice::from_ref(name));
            if found.is_ok_and(|found| !found.indices.is_empty()) {
                let known = crate::tracker::resource::escape(name.as_encoded_bytes());
                missing.retain(
                    |error| !matches!(error, SelectError::Missing { name, .. } if *name == known),
                );
            }
        }
    }

    /// The objects that `names` mean, one each.
    ///
    /// # Errors
    /// As [`SelectArgs::select`], a name that no object has: status 1, and one that several have: status 2.
    pub fn indices(
        &self,
        objects: &[Object],
        names: &[OsString],
    ) -> Result<BTreeSet<usize>, CommandError> {
        let mut all = BTreeSet::new();
        for name in names {
            let Found { indices, missing } = self.find(objects, std::slice::from_ref(name))?;
            if let Some(error) = missing.into_iter().next() {
                return Err(explain(error));
            }
            let found = indices.iter().filter_map(|index| objects.get(*index));
            let ids: Vec<String> = found.map(Object::shown_id).collect();
            if ids.len() > 1 {
                let name = crate::tracker::resource::escape(name.as_encoded_bytes());
                return Err(explain(SelectError::Ambiguous { name, ids }));
            }
            all.extend(indices);
        }
        Ok(all)
    }

    fn find(&self, objects: &[Object], names: &[OsString]) -> Result<Found, CommandError> {
        if self.exact && !names.is_empty() {
            return Ok(select::by_ids(objects, names));
        }
        select::by_names(objects, names).map_err(explain)
    }

    /// What can be wrong with the options, before anything is read; `more` are further names that a
    /// command takes.
    ///
    /// # Errors
    /// `--exact` without a name, since an empty list of ids means nothing and not everything, and an
    /// unknown user: status 2.
    pub fn check(&self, more: &[OsString]) -> Result<(), CommandError> {
        if self.exact && self.names.is_empty() && more.is_empty() {
            return Err(CommandError::usage("--exact needs the ids of objects")
                .hint("xargs -r does not run a command for an empty list"));
        }
        self.filter().map(drop)
    }

    /// What is asked of an object beside its name.
    ///
    /// # Errors
    /// An unknown user: status 2.
    pub(super) fn filter(&self) -> Result<Filter, CommandError> {
        let uids = self.user.iter().map(|user| uid_of(user)).collect::<Result<_, _>>()?;
        Ok(Filter {
            kinds: self.kind.clone(),
            uids,
            older_than: self.older_than,
            min_size: self.min_size,
        })
    }

    /// Whether `--producer` names producers that there are.
    ///
    /// # Errors
    /// An unknown id: status 2.
    pub fn check_producers(&self, catalogue: &Catalogue) -> Result<(), CommandError> {
        let known = |id: &String| catalogue.producers().iter().any(|p| p.id == *id);
        match self.producer.iter().find(|id| !known(id)) {
            None => Ok(()),
            Some(id) => Err(CommandError::usage(format_args!(
                "--producer {}: no such producer",
                crate::tracker::resource::escape(id.as_bytes())
            ))
            .hint("rtrack producers lists them")),
        }
    }

    /// Whether only certain producers are selected.
    #[must_use]
    pub fn chooses_producers(&self) -> bool {
        !self.producer.is_empty()
    }

    /// Whether the producer passes `--producer`.
    #[must_use]
    pub fn passes_producer(&self, id: Option<&str>) -> bool {
        self.producer.is_empty() || id.is_some_and(|id| self.producer.iter().any(|p| p == id))
    }
}

fn uid_of(user: &str) -> Result<u32, CommandError> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    match nix::unistd::User::from_name(user) {
        Ok(Some(found)) => Ok(found.uid.as_raw()),
        _ => Err(CommandError::usage(format_args!(
            "--user {}: no such user",
            crate::tracker::resource::escape(user.as_bytes())
        ))),
    }
}

/// The exit status and the hint of a selector that means nothing, or too much.
pub fn explain(error: SelectError) -> CommandError {
    match &error {
        SelectError::Missing { nearest, .. } => {
            let hint = if nearest.is_empty() {
                "rtrack list shows what is there".to_owned()
            } else {
                format!("did you mean {}?", nearest.join(" or "))
            };
            CommandError::new(ErrorKind::No, error).hint(hint)
        }
        SelectError::Ambiguous { ids, .. } => {
            let first = ids.first().map_or("", String::as_str);
            let hint = if ids.iter().skip(1).any(|id| id == first) {
                "it is in several namespaces: --namespace says in which one".to_owned()
            } else {
                format!("name it with its kind, e.g. {first}")
            };
            CommandError::new(ErrorKind::Usage, error).hint(hint)
        }
        SelectError::Glob { .. } => CommandError::new(ErrorKind::Usage, error),
    }
}
