//! Reading catalogues: the built-in one and the operators' own.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{Family, Guardian, HeldWhileAlive, Producer, compile, whole};
use crate::tracker::resource::escape;

/// Where the machine's operators put theirs.
const SYSTEM: &str = "/etc/rtrack/producers.d";

/// A catalogue file of this size is a mistake.
const MOST_BYTES: u64 = 4 << 20;

/// The kinds that an entry may be about.
const KINDS: [&str; 7] = ["shm", "sem", "dir", "mqueue", "hugepage", "sysv-shm", "sysv-sem"];

/// A file that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", self.place(), escape(.what.as_bytes()))]
pub struct Broken {
    /// Which file.
    pub file: PathBuf,
    /// Its line, from 1.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
}

impl Broken {
    /// The file and the line, for people.
    #[must_use]
    pub fn place(&self) -> String {
        let file = escape(self.file.as_os_str().as_bytes());
        self.line.map_or_else(|| file.clone(), |line| format!("{file}:{line}"))
    }
}

/// The contents of one file.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) producers: Vec<Producer>,
    pub(super) families: Vec<Family>,
    pub(super) guardians: Vec<Guardian>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCatalogue {
    schema_version: Spanned<u32>,
    #[serde(default)]
    families: BTreeMap<String, RawFamily>,
    #[serde(default)]
    guardians: BTreeMap<String, RawGuardian>,
    #[serde(default)]
    producer: Vec<RawProducer>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFamily {
    executables: Spanned<String>,
    libraries: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGuardian {
    what: String,
    command_lines: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProducer {
    id: Spanned<String>,
    software: Option<String>,
    kind: Spanned<String>,
    pattern: Spanned<String>,
    example: Option<Spanned<String>>,
    #[serde(default)]
    pid_embedded: bool,
    held_while_alive: HeldWhileAlive,
    #[serde(default)]
    persistent_by_design: bool,
    #[serde(default = "yes")]
    proof: bool,
    family: Option<Spanned<String>>,
    guardian: Option<Spanned<String>>,
    #[serde(default)]
    lock_suffixes: Vec<String>,
    #[serde(default)]
    note: String,
    #[serde(default)]
    source: String,
}

fn yes() -> bool {
    true
}

/// The directories of operators' files: the machine's and the user's (`$XDG_CONFIG_HOME`, or
/// `~/.config`). The latter counts only if it is below a directory of the user that runs this:
/// after su or sudo the environment may still name somebody else's home.
#[must_use]
pub fn operator_directories() -> Vec<PathBuf> {
    let own = |path: PathBuf| {
        let uid = std::fs::metadata(&path).ok()?.uid();
        (path.is_absolute() && uid == nix::unistd::geteuid().as_raw()).then_some(path)
    };
    let config = match std::env::var_os("XDG_CONFIG_HOME") {
        Some(config) => own(config.into()),
        None => std::env::var_os("HOME")
            .and_then(|home| own(home.into()))
            .map(|home| home.join(".config")),
    };
    std::iter::once(PathBuf::from(SYSTEM))
        .chain(config.map(|config| config.join("rtrack/producers.d")))
        .collect()
}

/// The built-in catalogue.
pub(super) fn built_in() -> Result<Layer, Broken> {
    parse(super::BUILT_IN, None, &Layer::default())
}

/// Every `*.toml` of `directories`, in the order of their names. Their entries may refer to the
/// families and guardians of `base`.
pub(super) fn read_all(directories: &[PathBuf], base: &Layer) -> Vec<Result<Layer, Broken>> {
    let mut layers = Vec::new();
    for directory in directories {
        let broken = |what: String| Broken { file: directory.clone(), line: None, what };
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                layers.push(Err(broken(error.to_string())));
                continue;
            }
        };
        let mut files = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => files.push(entry.path()),
                Err(error) => layers.push(Err(broken(error.to_string()))),
            }
        }
        // Editors leave hidden files, locks and copies, beside the one that they edit.
        files.retain(|file| {
            let hidden = file.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."));
            !hidden && file.extension().is_some_and(|extension| extension == "toml")
        });
        files.sort();
        layers.extend(files.into_iter().map(|file| {
            let text = read_trusted(&file)?;
            parse(&text, Some(&file), base)
        }));
    }
    layers
}

/// What a test of one file showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// How many entries it has.
    pub entries: usize,
    /// Why it would be refused as it lies there, whatever it says.
    pub distrusted: Option<&'static str>,
}

