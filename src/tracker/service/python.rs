//! How Python shows things: `repr()` of strings, bytes and JSON values, since a tracker's
//! messages are read by programs that expect Python's own.

use std::fmt::{self, Write as _};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// `repr()` of a `str` that was decoded from these bytes with `surrogateescape`: bytes that are
/// not UTF-8 are lone surrogates, shown as `\udcXX`.
#[derive(Debug, Clone, Copy)]
pub struct ReprStr<'a>(pub &'a [u8]);

impl fmt::Display for ReprStr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = quote_for(self.0);
        f.write_char(quote)?;
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\n' => f.write_str("\\n")?,
                    '\r' => f.write_str("\\r")?,
                    '\t' => f.write_str("\\t")?,
                    '\\' => f.write_str("\\\\")?,
                    c if c == quote => write!(f, "\\{c}")?,
                    ' '..='~' => f.write_char(c)?,
                    c if u32::from(c) <= 0xff && !printable(c) => {
                        write!(f, "\\x{:02x}", u32::from(c))?;
                    }
                    c if printable(c) => f.write_char(c)?,
                    c if u32::from(c) <= 0xffff => write!(f, "\\u{:04x}", u32::from(c))?,
                    c => write!(f, "\\U{:08x}", u32::from(c))?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\udc{byte:02x}")?;
            }
        }
        f.write_char(quote)
    }
}

/// `repr()` of a `bytes`.
#[derive(Debug, Clone, Copy)]
pub struct ReprBytes<'a>(pub &'a [u8]);

impl fmt::Display for ReprBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = quote_for(self.0);
        write!(f, "b{quote}")?;
        for &byte in self.0 {
            match byte {
                b'\n' => f.write_str("\\n")?,
                b'\r' => f.write_str("\\r")?,
                b'\t' => f.write_str("\\t")?,
                b'\\' => f.write_str("\\\\")?,
                _ if char::from(byte) == quote => write!(f, "\\{quote}")?,
                b' '..=b'~' => f.write_char(char::from(byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        f.write_char(quote)
    }
}

/// Double quotes only where they save escaping.
fn quote_for(bytes: &[u8]) -> char {
    if bytes.contains(&b'\'') && !bytes.contains(&b'"') { '"' } else { '\'' }
}

/// `str.isprintable()`. Rust's `escape_debug` leaves the same characters alone (those of the
/// categories C* and Z* but for the space are escaped), except for a combining mark at the start
/// of a string, which is why the character is not put there.
fn printable(c: char) -> bool {
    let mut text = [b'a'; 5];
    let (_, rest) = text.split_at_mut(1);
    let length = c.encode_utf8(rest).len() + 1;
    let text = text.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok());
    text.is_some_and(|text| text.escape_debug().nth(1) == Some(c))
}

/// The class that Python gives an `OSError` of that number (PEP 3151).
#[must_use]
pub fn os_error_class(errno: i32) -> &'static str {
    match errno {
        libc::EAGAIN | libc::EALREADY | libc::EINPROGRESS => "BlockingIOError",
        libc::EPIPE | libc::ESHUTDOWN => "BrokenPipeError",
        libc::ECHILD => "ChildProcessError",
        libc::ECONNABORTED => "ConnectionAbortedError",
        libc::ECONNREFUSED => "ConnectionRefusedError",
        libc::ECONNRESET => "ConnectionResetError",
        libc::EEXIST => "FileExistsError",
        libc::ENOENT => "FileNotFoundError",
        libc::EINTR => "InterruptedError",
        libc::EISDIR => "IsADirectoryError",
        libc::ENOTDIR => "NotADirectoryError",
        libc::EACCES | libc::EPERM => "PermissionError",
        libc::ESRCH => "ProcessLookupError",
        libc::ETIMEDOUT => "TimeoutError",
        _ => "OSError",
    }
}

/// A JSON value as `json.loads` makes it: a dictionary keeps the order in which its keys first
/// appeared, and the last of duplicate keys wins.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`
    Null,
    /// `True` or `False`
    Bool(bool),
    /// An `int`
    Int(i128),
    /// A `float`, or an integer beyond 128 bits
    Float(f64),
    /// A `str`
    Str(String),
    /// A `list`
    List(Vec<Value>),
    /// A `dict`
    Dict(Vec<(String, Value)>),
}

