//! The wire format: framing, parsing and encoding, as pure functions from bytes to values.
//!
//! What is read is what CPython 3.15's `multiprocessing.resource_tracker` reads, byte for byte: a
//! line whose first byte is `{` is JSON, any other is `CMD:name:rtype` in ASCII. The one
//! divergence is a bound on the length of a line, [`LINE_MAX`].

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;

use super::python::{ReprBytes, ReprStr, Value};
use crate::tracker::resource::escape;

/// The longest line that is read, in bytes without its newline. Real trackers have no bound.
pub const LINE_MAX: usize = 1 << 20;

/// The longest message that is written, in bytes: POSIX lets every pipe take that much in one
/// piece (`_POSIX_PIPE_BUF`), so that writers never interleave.
pub const MESSAGE_MAX: usize = 512;

/// The longest name of the JSON form, in bytes (`NAME_MAX`): CPython refuses longer ones.
pub const JSON_NAME_MAX: usize = 255;

/// What a tracker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Remember a resource.
    Register,
    /// Forget it.
    Unregister,
    /// Nothing: the writer only wants to know whether the pipe is still read.
    Probe,
}

impl Command {
    /// Every command.
    pub const ALL: [Self; 3] = [Self::Register, Self::Unregister, Self::Probe];

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Register => "REGISTER",
            Self::Unregister => "UNREGISTER",
            Self::Probe => "PROBE",
        }
    }

    /// The command of that word; case matters.
    #[must_use]
    pub fn from_word(word: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|command| command.as_str().as_bytes() == word)
    }
}

/// The resource types of CPython's tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rtype {
    /// What probes carry. It can be registered, but cleaning it up is an error.
    Noop,
    /// A resource of CPython's own tests, whose removal does nothing and which leaks silently.
    Dummy,
    /// A POSIX named semaphore.
    Semaphore,
    /// A POSIX shared memory object.
    SharedMemory,
}

impl Rtype {
    /// Every type, in the order of cleaning.
    pub const ALL: [Self; 4] = [Self::Noop, Self::Dummy, Self::Semaphore, Self::SharedMemory];

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Noop => "noop",
            Self::Dummy => "dummy",
            Self::Semaphore => "semaphore",
            Self::SharedMemory => "shared_memory",
        }
    }

    /// The type of that word; case matters.
    #[must_use]
    pub fn from_word(word: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|rtype| rtype.as_str().as_bytes() == word)
    }
}

impl fmt::Display for Rtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

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

/// Why a line is bad. [`LineError::class`] and `Display` are the exception that CPython's tracker
/// raises for it; control characters, which Python passes through, are escaped.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LineError<'a> {
    /// A line beyond [`LINE_MAX`], which real trackers do not have.
    #[error("line longer than {LINE_MAX} bytes")]
    TooLong,
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
    /// A type that is not one of [`Rtype::ALL`].
    #[error("Cannot register {} for automatic cleanup: unknown resource type {}", escape(.name), escape(.rtype))]
    UnknownRtype {
        /// The name in the message.
        name: Cow<'a, [u8]>,
        /// The type in the message.
        rtype: Cow<'a, [u8]>,
    },
    /// A command that is not one of [`Command::ALL`].
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
            Self::TooLong
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

/// Understands one line, with or without its newline.
///
/// # Errors
/// The exception of CPython's tracker, which then goes on with the next line. The type is
/// checked before the command, as there: an unknown type is an error even in a probe.
pub fn parse(line: &[u8]) -> Result<Message<'_>, LineError<'_>> {
    let (command, name, rtype) =
        if line.first() == Some(&b'{') { fields_of_json(line)? } else { fields_of_ascii(line)? };
    let Some(rtype) = Rtype::from_word(&rtype) else {
        return Err(LineError::UnknownRtype { name, rtype });
    };
    match Command::from_word(&command) {
        Some(command) => Ok(Message { command, name, rtype }),
        None => Err(LineError::UnknownCommand(command)),
    }
}

type Fields<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>, Cow<'a, [u8]>);

