//! `rtrack show`: everything that is known about an object, on one screen.

mod sysv;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

use super::Status;
use super::error::{CommandError, Kind as ErrorKind};
use super::render::{Row, document, table};
use super::selecting::SelectArgs;
use super::surveying::Look;
use super::ui::Ui;
use super::values::{self, show_age, show_size, show_time};
use crate::tracker::evidence::holders::{Detail, Holder, How};
use crate::tracker::evidence::identity::{self, Identity};
use crate::tracker::evidence::lease;
use crate::tracker::host::Host;
use crate::tracker::inventory::Object;
use crate::tracker::plan::{self, Outlook};
use crate::tracker::reap;
use crate::tracker::resource::{Kind, escape};
use crate::tracker::survey::{Judging, owner_name};
use crate::tracker::verdict::{CreatorState, Verdict};

/// The arguments of `rtrack show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    #[command(flatten)]
    select: SelectArgs,

    /// Only objects of these verdicts
    #[arg(long, value_enum, value_delimiter = ',', value_name = "VERDICT")]
    verdict: Vec<Verdict>,

    /// Show the first bytes of the content, too
    #[arg(long, value_parser = values::size, value_name = "BYTES")]
    hexdump: Option<u64>,

    /// One JSON document
    #[arg(long)]
    json: bool,

    /// Exit with status 3 if not everything could be seen
    #[arg(long)]
    strict: bool,
}

/// Where the values begin.
const INDENT: usize = 12;

/// At most so much is shown of a content.
const MOST_BYTES: u64 = 1 << 20;

/// Shows the objects.
///
/// # Errors
/// A name that does not exist is status 1; /dev/shm that cannot be read status 3.
pub fn run(args: &ShowArgs, ui: &Ui) -> Result<Status, CommandError> {
    if !args.select.narrows() && args.verdict.is_empty() {
        return Err(CommandError::usage("which objects is not said")
            .hint("name them, or select them, e.g. by --verdict; rtrack list shows all of them"));
    }
    args.select.check(&[])?;
    let judging = Judging { thorough: true, ..args.select.judging() };
    let (found, missing) = Look::of_selected(&args.select, judging)?;
    let host = &found.world.host;
    let rows = found.rows(&args.select, &args.verdict);
    let pids: BTreeSet<i32> =
        rows.iter().flat_map(|row| row.holders).map(|holder| holder.pid).collect();
    let people =
        identity::of(host, &found.survey.snapshot.processes, &pids.into_iter().collect::<Vec<_>>());
    let mut dumps: Vec<Option<io::Result<Vec<u8>>>> = Vec::new();
    for row in &rows {
        dumps.push(args.hexdump.map(|bytes| {
            first_bytes(found.world.host_of(row.object.place), row, bytes.min(MOST_BYTES))
        }));
    }
    // A program that reads lines gets each value on one.
    let width = ui.stdout_is_terminal().then(table::terminal_width).flatten().unwrap_or(usize::MAX);
    ui.answer(|out| {
        if args.json {
            let mut head = found.head("rtrack.show/1");
            let objects = rows
                .iter()
                .zip(&dumps)
                .map(|(row, dump)| as_json(&found, row, &people, dump.as_ref()));
            head.insert("objects".into(), objects.collect());
            return document::write(out, &Value::Object(head));
        }
        for (place, (row, dump)) in rows.iter().zip(&dumps).enumerate() {
            if place > 0 {
                writeln!(out)?;
            }
            as_text(out, row, &found, &people, dump.as_ref(), width)?;
        }
        Ok(())
    })?;
    let mut failed = found.say(args.strict, ui);
    ui.errors(&missing);
    for (row, dump) in rows.iter().zip(&dumps) {
        if let Some(Err(error)) = dump {
            ui.line(format_args!("error: {}: read: {error}", row.object.shown_id()));
            failed = true;
        }
    }
    Ok(match (failed, missing.is_empty()) {
        (true, _) => ErrorKind::Failed.status(),
        (false, false) => ErrorKind::No.status(),
        (false, true) => 0,
    })
}

