//! `rtrack producers`: the catalogue, what it says of a name, and whether a file of one's own is
//! right.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Status;
use super::error::{CommandError, Kind as ErrorKind};
use super::ui::Ui;
use super::values::plural;
use crate::tracker::evidence::producers::{
    Catalogue, Checked, HeldWhileAlive, Match, Producer, check_file, operator_directories,
};
use crate::tracker::resource::escape;
use crate::tracker::select;

/// The arguments of `rtrack producers`.
#[derive(Debug, clap::Args)]
pub struct ProducersArgs {
    /// Explain what the catalogue says of this name, e.g. psm_0a1b2c3d or sem:mp-abcdefgh
    #[arg(long = "match", value_name = "NAME", group = "what")]
    name: Option<OsString>,

    /// Test a catalogue file before it is put among the operators' own
    #[arg(long, value_name = "FILE", group = "what")]
    check: Option<PathBuf>,

    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// Lists, explains or checks.
///
/// # Errors
/// A name that no entry matches and a file that is not right: status 1. stdout could not be
/// written: status 3.
pub fn run(args: &ProducersArgs, ui: &Ui) -> Result<Status, CommandError> {
    if let Some(file) = &args.check {
        let Checked { entries, distrusted } = check_file(file).map_err(|broken| {
            // What has no line was not read.
            let kind = if broken.line.is_some() { ErrorKind::No } else { ErrorKind::Failed };
            CommandError::new(kind, broken)
        })?;
        if let Some(why) = distrusted {
            let file = escape(file.as_os_str().as_bytes());
            ui.line(format_args!("warning: {file}: {why}: as it is, it would not be used"));
        }
        ui.answer(|out| {
            if args.json {
                let file = file.to_string_lossy();
                let answer =
                    json!({ "schema": "rtrack.producers/1", "file": file, "entries": entries });
                writeln!(out, "{answer:#}")
            } else {
                let entries = plural(entries, "entry", "entries");
                writeln!(out, "{}: {entries}, all right", escape(file.as_os_str().as_bytes()))
            }
        })?;
        return Ok(0);
    }
    let catalogue = Catalogue::load(&operator_directories());
    for broken in catalogue.broken() {
        ui.line(format_args!("error: {broken}"));
    }
    match &args.name {
        Some(name) => explain(args, name, &catalogue, ui)?,
        None => list(args, &catalogue, ui)?,
    }
    Ok(if catalogue.broken().is_empty() { 0 } else { ErrorKind::Failed.status() })
}

fn list(args: &ProducersArgs, catalogue: &Catalogue, ui: &Ui) -> Result<(), CommandError> {
    ui.answer(|out| {
        if args.json {
            let producers: Vec<Value> =
                catalogue.producers().iter().map(|producer| document(producer, None)).collect();
            let answer = json!({ "schema": "rtrack.producers/1", "producers": producers });
            return writeln!(out, "{answer:#}");
        }
        let all = catalogue.producers();
        let width = all.iter().map(|producer| producer.id.len()).max().unwrap_or(0);
        writeln!(out, "{:<width$}  {:<8}  {:<10}  {:<5}  SOFTWARE", "ID", "KIND", "HELD", "PROOF")?;
        for producer in all {
            writeln!(
                out,
                "{:<width$}  {:<8}  {:<10}  {:<5}  {}",
                producer.id,
                producer.kind,
                if producer.persistent_by_design {
                    "persistent"
                } else {
                    held(producer.held_while_alive)
                },
                if can_prove(producer) { "yes" } else { "no" },
                escape(producer.software.as_bytes()),
            )?;
        }
        Ok(())
    })
}

fn explain(
    args: &ProducersArgs,
    name: &OsString,
    catalogue: &Catalogue,
    ui: &Ui,
) -> Result<(), CommandError> {
    let (kind, plain) = select::bare_name(name);
    let found = catalogue.find_all(kind, plain);
    if found.is_empty() {
        let name = escape(name.as_bytes());
        return Err(CommandError::new(ErrorKind::No, anyhow::anyhow!("{name}: no known producer"))
            .hint("rtrack producers lists them; your own go into /etc/rtrack/producers.d/*.toml"));
    }
    ui.answer(|out| {
        if args.json {
            let producers: Vec<Value> =
                found.iter().map(|found| document(found.producer, Some(found))).collect();
            let answer = json!({ "schema": "rtrack.producers/1", "producers": producers });
            return writeln!(out, "{answer:#}");
        }
        for (index, found) in found.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            describe(out, found)?;
        }
        Ok(())
    })
}

