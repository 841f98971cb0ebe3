//! The document of one object: pure.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::tracker::inventory::posix::classify;
use crate::tracker::reap::is_quarantine_name;
use crate::tracker::resource::Name;
use crate::tracker::sys::Nanoseconds;

/// The schema of what this version writes and reads.
pub(super) const SCHEMA: &str = "rtrack.archive/1";

/// The end of a document: its checksum is of all the bytes before these.
const SEAL: (&str, &str) = (",\n  \"sha256\": \"", "\"\n}\n");

/// The longest name that a directory entry has (`NAME_MAX`).
const LONGEST_NAME: usize = 255;

/// The longest path inside a directory that is put back (`PATH_MAX`).
const LONGEST_PATH: usize = 4096;

/// One saved object.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Document {
    /// `rtrack.archive/1`.
    pub schema: String,
    /// When, as RFC 3339 in UTC.
    pub saved_at: String,
    /// The version of rtrack.
    pub rtrack: String,
    /// On which machine.
    pub host: String,
    /// In which boot.
    pub boot_id: Option<String>,
    /// `kind:name`.
    pub id: String,
    /// The kind, as `list` shows it.
    pub kind: String,
    /// The name in /dev/shm; what is not UTF-8 replaced.
    pub file: String,
    /// The exact bytes of a name that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_base64: Option<String>,
    /// Device number of the mount, as `major:minor`.
    pub dev: String,
    /// Inode number.
    pub ino: u64,
    /// When it was born, if the file system knew.
    pub born: Option<Moment>,
    /// When its inode changed last.
    pub changed: Moment,
    /// Why it was to go.
    pub verdict: Verdict,
    /// The object itself, and what is in a directory, each after the directory that it is in.
    pub entries: Vec<Entry>,
}

/// Why an object was to go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// The verdict.
    pub verdict: String,
    /// The code of the deciding reason.
    pub reason: String,
    /// The operator overrode the verdict.
    pub forced: bool,
    /// All the evidence, as `list --json` has it.
    pub evidence: Value,
}

/// A moment: seconds since 1970, and nanoseconds from 0 to 999 999 999 after them. Two numbers,
/// because one does not fit into what many readers of JSON have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds, negative before 1970.
    pub s: i64,
    /// Nanoseconds.
    pub ns: u32,
}

impl Moment {
    /// The moment of a time in nanoseconds since 1970.
    #[must_use]
    pub fn of(time: Nanoseconds) -> Self {
        let ns = time.rem_euclid(1_000_000_000);
        let s = time.div_euclid(1_000_000_000);
        // Both fit: a remainder of 10⁹, and what was made of a 64-bit number of seconds.
        Self { s: i64::try_from(s).unwrap_or(i64::MAX), ns: u32::try_from(ns).unwrap_or(0) }
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// A regular file, with its content.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, with what it points to.
    Symlink,
    /// A FIFO; what was in it is not saved.
    Fifo,
    /// A socket, which cannot be restored.
    Socket,
    /// A device, which is not restored.
    Device,
}

impl Type {
    pub(super) fn of(file_type: u32) -> Self {
        match file_type {
            libc::S_IFREG => Self::File,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            _ => Self::Device,
        }
    }

    pub(super) const fn file_type(self) -> u32 {
        match self {
            Self::File => libc::S_IFREG,
            Self::Directory => libc::S_IFDIR,
            Self::Symlink => libc::S_IFLNK,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
            Self::Device => libc::S_IFCHR,
        }
    }
}

/// The object, or one thing in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is in the object; empty for the object itself. What is not UTF-8 is replaced.
    pub path: String,
    /// The exact bytes of a path that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Type,
    /// Permissions with set-uid, set-gid and sticky bits, as four octal digits.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How many names it had.
    pub nlink: u32,
    /// When its content changed last.
    pub mtime: Moment,
    /// When it was read last, before it was saved.
    pub atime: Moment,
    /// Names of extended attributes that it had, access control lists included: they are not saved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<String>,
    /// Apparent size in bytes; 0 for what is no file.
    pub size: u64,
    /// The file in the archive that has the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The digest of the content: SHA-256 over `rtrack.content/1` and a NUL, then for each block of
    /// 4096 bytes that has any other byte than 0 its offset (64 bits, little-endian) and its
    /// bytes, the last one filled up with zeroes, then the size (64 bits, little-endian).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// What a symbolic link points to; what is not UTF-8 is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The exact bytes of a target that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_base64: Option<String>,
}

/// `bytes` as JSON has them: lossily, and exactly if that loses anything.
pub(super) fn to_text(bytes: &[u8]) -> (String, Option<String>) {
    let exact = std::str::from_utf8(bytes).is_err().then(|| STANDARD.encode(bytes));
    (String::from_utf8_lossy(bytes).into_owned(), exact)
}

