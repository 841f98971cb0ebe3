//! The wire format: framing, parsing and encoding, as pure functions from bytes to values.
//!
//! What is read is what CPython 3.15's `multiprocessing.resource_tracker` reads, and loky 3.7's, byte
//! for byte: a line whose first byte is `{` is JSON, any other is `CMD:name:rtype` in ASCII. The one
//! divergence is a bound on the length of a line, [`LINE_MAX`].

use std::borrow::Cow;
use std::fmt;

use super::python::{ReprBytes, ReprStr, Value};
use crate::tracker::resource::escape;

mod encode;
#[cfg(test)]
mod tests;

pub use super::dialect::{Command, Dialect, Rtype};
pub use encode::{
    EncodeError, Excess, Form, JSON_NAME_MAX, MESSAGE_MAX, encode, encode_into, form_for, shortened,
};

/// The longest line that is read, in bytes without its newline. Real trackers have no bound.
pub const LINE_MAX: usize = 1 << 20;

/// One line, understood. The name is bytes: those of the line, or those that base64 held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// What to do
    pub command: Command,
    /// with the resource of this name
    pub name: Cow<'a, [u8]>,
    /// and this type.
    pub rtype: Rtype,
}

/// Why a line is bad. [`LineError::class`] and `Display` are the exception that the real
/// tracker raises for it; control characters, which Python passes through, are escaped.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LineError<'a> {
    /// A line beyond a bound of so many bytes, which real trackers do not have.
    #[error("line longer than {0} bytes")]
    TooLong(usize),
    /// No colon, or only one.
    #[error("not enough values to unpack (expected 2, got 1)")]
    MissingColon,
    /// A byte beyond ASCII in the ASCII form.
    #[error(
        "'ascii' codec can't decode byte 0x{byte:02x} in position {position}: ordinal not in range(128)"
    )]
    NotAscii {
        /// The byte.
        byte: u8,
        /// Where it is in the line after white space was stripped, from 0.
        position: usize,
    },
    /// A type that the dialect does not know.
    #[error("Cannot register {} for automatic cleanup: unknown resource type {}", escape(.name), UnknownType(.rtype, *.dialect))]
    UnknownRtype {
        /// The name in the message.
        name: Cow<'a, [u8]>,
        /// The type in the message.
        rtype: Cow<'a, [u8]>,
        /// Who does not know it.
        dialect: Dialect,
    },
    /// A command that the dialect does not know, for this type at least.
    #[error("unrecognized command {}", ReprStr(.0))]
    UnknownCommand(Cow<'a, [u8]>),
    /// Not JSON, although it begins like that.
    #[error("malformed resource_tracker message: {}", ReprBytes(.0))]
    NotJson(&'a [u8]),
    /// JSON without a key that has to be there.
    #[error("'{0}'")]
    MissingKey(&'static str),
    /// JSON whose fields are not strings.
    #[error("malformed resource_tracker fields: {0}")]
    NotStrings(Box<Value>),
    /// A `base64_name` that is not base64.
    #[error("malformed resource_tracker base64_name: {}", ReprStr(.0.as_bytes()))]
    NotBase64(String),
}

impl LineError<'_> {
    /// The Python class of the exception.
    #[must_use]
    pub const fn class(&self) -> &'static str {
        match self {
            Self::TooLong(_)
            | Self::MissingColon
            | Self::UnknownRtype { .. }
            | Self::NotJson(_)
            | Self::NotStrings(_)
            | Self::NotBase64(_) => "ValueError",
            Self::NotAscii { .. } => "UnicodeDecodeError",
            Self::UnknownCommand(_) => "RuntimeError",
            Self::MissingKey(_) => "KeyError",
        }
    }
}

/// The end of the message about an unknown type.
struct UnknownType<'a>(&'a [u8], Dialect);

