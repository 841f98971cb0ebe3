//! Names, kinds and identities of IPC objects.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::sys::ipc::Family;
use super::sys::{Nanoseconds, Stat};

/// The kinds of object, as `list` shows them and selectors name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A POSIX shared memory object: a regular file directly in /dev/shm.
    Shm,
    /// A POSIX named semaphore: a regular file `sem.NAME` in /dev/shm (glibc's form).
    Sem,
    /// A directory parked in /dev/shm.
    Dir,
    /// A POSIX message queue.
    Mqueue,
    /// Anything else that lies there: a symlink, a FIFO, a socket, a device.
    Other,
    /// System V shared memory.
    SysvShm,
    /// A set of System V semaphores.
    SysvSem,
    /// A System V message queue.
    SysvMsg,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 8] = [
        Self::Shm,
        Self::Sem,
        Self::Dir,
        Self::Mqueue,
        Self::SysvShm,
        Self::SysvSem,
        Self::SysvMsg,
        Self::Other,
    ];

    /// The prefix of ids, e.g. `shm`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::Sem => "sem",
            Self::Dir => "dir",
            Self::Mqueue => "mqueue",
            Self::Other => "other",
            Self::SysvShm => "sysv-shm",
            Self::SysvSem => "sysv-sem",
            Self::SysvMsg => "sysv-msg",
        }
    }

    /// The family of a System V object.
    #[must_use]
    pub const fn family(self) -> Option<Family> {
        match self {
            Self::SysvShm => Some(Family::Shm),
            Self::SysvSem => Some(Family::Sem),
            Self::SysvMsg => Some(Family::Msg),
            Self::Shm | Self::Sem | Self::Dir | Self::Mqueue | Self::Other => None,
        }
    }

    /// The kind whose prefix is `text`.
    #[must_use]
    pub fn from_prefix(text: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str().as_bytes() == text)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name as the kernel knows it: any bytes but NUL and slash. Its `Display` is safe on a
/// terminal: control and bidirectional characters and bytes that are not UTF-8 are escaped. To clone one copies
/// nothing.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<[u8]>);

impl Name {
    /// The name made of `bytes`.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into().into())
    }

    /// The exact bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same as an `OsStr`, for system calls.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The name with what is not UTF-8 replaced, as JSON shows it.
    #[must_use]
    pub fn to_lossy(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// Whether the name is UTF-8, so that [`Name::to_lossy`] loses nothing.
    #[must_use]
    pub fn is_utf8(&self) -> bool {
        std::str::from_utf8(&self.0).is_ok()
    }
}

impl From<OsString> for Name {
    fn from(name: OsString) -> Self {
        Self::new(name.into_vec())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&escape(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", escape(&self.0))
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_lossy())
    }
}

/// What makes an object that object, whatever its name is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device number of the mount.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Birth: inode numbers are used again.
    pub born: Option<Nanoseconds>,
    /// Of a System V object, whose id is the inode number.
    pub sysv: Option<Made>,
}

/// What a System V object was made with, beside its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Made {
    /// Its key.
    pub key: u32,
    /// The user who made it.
    pub creator_uid: Option<u32>,
    /// The process that made it, where the kernel records that.
    pub creator: Option<i32>,
}

impl Identity {
    /// The identity of what `stat` describes.
    #[must_use]
    pub fn of(stat: &Stat) -> Self {
        Self { dev: stat.dev, ino: stat.ino, born: stat.born, sysv: None }
    }

    /// Whether `stat` describes this object.
    #[must_use]
    pub fn is(&self, stat: &Stat) -> bool {
        *self == Self::of(stat)
    }
}

/// `bytes` as text that a terminal can be shown: control characters, bidirectional and other
/// invisible formatting characters, and bytes that are not UTF-8 become `\n`, `\x1b`, `\u{202e}`;
/// a backslash stays as it is.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                c if u32::from(c) < 0x20 || c == '\x7f' => {
                    text.push_str(&format!("\\x{:02x}", u32::from(c)));
                }
                c if is_invisible(c) => text.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Characters that change how their neighbours are shown, or are not shown at all: C1 controls,
/// bidirectional controls, zero-width characters, fillers, variation selectors, line separators,
/// tags, byte order marks.
#[must_use]
pub fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{80}'..='\u{9f}' | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}'
        | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{ffa0}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{e0100}'..='\u{e01ef}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// JSON in which what a terminal would obey, or not show, is written as `\u009b`. Such characters are
/// in strings only.
#[must_use]
pub fn harmless(json: &str) -> std::borrow::Cow<'_, str> {
    if json.is_ascii() && !json.contains('\x7f') {
        return json.into();
    }
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\x7f' || is_invisible(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(c);
        }
    }
    text.into()
}

/// Adds a name to a JSON object: as text, and if that is not exact in base64 too.
pub fn insert_name(map: &mut Map<String, Value>, name: &[u8]) {
    map.insert("name".into(), json!(String::from_utf8_lossy(name)));
    if std::str::from_utf8(name).is_err() {
        map.insert("name_base64".into(), json!(STANDARD.encode(name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_the_same_and_harmless() {
        let value = serde_json::json!({ "a": "b\u{9b}31m \u{202e}\u{e0001}\x7fgröße" });
        let text = harmless(&value.to_string()).into_owned();
        assert!(text.contains("\\u009b31m \\u202e\\udb40\\udc01\\u007fgröße"), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn escapes_what_a_terminal_would_obey() {
        for (bytes, shown) in [
            (&b"psm_1"[..], "psm_1"),
            (b"a\nb", "a\\nb"),
            (b"\x1b[31mred", "\\x1b[31mred"),
            (b"\xff\xfe", "\\xff\\xfe"),
            ("a\u{202e}b".as_bytes(), "a\\u{202e}b"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
            ("größe".as_bytes(), "größe"),
        ] {
            assert_eq!(escape(bytes), shown);
        }
    }
}