fn fields_of_ascii(line: &[u8]) -> Result<Fields<'_>, LineError<'_>> {
    let line = strip(line);
    if let Some(position) = line.iter().position(|byte| !byte.is_ascii()) {
        let byte = line.get(position).copied().unwrap_or_default();
        return Err(LineError::NotAscii { byte, position });
    }
    let colon = |&byte: &u8| byte == b':';
    let (command, rest) = split(line, line.iter().position(colon))?;
    let (name, rtype) = split(rest, rest.iter().rposition(colon))?;
    Ok((command.into(), name.into(), rtype.into()))
}

/// What lies before and after the byte at `place`.
fn split(text: &[u8], place: Option<usize>) -> Result<(&[u8], &[u8]), LineError<'_>> {
    place
        .and_then(|place| Some((text.get(..place)?, text.get(place + 1..)?)))
        .ok_or(LineError::MissingColon)
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

fn fields_of_json(line: &[u8]) -> Result<Fields<'_>, LineError<'_>> {
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
    Ok((command.as_bytes().to_vec().into(), name.into(), rtype.as_bytes().to_vec().into()))
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
/// It keeps at most [`LINE_MAX`] bytes, and those only while a line is incomplete.
#[derive(Debug, Default)]
pub struct Framer {
    /// The beginning of a line whose end has not arrived.
    partial: Vec<u8>,
    /// The line is too long already: what arrives up to its end is dropped.
    skipping: bool,
}

impl Framer {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a piece of the stream and calls `each` for every line that it completes. A line
    /// includes its newline, as Python's do.
    pub fn push(&mut self, mut piece: &[u8], mut each: impl FnMut(Result<&[u8], LineError<'_>>)) {
        while let Some(end) = piece.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = piece.split_at(end + 1);
            piece = rest;
            if self.partial.is_empty() && !self.skipping {
                each(if line.len() > LINE_MAX + 1 { Err(LineError::TooLong) } else { Ok(line) });
            } else {
                self.keep(line, LINE_MAX + 1);
                self.end(&mut each);
            }
        }
        self.keep(piece, LINE_MAX);
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
        each(if self.skipping { Err(LineError::TooLong) } else { Ok(&self.partial) });
        self.skipping = false;
        self.partial.clear();
        // A long line must not cost its memory for the rest of the tracker's life.
        self.partial.shrink_to(4096);
    }
}

/// The two forms of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `CMD:name:rtype`, which every tracker reads.
    Ascii,
    /// `{"cmd":…}`, which only newer ones read, for names that the other cannot carry.
    Json,
}

/// Why a message cannot be sent; nothing has been written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Beyond [`MESSAGE_MAX`].
    #[error("the message for \"{}\" would be {length} bytes long, and no writer may exceed {MESSAGE_MAX}", shortened(.name))]
    MessageTooLong {
        /// The name in it.
        name: Vec<u8>,
        /// Its length in bytes, newline included.
        length: usize,
    },
    /// Beyond [`JSON_NAME_MAX`].
    #[error("the name \"{}\" is {} bytes long, and the JSON form takes at most {JSON_NAME_MAX}", shortened(.0), .0.len())]
    NameTooLong(Vec<u8>),
}

/// The beginning, at most 32 bytes, of what is too long to be shown, escaped.
#[must_use]
pub fn shortened(name: &[u8]) -> String {
    match name.get(..32) {
        Some(beginning) if name.len() > 32 => format!("{}...", escape(beginning)),
        _ => escape(name),
    }
}

/// The form that `name` needs: ASCII wherever it can carry the name.
#[must_use]
pub fn form_for(name: &[u8]) -> Form {
    if name.is_ascii() && !name.contains(&b'\n') { Form::Ascii } else { Form::Json }
}

