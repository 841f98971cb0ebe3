//! What a tracker answers to who asks it: as JSON, written by the daemon and read back by `list` and `probe`.

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
        json!({
            "schema": SCHEMA,
            "pid": self.pid,
            "protocol": self.dialect.as_str(),
            "reads": if self.listens { "socket" } else { "pipe" },
            "messages": self.messages,
            "bad": self.bad,
            "registered": self.registered.iter().map(Registered::value).collect::<Vec<Value>>(),
        })
    }

    /// Reads a document back. What is not understood in it is left out: it may be that of a newer version.
    /// Nothing if it is none.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        if value.get("schema")?.as_str()?.split('/').next() != SCHEMA.split('/').next() {
            return None;
        }
        let number = |key| value.get(key).and_then(Value::as_u64);
        let registered = value.get("registered")?.as_array()?;
        Some(Self {
            pid: number("pid")?.try_into().ok()?,
            dialect: Dialect::from_word(value.get("protocol")?.as_str()?.as_bytes())
                .unwrap_or_default(),
            listens: value.get("reads").and_then(Value::as_str) == Some("socket"),
            messages: number("messages").unwrap_or(0),
            bad: number("bad").unwrap_or(0),
            registered: registered.iter().filter_map(Registered::parse).collect(),
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

    fn parse(value: &Value) -> Option<Self> {
        use base64::Engine as _;
        let text = |key| value.get(key).and_then(Value::as_str);
        let name = match text("name_base64") {
            Some(exact) => base64::engine::general_purpose::STANDARD.decode(exact).ok()?,
            None => text("name")?.as_bytes().to_vec(),
        };
        let by = value.get("by").and_then(|by| {
            Some(Registrant {
                pid: by.get("pid")?.as_i64()?.try_into().ok()?,
                uid: by.get("uid")?.as_u64()?.try_into().ok()?,
                comm: by.get("comm")?.as_str()?.as_bytes().to_vec(),
            })
        });
        let at = text("registered_at").and_then(|at| at.parse::<jiff::Timestamp>().ok());
        Some(Self {
            rtype: Rtype::from_word(text("rtype")?.as_bytes())?,
            name,
            count: value.get("count").and_then(Value::as_u64).unwrap_or(1),
            at: at.map(jiff::Timestamp::as_nanosecond),
            by,
        })
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
        assert_eq!(TrackerState::parse(&bytes), Some(state));
        for other in [&b"{}"[..], b"[]", b"", br#"{"schema":"rtrack.probe/1","registered":[]}"#] {
            assert_eq!(TrackerState::parse(other), None);
        }
    }
}
