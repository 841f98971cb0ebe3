//! The manual pages in `man/`.
//!
//! `rtrack.1` and the page of each command are made from the command line itself and from what
//! is written by hand in `man/src/PAGE.roff`. When they no longer agree, this fails;
//! `UPDATE=1 cargo test --test man` writes them anew. `rtrack-protocol.7` and `rtrack-verdicts.7`
//! are written by hand as a whole, and are checked for completeness.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use rtrack::commands::Cli;
use rtrack::commands::render::{columns, limits, trackers};
use rtrack::tracker::evidence::sight::Blind;
use rtrack::tracker::reap::Outcome;
use rtrack::tracker::verdict::{Code, Verdict};

/// The pages that no command has.
const BY_HAND: [&str; 2] = ["rtrack-protocol.7", "rtrack-verdicts.7"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// rtrack and its commands, with everything that they inherit.
fn commands() -> Vec<Command> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let all = root.get_subcommands().cloned().collect::<Vec<_>>();
    std::iter::once(root).chain(all).collect()
}

fn page_name(command: &Command) -> String {
    format!("{}.1", command.get_display_name().unwrap_or_else(|| command.get_name()))
}

/// The first line of a page. It has no date: the version says how old it is.
fn title(page: &str) -> String {
    let (name, section) = page.rsplit_once('.').unwrap();
    let (name, version) = (name.replace('-', "\\-"), env!("CARGO_PKG_VERSION"));
    format!(".TH {name} {section} \"\" \"rtrack {version}\" rtrack\n")
}

/// A page: what the command line says, then what is written by hand. A DESCRIPTION written by
/// hand replaces the one of `--help`.
fn generate(command: &Command) -> String {
    let name = page_name(command);
    let source = format!("man/src/{}.roff", name.trim_end_matches(".1"));
    assert!(
        root().join(&source).exists(),
        "there is no {source}: write what the manual has to say beyond the options, \
         at least EXIT STATUS, EXAMPLES and SEE ALSO"
    );
    let by_hand = read(source);
    let man = Man::new(command.clone());
    let mut page = title(&name).into_bytes();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    let (description, rest) = match by_hand.split_once(".\\\" OPTIONS\n") {
        Some((description, rest)) => (Some(description), rest),
        None => (None, by_hand.as_str()),
    };
    match description {
        Some(text) => page.extend_from_slice(text.as_bytes()),
        None => man.render_description_section(&mut page).unwrap(),
    }
    man.render_options_section(&mut page).unwrap();
    let mut page = one_preamble(&String::from_utf8(page).unwrap());
    page.push_str(rest);
    page
}