/// The bytes of a message, newline included, to be written at once.
///
/// The type is a word and not an [`Rtype`], since other trackers know others.
///
/// # Errors
/// The message or the name is too long.
pub fn encode(
    command: Command,
    name: &[u8],
    rtype: &str,
    form: Form,
) -> Result<Vec<u8>, EncodeError> {
    let command = command.as_str();
    let mut message = Vec::with_capacity(64 + name.len() * 2);
    match form {
        Form::Ascii => {
            for part in [command.as_bytes(), b":", name, b":", rtype.as_bytes(), b"\n"] {
                message.extend_from_slice(part);
            }
        }
        Form::Json => {
            if name.len() > JSON_NAME_MAX {
                return Err(EncodeError::NameTooLong(name.to_vec()));
            }
            let name = base64::engine::general_purpose::URL_SAFE.encode(name);
            let fields = [("cmd", command), ("rtype", rtype), ("base64_name", &name)];
            for (index, (key, value)) in fields.into_iter().enumerate() {
                message.push(if index == 0 { b'{' } else { b',' });
                message.extend_from_slice(format!("\"{key}\":\"{value}\"").as_bytes());
            }
            message.extend_from_slice(b"}\n");
        }
    }
    if message.len() > MESSAGE_MAX {
        return Err(EncodeError::MessageTooLong { name: name.to_vec(), length: message.len() });
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(line: &[u8]) -> String {
        match parse(line) {
            Ok(m) => format!("{} {} {}", m.command.as_str(), ReprStr(&m.name), m.rtype),
            Err(error) => format!("{}: {error}", error.class()),
        }
    }

    #[test]
    fn lines_mean_what_python_takes_them_for() {
        for (line, meaning) in [
            (&b"REGISTER:/a:shared_memory\n"[..], "REGISTER '/a' shared_memory"),
            (b"UNREGISTER:/a:semaphore", "UNREGISTER '/a' semaphore"),
            (b" \t\x0b\x0cREGISTER:x:dummy\r\n", "REGISTER 'x' dummy"),
            (b"REGISTER: a :noop\n", "REGISTER ' a ' noop"),
            (b"REGISTER:a:b:c:dummy\n", "REGISTER 'a:b:c' dummy"),
            (b"REGISTER::dummy\n", "REGISTER '' dummy"),
            (b"PROBE:0:noop\n", "PROBE '0' noop"),
            (b"REGISTER:a\0b:dummy\n", "REGISTER 'a\\x00b' dummy"),
            (b"\n", "ValueError: not enough values to unpack (expected 2, got 1)"),
            (b"REGISTER\n", "ValueError: not enough values to unpack (expected 2, got 1)"),
            (b"REGISTER:x\n", "ValueError: not enough values to unpack (expected 2, got 1)"),
            (
                b"REGISTER:x:dummy\x1c\n",
                "ValueError: Cannot register x for automatic cleanup: unknown resource type dummy\\x1c",
            ),
            (
                b"PROBE:0:bogus\n",
                "ValueError: Cannot register 0 for automatic cleanup: unknown resource type bogus",
            ),
            (b"register:x:dummy\n", "RuntimeError: unrecognized command 'register'"),
            (
                b"register:x:bogus\n",
                "ValueError: Cannot register x for automatic cleanup: unknown resource type bogus",
            ),
            (
                b" REGISTER:\xc3:dummy\n",
                "UnicodeDecodeError: 'ascii' codec can't decode byte 0xc3 in position 9: ordinal not in range(128)",
            ),
            (br#"{"cmd":"PROBE","rtype":"noop"}"#, "PROBE '' noop"),
            (
                br#"{"cmd":"REGISTER","rtype":"dummy","base64_name":"YQ==","base64_name":"Yg=="}"#,
                "REGISTER 'b' dummy",
            ),
            (
                br#"{"\u0063md":"REGISTER","rtype":"dummy","base64_name":"w\u0036k="}"#,
                "REGISTER 'é' dummy",
            ),
            (
                br#"{"cmd":"REGISTER","rtype":"dummy","base64_name":"_-8="}"#,
                "REGISTER '\\udcff\\udcef' dummy",
            ),
            (br#"{"rtype":"bogus"}"#, "KeyError: 'cmd'"),
            (br#"{"cmd":"x"}"#, "KeyError: 'rtype'"),
            (
                br#"{"cmd":1,"rtype":"noop"}"#,
                "ValueError: malformed resource_tracker fields: {'cmd': 1, 'rtype': 'noop'}",
            ),
            (b"{x}\n", "ValueError: malformed resource_tracker message: b'{x}\\n'"),
            (
                "{\"cmd\":\"é\"}".as_bytes(),
                "ValueError: malformed resource_tracker message: b'{\"cmd\":\"\\xc3\\xa9\"}'",
            ),
            (
                br#"{"cmd":"PROBE","rtype":"noop","base64_name":"QUJ"}"#,
                "ValueError: malformed resource_tracker base64_name: 'QUJ'",
            ),
            (
                br#"{"cmd":"PROBE","rtype":"noop","base64_name":"\u00e9"}"#,
                "ValueError: malformed resource_tracker base64_name: 'é'",
            ),
        ] {
            assert_eq!(shown(line), meaning);
        }
    }

    #[test]
    fn base64_as_python_reads_it() {
        for (text, name) in [
            ("", Some(&b""[..])),
            ("QUJD", Some(b"ABC")),
            ("QUI=", Some(b"AB")),
            ("QQ==", Some(b"A")),
            ("Q Q = =", Some(b"A")),
            ("QQ==QUJD", Some(b"A")),
            ("Q=Q==", Some(b"A")),
            ("=QQ==", Some(b"A")),
            ("QU=JD", Some(b"ABC")),
            ("====", Some(b"")),
            ("+/-_", Some(b"\xfb\xff\xbf")),
            ("QQ=", None),
            ("QQ", None),
            ("Q", None),
            ("QUJDQ===", None),
        ] {
            assert_eq!(decode_base64(text).as_deref(), name, "{text}");
        }
    }

    fn lines(pieces: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
        let mut framer = Framer::new();
        let mut found = Vec::new();
        for piece in pieces {
            framer.push(piece, |line| found.push(line.ok().map(<[u8]>::to_vec)));
        }
        framer.finish(|line| found.push(line.ok().map(<[u8]>::to_vec)));
        found
    }

    #[test]
    fn the_bound_of_a_line() {
        for (length, kept) in [(LINE_MAX, true), (LINE_MAX + 1, false)] {
            let mut stream = vec![b'x'; length];
            assert_eq!(lines(&[&stream]).iter().map(Option::is_some).collect::<Vec<_>>(), [kept]);
            stream.extend_from_slice(b"\nnext\n");
            for size in [1000, 4096, LINE_MAX, LINE_MAX + 1, stream.len()] {
                let found = lines(&stream.chunks(size).collect::<Vec<_>>());
                assert_eq!(found.len(), 2, "{size}");
                assert_eq!(found[0].is_some(), kept, "{size}");
                assert_eq!(found[1].as_deref(), Some(&b"next\n"[..]));
            }
        }
    }

    proptest! {
        #[test]
        fn framing_does_not_depend_on_the_pieces(
            stream in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            size in 1..50_usize,
        ) {
            let pieces: Vec<&[u8]> = stream.chunks(size).collect();
            prop_assert_eq!(lines(&pieces), lines(&[&stream]));
            prop_assert_eq!(lines(&pieces).into_iter().flatten().flatten().collect::<Vec<_>>(), stream);
        }

        #[test]
        fn no_bytes_make_it_panic(line in proptest::collection::vec(any::<u8>(), 0..200), json in any::<bool>()) {
            let mut line = line;
            if json { line.insert(0, b'{'); }
            shown(&line);
        }

        #[test]
        fn what_is_encoded_is_read_back(
            name in proptest::collection::vec(any::<u8>(), 0..255),
            command in proptest::sample::select(&Command::ALL),
            rtype in proptest::sample::select(&Rtype::ALL),
        ) {
            let message = encode(command, &name, rtype.as_str(), form_for(&name)).unwrap();
            prop_assert!(message.len() <= MESSAGE_MAX);
            prop_assert_eq!(message.iter().filter(|&&byte| byte == b'\n').count(), 1);
            prop_assert_eq!(parse(&message), Ok(Message { command, name: name.into(), rtype }));
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let fits = MESSAGE_MAX - "REGISTER::dummy\n".len();
        assert!(encode(Command::Register, &vec![b'a'; fits], "dummy", Form::Ascii).is_ok());
        assert!(encode(Command::Register, &vec![b'a'; fits + 1], "dummy", Form::Ascii).is_err());
        assert!(encode(Command::Unregister, &[0xff; 255], "shared_memory", Form::Json).is_ok());
        assert!(encode(Command::Register, &[0xff; 256], "dummy", Form::Json).is_err());
    }
}