impl fmt::Display for UnknownType<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(rtype, dialect) = self;
        let rtype = escape(rtype);
        if *dialect == Dialect::Cpython {
            return f.write_str(&rtype);
        }
        write!(f, "({rtype}). Resource type should be one of the following: [")?;
        for (index, known) in dialect.rtypes().iter().enumerate() {
            write!(f, "{}'{known}'", if index == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

/// Understands one line, with or without its newline.
///
/// # Errors
/// The exception of the dialect's tracker, which then goes on with the next line. The type is
/// checked before the command, as there: an unknown type is an error even in a probe. Only the
/// empty type of the probes of loky 3.4 (joblib up to 1.4) is none for whoever speaks with loky.
pub fn parse(line: &[u8], dialect: Dialect) -> Result<Message<'_>, LineError<'_>> {
    if line.first() == Some(&b'{') {
        let (command, name, rtype) = fields_of_json(line)?;
        understand(command, name, rtype, dialect)
    } else {
        let (command, name, rtype) = fields_of_ascii(line)?;
        understand(command, name, rtype, dialect)
    }
}

#[inline]
fn understand<'a, Bytes: AsRef<[u8]> + Into<Cow<'a, [u8]>>>(
    command: Bytes,
    name: Bytes,
    rtype: Bytes,
    dialect: Dialect,
) -> Result<Message<'a>, LineError<'a>> {
    let (said, of) = (command.as_ref(), rtype.as_ref());
    let Some(known) = dialect.rtype(of) else {
        if of.is_empty() && said == b"PROBE" && dialect.takes_probes_without_type() {
            return Ok(Message { command: Command::Probe, name: name.into(), rtype: Rtype::Noop });
        }
        let (name, rtype) = (name.into(), rtype.into());
        return Err(LineError::UnknownRtype { name, rtype, dialect });
    };
    match dialect.command(said, known) {
        Some(command) => Ok(Message { command, name: name.into(), rtype: known }),
        None => Err(LineError::UnknownCommand(command.into())),
    }
}

/// Command, name and type.
type Fields<Bytes> = (Bytes, Bytes, Bytes);

fn fields_of_ascii(line: &[u8]) -> Result<Fields<&[u8]>, LineError<'_>> {
    let line = strip(line);
    if !line.is_ascii() {
        let position = line.iter().position(|byte| !byte.is_ascii()).unwrap_or_default();
        let byte = line.get(position).copied().unwrap_or_default();
        return Err(LineError::NotAscii { byte, position });
    }
    // Commands and types are short, and not worth a search that has to be set up.
    let colon = |&byte: &u8| byte == b':';
    let (command, rest) = split(line, line.iter().position(colon))?;
    let (name, rtype) = split(rest, rest.iter().rposition(colon))?;
    Ok((command, name, rtype))
}

/// What lies before and after the byte at `place`.
fn split(text: &[u8], place: Option<usize>) -> Result<(&[u8], &[u8]), LineError<'_>> {
    match place.and_then(|place| Some((text.get(..place)?, text.get(place + 1..)?))) {
        Some(both) => Ok(both),
        None => Err(LineError::MissingColon),
    }
}

/// `bytes.strip()`: without white space at both ends. The separators 0x1c to 0x1f are white space
/// in a Python `str`, not in `bytes`.
fn strip(mut line: &[u8]) -> &[u8] {
    const fn is_space(byte: u8) -> bool {
        matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'\x0b' | b'\x0c')
    }
    while let [first, rest @ ..] = line
        && is_space(*first)
    {
        line = rest;
    }
    while let [rest @ .., last] = line
        && is_space(*last)
    {
        line = rest;
    }
    line
}