fn describe(out: &mut dyn Write, found: &Match<'_>) -> io::Result<()> {
    let producer = found.producer;
    let mut line =
        |key: &str, value: &str| writeln!(out, "{key:<10}  {}", escape(value.as_bytes()));
    line("producer", &producer.id)?;
    line("software", &producer.software)?;
    line("kind", &producer.kind)?;
    line("pattern", &producer.pattern)?;
    if let Some(pid) = found.pid {
        line("creator", &format!("process {pid}, in its own PID namespace"))?;
    }
    line("held", held_says(producer.held_while_alive))?;
    if let Some(family) = &producer.family {
        line("family", &format!("{family}: without such a program nobody can come back for it"))?;
    }
    if let Some(guardian) = &producer.guardian {
        line("guardian", &format!("{guardian}: while one is alive, the object is claimed"))?;
    }
    line("verdict", verdict_says(producer))?;
    for (key, value) in [("note", &producer.note), ("source", &producer.source)] {
        if !value.is_empty() {
            line(key, value)?;
        }
    }
    if let Some(file) = &producer.file {
        line("file", &file.to_string_lossy())?;
    }
    Ok(())
}

fn held(held: HeldWhileAlive) -> &'static str {
    match held {
        HeldWhileAlive::Mapped => "mapped",
        HeldWhileAlive::Open => "open",
        HeldWhileAlive::ByName => "by-name",
        HeldWhileAlive::Unknown => "unknown",
    }
}

fn held_says(held: HeldWhileAlive) -> &'static str {
    match held {
        HeldWhileAlive::Mapped => "a live owner always has it mapped",
        HeldWhileAlive::Open => "a live owner always has it open",
        HeldWhileAlive::ByName => "at times nobody has it open though it is needed",
        HeldWhileAlive::Unknown => "not known",
    }
}

/// Whether an object of this producer can be orphaned by what the entry says.
fn can_prove(producer: &Producer) -> bool {
    producer.proof
        && !producer.persistent_by_design
        && (producer.family.is_some()
            || matches!(producer.held_while_alive, HeldWhileAlive::Mapped | HeldWhileAlive::Open))
}

fn verdict_says(producer: &Producer) -> &'static str {
    if producer.persistent_by_design {
        "claimed: it is kept by design"
    } else if !producer.proof {
        "the name alone proves nothing, so this entry makes nothing orphaned"
    } else if matches!(producer.held_while_alive, HeldWhileAlive::Mapped | HeldWhileAlive::Open) {
        "orphaned when nobody holds it"
    } else if producer.family.is_some() {
        "orphaned when nobody holds it and nobody of its family is alive"
    } else {
        "unclaimed when nobody holds it: what may come back for it is not known"
    }
}

fn document(producer: &Producer, found: Option<&Match<'_>>) -> Value {
    let mut document = json!({
        "id": producer.id,
        "software": producer.software,
        "kind": producer.kind,
        "pattern": producer.pattern,
        "example": producer.example,
        "held_while_alive": held(producer.held_while_alive),
        "persistent_by_design": producer.persistent_by_design,
        "proof": producer.proof,
        "family": producer.family,
        "guardian": producer.guardian,
        "note": producer.note,
        "source": producer.source,
        "file": producer.file.as_ref().map(|file| file.to_string_lossy()),
    });
    if let (Some(found), Some(map)) = (found, document.as_object_mut()) {
        map.insert("pid".into(), json!(found.pid));
    }
    document
}