/// Tests one file as if it were among the operators'.
///
/// # Errors
/// What is wrong with it.
pub fn check_file(file: &Path) -> Result<Checked, Broken> {
    let mut distrusted = None;
    let text = read(file, |meta| {
        distrusted = distrust(meta);
        Ok(())
    })?;
    let entries = parse(&text, Some(file), &built_in()?)?.producers.len();
    Ok(Checked { entries, distrusted })
}

/// What a catalogue says decides what is deleted: only root's files and our own count, and only if
/// nobody else can write them.
fn read_trusted(file: &Path) -> Result<String, Broken> {
    read(file, |meta| distrust(meta).map_or(Ok(()), Err))
}

/// Why a file is not to be trusted.
fn distrust(meta: &Metadata) -> Option<&'static str> {
    if meta.uid() != 0 && meta.uid() != nix::unistd::geteuid().as_raw() {
        return Some("belongs neither to root nor to you");
    }
    (meta.mode() & 0o022 != 0).then_some("group or others may write it")
}

/// Reads a regular file that `trusted` has nothing against.
fn read(
    file: &Path,
    trusted: impl FnOnce(&Metadata) -> Result<(), &'static str>,
) -> Result<String, Broken> {
    let broken = |what: String| Broken { file: file.into(), line: None, what };
    let io = |error: std::io::Error| broken(error.to_string());
    let mut open = std::fs::File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(file)
        .map_err(io)?;
    let meta = open.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(broken("not a regular file".into()));
    }
    trusted(&meta).map_err(|what| broken(what.into()))?;
    if meta.len() > MOST_BYTES {
        return Err(broken(format!("larger than {MOST_BYTES} bytes")));
    }
    let mut text = String::new();
    open.read_to_string(&mut text).map_err(io)?;
    Ok(text)
}

/// Reads one catalogue. The patterns of an operator's file are compiled here, so that a bad one is
/// named with its line; the built-in ones when they are needed.
fn parse(text: &str, file: Option<&Path>, base: &Layer) -> Result<Layer, Broken> {
    let broken = |at: Option<usize>, what: String| Broken {
        file: file.map_or_else(|| PathBuf::from("built-in catalogue"), Path::to_path_buf),
        line: at.map(|at| text.get(..at).unwrap_or(text).matches('\n').count() + 1),
        what,
    };
    let raw: RawCatalogue = toml::from_str(text).map_err(|error| {
        broken(error.span().map(|span| span.start), error.message().replace('\n', " "))
    })?;
    if *raw.schema_version.get_ref() != 1 {
        let what = format!("schema_version {} is not known, only 1", raw.schema_version.get_ref());
        return Err(broken(Some(raw.schema_version.span().start), what));
    }
    let regex = |pattern: &Spanned<String>| {
        compile(pattern.get_ref()).map_err(|error| {
            let text = error.to_string();
            let what = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            broken(Some(pattern.span().start), format!("not a regular expression: {what}"))
        })
    };
    let mut layer = Layer::default();
    for (name, raw) in raw.families {
        let executables = regex(&raw.executables)?;
        let libraries = raw.libraries.as_ref().map(regex).transpose()?;
        layer.families.push(Family { name, executables, libraries });
    }
    // What people are shown of an entry is escaped here, once and for all.
    let shown = |text: String| escape(text.as_bytes());
    for (name, raw) in raw.guardians {
        let command_lines = regex(&raw.command_lines)?;
        layer.guardians.push(Guardian { name, what: shown(raw.what), command_lines });
    }
    for raw in raw.producer {
        check(&raw, &layer, base, file.is_some()).map_err(|(at, what)| broken(Some(at), what))?;
        if file.is_some() {
            regex(&raw.pattern)?;
        }
        let id = raw.id.into_inner();
        layer.producers.push(Producer {
            software: raw.software.map_or_else(|| id.clone(), shown),
            id,
            kind: raw.kind.into_inner(),
            pattern: raw.pattern.into_inner(),
            example: raw.example.map(Spanned::into_inner).unwrap_or_default(),
            pid_embedded: raw.pid_embedded,
            held_while_alive: raw.held_while_alive,
            persistent_by_design: raw.persistent_by_design,
            proof: raw.proof,
            family: raw.family.map(Spanned::into_inner),
            guardian: raw.guardian.map(Spanned::into_inner),
            lock_suffixes: raw.lock_suffixes,
            note: shown(raw.note),
            source: shown(raw.source),
            file: file.map(Path::to_path_buf),
            compiled: std::sync::OnceLock::new(),
        });
    }
    Ok(layer)
}