impl Value {
    /// The value of `key` in a dictionary.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Dict(items) => items.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    /// `repr()`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("None"),
            Self::Bool(true) => f.write_str("True"),
            Self::Bool(false) => f.write_str("False"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Float(number) => float(*number, f),
            Self::Str(text) => ReprStr(text.as_bytes()).fmt(f),
            Self::List(items) => {
                f.write_char('[')?;
                for (index, item) in items.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    item.fmt(f)?;
                }
                f.write_char(']')
            }
            Self::Dict(items) => {
                f.write_char('{')?;
                for (index, (key, item)) in items.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    write!(f, "{}: {item}", ReprStr(key.as_bytes()))?;
                }
                f.write_char('}')
            }
        }
    }
}

/// `repr()` of a float: the shortest digits that round-trip, in scientific notation below 1e-4
/// and from 1e16 on.
fn float(number: f64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let scientific = format!("{number:e}");
    match scientific.split_once('e').map(|(digits, power)| (digits, power.parse::<i32>())) {
        Some((digits, Ok(power))) if !(-4..16).contains(&power) => {
            let sign = if power < 0 { '-' } else { '+' };
            write!(f, "{digits}e{sign}{:02}", power.unsigned_abs())
        }
        _ => write!(f, "{number:?}"),
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Str(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Str(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        // The index keeps a line of many keys from costing the square of their number.
        let mut places = std::collections::HashMap::<String, usize>::new();
        let mut items: Vec<(String, Value)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            match places.get(&key).and_then(|&place| items.get_mut(place)) {
                Some(item) => item.1 = value,
                None => {
                    places.insert(key.clone(), items.len());
                    items.push((key, value));
                }
            }
        }
        Ok(Value::Dict(items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_as_python_shows_them() {
        for (bytes, shown) in [
            (&b"/psm_1"[..], "'/psm_1'"),
            (b"", "''"),
            (b"it's", "\"it's\""),
            (b"'\"", "'\\'\"'"),
            (b"\"", "'\"'"),
            (b"a\nb\rc\td\\", "'a\\nb\\rc\\td\\\\'"),
            (b"\0\x1b\x7f", "'\\x00\\x1b\\x7f'"),
            ("é\u{a0}\u{ad}\u{85}".as_bytes(), "'é\\xa0\\xad\\x85'"),
            ("\u{202e}\u{3000}\u{e000}".as_bytes(), "'\\u202e\\u3000\\ue000'"),
            ("\u{e0001}\u{1f600}".as_bytes(), "'\\U000e0001\u{1f600}'"),
            ("\u{301}a".as_bytes(), "'\u{301}a'"),
            (b"\xff\xed\xa0\x80", "'\\udcff\\udced\\udca0\\udc80'"),
        ] {
            assert_eq!(ReprStr(bytes).to_string(), shown);
        }
    }

    #[test]
    fn bytes_as_python_shows_them() {
        for (bytes, shown) in [
            (&b"x\n"[..], "b'x\\n'"),
            (b"it's", "b\"it's\""),
            (b"'\"", "b'\\'\"'"),
            (b"\xc3\xa9\0", "b'\\xc3\\xa9\\x00'"),
        ] {
            assert_eq!(ReprBytes(bytes).to_string(), shown);
        }
    }

    #[test]
    fn json_values_as_python_shows_them() {
        for (json, shown) in [
            (r#"{"b":1,"a":null,"b":[true,false]}"#, "{'b': [True, False], 'a': None}"),
            (
                "[1.0,1e16,1e-5,0.0001,123456789.25,-2.5e-7]",
                "[1.0, 1e+16, 1e-05, 0.0001, 123456789.25, -2.5e-07]",
            ),
            ("[18446744073709551615,-9]", "[18446744073709551615, -9]"),
        ] {
            assert_eq!(serde_json::from_str::<Value>(json).unwrap().to_string(), shown);
        }
    }
}
