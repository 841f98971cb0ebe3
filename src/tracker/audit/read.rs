//! The record, read back: lines that may be torn, forged or of another version, and which outcome
//! belongs to which intent.

use std::collections::HashMap;
use std::io::{self, BufRead};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::SCHEMA;
use crate::tracker::inventory::Object;
use crate::tracker::resource::{Kind, Name};
use crate::tracker::sys::{Nanoseconds, Stat};

/// A line longer than this, in bytes, is none of ours.
pub const LONGEST: usize = 16 << 20;

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Longer than [`LONGEST`].
    #[error("too long")]
    TooLong,
    /// The last one, without its end.
    #[error("torn")]
    Torn,
    /// Something else, or what is left of a line.
    #[error("no JSON object")]
    NotJson,
    /// What another version of rtrack wrote.
    #[error("of schema {0}")]
    Schema(String),
    /// It lacks what every line has.
    #[error("no valid {0}")]
    Field(&'static str),
}

/// Whether a line was written before or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Before the object was touched.
    Intent,
    /// When it was known what became of it.
    Outcome,
}

/// A line that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// All of it.
    pub value: Map<String, Value>,
    /// Before or after.
    pub event: Event,
    /// When it was written, in nanoseconds since 1970.
    pub time: Nanoseconds,
    /// The run, and the number of the object in it.
    pub key: (String, u64),
}

impl Record {
    /// Takes a line apart.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, Fault> {
        let Ok(Value::Object(value)) = serde_json::from_slice(line) else {
            return Err(Fault::NotJson);
        };
        let text =
            |name: &'static str| value.get(name).and_then(Value::as_str).ok_or(Fault::Field(name));
        match text("schema")? {
            SCHEMA => {}
            other => return Err(Fault::Schema(other.chars().take(64).collect())),
        }
        let event = match text("event")? {
            "intent" => Event::Intent,
            "outcome" => Event::Outcome,
            _ => return Err(Fault::Field("event")),
        };
        let time: jiff::Timestamp = text("time")?.parse().map_err(|_| Fault::Field("time"))?;
        let number = value.get("seq").and_then(Value::as_u64).ok_or(Fault::Field("seq"))?;
        let key = (text("run")?.to_owned(), number);
        let object = value.get("object").and_then(|object| object.get("id"));
        object.and_then(Value::as_str).ok_or(Fault::Field("object"))?;
        if event == Event::Outcome {
            text("outcome")?;
        }
        Ok(Self { time: time.as_nanosecond(), event, key, value })
    }
}

/// Reads line by line; empty ones are left out.
#[derive(Debug)]
pub struct Lines<R> {
    source: R,
    buffer: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `source`.
    pub fn new(source: R) -> Self {
        Self { source, buffer: Vec::new(), number: 0 }
    }

    /// The next line with its number, from 1.
    ///
    /// # Errors
    /// The errno of reading.
    pub fn read(&mut self) -> io::Result<Option<(u64, Result<Record, Fault>)>> {
        loop {
            self.buffer.clear();
            let Some(end) = self.fill()? else { return Ok(None) };
            self.number += 1;
            let record = match end {
                _ if self.buffer.len() > LONGEST => Err(Fault::TooLong),
                _ if self.buffer.iter().all(u8::is_ascii_whitespace) => continue,
                End::Newline => Record::parse(&self.buffer),
                // It may be whole all the same.
                End::Input => Record::parse(&self.buffer).map_err(|fault| match fault {
                    Fault::NotJson => Fault::Torn,
                    other => other,
                }),
            };
            return Ok(Some((self.number, record)));
        }
    }

    /// Reads to the end of the line, keeping no more than shows that it is too long.
    fn fill(&mut self) -> io::Result<Option<End>> {
        let mut any = false;
        loop {
            let piece = match self.source.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if piece.is_empty() {
                return Ok(any.then_some(End::Input));
            }
            any = true;
            let end = piece.iter().position(|byte| *byte == b'\n');
            let room = (LONGEST + 1).saturating_sub(self.buffer.len());
            let length = end.unwrap_or(piece.len());
            self.buffer.extend_from_slice(piece.get(..length.min(room)).unwrap_or_default());
            self.source.consume(end.map_or(length, |end| end + 1));
            if end.is_some() {
                return Ok(Some(End::Newline));
            }
        }
    }
}

/// What a line ended with.
enum End {
    Newline,
    Input,
}

/// One object in the record: its outcome, or, when there is none, its intent.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The last line about it.
    pub record: Record,
    /// When it was begun, in nanoseconds since 1970, if that is in the record.
    pub begun: Option<Nanoseconds>,
    /// Of one without an outcome: what a later run made of the same object.
    pub later: Option<Later>,
}

/// What a later run made of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Later {
    /// The run.
    pub run: String,
    /// The outcome.
    pub outcome: String,
    /// When it was recorded, in nanoseconds since 1970.
    pub time: Nanoseconds,
}