/// What can be wrong with an entry by itself: where, and what. `whole_entry` asks for what needs
/// its pattern compiled too.
fn check(
    raw: &RawProducer,
    layer: &Layer,
    base: &Layer,
    whole_entry: bool,
) -> Result<(), (usize, String)> {
    let refuse = |at: &Spanned<String>, what: String| Err((at.span().start, what));
    if !KINDS.contains(&raw.kind.get_ref().as_str()) {
        return refuse(
            &raw.kind,
            format!("kind {} is none of {}", raw.kind.get_ref(), KINDS.join(", ")),
        );
    }
    if let Some(name) = &raw.family
        && !layer.families.iter().chain(&base.families).any(|f| f.name == *name.get_ref())
    {
        return refuse(name, format!("family {} is not defined", name.get_ref()));
    }
    if let Some(name) = &raw.guardian
        && !layer.guardians.iter().chain(&base.guardians).any(|g| g.name == *name.get_ref())
    {
        return refuse(name, format!("guardian {} is not defined", name.get_ref()));
    }
    if !whole_entry {
        return Ok(());
    }
    let id = raw.id.get_ref();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !id.bytes().all(plain) || id.bytes().next().is_none_or(|first| first == b'-') {
        return refuse(&raw.id, format!("id {id:?}: only a-z, 0-9 and - make an id"));
    }
    if layer.producers.iter().any(|known| known.id == *raw.id.get_ref()) {
        return refuse(&raw.id, format!("id {} twice", raw.id.get_ref()));
    }
    // What is no regular expression at all is reported as that, by who compiles it.
    let Ok(pattern) = compile(&whole(raw.pattern.get_ref())) else { return Ok(()) };
    let names_pid = pattern.capture_names().flatten().any(|n| n == "pid" || n == "pid_hex");
    if raw.pid_embedded && !names_pid {
        return refuse(
            &raw.pattern,
            "pid_embedded, but the pattern has no group pid or pid_hex".to_owned(),
        );
    }
    match &raw.example {
        Some(example) if !pattern.is_match(example.get_ref().as_bytes()) => {
            refuse(example, "the pattern does not match the example".to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::evidence::producers::Catalogue;
    use crate::tracker::resource::Kind;

    const GOOD: &str = "schema_version = 1\n[[producer]]\nid = \"own\"\nkind = \"shm\"\n\
        pattern = 'own_\\d+'\nheld_while_alive = \"mapped\"\nfamily = \"python\"\n";

    fn problem(text: &str) -> (Option<usize>, String) {
        let broken = parse(text, Some(Path::new("x.toml")), &built_in().unwrap()).unwrap_err();
        (broken.line, broken.what)
    }

    #[test]
    fn a_broken_file_is_named_with_its_line() {
        for (from, to, line, says) in [
            ("schema_version = 1", "schema_version = 2", 1, "schema_version 2"),
            ("kind = \"shm\"", "kind = \"shmm\"", 4, "kind shmm"),
            ("'own_\\d+'", "'own_('", 5, "not a regular expression"),
            ("\"mapped\"", "\"maped\"", 6, "maped"),
            ("\"python\"", "\"pyton\"", 7, "family pyton"),
            ("family =", "familie =", 7, "familie"),
            ("id = \"own\"", "id = ", 3, ""),
            ("family = \"python\"", "pid_embedded = true", 5, "no group pid"),
            ("family = \"python\"", "example = \"own\"", 7, "does not match"),
        ] {
            let (at, what) = problem(&GOOD.replace(from, to));
            assert_eq!(at, Some(line), "{what}");
            assert!(what.contains(says), "{what}");
        }
        let twice = GOOD.to_owned() + GOOD.split_once("1\n").unwrap().1;
        assert_eq!(problem(&twice), (Some(9), "id own twice".into()));
    }

    #[test]
    fn operators_come_first_and_a_broken_file_is_left_out() {
        let own = GOOD.replace("own_", "psm_").replace("\"own\"", "\"cpython-shared-memory\"");
        let file = Path::new("own.toml");
        let catalogue = Catalogue::with_files(|base| {
            vec![
                parse(&own, Some(file), base),
                Err(Broken { file: "bad.toml".into(), line: Some(3), what: "w".into() }),
            ]
        });
        let found = catalogue.find(Kind::Shm, b"psm_123").unwrap();
        assert_eq!(found.producer.file.as_deref(), Some(file));
        assert!(catalogue.find(Kind::Shm, b"psm_0a1b2c3d").is_none());
        assert_eq!(catalogue.broken()[0].to_string(), "bad.toml:3: w");
    }
}
