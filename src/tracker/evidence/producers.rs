//! The catalogue: which program makes objects of such a name, how its live owners hold them, and
//! what can come back for them.

mod files;

pub use files::{Broken, Checked, check_file, operator_directories};

use std::path::PathBuf;
use std::sync::OnceLock;

use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::Deserialize;

use crate::tracker::inventory::Object;
use crate::tracker::resource::Kind;

/// The catalogue that rtrack brings with it.
const BUILT_IN: &str = include_str!("producers.toml");

/// What live owners of an object do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldWhileAlive {
    /// One of them has it mapped.
    Mapped,
    /// One of them keeps a descriptor.
    Open,
    /// There are times when nobody has it open though it is needed.
    ByName,
    /// Not established.
    Unknown,
}

/// One entry.
#[derive(Debug, Clone)]
pub struct Producer {
    /// Stable, lower case.
    pub id: String,
    /// For people.
    pub software: String,
    /// What kind of object the pattern is about.
    pub kind: String,
    /// On the whole name, as bytes.
    pub pattern: String,
    /// A name that the pattern matches.
    pub example: String,
    /// Whether the name carries the creator's pid.
    pub pid_embedded: bool,
    /// What live owners do with it.
    pub held_while_alive: HeldWhileAlive,
    /// Meant to outlive those who made it.
    pub persistent_by_design: bool,
    /// Whether a verdict may rest on this entry.
    pub proof: bool,
    /// The programs without which nobody can come back for it.
    pub family: Option<String>,
    /// The process that comes back for it or cleans it.
    pub guardian: Option<String>,
    /// Lock files that the producer keeps beside the object: its name and one of these.
    pub lock_suffixes: Vec<String>,
    /// What else is known.
    pub note: String,
    /// Where this was seen.
    pub source: String,
    /// The operator's file that it comes from; `None` for the built-in catalogue.
    pub file: Option<PathBuf>,
    /// The pattern, compiled when a pid in a name is first asked for: that costs a hundred times
    /// what matching it does, and any user can make as many such names as the mount holds.
    compiled: OnceLock<Option<Regex>>,
}

/// Executables and libraries of one family.
#[derive(Debug)]
pub struct Family {
    /// Its name in the catalogue.
    pub name: String,
    executables: Regex,
    libraries: Option<Regex>,
}

impl Family {
    /// Whether an executable of this file name belongs to it.
    #[must_use]
    pub fn has_executable(&self, file_name: &[u8]) -> bool {
        self.executables.is_match(file_name)
    }

    /// Whether a process that maps a file of this name belongs to it. An executable that is
    /// mapped counts: it may run under the dynamic linker or an emulator.
    #[must_use]
    pub fn has_mapping(&self, file_name: &[u8]) -> bool {
        self.executables.is_match(file_name)
            || self.libraries.as_ref().is_some_and(|libraries| libraries.is_match(file_name))
    }
}

/// What a guardian's command line looks like.
#[derive(Debug)]
pub struct Guardian {
    /// Its name in the catalogue.
    pub name: String,
    /// For people, e.g. `a Python or loky resource tracker`.
    pub what: String,
    command_lines: Regex,
}

impl Guardian {
    /// Whether a command line, NUL-separated as the kernel has it, is one of a guardian.
    #[must_use]
    pub fn has_command_line(&self, raw: &[u8]) -> bool {
        let joined: Vec<u8> = raw.iter().map(|b| if *b == 0 { b' ' } else { *b }).collect();
        self.command_lines.is_match(&joined)
    }
}

/// The producers, in the order in which they are tried.
#[derive(Debug)]
pub struct Catalogue {
    producers: Vec<Producer>,
    families: Vec<Family>,
    guardians: Vec<Guardian>,
    broken: Vec<Broken>,
    files: OnceLock<Matcher>,
    semaphores: OnceLock<Matcher>,
    directories: OnceLock<Matcher>,
    queues: OnceLock<Matcher>,
    segments: OnceLock<Matcher>,
    sets: OnceLock<Matcher>,
}

/// The patterns of some entries, compiled to be tried in one pass.
#[derive(Debug)]
struct Matcher {
    set: RegexSet,
    indices: Vec<usize>,
}