fn fields_of_json(line: &[u8]) -> Result<Fields<Vec<u8>>, LineError<'_>> {
    let value: Value = if line.is_ascii() { serde_json::from_slice(line).ok() } else { None }
        .ok_or(LineError::NotJson(line))?;
    for key in ["cmd", "rtype"] {
        if value.get(key).is_none() {
            return Err(LineError::MissingKey(key));
        }
    }
    let text = |key| match value.get(key) {
        Some(field) => field.as_str(),
        None => Some(""),
    };
    let (Some(command), Some(rtype), Some(name)) =
        (text("cmd"), text("rtype"), text("base64_name"))
    else {
        return Err(LineError::NotStrings(Box::new(value)));
    };
    let name = decode_base64(name).ok_or_else(|| LineError::NotBase64(name.to_owned()))?;
    Ok((command.as_bytes().to_vec(), name, rtype.as_bytes().to_vec()))
}

/// `base64.urlsafe_b64decode` as trackers call it: both alphabets are taken, everything outside
/// them is dropped, what follows complete padding is ignored, missing padding is refused.
/// CPython's `base64` crate-level strictness cannot express this, so the digits are gathered here.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() {
        return None;
    }
    let mut name = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut digits, mut pads) = (0_u32, 0_u32, 0_u32);
    for byte in text.bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'=' => {
                if digits >= 2 {
                    pads += 1;
                    if digits + pads >= 4 {
                        return Some(name);
                    }
                }
                continue;
            }
            _ => continue,
        };
        pads = 0;
        bits = bits << 6 | u32::from(digit);
        digits += 1;
        // Each digit after the first of four completes a byte.
        if digits > 1 {
            let byte = bits >> (8 - 2 * digits);
            name.push(u8::try_from(byte & 0xff).unwrap_or_default());
        }
        digits %= 4;
    }
    (digits == 0).then_some(name)
}

/// Cuts a stream into lines, whatever the pieces it arrives in.
///
/// It keeps at most as many bytes as a line may have, and those only while a line is incomplete.
#[derive(Debug)]
pub struct Framer {
    /// How long a line may be, in bytes without its newline.
    bound: usize,
    /// The beginning of a line whose end has not arrived.
    partial: Vec<u8>,
    /// The line is too long already: what arrives up to its end is dropped.
    skipping: bool,
}

impl Default for Framer {
    fn default() -> Self {
        Self::new()
    }
}

impl Framer {
    /// An empty one for lines of up to [`LINE_MAX`] bytes.
    #[must_use]
    pub const fn new() -> Self {
        Self::with_bound(LINE_MAX)
    }

    /// An empty one for lines of up to `bound` bytes.
    #[must_use]
    pub const fn with_bound(bound: usize) -> Self {
        Self { bound, partial: Vec::new(), skipping: false }
    }

    /// Takes a piece of the stream and calls `each` for every line that it completes. A line
    /// includes its newline, as Python's do.
    pub fn push(&mut self, mut piece: &[u8], mut each: impl FnMut(Result<&[u8], LineError<'_>>)) {
        while let Some(end) = memchr::memchr(b'\n', piece) {
            let (line, rest) = piece.split_at(end + 1);
            piece = rest;
            if self.partial.is_empty() && !self.skipping {
                let fits = line.len() <= self.bound + 1;
                each(if fits { Ok(line) } else { Err(LineError::TooLong(self.bound)) });
            } else {
                self.keep(line, self.bound + 1);
                self.end(&mut each);
            }
        }
        self.keep(piece, self.bound);
    }

    /// The stream has ended: an unterminated last line counts too.
    pub fn finish(&mut self, mut each: impl FnMut(Result<&[u8], LineError<'_>>)) {
        if self.skipping || !self.partial.is_empty() {
            self.end(&mut each);
        }
    }

    fn keep(&mut self, piece: &[u8], bound: usize) {
        if self.skipping || self.partial.len() + piece.len() > bound {
            self.skipping = true;
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(piece);
        }
    }

    fn end(&mut self, each: &mut impl FnMut(Result<&[u8], LineError<'_>>)) {
        let too_long = LineError::TooLong(self.bound);
        each(if self.skipping { Err(too_long) } else { Ok(&self.partial) });
        self.skipping = false;
        self.partial.clear();
        // A long line must not cost its memory for the rest of the tracker's life.
        self.partial.shrink_to(4096);
    }
}
