//! What CPython's and loky's trackers did with recorded byte streams, against `rtrack daemon` and real
//! objects: each dialect alone, and both by a daemon that speaks both.

use std::fs::{self, File};
use std::io::{PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rtrack::tracker::service::python::ReprStr;
use serde_json::Value;

use crate::support::{
    Case, Finish, Inherit, case, mount, note, path, rtrack, sem_open, shm_open, unread, wait_for,
};

const VECTORS: &str = include_str!("../data/tracker-vectors.jsonl");
const WORK: &str = "/tmp/rtv_work";

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("cpython", || all("cpython", "cpython")),
        case("loky", || all("loky", "loky")),
        case("cpython_by_a_daemon_for_any", || all("cpython", "any")),
        case("loky_by_a_daemon_for_any", || all("loky", "any")),
    ]
}

/// What is an error only because the type is the other tracker's.
const LEGAL_FOR_ANY: [&str; 1] = ["err.loky_rtypes"];

/// Every vector of that tracker, by a daemon that plays `spoken`.
fn all(protocol: &str, spoken: &str) {
    // The recorded paths lie in /tmp, which becomes the case's own; the binary may be below the
    // machine's, so it is held open.
    let program = File::open(rtrack([""; 0]).get_program()).unwrap();
    let place = format!("/proc/{}/fd/{}", std::process::id(), program.as_raw_fd());
    mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777").unwrap();
    let (mut passed, mut skipped) = (0, 0);
    for line in VECTORS.lines() {
        let vector: Value = serde_json::from_str(&without_surrogates(line)).unwrap();
        let id = vector["id"].as_str().unwrap();
        if vector["protocol"] != protocol || (spoken == "any" && LEGAL_FOR_ANY.contains(&id)) {
            skipped += 1;
            continue;
        }
        run(Path::new(&place), spoken, &vector);
        passed += 1;
    }
    assert!(passed > 0);
    note(format_args!("{passed} vectors of {protocol}'s tracker, {skipped} left out"));
}

/// Where the placeholders of bytes that are not UTF-8 begin, in the private use area.
const PLACEHOLDER: u32 = 0xf700;

/// Python's JSON shows a byte that is not UTF-8 as a lone surrogate, which `serde_json` refuses.
fn without_surrogates(line: &str) -> String {
    line.replace("\\udc", "\\uf7")
}

/// The bytes of a name, with placeholders turned back.
fn bytes(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for c in name.chars() {
        match u32::from(c).checked_sub(PLACEHOLDER).and_then(|byte| u8::try_from(byte).ok()) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend(c.to_string().bytes()),
        }
    }
    bytes
}

/// Where an object lies that is called `kind:name`.
fn place(kind: &str, name: &str) -> PathBuf {
    let name = bytes(name);
    let plain = std::ffi::OsStr::from_bytes(name.strip_prefix(b"/").unwrap_or(&name));
    match kind {
        "shm" => path(plain),
        "sem" => {
            let mut file = std::ffi::OsString::from("sem.");
            file.push(plain);
            path(file)
        }
        _ => std::ffi::OsStr::from_bytes(&name).into(),
    }
}

fn set_up(setup: &Value) {
    for directory in [WORK, "/dev/shm"] {
        fs::create_dir_all(directory).unwrap();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let is_dir = fs::symlink_metadata(&path).unwrap().is_dir();
            if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
    }
    for object in setup.as_array().into_iter().flatten() {
        let kind = object["kind"].as_str().unwrap();
        let place = place(kind, object["name"].as_str().unwrap());
        match (kind, place.file_name().unwrap().to_str()) {
            ("shm", Some(name)) => drop(shm_open(name, 64)),
            ("sem", Some(name)) => drop(sem_open(name.strip_prefix("sem.").unwrap(), 1)),
            ("dir", _) => fs::create_dir_all(place).unwrap(),
            ("symlink", _) => {
                std::os::unix::fs::symlink(object["target"].as_str().unwrap(), place).unwrap();
            }
            _ => fs::write(place, "x").unwrap(),
        }
    }
}

fn feed(mut pipe: PipeWriter, chunks: &[Value], expected: &Value) {
    for (index, chunk) in chunks.iter().enumerate() {
        let data = STANDARD.decode(chunk["b64"].as_str().unwrap()).unwrap();
        let most = chunk["max"].as_u64().map_or(data.len(), |most| most.try_into().unwrap());
        for piece in data.chunks(most.max(1)) {
            pipe.write_all(piece).unwrap();
        }
        thread::sleep(Duration::from_millis(chunk["sleep_ms"].as_u64().unwrap_or(0)));
        let gone = expected["unlinked_after_step"].get(index).and_then(Value::as_array);
        let Some(gone) = gone else { continue };
        wait_for("the daemon to read", || (unread(&pipe) == 0).then_some(()));
        for object in gone {
            wait_for("what was given up to go", || (!exists(object)).then_some(()));
        }
        // Whoever removes too much has had its time.
        thread::sleep(Duration::from_millis(50));
        for object in expected["unlinked"].as_array().unwrap() {
            assert_eq!(exists(object), !gone.contains(object), "{object} after step {index}");
        }
    }
}