/// What the catalogue knows about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match<'a> {
    /// The entry.
    pub producer: &'a Producer,
    /// The pid that the name carries.
    pub pid: Option<i32>,
    /// The uid that the name carries.
    pub uid: Option<u32>,
}

/// The same, without the catalogue: what an object remembers.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// The number of the entry.
    entry: usize,
    pid: Option<i32>,
    uid: Option<u32>,
}

impl PartialEq for Producer {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Producer {}

impl Catalogue {
    /// The catalogue that rtrack brings with it.
    #[must_use]
    pub fn built_in() -> Self {
        Self::with_files(|_| Vec::new())
    }

    /// The built-in catalogue with the operators' files before it: their entries are tried first,
    /// and one with the id of a built-in entry replaces it. A file that cannot be used is left out
    /// whole and is [`Catalogue::broken`].
    #[must_use]
    pub fn load(directories: &[PathBuf]) -> Self {
        Self::with_files(|base| files::read_all(directories, base))
    }

    fn with_files(read: impl FnOnce(&files::Layer) -> Vec<Result<files::Layer, Broken>>) -> Self {
        let mut catalogue = Self {
            producers: Vec::new(),
            families: Vec::new(),
            guardians: Vec::new(),
            broken: Vec::new(),
            files: OnceLock::new(),
            semaphores: OnceLock::new(),
            directories: OnceLock::new(),
            queues: OnceLock::new(),
            segments: OnceLock::new(),
            sets: OnceLock::new(),
        };
        // The tests hold a broken built-in catalogue impossible; were it not, nothing would be
        // known and so nothing would be proven.
        let base = files::built_in().unwrap_or_else(|broken| {
            catalogue.broken.push(broken);
            files::Layer::default()
        });
        let mut layers = Vec::new();
        for file in read(&base) {
            match file {
                Ok(layer) => layers.push(layer),
                Err(broken) => catalogue.broken.push(broken),
            }
        }
        layers.push(base);
        for layer in layers {
            for producer in layer.producers {
                if !catalogue.producers.iter().any(|known| known.id == producer.id) {
                    catalogue.producers.push(producer);
                }
            }
            catalogue.families.extend(layer.families);
            catalogue.guardians.extend(layer.guardians);
        }
        catalogue
    }

    /// Operators' files that could not be used. Until they are mended it is not known what they
    /// would have said, so nothing is proven by the catalogue.
    #[must_use]
    pub fn broken(&self) -> &[Broken] {
        &self.broken
    }

    /// All entries, in order.
    #[must_use]
    pub fn producers(&self) -> &[Producer] {
        &self.producers
    }

    /// The family of this name.
    #[must_use]
    pub fn family(&self, name: &str) -> Option<&Family> {
        self.families.iter().find(|family| family.name == name)
    }

    /// The guardian of this name.
    #[must_use]
    pub fn guardian(&self, name: &str) -> Option<&Guardian> {
        self.guardians.iter().find(|guardian| guardian.name == name)
    }

    /// All families.
    #[must_use]
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// The first entry of its kind that a name in its directory matches, or the
    /// [catalogue name](crate::tracker::inventory::Object::catalogue_name) of a System V object. musl's
    /// semaphores have no prefix and look like memory, so for memory the patterns of semaphores are tried
    /// too.
    #[must_use]
    pub fn find(&self, kind: Kind, file: &[u8]) -> Option<Match<'_>> {
        self.found(self.find_entry(kind, file)?)
    }

