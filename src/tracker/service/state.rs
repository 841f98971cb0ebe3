//! What a tracker answers to who asks it: as JSON, written by the daemon and read back by `list` and `probe`.

use std::fmt;
use std::io::Read;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::{Map, Value, json};

use super::dialect::{Dialect, Rtype};
use crate::tracker::host::show_time;
use crate::tracker::resource::insert_name;
use crate::tracker::sys::Nanoseconds;

/// The name and version of the document; fields are only ever added.
pub const SCHEMA: &str = "rtrack.tracker/1";

/// A process that registers, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registrant {
    /// Its pid, in the daemon's PID namespace.
    pub pid: i32,
    /// Its uid.
    pub uid: u32,
    /// Its name, as the kernel has it.
    pub comm: Vec<u8>,
}

/// One registered name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Its type.
    pub rtype: Rtype,
    /// Its name, as it was registered.
    pub name: Vec<u8>,
    /// How often it was registered and not given up.
    pub count: u64,
    /// When it was registered first; a clock that was not asked says nothing.
    pub at: Option<Nanoseconds>,
    /// By whom; at a pipe nobody knows.
    pub by: Option<Registrant>,
}

/// What a tracker has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerState {
    /// Its pid, as it knows it.
    pub pid: u32,
    /// What it understands.
    pub dialect: Dialect,
    /// Whether it listens on a socket; else it reads a pipe.
    pub listens: bool,
    /// How many messages it has read.
    pub messages: u64,
    /// How many of them were bad.
    pub bad: u64,
    /// What is registered.
    pub registered: Vec<Registered>,
}

impl TrackerState {
    /// The document.
    #[must_use]
    pub fn document(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Reads a document back, with at most `most` names. What is not understood in it is left out: it may be that
    /// of a newer version.
    ///
    /// # Errors
    /// It is none, or has more names, or could not be read. Nothing of it is kept then, and as it is read no more
    /// than what is understood.
    pub fn read(document: impl Read, most: usize) -> serde_json::Result<Self> {
        let mut reader = serde_json::Deserializer::from_reader(document);
        let state = reader.deserialize_map(Document { most })?;
        reader.end()?;
        Ok(state)
    }
}

impl Serialize for TrackerState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("schema", SCHEMA)?;
        map.serialize_entry("pid", &self.pid)?;
        map.serialize_entry("protocol", self.dialect.as_str())?;
        map.serialize_entry("reads", if self.listens { "socket" } else { "pipe" })?;
        map.serialize_entry("messages", &self.messages)?;
        map.serialize_entry("bad", &self.bad)?;
        map.serialize_entry("registered", &Names(&self.registered))?;
        map.end()
    }
}

/// Names, made into values one by one: there may be very many.
struct Names<'a>(&'a [Registered]);

impl Serialize for Names<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for registered in self.0 {
            list.serialize_element(&registered.value())?;
        }
        list.end()
    }
}

/// What a document is read by.
struct Document {
    most: usize,
}