/// Whether there is an object called `kind:name`.
fn exists(object: &Value) -> bool {
    let (kind, name) = object.as_str().unwrap().split_once(':').unwrap();
    fs::symlink_metadata(place(kind, name)).is_ok()
}

fn run(program: &Path, spoken: &str, vector: &Value) {
    let id = vector["id"].as_str().unwrap();
    set_up(&vector["setup"]);
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(program);
    command.args(["daemon", "--fd", "9", "--protocol", spoken]);
    command.inherit(reader, 9).current_dir(WORK).stderr(Stdio::piped());
    let expected = &vector["expected"];
    let mut chunks: Vec<Vec<Value>> = Vec::new();
    if let Some(input) = vector.get("input_b64") {
        chunks.push(vec![serde_json::json!({ "b64": input })]);
    }
    let lists = vector.get("writers").and_then(Value::as_array).cloned().unwrap_or_default();
    for list in lists.iter().chain(vector.get("chunks")).chain(vector.get("steps")) {
        chunks.push(list.as_array().unwrap().clone());
    }
    assert!(!chunks.is_empty(), "{id}: there is nothing to send");
    let finished = thread::scope(|scope| {
        for chunks in &chunks {
            let pipe = writer.try_clone().unwrap();
            scope.spawn(move || feed(pipe, chunks, expected));
        }
        drop(writer);
        command.finish()
    });
    let code = i32::try_from(expected["exit"].as_i64().unwrap()).unwrap();
    let finished = finished.expect(code);
    for (list, there) in [("unlinked", false), ("left", true)] {
        for object in expected[list].as_array().unwrap() {
            assert_eq!(exists(object), there, "{id}: {object} is {list}");
        }
    }
    let mut said: Vec<String> = events(&finished.stderr);
    let mut wanted: Vec<String> =
        expected["events"].as_array().unwrap().iter().map(expected_event).collect();
    said.sort();
    wanted.sort();
    // Python's message, where the recording has the whole of it. Whoever knows all types lists others.
    let same = |(said, wanted): (&String, &String)| match wanted.split_once("...[") {
        Some((beginning, _)) => said.starts_with(beginning),
        None if spoken == "any" => match wanted.split_once("unknown resource type ") {
            Some((beginning, _)) => said.starts_with(beginning),
            None => said == wanted,
        },
        None => said == wanted,
    };
    assert!(
        said.len() == wanted.len() && said.iter().zip(&wanted).all(same),
        "{id}: said\n{said:#?}\nwanted\n{wanted:#?}"
    );
}

/// The warnings and exceptions on stderr.
fn events(stderr: &str) -> Vec<String> {
    let mut events = Vec::new();
    let mut in_traceback = false;
    for line in stderr.lines() {
        if line == "Traceback (most recent call last):" {
            in_traceback = true;
        } else if in_traceback && !line.starts_with(' ') {
            events.push(format!("exc {line}"));
            in_traceback = false;
        } else if let Some((_, text)) = line.split_once(": UserWarning: ") {
            events.push(format!("warn {}", sorted_set(text)));
        } else {
            assert!(in_traceback, "{line}");
        }
    }
    events
}

/// A recorded event as [`events`] has it.
fn expected_event(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap();
    if event["t"] == "exc" {
        return format!("exc {}: {}", text("exc"), text("msg"));
    }
    let names: Vec<String> = match event.get("names") {
        None => return format!("warn {}", text("msg")),
        Some(Value::Object(counts)) => {
            let shown = counts.iter();
            shown.map(|(name, count)| format!("{}: {count}", ReprStr(&bytes(name)))).collect()
        }
        Some(names) => {
            let names = names.as_array().unwrap().iter();
            names.map(|name| ReprStr(&bytes(name.as_str().unwrap())).to_string()).collect()
        }
    };
    sorted_set(&format!("warn {}: {{{}}}", text("msg"), names.join(", ")))
}

/// The text with the names of a set in one order, since a set has none. Counts keep theirs.
fn sorted_set(text: &str) -> String {
    match text.split_once(": {").map(|(before, set)| (before, set.trim_end_matches('}'))) {
        Some((before, set)) if !set.contains("': ") => {
            let mut names: Vec<&str> = set.split(", ").collect();
            names.sort_unstable();
            format!("{before}: {{{}}}", names.join(", "))
        }
        _ => text.to_owned(),
    }
}