    /// The same of an object, which remembers it: as long as it is asked by one catalogue only.
    #[must_use]
    pub fn of(&self, object: &Object) -> Option<Match<'_>> {
        let find = || self.find_entry(object.kind, &object.catalogue_name());
        self.found((*object.entry.get_or_init(find))?)
    }

    fn found(&self, Found { entry, pid, uid }: Found) -> Option<Match<'_>> {
        Some(Match { producer: self.producers.get(entry)?, pid, uid })
    }

    /// Compiles the patterns of a kind, which else is done when they are needed first.
    pub fn prepare(&self, kind: Kind) {
        self.matcher_of(kind);
    }

    fn matcher_of(&self, kind: Kind) -> Option<&Matcher> {
        Some(match kind {
            Kind::Shm => self.files.get_or_init(|| self.matcher(&["shm", "sem"])),
            Kind::Sem => self.semaphores.get_or_init(|| self.matcher(&["sem"])),
            Kind::Dir => self.directories.get_or_init(|| self.matcher(&["dir"])),
            Kind::Mqueue => self.queues.get_or_init(|| self.matcher(&["mqueue"])),
            Kind::SysvShm => self.segments.get_or_init(|| self.matcher(&["sysv-shm"])),
            Kind::SysvSem => self.sets.get_or_init(|| self.matcher(&["sysv-sem"])),
            Kind::Other | Kind::SysvMsg => return None,
        })
    }

    fn find_entry(&self, kind: Kind, file: &[u8]) -> Option<Found> {
        let matcher = self.matcher_of(kind)?;
        let first = matcher.set.matches(file).into_iter().next()?;
        let entry = *matcher.indices.get(first)?;
        let Match { pid, uid, .. } = Match::new(self.producers.get(entry)?, file);
        Some(Found { entry, pid, uid })
    }

    /// For each kind of object that `name` could be the name of, the first entry that it matches:
    /// files and directories of /dev/shm (only those of `kind`, if one is given), and if none is
    /// given, what the catalogue knows beyond them.
    #[must_use]
    pub fn find_all(&self, kind: Option<Kind>, name: Vec<u8>) -> Vec<Match<'_>> {
        let mut found: Vec<Match<'_>> = match kind {
            Some(kind) => self.find(kind, &name).into_iter().collect(),
            None => {
                [Kind::Shm, Kind::Dir].iter().filter_map(|kind| self.find(*kind, &name)).collect()
            }
        };
        if kind.is_none() {
            for other in ["mqueue", "hugepage", "sysv-shm", "sysv-sem"] {
                let first = self.producers.iter().filter(|p| p.kind == other).find(|producer| {
                    compile(&whole(&producer.pattern)).is_ok_and(|p| p.is_match(&name))
                });
                found.extend(first.map(|producer| Match::new(producer, &name)));
            }
        }
        found
    }

    fn matcher(&self, kinds: &[&str]) -> Matcher {
        let chosen =
            self.producers.iter().enumerate().filter(|(_, p)| kinds.contains(&p.kind.as_str()));
        let (indices, patterns): (Vec<usize>, Vec<String>) =
            chosen.map(|(index, producer)| (index, whole(&producer.pattern))).unzip();
        // Every pattern was compiled by itself, by the tests or when its file was read; a set of
        // them that does not fit into its size limit leaves every producer unknown, which proves
        // nothing.
        match RegexSetBuilder::new(&patterns).unicode(false).dot_matches_new_line(true).build() {
            Ok(set) => Matcher { set, indices },
            Err(_) => Matcher { set: RegexSet::empty(), indices: Vec::new() },
        }
    }
}

/// A pattern that matches whole names only.
fn whole(pattern: &str) -> String {
    format!("\\A(?:{pattern})\\z")
}

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).unicode(false).dot_matches_new_line(true).build()
}