impl Entry {
    /// What became of it; nothing when it was begun and no outcome is known.
    #[must_use]
    pub fn outcome(&self) -> Option<&str> {
        match self.record.event {
            Event::Intent => None,
            Event::Outcome => self.text("/outcome"),
        }
    }

    /// A text in the last line, by its JSON pointer below the top (`/object/id`).
    #[must_use]
    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.field(pointer)?.as_str()
    }

    /// A number, likewise.
    #[must_use]
    pub fn number(&self, pointer: &str) -> Option<u64> {
        self.field(pointer)?.as_u64()
    }

    fn field(&self, pointer: &str) -> Option<&Value> {
        let mut names = pointer.strip_prefix('/')?.split('/');
        let first = self.record.value.get(names.next()?)?;
        names.try_fold(first, |value, name| value.get(name))
    }

    /// The object by its kind and name, which is all of it that is filled in. A file or folder that a tracker
    /// knew by its path is named as such an argument is understood: without leading slashes, or in /dev/shm.
    #[must_use]
    pub fn object(&self) -> Object {
        let word = self.text("/object/kind").unwrap_or_default();
        let kind = Kind::from_prefix(word.as_bytes()).unwrap_or(Kind::Other);
        let exact = self.text("/object/name_base64").and_then(|text| STANDARD.decode(text).ok());
        let name = exact
            .unwrap_or_else(|| self.text("/object/name").unwrap_or_default().as_bytes().to_vec());
        let name = match word {
            "file" | "folder" => {
                let slashes = name.iter().take_while(|byte| **byte == b'/').count();
                name.strip_prefix(b"/dev/shm/").or(name.get(slashes..)).unwrap_or(&name).to_vec()
            }
            _ => name,
        };
        let prefix: &[u8] = if kind == Kind::Sem { b"sem." } else { b"" };
        let file = Name::new([prefix, &name].concat());
        let (name, file_type) = (Name::new(name), None);
        Object { kind, name, file_type, ..Object::of(&file, NO_STAT) }
    }
}

const NO_STAT: Stat = Stat {
    dev: 0,
    ino: 0,
    mode: 0,
    uid: 0,
    gid: 0,
    nlink: 0,
    size: 0,
    allocated: 0,
    born: None,
    modified: 0,
    changed: 0,
};

/// Joins outcomes with their intents. What it keeps is what has no outcome yet.
#[derive(Debug, Default)]
pub struct Pairs {
    begun: HashMap<(String, u64), Begun>,
    /// The same by what makes an object that object.
    by_identity: HashMap<String, Vec<(String, u64)>>,
    count: u64,
}

#[derive(Debug)]
struct Begun {
    /// Its place in the record.
    place: u64,
    intent: Record,
    later: Option<Later>,
}

impl Pairs {
    /// Takes the next record; the object that is done with by it.
    pub fn take(&mut self, record: Record) -> Option<Entry> {
        let identity = identity(&record);
        if record.event == Event::Intent {
            self.count += 1;
            if let Some(identity) = identity {
                self.by_identity.entry(identity).or_default().push(record.key.clone());
            }
            let (key, place) = (record.key.clone(), self.count);
            self.begun.insert(key, Begun { place, intent: record, later: None });
            return None;
        }
        let begun = self.begun.remove(&record.key).map(|begun| begun.intent.time);
        if let Some(identity) = identity {
            self.tell_earlier(identity, &record);
        }
        Some(Entry { record, begun, later: None })
    }

    /// Tells what was begun of the same object before what became of it.
    fn tell_earlier(&mut self, identity: String, outcome: &Record) {
        let Some(mut keys) = self.by_identity.remove(&identity) else { return };
        keys.retain(|key| *key != outcome.key);
        let word = outcome.value.get("outcome").and_then(Value::as_str).unwrap_or_default();
        for key in &keys {
            let Some(begun) = self.begun.get_mut(key) else { continue };
            let (run, time) = (outcome.key.0.clone(), outcome.time);
            begun.later = Some(Later { run, outcome: word.to_owned(), time });
        }
        if !keys.is_empty() {
            self.by_identity.insert(identity, keys);
        }
    }

    /// What was begun and has no outcome, in the order of the record.
    #[must_use]
    pub fn interrupted(self) -> Vec<Entry> {
        let mut left: Vec<_> = self.begun.into_values().collect();
        left.sort_by_key(|begun| begun.place);
        let entry = |Begun { intent, later, .. }: Begun| {
            let begun = Some(intent.time);
            Entry { record: intent, begun, later }
        };
        left.into_iter().map(entry).collect()
    }
}

