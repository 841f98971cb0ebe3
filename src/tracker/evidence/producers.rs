//! The catalogue: which program makes objects of such a name, how its live owners hold them, and
//! what can come back for them.

use std::sync::OnceLock;

use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::Deserialize;

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
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
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
    #[serde(default = "yes")]
    pub proof: bool,
    /// The programs without which nobody can come back for it.
    pub family: Option<String>,
    /// The process that comes back for it or cleans it.
    pub guardian: Option<String>,
    /// What else is known.
    pub note: String,
    /// Where this was seen.
    pub source: String,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
struct RawFamily {
    executables: String,
    libraries: String,
}

#[derive(Debug, Deserialize)]
struct RawGuardian {
    what: String,
    command_lines: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCatalogue {
    schema_version: u32,
    #[serde(default)]
    families: std::collections::BTreeMap<String, RawFamily>,
    #[serde(default)]
    guardians: std::collections::BTreeMap<String, RawGuardian>,
    producer: Vec<Producer>,
}

/// Executables and libraries of one family.
#[derive(Debug)]
pub struct Family {
    /// Its name in the catalogue.
    pub name: String,
    executables: Regex,
    libraries: Regex,
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
        self.libraries.is_match(file_name) || self.executables.is_match(file_name)
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

/// A catalogue that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// Not TOML of this form; the message has the line.
    #[error("{0}")]
    Form(#[from] toml::de::Error),
    /// A pattern that is no regular expression.
    #[error("{id}: {source}")]
    Pattern {
        /// Which entry.
        id: String,
        /// Where it went wrong.
        source: Box<regex::Error>,
    },
    /// A family or guardian that the file does not define, or a schema that is not known here.
    #[error("{id}: {what}")]
    Reference {
        /// Which entry.
        id: String,
        /// What is missing.
        what: String,
    },
}

/// The producers, in the order in which they are tried.
#[derive(Debug)]
pub struct Catalogue {
    producers: Vec<Producer>,
    families: Vec<Family>,
    guardians: Vec<Guardian>,
    files: OnceLock<Matcher>,
    directories: OnceLock<Matcher>,
    /// The patterns with a pid in them, each compiled when first needed, by the producer's index.
    with_pid: Vec<OnceLock<Option<Regex>>>,
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
}

impl PartialEq for Producer {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Producer {}

impl Catalogue {
    /// The catalogue that rtrack brings with it.
    ///
    /// # Errors
    /// None that the tests would not have found.
    pub fn built_in() -> Result<Self, CatalogueError> {
        Self::parse(BUILT_IN)
    }

    /// Reads a catalogue. Patterns are compiled when they are needed.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn parse(text: &str) -> Result<Self, CatalogueError> {
        let raw: RawCatalogue = toml::from_str(text)?;
        if raw.schema_version != 1 {
            return Err(CatalogueError::Reference {
                id: "schema_version".into(),
                what: format!("{} is not known, only 1", raw.schema_version),
            });
        }
        for producer in &raw.producer {
            let missing = |what: &str, name: &str| CatalogueError::Reference {
                id: producer.id.clone(),
                what: format!("{what} {name} is not defined"),
            };
            if let Some(name) = producer.family.as_ref().filter(|n| !raw.families.contains_key(*n))
            {
                return Err(missing("family", name));
            }
            if let Some(name) =
                producer.guardian.as_ref().filter(|n| !raw.guardians.contains_key(*n))
            {
                return Err(missing("guardian", name));
            }
        }
        let families = raw
            .families
            .into_iter()
            .map(|(name, raw)| {
                Ok(Family {
                    executables: compile(&name, &raw.executables)?,
                    libraries: compile(&name, &raw.libraries)?,
                    name,
                })
            })
            .collect::<Result<_, CatalogueError>>()?;
        let guardians = raw
            .guardians
            .into_iter()
            .map(|(name, raw)| {
                Ok(Guardian {
                    command_lines: compile(&name, &raw.command_lines)?,
                    what: raw.what,
                    name,
                })
            })
            .collect::<Result<_, CatalogueError>>()?;
        Ok(Self {
            with_pid: raw.producer.iter().map(|_| OnceLock::new()).collect(),
            producers: raw.producer,
            families,
            guardians,
            files: OnceLock::new(),
            directories: OnceLock::new(),
        })
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