/// The bytes that [`to_text`] was given.
fn to_bytes(text: &str, exact: Option<&String>) -> Result<Vec<u8>, String> {
    match exact {
        None => Ok(text.as_bytes().to_vec()),
        Some(exact) => {
            let bytes = STANDARD.decode(exact).map_err(|error| format!("base64: {error}"))?;
            let same = String::from_utf8_lossy(&bytes) == text;
            if same { Ok(bytes) } else { Err("a name differs from its base64 form".into()) }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn finish(hash: Sha256) -> String {
    hex(&hash.finalize())
}

impl Entry {
    /// The exact path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn path(&self) -> Result<Vec<u8>, String> {
        to_bytes(&self.path, self.path_base64.as_ref())
    }

    /// The exact target of a symbolic link.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn target(&self) -> Result<Vec<u8>, String> {
        to_bytes(self.target.as_deref().unwrap_or_default(), self.target_base64.as_ref())
    }

    /// The mode as a number.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn mode(&self) -> Result<u32, String> {
        u32::from_str_radix(&self.mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .ok_or_else(|| format!("mode {:?} is none", self.mode))
    }

    fn check(&self, unique: &str) -> Result<(), String> {
        self.mode()?;
        if self.mtime.ns >= 1_000_000_000 || self.atime.ns >= 1_000_000_000 {
            return Err("a time has too many nanoseconds".into());
        }
        if i64::try_from(self.size).is_err() || self.kind != Type::File && self.size != 0 {
            return Err(format!("size {} cannot be", self.size));
        }
        let target = self.target()?;
        if (self.kind == Type::Symlink) == target.is_empty() || target.contains(&0) {
            return Err("the target of a symbolic link is missing, or is too much".into());
        }
        match (&self.data, &self.sha256, self.kind) {
            (Some(data), Some(sha256), Type::File) => {
                let number = data.strip_prefix(unique).and_then(|rest| rest.strip_prefix('.'));
                let number = number.and_then(|rest| rest.strip_suffix(".data"));
                if !number.is_some_and(is_number) {
                    return Err(format!("{data:?} is no data file of this entry"));
                }
                let is_digest = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
                if is_digest { Ok(()) } else { Err("a digest is none".into()) }
            }
            (None, None, Type::File) => Err("a file has no data".into()),
            (None, None, _) => Ok(()),
            _ => Err("what is no file has data".into()),
        }
    }
}

fn is_number(text: &str) -> bool {
    (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether `text` is the name of an entry as [`super::Archive`] makes them:
/// `20261124T132500.123Z-0123456789abcdef`.
pub(super) fn is_unique(text: &str) -> bool {
    let Some((time, random)) = text.split_once("Z-") else { return false };
    let plain = |b: u8| b.is_ascii_digit() || b == b'T' || b == b'.';
    (1..=40).contains(&time.len())
        && time.bytes().all(plain)
        && random.len() == 16
        && random.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl Document {
    /// The exact name in /dev/shm.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn file(&self) -> Result<Name, String> {
        to_bytes(&self.file, self.file_base64.as_ref()).map(Name::new)
    }

    /// The text of it, with its checksum.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub(super) fn seal(&self) -> serde_json::Result<String> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.truncate(text.trim_end_matches(['}', '\n']).len());
        let checksum = hex(&Sha256::digest(text.as_bytes()));
        Ok(format!("{text}{}{checksum}{}", SEAL.0, SEAL.1))
    }

    /// Reads what [`Document::seal`] wrote for the entry `unique`, and checks all that can be
    /// checked without the data.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn open(text: &[u8], unique: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let schema = value.get("schema").and_then(Value::as_str).unwrap_or_default();
        if schema != SCHEMA {
            return Err(format!(
                "its schema is {schema:?}, and this version of rtrack reads {SCHEMA}"
            ));
        }
        check_seal(text)?;
        let document: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        document.check(unique)?;
        Ok(document)
    }

    fn check(&self, unique: &str) -> Result<(), String> {
        let file = self.file()?;
        if !is_name(file.as_bytes()) {
            return Err(format!("{file} is not a name that an object can have"));
        }
        let Some((first, inside)) = self.entries.split_first() else {
            return Err("it has no entries".into());
        };
        if !first.path.is_empty() {
            return Err("its first entry is not the object".into());
        }
        if first.kind != Type::Directory && !inside.is_empty() {
            return Err("something is inside what is no directory".into());
        }
        if first.kind == Type::Directory && is_quarantine_name(&file) {
            return Err(format!("{file} is a name of rtrack's own directories"));
        }
        let (kind, _, _) = classify(&file, first.kind.file_type());
        if kind.as_str() != self.kind {
            return Err(format!("{file} cannot be of the kind {}", self.kind));
        }
        self.saved_at.parse::<jiff::Timestamp>().map_err(|error| error.to_string())?;
        check_paths(&self.entries)?;
        let mut data = std::collections::HashSet::new();
        for entry in &self.entries {
            entry.check(unique)?;
            if entry.data.as_ref().is_some_and(|name| !data.insert(name)) {
                return Err("two entries have the same data".into());
            }
        }
        Ok(())
    }
}

/// Every path leads through directories of the document, each named before, and nowhere else.
fn check_paths(entries: &[Entry]) -> Result<(), String> {
    let mut known = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let path = entry.path()?;
        let refuse = || format!("the path {} cannot be", Name::new(path.clone()));
        if index > 0 {
            let (above, name) = match path.iter().rposition(|b| *b == b'/') {
                Some(slash) => (path.get(..slash), path.get(slash + 1..)),
                None => (Some(&[][..]), Some(&path[..])),
            };
            let parent = above.and_then(|above| known.get(above));
            let inside = parent == Some(&Type::Directory) && path.first() != Some(&b'/');
            if !inside || !name.is_some_and(is_name) || path.len() > LONGEST_PATH {
                return Err(refuse());
            }
        }
        if known.insert(path.clone(), entry.kind).is_some() {
            return Err(refuse());
        }
    }
    Ok(())
}

/// Whether a directory entry can have this name.
fn is_name(name: &[u8]) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && !matches!(name, b"." | b"..")
        && !name.contains(&b'/')
        && !name.contains(&0)
}

fn check_seal(text: &[u8]) -> Result<(), String> {
    let parts = || {
        let rest = text.strip_suffix(SEAL.1.as_bytes())?;
        let (rest, checksum) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
        Some((rest.strip_suffix(SEAL.0.as_bytes())?, checksum))
    };
    let (content, checksum) = parts().ok_or("it has no checksum at its end")?;
    if hex(&Sha256::digest(content)).as_bytes() == checksum {
        Ok(())
    } else {
        Err("its checksum does not fit: it was changed or damaged".into())
    }
}
