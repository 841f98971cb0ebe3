//! Which objects the operator means: names, globs, kinds, owners, producers, ages and sizes.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use globset::{GlobBuilder, GlobMatcher};

use super::inventory::Object;
use super::resource::{Kind, escape};

/// What stands before a name in its path.
const MOUNT: &[u8] = b"/dev/shm/";

/// What stands before the name of a message queue in its path.
const QUEUES: &[u8] = b"/dev/mqueue/";

/// How many names are suggested.
const HINTS: usize = 3;

/// A selector that means nothing, or too much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// No object has this name.
    #[error("{name}: no such object")]
    Missing {
        /// As it was given, escaped.
        name: String,
        /// The nearest ids.
        nearest: Vec<String>,
    },
    /// The name fits several objects.
    #[error("{name}: fits {}", ids.join(" and "))]
    Ambiguous {
        /// As it was given, escaped.
        name: String,
        /// Their ids.
        ids: Vec<String>,
    },
    /// A glob that is none.
    #[error("{name}: {what}")]
    Glob {
        /// As it was given, escaped.
        name: String,
        /// What is wrong.
        what: String,
    },
}

/// What is asked of an object before its verdict is known.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// One of these kinds; any if empty.
    pub kinds: Vec<Kind>,
    /// One of these owners; any if empty.
    pub uids: Vec<u32>,
    /// At least this long since birth.
    pub older_than: Option<Duration>,
    /// At least this many bytes.
    pub min_size: Option<u64>,
}

impl Filter {
    /// Whether `object`, seen at `now` (nanoseconds since 1970), passes.
    #[must_use]
    pub fn passes(&self, object: &Object, now: i128) -> bool {
        let age = now - object.stat.born.unwrap_or(object.stat.changed);
        (self.kinds.is_empty() || self.kinds.contains(&object.kind))
            && (self.uids.is_empty() || self.uids.contains(&object.stat.uid))
            && self
                .older_than
                .is_none_or(|least| age >= 0 && age.unsigned_abs() >= least.as_nanos())
            && self.min_size.is_none_or(|least| object.size() >= least)
    }
}

/// What names mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The indices of the objects.
    pub indices: BTreeSet<usize>,
    /// [`SelectError::Missing`] for each name that no object has, [`SelectError::Ambiguous`] for an id that
    /// several have.
    pub missing: Vec<SelectError>,
}