/// Boot, device, inode and birth of the object of a record, if it has them all.
fn identity(record: &Record) -> Option<String> {
    let object = record.value.get("object")?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(ToOwned::to_owned);
    let boot = text(record.value.get("boot_id"))?;
    let (dev, born) = (text(object.get("dev"))?, text(object.get("born_at"))?);
    let ino = object.get("ino")?.as_u64()?;
    Some(format!("{boot} {dev} {ino} {born}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(event: &str, run: &str, number: u64) -> String {
        let outcome = if event == "outcome" { r#","outcome":"reaped""# } else { "" };
        format!(
            r#"{{"schema":"{SCHEMA}","event":"{event}","time":"2026-11-24T10:00:00.5Z","run":"{run}","seq":{number},"object":{{"id":"shm:a"}}{outcome}}}"#
        )
    }

    fn read(text: &[u8]) -> Vec<(u64, Result<Record, Fault>)> {
        // A small buffer: lines are longer than what one read gives.
        let mut lines = Lines::new(io::BufReader::with_capacity(7, text));
        std::iter::from_fn(|| lines.read().unwrap()).collect()
    }

    #[test]
    fn lines_that_are_not_ours_are_told_by_their_numbers() {
        let whole = line("intent", "a", 1);
        let newer = whole.replace(SCHEMA, "rtrack.audit/2");
        let text = format!("{whole}\n\n{{\"a\":1}}\nnonsense\n{newer}\n{whole}\n{}", &whole[..40]);
        let faults: Vec<_> = read(text.as_bytes())
            .into_iter()
            .filter_map(|(number, record)| Some((number, record.err()?)))
            .collect();
        assert_eq!(
            faults,
            [
                (3, Fault::Field("schema")),
                (4, Fault::NotJson),
                (5, Fault::Schema("rtrack.audit/2".into())),
                (7, Fault::Torn),
            ]
        );
        // The last line may lack nothing but its end.
        assert!(matches!(read(whole.as_bytes()).as_slice(), [(1, Ok(_))]));
        for (field, wrong) in [
            ("\"event\":\"intent\"", "\"event\":\"thought\""),
            ("\"seq\":1", "\"seq\":-1"),
            ("\"run\":\"a\"", "\"run\":1"),
            ("{\"id\":\"shm:a\"}", "null"),
            ("2026-11-24T10:00:00.5Z", "yesterday"),
        ] {
            let text = whole.replace(field, wrong);
            assert!(
                matches!(read(text.as_bytes()).as_slice(), [(1, Err(Fault::Field(_)))]),
                "{text}"
            );
        }
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let mut text = vec![b'x'; LONGEST + 10];
        text.extend(format!("\n{}\n", line("intent", "a", 1)).into_bytes());
        let mut lines = Lines::new(text.as_slice());
        assert_eq!(lines.read().unwrap(), Some((1, Err(Fault::TooLong))));
        assert!(lines.buffer.len() <= LONGEST + 1);
        assert!(matches!(lines.read().unwrap(), Some((2, Ok(_)))));
        assert_eq!(lines.read().unwrap(), None);
    }

    #[test]
    fn outcomes_find_their_intents_among_several_runs() {
        let mut pairs = Pairs::default();
        let mut done = Vec::new();
        for (event, run, number) in [
            ("intent", "a", 1),
            ("intent", "b", 1),
            ("outcome", "b", 1),
            ("intent", "b", 2),
            ("outcome", "a", 1),
            ("intent", "a", 2),
            ("outcome", "c", 9),
        ] {
            let record = Record::parse(line(event, run, number).as_bytes()).unwrap();
            done.extend(pairs.take(record).map(|entry| (entry.record.key, entry.begun.is_some())));
        }
        let key = |run: &str, number| (run.to_owned(), number);
        assert_eq!(done, [(key("b", 1), true), (key("a", 1), true), (key("c", 9), false)]);
        let left = pairs.interrupted();
        assert!(left.iter().all(|entry| entry.outcome().is_none()));
        let left: Vec<_> = left.into_iter().map(|entry| entry.record.key).collect();
        assert_eq!(left, [key("b", 2), key("a", 2)]);
    }

    #[test]
    fn a_later_run_says_what_became_of_the_object() {
        let of = |event, run, ino: u64| {
            let identity =
                format!(r#""boot_id":"b","object":{{"dev":"0:1","born_at":"t","ino":{ino},"#);
            let line = line(event, run, 1).replace(r#""object":{"#, &identity);
            Record::parse(line.as_bytes()).unwrap()
        };
        let mut pairs = Pairs::default();
        for (event, run, ino) in [
            ("intent", "a", 7),
            ("intent", "other", 8),
            ("intent", "b", 7),
            ("intent", "c", 7),
            ("outcome", "c", 7),
        ] {
            pairs.take(of(event, run, ino));
        }
        let left = pairs.interrupted().into_iter();
        let left: Vec<_> =
            left.map(|entry| (entry.record.key.0, entry.later.map(|later| later.run))).collect();
        let by = |run: &str| Some(run.to_owned());
        assert_eq!(left, [("a".into(), by("c")), ("other".into(), None), ("b".into(), by("c"))]);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_much(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(&bytes).iter().all(|(_, record)| record.is_err()));
        }
    }
}