/// The beginning of the content, read through a descriptor of exactly this object.
fn first_bytes(host: &Host, row: &Row<'_>, most: u64) -> io::Result<Vec<u8>> {
    let object = row.object;
    if !matches!(object.kind, Kind::Shm | Kind::Sem) {
        let why = match object.kind {
            Kind::Mqueue => "to take its messages would be to receive them",
            _ => "not a regular file",
        };
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let opened = lease::open_expected(host, host.shm(), &object.file, &object.identity());
    let file = File::from(opened.map_err(|error| match error {
        lease::LeaseError::Io(error) => error,
        other => io::Error::other(other.to_string()),
    })?);
    let mut bytes = vec![0; usize::try_from(most.min(object.stat.size)).unwrap_or(0)];
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// What `reap` does with it, and what would change that.
fn outlook(found: &Look, row: &Row<'_>) -> Outlook {
    if row.object.deleted {
        return Outlook {
            does: "nothing: it has no name that could be removed".into(),
            changes: "its memory is free when the last of its holders lets it go".into(),
        };
    }
    if reap::is_our_leftover(row.object)
        && let Ok(Some(fate)) = reap::fate(found.world.host_of(row.object.place), &row.object.file)
    {
        return Outlook {
            does: format!("settles it: each object in it {fate}"),
            changes: "nothing: an interrupted reap left it".into(),
        };
    }
    if reap::is_quarantine_name(&row.object.file) {
        return Outlook {
            does: "leaves it, and refuses it even by force".into(),
            changes: "only the next reap of its owner settles it, if one left it".into(),
        };
    }
    match found.survey.facts(&found.world, row.index) {
        Some(facts) => plan::outlook(row.judgement(), &facts),
        None => Outlook::default(),
    }
}

fn as_json(
    found: &Look,
    row: &Row<'_>,
    people: &HashMap<i32, Identity>,
    dump: Option<&io::Result<Vec<u8>>>,
) -> Value {
    let mut object = document::object(row, &document::all_columns(false));
    let Some(map) = object.as_object_mut() else { return object };
    let holders = row.holders.iter().map(|holder| {
        let person = people.get(&holder.pid);
        let line = person.map(|person| &person.command_line).into_iter().flatten();
        json!({
            "pid": holder.pid,
            "comm": String::from_utf8_lossy(&holder.comm),
            "uid": holder.uid,
            "user": owner_name(holder.uid),
            "how": holder.how,
            "details": holder.details,
            "command_line": line.map(|a| String::from_utf8_lossy(a)).collect::<Vec<_>>(),
            "cgroup": person.and_then(|person| person.cgroup.as_deref()),
            "container": person.and_then(|person| person.container.as_ref()).map(|container| &container.id),
        })
    });
    map.insert("holders".into(), holders.collect());
    map.extend(sysv::semaphores_value(row.object).map(|all| ("semaphores".to_owned(), all)));
    let outlook = outlook(found, row);
    map.insert("reap".into(), json!({ "does": outlook.does, "changes": outlook.changes }));
    if let Some(Ok(bytes)) = dump {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(bytes);
        map.insert("content_base64".into(), json!(text));
    }
    object
}

fn as_text(
    out: &mut dyn Write,
    row: &Row<'_>,
    found: &Look,
    people: &HashMap<i32, Identity>,
    dump: Option<&io::Result<Vec<u8>>>,
    width: usize,
) -> io::Result<()> {
    let object = row.object;
    let stat = &object.stat;
    writeln!(out, "{}", object.shown_id())?;
    let mut line = |key: &str, value: String| {
        let mut key = key;
        for part in wrapped(&value, width.saturating_sub(INDENT)) {
            writeln!(out, "  {key:<10}{part}")?;
            key = "";
        }
        Ok::<(), io::Error>(())
    };
    let lost = if object.deleted { ", which it has lost" } else { "" };
    if object.sysv.is_none() {
        line("file", file(found, object) + lost)?;
    }
    if let Some(namespace) = row.namespace {
        let (mnt, ipc) = (namespace.mnt, namespace.ipc);
        line("namespace", format!("{namespace}, mount namespace {mnt}, IPC namespace {ipc}"))?;
    }
    let kind = object.file_type.unwrap_or(match object.kind {
        Kind::Shm => "memory object",
        Kind::Sem => "named semaphore",
        Kind::Dir => "directory",
        Kind::Mqueue => "message queue",
        Kind::Other => "other",
        Kind::SysvShm => "System V shared memory",
        Kind::SysvSem => "System V semaphores",
        Kind::SysvMsg => "System V message queue",
    });
    let place = if object.sysv.is_some() {
        format!("id {}", stat.ino)
    } else {
        let dev = format!("{}:{}", libc::major(stat.dev), libc::minor(stat.dev));
        format!("device {dev}, inode {}", stat.ino)
    };
    if row.object.is_known_by_mapping_only() {
        line("what", format!("{kind}, {place}"))?;
        line("owner", "not known: it has no name, and its mapping may not be followed".to_owned())?;
    } else {
        line("what", format!("{kind}, mode {:04o}, {place}", stat.mode & 0o7777))?;
        line("owner", format!("{} (uid {}, gid {})", row.user, stat.uid, stat.gid))?;
    }
    for (key, value) in size_and_times(row) {
        line(key, value)?;
    }
    if let Some(semaphore) = object.semaphore {
        line("semaphore", format!("value {}, {} waiting", semaphore.value, semaphore.waiters))?;
    }
    for (key, value) in sysv::lines(object, row.now) {
        line(key, value)?;
    }
    match found.survey.producer(object) {
        Some(matched) => {
            let producer = matched.producer;
            line(
                "producer",
                format!("{} ({})", escape(producer.software.as_bytes()), producer.id),
            )?;
            line("", escape(producer.note.as_bytes()))?;
        }
        None => line("producer", "not known".into())?,
    }
    if let Some((pid, state)) = row.creator() {
        let state = match state {
            CreatorState::Alive(who) => format!("alive: {who}"),
            CreatorState::Recycled(who) => format!("gone; its pid is {who} now"),
            CreatorState::Dead => "gone".to_owned(),
            CreatorState::NotVisible => "not visible here".to_owned(),
        };
        let from = if object.sysv.is_some() { "by the kernel's record" } else { "by the name" };
        line("creator", format!("process {pid}, {from}; {state}"))?;
    }
    if row.holders.is_empty() {
        line("holders", "none seen".into())?;
    }
    for (place, holder) in row.holders.iter().enumerate() {
        line(if place == 0 { "holders" } else { "" }, holder_line(holder))?;
        if let Some(person) = people.get(&holder.pid) {
            for text in person_lines(person) {
                line("", format!("  {text}"))?;
            }
        }
    }
    for (place, evidence) in row.judgement().evidence.iter().enumerate() {
        let key = if place == 0 { "evidence" } else { "" };
        line(key, format!("{:<21} {}", evidence.code.as_str(), evidence.says))?;
    }
    line("verdict", format!("{} ({})", row.verdict(), row.judgement().reason.as_str()))?;
    let outlook = outlook(found, row);
    line("reap", outlook.does)?;
    line("changes", outlook.changes)?;
    if let Some(Ok(bytes)) = dump {
        line("content", format!("the first {}", self::bytes(bytes.len() as u64)))?;
        hexdump(out, bytes)?;
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

/// Where an object is.
fn file(found: &Look, object: &Object) -> String {
    match found.world.queues(object.place) {
        Some(queues) if !queues.path.is_absolute() => {
            format!("/{}, of the {}", object.file, shown(&queues.path))
        }
        Some(queues) => format!("{}/{}", shown(&queues.path), object.file),
        None => format!("/dev/shm/{}", object.file),
    }
}

fn size_and_times(row: &Row<'_>) -> Vec<(&'static str, String)> {
    let (object, stat) = (row.object, &row.object.stat);
    if object.is_known_by_mapping_only() {
        let (shown, exact) = (show_size(object.size()), bytes(object.size()));
        return vec![("size", format!("at least {shown} ({exact}), as much is mapped"))];
    }
    let mut lines = Vec::new();
    let mut size = match object.kind {
        Kind::Mqueue => messages(object),
        _ => format!(
            "{} ({}), {} in use",
            show_size(object.size()),
            bytes(object.size()),
            show_size(object.allocated())
        ),
    };
    if let Some(tree) = &object.directory {
        let more = if tree.truncated { ", not everything counted" } else { "" };
        let entries = values::plural(tree.entries, "entry", "entries");
        size.push_str(&format!(", {entries}{more}"));
    }
    if object.kind != Kind::SysvSem {
        lines.push(("size", size));
    }
    let ago = |time: i128| {
        format!("{} ({} ago)", show_time(time).unwrap_or_default(), show_age(row.now - time))
    };
    lines.push(("born", stat.born.map_or_else(|| "not known".to_owned(), ago)));
    lines.push((if object.deleted { "deleted" } else { "changed" }, ago(stat.changed)));
    lines
}

/// What is in a message queue.
fn messages(object: &Object) -> String {
    let Some(queue) = object.queue else { return "not known: it could not be opened".into() };
    let mut text = format!(
        "{} of at most {}, {} in all; each at most {}",
        values::plural(
            usize::try_from(queue.messages).unwrap_or(usize::MAX),
            "message",
            "messages"
        ),
        queue.max_messages,
        bytes(queue.bytes),
        bytes(queue.message_size)
    );
    match queue.notify_pid {
        None => {}
        Some(0) => text.push_str("; a process not visible here waits to be told of the next one"),
        Some(pid) => text.push_str(&format!("; process {pid} waits to be told of the next one")),
    }
    text
}

fn bytes(count: u64) -> String {
    if count == 1 { "1 byte".into() } else { format!("{count} bytes") }
}

fn holder_line(holder: &Holder) -> String {
    let ways: Vec<String> = holder.details.iter().map(way).collect();
    format!(
        "{}[{}] of {}: {}",
        escape(&holder.comm),
        holder.pid,
        owner_name(holder.uid),
        ways.join(", ")
    )
}

fn way(detail: &Detail) -> String {
    match detail.how {
        How::Map => format!(
            "{} map {} of {}",
            if detail.shared == Some(true) { "shared" } else { "private" },
            match detail.access.as_str() {
                "r--" => "read-only",
                "---" => "without access",
                access => access,
            },
            show_size(detail.bytes.unwrap_or(0))
        ),
        How::Fd => {
            let number = detail.fd.map_or_else(String::new, |fd| format!(" {fd}"));
            format!("fd{number} ({})", detail.access)
        }
        How::Cwd => "working directory".into(),
        How::Root => "root directory".into(),
    }
}

fn person_lines(person: &Identity) -> Vec<String> {
    let mut lines = Vec::new();
    if !person.command_line.is_empty() {
        lines.push(escape(&person.command_line.join(&b' ')));
    }
    if let Some(container) = &person.container {
        lines.push(format!("container {}", container));
    } else if let Some(cgroup) = &person.cgroup {
        lines.push(format!("cgroup {}", escape(cgroup.as_bytes())));
    }
    lines
}

/// `text` in lines of at most `width` columns, broken at blanks; a word that is longer has a line of
/// its own. What begins with blanks goes on under its beginning.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let start = text.len() - text.trim_start().len();
    let indent = text.get(..start).unwrap_or_default();
    let mut lines = vec![indent.to_owned()];
    for word in text.trim_start().split(' ') {
        let Some(last) = lines.last_mut() else { continue };
        if last.len() == start {
            last.push_str(word);
        } else if last.width() + 1 + word.width() <= width {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(format!("{indent}{word}"));
        }
    }
    lines
}

/// Sixteen bytes a line, in hexadecimal and as ASCII; what is not printable is a full stop.
fn hexdump(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    for (place, line) in bytes.chunks(16).enumerate() {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = line
            .iter()
            .map(
                |byte| {
                    if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' }
                },
            )
            .collect();
        writeln!(out, "    {:08x}  {:<47}  |{text}|", place * 16, hex.join(" "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_blanks() {
        assert_eq!(wrapped("one two three", 8), ["one two", "three"]);
        assert_eq!(wrapped("  one two three", 8), ["  one", "  two", "  three"]);
        assert_eq!(wrapped("a  b", 80), ["a  b"]);
        assert_eq!(wrapped("", 8), [""]);
        assert_eq!(wrapped("incomprehensible", 8), ["incomprehensible"]);
    }
}