impl<'a> Match<'a> {
    fn new(producer: &'a Producer, file: &[u8]) -> Self {
        let mut found = Self { producer, pid: None, uid: None };
        let named = |group: &str| producer.pattern.contains(group);
        if !producer.pid_embedded && !named("(?P<uid>") && !named("(?P<uid_hex>") {
            return found;
        }
        let compiled = producer.compiled.get_or_init(|| compile(&whole(&producer.pattern)).ok());
        let Some(captures) = compiled.as_ref().and_then(|pattern| pattern.captures(file)) else {
            return found;
        };
        let number = |group: &str, radix: u32| {
            let digits = std::str::from_utf8(captures.name(group)?.as_bytes()).ok()?;
            u32::from_str_radix(digits, radix).ok()
        };
        found.uid = number("uid", 10).or_else(|| number("uid_hex", 16));
        if producer.pid_embedded {
            let pid = number("pid", 10).or_else(|| number("pid_hex", 16));
            found.pid = pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(producer: &Producer) -> Option<Kind> {
        match producer.kind.as_str() {
            "shm" => Some(Kind::Shm),
            "sem" => Some(Kind::Sem),
            "dir" => Some(Kind::Dir),
            "mqueue" => Some(Kind::Mqueue),
            "sysv-shm" => Some(Kind::SysvShm),
            "sysv-sem" => Some(Kind::SysvSem),
            _ => None,
        }
    }

    #[test]
    fn every_example_matches_its_own_entry_first() {
        let catalogue = Catalogue::built_in();
        assert_eq!(catalogue.producers().len(), 155);
        for producer in catalogue.producers() {
            assert!(
                compile(&whole(&producer.pattern)).unwrap().is_match(producer.example.as_bytes()),
                "{}",
                producer.id
            );
            if let Some(kind) = kind_of(producer) {
                let found = catalogue.find(kind, producer.example.as_bytes()).unwrap();
                assert_eq!(found.producer.id, producer.id);
                assert_eq!(found.pid.is_some(), producer.pid_embedded, "{}", producer.id);
            }
        }
    }

    #[test]
    fn what_was_not_verified_proves_nothing() {
        let catalogue = Catalogue::built_in();
        for producer in catalogue.producers() {
            assert!(producer.source != "unverified" || !producer.proof, "{}", producer.id);
        }
        for id in [
            "glibc-sem-temp",
            "musl-sem-temp",
            "snap-prefixed",
            "ipc-private-shm",
            "ipc-private-sem",
        ] {
            let entry = catalogue.producers().iter().find(|p| p.id == id).unwrap();
            assert!(!entry.proof, "{id}");
        }
    }

    #[test]
    fn names_are_matched_whole_and_as_bytes() {
        let catalogue = Catalogue::built_in();
        let id = |kind, name: &[u8]| catalogue.find(kind, name).map(|m| m.producer.id.as_str());
        assert_eq!(id(Kind::Shm, b"psm_0a1b2c3d"), Some("cpython-shared-memory"));
        assert_eq!(id(Kind::Shm, b"psm_0a1b2c3d\n"), None);
        assert_eq!(id(Kind::Shm, b"xpsm_0a1b2c3d"), None);
        assert_eq!(id(Kind::Shm, b"psm_0a1b2c3\xff"), None);
        assert_eq!(id(Kind::Shm, b"mp-abcdefgh"), Some("cpython-semlock"));
        assert_eq!(id(Kind::Other, b"psm_0a1b2c3d"), None);
        assert_eq!(
            catalogue.find(Kind::Sem, b"sem.loky-99999999999-abcdefgh").and_then(|m| m.pid),
            None
        );
        assert_eq!(
            catalogue.find(Kind::Shm, b"cuda.shm.3e9.52f2.1").and_then(|m| m.pid),
            Some(0x52f2)
        );
        let uid = |name: &[u8]| catalogue.find(Kind::Shm, name).and_then(|m| m.uid);
        assert_eq!(uid(b"cuda.shm.3e9.52f2.1"), Some(1001));
        assert_eq!(uid(b"4711:1000:3"), Some(1000));
        assert_eq!(uid(b"psm_0a1b2c3d"), None);
    }

    #[test]
    fn trackers_are_known_by_their_launch_text() {
        let catalogue = Catalogue::built_in();
        let guardian = catalogue.guardian("python-tracker").unwrap();
        for (line, is) in [
            (&b"/usr/bin/python3\0-c\0from multiprocessing.resource_tracker import main;main(4)\0"[..], true),
            (b"python\0-E\0-c\0from loky.backend.resource_tracker import main; main(7, False)\0", true),
            (b"python\0-c\0from joblib.externals.loky.backend.resource_tracker import main; main(7, False)\0", true),
            (b"python\0-c\0from multiprocessing.semaphore_tracker import main;main(5)\0", true),
            (b"/usr/bin/rtrack\0daemon\0--fd\x005\0", true),
            (b"rtrack\0-q\0--color\0never\0daemon\0", true),
            (b"rtrack\0daemon\0--protocol\0rtrack\0--fd\x000\0", true),
            (b"rtrack\0list\0", false),
            (b"python3\0server.py\0", false),
        ] {
            assert_eq!(guardian.has_command_line(line), is, "{}", String::from_utf8_lossy(line));
        }
        let family = catalogue.family("python").unwrap();
        assert!(family.has_executable(b"python3.11"));
        assert!(family.has_mapping(b"libpython3.11.so.1.0"));
        assert!(family.has_mapping(b"_posixshmem.cpython-311-x86_64-linux-gnu.so"));
        assert!(!family.has_mapping(b"libc.so.6"));
    }
}