impl<'de> Visitor<'de> for Document {
    type Value = TrackerState;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what a tracker has")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TrackerState, A::Error> {
        let (mut schema, mut pid, mut protocol, mut reads) = (None, None, None, None);
        let (mut messages, mut bad, mut registered) = (0, 0, None);
        while let Some(key) = map.next_key::<String>()? {
            match &key[..] {
                "schema" => schema = Some(map.next_value::<String>()?),
                "pid" => pid = Some(map.next_value::<u32>()?),
                "protocol" => protocol = Some(map.next_value::<String>()?),
                "reads" => reads = Some(map.next_value::<String>()?),
                "messages" => messages = map.next_value()?,
                "bad" => bad = map.next_value()?,
                "registered" => registered = Some(map.next_value_seed(List { most: self.most })?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let schema = schema.unwrap_or_default();
        if schema.split('/').next() != SCHEMA.split('/').next() {
            return Err(A::Error::custom("another document"));
        }
        let protocol = protocol.ok_or_else(|| A::Error::missing_field("protocol"))?;
        Ok(TrackerState {
            pid: pid.ok_or_else(|| A::Error::missing_field("pid"))?,
            dialect: Dialect::from_word(protocol.as_bytes()).unwrap_or_default(),
            listens: reads.as_deref() == Some("socket"),
            messages,
            bad,
            registered: registered.ok_or_else(|| A::Error::missing_field("registered"))?,
        })
    }
}

/// What its list of names is read by.
struct List {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for List {
    type Value = Vec<Registered>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List {
    type Value = Vec<Registered>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of names")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(entry) = list.next_element::<Entry>()? {
            if found.len() >= self.most {
                return Err(A::Error::custom("too many names"));
            }
            found.extend(entry.parse());
        }
        Ok(found)
    }
}

/// A name, as it is written.
#[derive(serde::Deserialize)]
struct Entry {
    rtype: Option<String>,
    name: Option<String>,
    name_base64: Option<String>,
    count: Option<u64>,
    registered_at: Option<String>,
    by: Option<By>,
}

/// Who registered it, as that is written.
#[derive(serde::Deserialize)]
struct By {
    pid: i32,
    uid: u32,
    comm: String,
}

impl Entry {
    fn parse(self) -> Option<Registered> {
        use base64::Engine as _;
        let mut name = match self.name_base64 {
            Some(exact) => base64::engine::general_purpose::STANDARD.decode(exact).ok()?,
            None => self.name?.into_bytes(),
        };
        // What was read it into may be twice as long.
        name.shrink_to_fit();
        let at = self.registered_at.and_then(|at| at.parse::<jiff::Timestamp>().ok());
        Some(Registered {
            rtype: Rtype::from_word(self.rtype?.as_bytes())?,
            name,
            count: self.count.unwrap_or(1),
            at: at.map(jiff::Timestamp::as_nanosecond),
            by: self.by.map(|By { pid, uid, comm }| Registrant {
                pid,
                uid,
                comm: comm.into_bytes(),
            }),
        })
    }
}

impl Registered {
    fn value(&self) -> Value {
        let mut map = Map::new();
        map.insert("rtype".into(), json!(self.rtype.as_str()));
        insert_name(&mut map, &self.name);
        map.insert("count".into(), json!(self.count));
        map.insert("registered_at".into(), json!(self.at.and_then(show_time)));
        let by = self.by.as_ref().map(
            |by| json!({ "pid": by.pid, "uid": by.uid, "comm": String::from_utf8_lossy(&by.comm) }),
        );
        map.insert("by".into(), json!(by));
        Value::Object(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let entry = |name: &[u8], by| Registered {
            rtype: Rtype::SharedMemory,
            name: name.to_vec(),
            count: 2,
            at: Some(1_700_000_000_123_000_000),
            by,
        };
        let by = Registrant { pid: 7, uid: 1000, comm: b"python3".to_vec() };
        let state = TrackerState {
            pid: 4711,
            dialect: Dialect::Any,
            listens: true,
            messages: 10,
            bad: 1,
            registered: vec![entry(b"/a", Some(by)), entry(b"/\xff\n", None)],
        };
        let bytes = serde_json::to_vec(&state.document()).unwrap();
        assert_eq!(TrackerState::read(&bytes[..], 2).unwrap(), state);
        assert_eq!(serde_json::to_value(&state).unwrap(), state.document());
        TrackerState::read(&bytes[..], 1).unwrap_err();
        TrackerState::read(&[&bytes[..], b"x"].concat()[..], 2).unwrap_err();
        let newer = br#"{"schema":"rtrack.tracker/2","pid":1,"protocol":"new","more":[{}],
            "registered":[{"rtype":"new","name":"/a"},{"rtype":"file","name":"/b","more":1}]}"#;
        let newer = TrackerState::read(&newer[..], 2).unwrap();
        assert_eq!(newer.registered.len(), 1);
        for other in [&b"{}"[..], b"[]", b"", br#"{"schema":"rtrack.probe/1","registered":[]}"#] {
            TrackerState::read(other, 1).unwrap_err();
        }
    }
}