    /// The first entry that a file name in /dev/shm matches. A semaphore and a memory object are
    /// both regular files there, and musl's semaphores have no prefix, so for a file the patterns
    /// of both kinds are tried.
    #[must_use]
    pub fn find(&self, kind: Kind, file: &[u8]) -> Option<Match<'_>> {
        let matcher = match kind {
            Kind::Shm | Kind::Sem => self.files.get_or_init(|| self.matcher(&["shm", "sem"])),
            Kind::Dir => self.directories.get_or_init(|| self.matcher(&["dir"])),
            Kind::Other => return None,
        };
        let first = matcher.set.matches(file).into_iter().next()?;
        let index = *matcher.indices.get(first)?;
        let producer = self.producers.get(index)?;
        Some(Match { producer, pid: self.embedded_pid(index, producer, file) })
    }

    /// The pid in a name. Compiling a pattern costs a hundred times what matching it does, and any
    /// user can make as many such names as the mount holds.
    fn embedded_pid(&self, index: usize, producer: &Producer, file: &[u8]) -> Option<i32> {
        if !producer.pid_embedded {
            return None;
        }
        let pattern = self
            .with_pid
            .get(index)?
            .get_or_init(|| compile(&producer.id, &producer.pattern).ok())
            .as_ref()?;
        let captures = pattern.captures(file)?;
        let group = |name: &str, radix: u32| {
            let digits = std::str::from_utf8(captures.name(name)?.as_bytes()).ok()?;
            i32::from_str_radix(digits, radix).ok().filter(|pid| *pid > 0)
        };
        group("pid", 10).or_else(|| group("pid_hex", 16))
    }

    fn matcher(&self, kinds: &[&str]) -> Matcher {
        let chosen =
            self.producers.iter().enumerate().filter(|(_, p)| kinds.contains(&p.kind.as_str()));
        let (indices, patterns): (Vec<usize>, Vec<&str>) =
            chosen.map(|(index, producer)| (index, producer.pattern.as_str())).unzip();
        // The patterns were compiled one by one by the tests; a set of them that does not fit
        // into its size limit leaves every producer unknown, which proves nothing.
        match RegexSetBuilder::new(&patterns).unicode(false).dot_matches_new_line(true).build() {
            Ok(set) => Matcher { set, indices },
            Err(_) => Matcher { set: RegexSet::empty(), indices: Vec::new() },
        }
    }
}

fn compile(id: &str, pattern: &str) -> Result<Regex, CatalogueError> {
    RegexBuilder::new(pattern)
        .unicode(false)
        .dot_matches_new_line(true)
        .build()
        .map_err(|source| CatalogueError::Pattern { id: id.into(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(producer: &Producer) -> Option<Kind> {
        match producer.kind.as_str() {
            "shm" => Some(Kind::Shm),
            "sem" => Some(Kind::Sem),
            "dir" => Some(Kind::Dir),
            _ => None,
        }
    }

    #[test]
    fn every_example_matches_its_own_entry_first() {
        let catalogue = Catalogue::built_in().unwrap();
        assert_eq!(catalogue.producers().len(), 121);
        for producer in catalogue.producers() {
            assert!(
                compile(&producer.id, &producer.pattern)
                    .unwrap()
                    .is_match(producer.example.as_bytes()),
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
        let catalogue = Catalogue::built_in().unwrap();
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
        let catalogue = Catalogue::built_in().unwrap();
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
    }

    #[test]
    fn trackers_are_known_by_their_launch_text() {
        let catalogue = Catalogue::built_in().unwrap();
        let guardian = catalogue.guardian("python-tracker").unwrap();
        for (line, is) in [
            (&b"/usr/bin/python3\0-c\0from multiprocessing.resource_tracker import main;main(4)\0"[..], true),
            (b"python\0-E\0-c\0from loky.backend.resource_tracker import main; main(7, False)\0", true),
            (b"python\0-c\0from joblib.externals.loky.backend.resource_tracker import main; main(7, False)\0", true),
            (b"python\0-c\0from multiprocessing.semaphore_tracker import main;main(5)\0", true),
            (b"/usr/bin/rtrack\0daemon\0--fd\x005\0", true),
            (b"rtrack\0-q\0--color\0never\0daemon\0", true),
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