/// Every section that is rendered alone defines the apostrophe again; once is enough. What says
/// where the page comes from stands in the first line.
fn one_preamble(page: &str) -> String {
    let mut text = String::from(
        ".\\\" Made from the command line and man/src by: UPDATE=1 cargo test --test man\n",
    );
    let mut seen = BTreeSet::new();
    for line in page.lines() {
        if !line.starts_with(".ie ") && !line.starts_with(".el ") || seen.insert(line) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// The text of a page as a reader has it in mind: without escapes and fonts.
fn plain(page: &str) -> String {
    [("\\-", "-"), ("\\fB", ""), ("\\fI", ""), ("\\fR", ""), ("\\fP", "")]
        .iter()
        .fold(page.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// The pages that are not what they should be. With `UPDATE` set they are written first, once
/// and before any test looks at them.
fn stale() -> &'static [String] {
    static STALE: OnceLock<Vec<String>> = OnceLock::new();
    STALE.get_or_init(|| {
        let update = std::env::var_os("UPDATE").is_some_and(|value| !value.is_empty());
        let mut stale = Vec::new();
        for command in commands() {
            let path = format!("man/{}", page_name(&command));
            let page = generate(&command);
            if fs::read_to_string(root().join(&path)).is_ok_and(|old| old == page) {
                continue;
            }
            if update {
                fs::write(root().join(&path), page).unwrap();
            } else {
                stale.push(path);
            }
        }
        stale
    })
}

#[test]
fn pages_of_commands_are_up_to_date() {
    assert!(
        stale().is_empty(),
        "the command line or man/src has changed and these pages have not: {}\n\
         look at the difference after: UPDATE=1 cargo test --test man",
        stale().join(", ")
    );
}

#[test]
fn every_page_belongs_to_something() {
    stale();
    let expected: BTreeSet<String> =
        commands().iter().map(page_name).chain(BY_HAND.map(str::to_owned)).collect();
    let pages: BTreeSet<String> = fs::read_dir(root().join("man"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "src")
        .collect();
    assert_eq!(pages, expected, "the pages in man/ and the commands differ");
    for page in BY_HAND {
        let text = read(Path::new("man").join(page));
        assert!(text.contains(&title(page)), "{page} does not have {}", title(page));
    }
    let main = plain(&read("man/rtrack.1"));
    for page in expected.iter().filter(|page| *page != "rtrack.1") {
        let (name, section) = page.rsplit_once('.').unwrap();
        assert!(main.contains(&format!("{name} ({section})")), "rtrack.1 does not name {page}");
    }
}

#[test]
fn every_option_is_in_its_page() {
    stale();
    for command in commands() {
        let name = page_name(&command);
        let page = plain(&read(Path::new("man").join(&name)));
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let long = argument.get_long().map(|long| format!("--{long}"));
            let short = argument.get_short().map(|short| format!("-{short}"));
            let value = argument.is_positional().then(|| {
                argument.get_value_names().unwrap_or_default().first().unwrap().to_string()
            });
            for word in [long, short, value].into_iter().flatten() {
                assert!(page.contains(&word), "{name} does not explain {word}");
            }
            assert!(argument.get_help().is_some(), "{name}: {} has no help", argument.get_id());
        }
    }
    let page = plain(&read("man/rtrack-list.1"));
    for column in columns::COLUMNS {
        assert!(page.contains(column.key), "rtrack-list.1 lacks the column {}", column.key);
    }
    let page = plain(&read("man/rtrack-limits.1"));
    for column in limits::COLUMNS {
        let help = format!("{:<12} {}", column.key, column.help);
        assert!(page.contains(&help), "rtrack-limits.1 lacks the column {}", column.key);
    }
    let page = plain(&read("man/rtrack-probe.1"));
    for column in trackers::COLUMNS {
        let help = format!("{:<12} {}", column.key, column.help);
        assert!(page.contains(&help), "rtrack-probe.1 lacks the column {}", column.key);
    }
}

/// The enumerations of a schema, by the text of each value.
fn enumerated(value: &serde_json::Value, found: &mut BTreeMap<String, usize>) {
    match value {
        serde_json::Value::Object(map) => {
            for word in map.get("enum").and_then(|list| list.as_array()).into_iter().flatten() {
                *found.entry(word.as_str().unwrap_or_default().to_owned()).or_default() += 1;
            }
            map.values().for_each(|value| enumerated(value, found));
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| enumerated(value, found)),
        _ => {}
    }
}

#[test]
fn verdicts_and_evidence_are_documented() {
    let page = plain(&read("man/rtrack-verdicts.7"));
    let mut schema = BTreeMap::new();
    enumerated(&serde_json::from_str(&read("schema/inventory.schema.json")).unwrap(), &mut schema);
    let codes = Code::ALL.map(Code::as_str);
    let verdicts = Verdict::ALL.map(Verdict::as_str);
    for word in codes.iter().chain(&verdicts) {
        assert!(page.contains(&format!("\n.B {word}\n")), "rtrack-verdicts(7) lacks {word}");
        assert!(schema.contains_key(*word), "schema/inventory.schema.json lacks {word}");
    }
}

#[test]
fn outcomes_are_documented() {
    stale();
    let page = plain(&read("man/rtrack-reap.1"));
    let mut schema = BTreeMap::new();
    enumerated(&serde_json::from_str(&read("schema/reap.schema.json")).unwrap(), &mut schema);
    for outcome in [
        Outcome::Reaped,
        Outcome::WouldReap,
        Outcome::Held,
        Outcome::Changed,
        Outcome::OpenedMeanwhile,
        Outcome::OpenedAtRemoval,
        Outcome::Refused,
        Outcome::Gone,
        Outcome::Failed,
    ] {
        let word = outcome.as_str();
        assert!(page.contains(&format!("\n.B {word}\n")), "rtrack-reap(1) lacks {word}");
        assert!(schema.contains_key(word), "schema/reap.schema.json lacks {word}");
    }
}

#[test]
fn blind_spots_of_sight_are_documented() {
    let page = plain(&read("man/rtrack-verdicts.7"));
    for blind in [
        Blind::NoProc,
        Blind::Hidepid,
        Blind::PidNamespace,
        Blind::UnreadableProcesses,
        Blind::IdmappedMount,
    ] {
        let word = serde_json::to_value(blind).unwrap();
        let word = word.as_str().unwrap();
        assert!(page.contains(word), "rtrack-verdicts(7) lacks {word}");
    }
}