impl Found {
    fn of(all: impl Iterator<Item = Result<Vec<usize>, SelectError>>) -> Result<Self, SelectError> {
        let mut found = Self::default();
        for one in all {
            match one {
                Ok(indices) => found.indices.extend(indices),
                Err(error @ SelectError::Missing { .. }) => found.missing.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// The objects that `names` mean; all of them when there is no name.
///
/// A name is `psm_x`, `/psm_x`, `/dev/shm/psm_x`, `/dev/mqueue/q`, `shm:psm_x`, the same with what `list` shows for
/// bytes that a terminal cannot be shown, or a glob of these. An exact name has to exist; a glob
/// may match nothing.
///
/// # Errors
/// [`SelectError`], for the first name that fits too much or is no glob.
pub fn by_names<N: AsRef<OsStr>>(objects: &[Object], names: &[N]) -> Result<Found, SelectError> {
    if names.is_empty() {
        return Ok(Found { indices: (0..objects.len()).collect(), missing: Vec::new() });
    }
    Found::of(names.iter().map(|name| one(objects, name.as_ref().as_bytes())))
}

/// Whether a name is a glob.
#[must_use]
pub fn is_glob(name: &OsStr) -> bool {
    name.as_bytes().iter().any(|b| b"*?[{".contains(b))
}

/// The objects with these ids, as `list -0` prints them, and no other reading: who reads names from
/// a list must not get a glob, or another object, because one has gone since.
#[must_use]
pub fn by_ids<N: AsRef<OsStr>>(objects: &[Object], ids: &[N]) -> Found {
    let mut known: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
    for (index, object) in objects.iter().enumerate() {
        known.entry(object.id_bytes()).or_default().push(index);
    }
    let mut found = Found::default();
    for id in ids.iter().map(|id| id.as_ref().as_bytes()) {
        match known.get(id) {
            // In several namespaces there can be one each.
            Some(indices) => found.indices.extend(indices),
            None => {
                found.missing.push(SelectError::Missing { name: escape(id), nearest: Vec::new() })
            }
        }
    }
    found
}

/// The indices of the objects that one of `names` names exactly, without globs.
pub fn named<N: AsRef<OsStr>>(objects: &[Object], names: &[N]) -> BTreeSet<usize> {
    names.iter().flat_map(|name| exactly(objects, name.as_ref().as_bytes())).collect()
}

fn one(objects: &[Object], text: &[u8]) -> Result<Vec<usize>, SelectError> {
    let exact = exactly(objects, text);
    if is_glob(OsStr::from_bytes(text)) {
        // An object whose name looks like a glob must not hide those that the glob matches.
        return match by_glob(objects, text) {
            Ok(mut found) => {
                found.extend(exact);
                Ok(found)
            }
            Err(_) if exact.len() == 1 => Ok(exact),
            Err(error) => Err(error),
        };
    }
    match exact.as_slice() {
        [_] => Ok(exact),
        // One each in several namespaces is no other name.
        [first, rest @ ..] if rest.iter().all(|other| have_one_id(objects, *first, *other)) => {
            Ok(exact)
        }
        [] => Err(SelectError::Missing { name: escape(text), nearest: nearest(objects, text) }),
        several => {
            let ids =
                several.iter().filter_map(|i| objects.get(*i)).map(Object::shown_id).collect();
            Err(SelectError::Ambiguous { name: escape(text), ids })
        }
    }
}

fn have_one_id(objects: &[Object], one: usize, other: usize) -> bool {
    let of = |index: usize| objects.get(index).map(|object| (object.kind, &object.file));
    of(one) == of(other)
}

/// The objects of exactly this name. The first reading that fits anything is taken: a path, a
/// name with its kind, a name, a file name, the escaped form of a name.
fn exactly(objects: &[Object], text: &[u8]) -> Vec<usize> {
    let (kind, plain) = split(text);
    let all = |test: &dyn Fn(&Object) -> bool| -> Vec<usize> {
        objects.iter().enumerate().filter(|(_, object)| test(object)).map(|(i, _)| i).collect()
    };
    if let Some((queues, file)) = path(text) {
        return all(&|object| {
            is_file(object) && is_queue(object) == queues && object.file.as_bytes() == file
        });
    }
    let slash = text.starts_with(b"/");
    let of_kind = |object: &Object| {
        kind.map_or_else(|| !slash || is_file(object), |kind| kind == object.kind)
    };
    let readings: [&dyn Fn(&Object) -> bool; 3] = [
        &|object| {
            of_kind(object) && object.name.as_bytes() == plain
                || kind.is_none() && of_kind(object) && object.file.as_bytes() == plain
        },
        &|object| object.file.as_bytes() == text,
        &|object| {
            object.id().as_bytes() == text
                || object.shown_id().as_bytes() == text
                || object.name.to_string().as_bytes() == plain && of_kind(object)
        },
    ];
    readings.into_iter().map(all).find(|found| !found.is_empty()).unwrap_or_default()
}

/// The name in a path of /dev/shm or of message queues, and whether it is of the latter.
fn path(text: &[u8]) -> Option<(bool, &[u8])> {
    let file = text.strip_prefix(MOUNT).map(|file| (false, file));
    file.or_else(|| text.strip_prefix(QUEUES).map(|file| (true, file)))
}

fn is_queue(object: &Object) -> bool {
    object.kind == Kind::Mqueue
}

/// Whether it has a name in a directory, and no id.
fn is_file(object: &Object) -> bool {
    object.kind.family().is_none()
}

/// The kind before the colon, if it is one, and the name without leading slashes.
fn split(text: &[u8]) -> (Option<Kind>, &[u8]) {
    let (kind, name) = match text.iter().position(|b| *b == b':') {
        Some(colon) => match (text.get(..colon).and_then(Kind::from_prefix), text.get(colon + 1..))
        {
            (Some(kind), Some(name)) => (Some(kind), name),
            _ => (None, text),
        },
        None => (None, text),
    };
    let slashes = name.iter().take_while(|b| **b == b'/').count();
    (kind, name.get(slashes..).unwrap_or_default())
}

/// The kind that a name is given with, if any, and the name as the catalogue knows it: without the
/// path, a semaphore with its prefix.
#[must_use]
pub fn bare_name(name: &OsStr) -> (Option<Kind>, Vec<u8>) {
    let text = name.as_bytes();
    if let Some((queues, file)) = path(text) {
        return (queues.then_some(Kind::Mqueue), file.to_vec());
    }
    let (kind, plain) = split(text);
    let mut file = Vec::new();
    if kind == Some(Kind::Sem) && !plain.starts_with(b"sem.") {
        file.extend_from_slice(b"sem.");
    }
    file.extend_from_slice(plain);
    (kind, file)
}

fn by_glob(objects: &[Object], text: &[u8]) -> Result<Vec<usize>, SelectError> {
    let glob = Glob::new(text)?;
    Ok(objects.iter().enumerate().filter(|(_, object)| glob.fits(object)).map(|(i, _)| i).collect())
}

/// A pattern of names.
#[derive(Debug, Clone)]
struct Glob {
    /// Of a path: whether it is one of message queues.
    of_path: Option<bool>,
    kind: Option<Kind>,
    glob: GlobMatcher,
}

impl Glob {
    fn new(text: &[u8]) -> Result<Self, SelectError> {
        let (of_path, kind, pattern) = match path(text) {
            Some((queues, file)) => (Some(queues), None, file),
            None => {
                let (kind, pattern) = split(text);
                (None, kind, pattern)
            }
        };
        let refuse = |what: String| SelectError::Glob { name: escape(text), what };
        let pattern =
            std::str::from_utf8(pattern).map_err(|_| refuse("a glob has to be UTF-8".into()))?;
        let glob = GlobBuilder::new(pattern)
            .literal_separator(false)
            .build()
            .map_err(|error| refuse(error.kind().to_string()))?
            .compile_matcher();
        Ok(Self { of_path, kind, glob })
    }

    fn fits(&self, object: &Object) -> bool {
        self.kind.is_none_or(|kind| kind == object.kind)
            && self.of_path.is_none_or(|queues| is_file(object) && queues == is_queue(object))
            && (self.glob.is_match(object.file.as_os_str())
                || self.of_path.is_none() && self.glob.is_match(object.name.as_os_str()))
    }
}

/// Names that objects are asked for one by one, when it is not known what else there is.
#[derive(Debug, Clone, Default)]
pub struct Names(Vec<(Vec<u8>, Option<Glob>)>);

impl Names {
    /// The names, read as [`by_names`] reads them.
    ///
    /// # Errors
    /// [`SelectError::Glob`].
    pub fn new<N: AsRef<OsStr>>(names: &[N]) -> Result<Self, SelectError> {
        let read = |name: &N| {
            let text = name.as_ref().as_bytes();
            let glob = is_glob(name.as_ref()).then(|| Glob::new(text)).transpose()?;
            Ok((text.to_vec(), glob))
        };
        names.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// The same of names that were read before, so that what is no glob is the exact name of an object.
    #[must_use]
    pub fn known<N: AsRef<OsStr>>(names: &[N]) -> Self {
        let read = |name: &N| {
            let text = name.as_ref().as_bytes();
            let glob = is_glob(name.as_ref()).then(|| Glob::new(text).ok()).flatten();
            (text.to_vec(), glob)
        };
        Self(names.iter().map(read).collect())
    }

    /// Whether one of them means this object, or there are none.
    #[must_use]
    pub fn mean(&self, object: &Object) -> bool {
        let Self(names) = self;
        let means = |(text, glob): &(Vec<u8>, Option<Glob>)| {
            glob.as_ref().is_some_and(|glob| glob.fits(object))
                || !exactly(std::slice::from_ref(object), text).is_empty()
        };
        names.is_empty() || names.iter().any(means)
    }
}

fn nearest(objects: &[Object], text: &[u8]) -> Vec<String> {
    let (_, plain) = split(path(text).map_or(text, |(_, file)| file));
    let wanted = String::from_utf8_lossy(plain);
    let mut near: Vec<(f64, String)> = objects
        .iter()
        .map(|object| {
            let name = strsim::jaro_winkler(&object.name.to_lossy(), &wanted);
            let file = strsim::jaro_winkler(&object.file.to_lossy(), &wanted);
            (name.max(file), object.shown_id())
        })
        .filter(|(score, _)| *score > 0.75)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    near.into_iter().take(HINTS).map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::resource::Name;
    use crate::tracker::sys::Stat;

    fn object(kind: Kind, name: &[u8], file: &[u8]) -> Object {
        let stat = Stat {
            dev: 1,
            ino: 1,
            mode: 0o100_600,
            uid: 7,
            gid: 0,
            nlink: 1,
            size: 10,
            allocated: 0,
            born: Some(100),
            modified: 100,
            changed: 100,
        };
        let file = Name::new(file);
        Object { kind, name: Name::new(name), ..Object::of(&file, stat) }
    }

    fn world() -> Vec<Object> {
        vec![
            object(Kind::Shm, b"psm_1", b"psm_1"),
            object(Kind::Sem, b"x", b"sem.x"),
            object(Kind::Shm, b"x", b"x"),
            object(Kind::Shm, b"sem:x", b"sem:x"),
            object(Kind::Shm, b"a\nb\xff", b"a\nb\xff"),
            object(Kind::Shm, b"odd[1]", b"odd[1]"),
            object(Kind::Shm, b"psm_*", b"psm_*"),
        ]
    }

    #[test]
    fn every_way_to_name_an_object() {
        let world = world();
        for (text, expected) in [
            (&b"psm_1"[..], Ok(vec![0])),
            (b"/psm_1", Ok(vec![0])),
            (b"/dev/shm/psm_1", Ok(vec![0])),
            (b"shm:psm_1", Ok(vec![0])),
            (b"shm:/psm_1", Ok(vec![0])),
            (b"sem:x", Ok(vec![1])),
            (b"sem.x", Ok(vec![1])),
            (b"/dev/shm/sem.x", Ok(vec![1])),
            (b"shm:x", Ok(vec![2])),
            (b"shm:sem:x", Ok(vec![3])),
            (b"a\nb\xff", Ok(vec![4])),
            (b"shm:a\nb\\xff", Ok(vec![4])),
            (b"shm:a\\nb\\xff", Ok(vec![4])),
            (b"odd[1]", Ok(vec![5])),
            (b"odd*", Ok(vec![5])),
            (b"psm_*", Ok(vec![0, 6])),
            (b"sem:*", Ok(vec![1])),
            (b"sem.*", Ok(vec![1])),
            (b"nothing*", Ok(vec![])),
            (b"/dev/shm/*x", Ok(vec![1, 2, 3])),
        ] {
            let found = one(&world, text).map(|found| {
                found.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
            });
            assert_eq!(found, expected, "{}", escape(text));
        }
        assert!(
            matches!(one(&world, b"x"), Err(SelectError::Ambiguous { ids, .. }) if ids == ["sem:x", "shm:x"])
        );
        let mut world = world;
        world.push(object(Kind::Sem, b"sem.x", b"sem.sem.x"));
        assert!(matches!(one(&world, b"sem.x"), Err(SelectError::Ambiguous { .. })));
        assert!(
            matches!(one(&world, b"psm_2"), Err(SelectError::Missing { nearest, .. }) if nearest.iter().any(|id| id == "shm:psm_1"))
        );
        assert!(matches!(one(&world, b"sem:psm_1"), Err(SelectError::Missing { .. })));
        assert!(matches!(one(&world, b"a[*"), Err(SelectError::Glob { .. })));
    }

    #[test]
    fn an_id_is_nothing_but_an_id() {
        let world = world();
        let ids = |id: &str| by_ids(&world, &[id]);
        assert_eq!(ids("sem:x").indices, BTreeSet::from([1]));
        for id in ["shm:*", "psm_1", "sem:sem.x", "shm:odd*"] {
            let found = ids(id);
            assert!(found.indices.is_empty() && found.missing.len() == 1, "{id}");
        }
    }

    #[test]
    fn names_asked_one_by_one() {
        let world = world();
        let mean = |names: &[&str]| -> Vec<usize> {
            let names = Names::new(names).unwrap();
            (0..world.len()).filter(|index| names.mean(&world[*index])).collect()
        };
        assert_eq!(mean(&[]).len(), world.len());
        assert_eq!(mean(&["psm_1", "sem:*"]), [0, 1]);
        assert_eq!(mean(&["/dev/shm/*x"]), [1, 2, 3]);
        assert_eq!(mean(&["shm:a\\nb\\xff", "nothing"]), [4]);
        assert!(Names::new(&["a[*"]).is_err());
    }

    #[test]
    fn filters() {
        let object = object(Kind::Shm, b"a", b"a");
        let passes = |filter: Filter| filter.passes(&object, 2_000_000_100);
        assert!(passes(Filter::default()));
        assert!(passes(Filter { older_than: Some(Duration::from_secs(2)), ..Filter::default() }));
        assert!(!passes(Filter { older_than: Some(Duration::from_secs(3)), ..Filter::default() }));
        assert!(passes(Filter { min_size: Some(10), ..Filter::default() }));
        assert!(!passes(Filter { min_size: Some(11), ..Filter::default() }));
        assert!(!passes(Filter { uids: vec![8], ..Filter::default() }));
        assert!(!passes(Filter { kinds: vec![Kind::Sem], ..Filter::default() }));
    }
}
