//! `rtrack list`: what is there, who holds it, may it go, and why.

use std::path::Path;

use super::Status;
use super::error::{CommandError, Kind as ErrorKind};
use super::render::{self, Lines, Row, columns, document, table};
use super::selecting::SelectArgs;
use super::surveying::{Filled, Look};
use super::ui::Ui;
use super::values::show_size;
use crate::tracker::evidence::registrations::Registrations;
use crate::tracker::host::Host;
use crate::tracker::limits::{self, Unit};
use crate::tracker::resource::escape;
use crate::tracker::service::client::asking;
use crate::tracker::survey::{Judging, Sought};
use crate::tracker::sys;
use crate::tracker::verdict::Verdict;
use crate::tracker::world::Scope;

/// The arguments of `rtrack list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    select: SelectArgs,

    /// Only objects of these verdicts
    #[arg(long, value_enum, value_delimiter = ',', value_name = "VERDICT")]
    verdict: Vec<Verdict>,

    /// Whose mappings and descriptors to look at. With none, an object that is in use is known by the kernel's answer
    /// alone, and what has lost its name is not found; that is usual for -0, and for -o without a column that
    /// needs more
    #[arg(long, value_enum, value_name = "WHOSE")]
    holders: Option<Sought>,

    /// Only what is registered with this rtrack daemon, which was started with --control
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    tracker: Option<i32>,

    /// Print one JSON document, with all the evidence
    #[arg(long, group = "format")]
    json: bool,

    /// Print one JSON object a line
    #[arg(long, group = "format")]
    ndjson: bool,

    /// Print ids only, each ended by a NUL, for xargs -0r rtrack reap --exact
    #[arg(short = '0', long = "null", group = "format")]
    null: bool,

    /// Print these columns, e.g. id,uid,size
    #[arg(
        short,
        long,
        value_delimiter = ',',
        value_name = "COLUMNS",
        long_help = columns_help(),
        conflicts_with = "json"
    )]
    output: Vec<String>,

    /// Print no line of headings
    #[arg(long)]
    no_headings: bool,

    /// Counts and bytes by this instead of single objects
    #[arg(long, value_enum, value_name = "KEY", conflicts_with_all = ["null", "output", "sort", "reverse"])]
    group_by: Option<GroupKey>,

    /// Exit with status 1 if there are orphaned objects
    #[arg(long)]
    check: bool,

    /// Exit with status 3 if not everything could be seen
    #[arg(long)]
    strict: bool,
}

/// What `--group-by` groups by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum GroupKey {
    /// By who makes objects of such names
    Producer,
    /// By owner
    User,
    /// By verdict
    Verdict,
}

impl ListArgs {
    /// Whose mappings and descriptors are looked at.
    fn sought(&self) -> Sought {
        let needs = |key: &String| {
            ["holders", "holders_complete", "evidence", "deleted"].contains(&key.as_str())
        };
        let none = self.null || !self.output.is_empty() && !self.output.iter().any(needs);
        // A script that only looks at the status sees nothing of what that does not tell.
        let none = none && !self.check;
        self.holders.unwrap_or(if none { Sought::None } else { Sought::All })
    }
}

fn columns_help() -> String {
    columns::help(columns::COLUMNS, "id,uid,size")
}

/// What is registered with a daemon.
fn registered_with(pid: i32) -> Result<Registrations, CommandError> {
    let (uid, state) = asking::ask_process(Path::new("/proc"), pid).map_err(|error| {
        let result = CommandError::new(ErrorKind::Failed, error);
        result.hint("a daemon tells what it has if it is started with --control PATH")
    })?;
    Ok(Registrations::of_one(pid, uid, state))
}

/// Lists the objects.
///
/// # Errors
/// The command line is wrong, /dev/shm cannot be read, or stdout cannot be written.
pub fn run(args: &ListArgs, ui: &Ui) -> Result<Status, CommandError> {
    args.select.check(&[])?;
    sys::two_heaps();
    let wide = args.select.scope() != Scope::Own;
    let mut usual: Vec<&str> =
        if wide { columns::DEFAULT_OF_ALL.into() } else { columns::DEFAULT.into() };
    usual.retain(|key| *key != "holders" || args.sought() != Sought::None);
    let chosen = columns::chosen(columns::COLUMNS, &args.output, &usual)?;
    let registered = args.tracker.map(registered_with).transpose()?;
    let judging = Judging { sought: args.sought(), ..args.select.judging() };
    let (found, missing) = Look::of_selected(&args.select, judging)?;
    let terminal = ui.stdout_is_terminal();
    let judged = args.json || args.check || args.group_by == Some(GroupKey::Verdict) || terminal;
    let mut rows = found.lines(&args.select, &args.verdict, judged);
    if let Some(registered) = &registered {
        rows.retain(|row| registered.of(row.object).next().is_some());
        let names = registered.len();
        if names > rows.len() {
            let listed = rows.len();
            ui.note(format_args!("note: {names} names are registered, {listed} of them listed"));
        }
    }

    let json_columns = if args.output.is_empty() {
        document::all_columns(false)
    } else {
        document::with_whether_complete(&chosen)
    };
    let look = table::Look {
        width: ui.stdout_is_terminal().then(table::terminal_width).flatten(),
        colored: ui.colored(),
        headings: !args.no_headings,
    };
    ui.answer(|out| {
        if let Some(key) = args.group_by {
            let groups = groups(rows.iter(), key);
            return if args.json {
                let head = found.head("rtrack.groups/1");
                document::write(out, &document::groups(head, key.name(), &groups))
            } else if args.ndjson {
                groups.iter().try_for_each(|group| {
                    document::write_line(out, &document::group(key.name(), group))
                })
            } else {
                table::write_groups(out, key.name(), &groups, !args.no_headings)
            };
        }
        if args.json {
            let head = found.head("rtrack.inventory/1");
            document::write_inventory(out, &head, &rows, &json_columns)
        } else if args.ndjson {
            document::write_objects(out, &rows, &json_columns)
        } else if args.null {
            rows.iter().try_for_each(|row| {
                out.write_all(&row.object.id_bytes())?;
                out.write_all(b"\0")
            })
        } else {
            table::write_lines(out, &rows, chosen, look)
        }
    })?;
    if ui.stdout_is_terminal() && !(args.json || args.ndjson || args.null) {
        ui.note(footer(&found, &rows));
        for limit in nearly_used_up(&found.world.host) {
            ui.note(limit);
        }
    }
    let troubled = found.say(args.strict, ui);
    ui.errors(&missing);
    if troubled {
        return Ok(ErrorKind::Failed.status());
    }
    let orphans = || rows.iter().any(|row| row.verdict() == Verdict::Orphaned);
    Ok(if !missing.is_empty() || args.check && orphans() { ErrorKind::No.status() } else { 0 })
}

impl GroupKey {
    const fn name(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::User => "user",
            Self::Verdict => "verdict",
        }
    }
}

/// The groups, the one that uses most memory first.
fn groups<'a>(rows: impl Iterator<Item = Row<'a>>, key: GroupKey) -> Vec<render::Group> {
    let mut groups: Vec<render::Group> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for row in rows {
        let name = match key {
            GroupKey::Producer => row.producer.map_or("unknown", |(id, _)| id),
            GroupKey::User => row.user,
            GroupKey::Verdict => row.verdict().as_str(),
        };
        let place = *places.entry(name).or_insert_with(|| {
            groups.push(render::Group::new(name));
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(place) {
            group.add(&row);
        }
    }
    groups.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    groups
}

/// So many mounts are told of by the footer, those that use most.
const MOST_MOUNTS: usize = 4;

/// How full a mount is: what has names, what has none or cannot be seen, and what is free, which together
/// are what statfs(2) says.
fn fill(path: &Path, filled: &Filled) -> String {
    const WIDTH: u64 = 20;
    let Filled { usage, visible, deleted, .. } = *filled;
    let visible = visible.min(usage.used);
    let hidden = usage.used - visible;
    let mut text = format!("{}: ", escape(path.as_os_str().as_encoded_bytes()));
    if usage.size > 0 {
        let part = |bytes: u64| u128::from(bytes) * u128::from(WIDTH) / u128::from(usage.size);
        // Whatever is there shows.
        let part =
            |bytes: u64| usize::try_from(part(bytes)).unwrap_or(0).max(usize::from(bytes > 0));
        let (named, hidden) = (part(visible), part(hidden));
        let free = usize::try_from(WIDTH).unwrap_or(0).saturating_sub(named + hidden);
        let bar = format!("{}{}{}", "#".repeat(named), "?".repeat(hidden), ".".repeat(free));
        text.push_str(&format!("[{bar}] "));
    }
    text.push_str(&format!("visible {} (#)", show_size(visible)));
    if hidden > 0 {
        text.push_str(&format!(", hidden {} (?)", show_size(hidden)));
        if deleted > 0 {
            text.push_str(&format!(", {} of it deleted but held", show_size(deleted)));
        }
    }
    if usage.size > 0 {
        let free = usage.size.saturating_sub(usage.used);
        text.push_str(&format!(", free {} of {}", show_size(free), show_size(usage.size)));
    }
    text
}

/// The limits that are nearly used up; how full the mount is, the footer says anyway.
fn nearly_used_up(host: &Host) -> Vec<String> {
    let mut limits = limits::read(&host.proc, Ok(host));
    limits.retain(|limit| {
        !(limit.unit == Unit::Bytes && matches!(limit.scope, limits::Scope::Mount { .. }))
    });
    render::limits::above(&limits, render::limits::THRESHOLD)
}

fn footer(found: &Look, rows: &Lines<'_>) -> String {
    let Look { world, mounts, .. } = found;
    let mut text = String::new();
    let mut fullest: Vec<&Filled> = mounts.iter().collect();
    fullest.sort_by_key(|filled| std::cmp::Reverse(filled.usage.used));
    for filled in fullest.iter().take(MOST_MOUNTS) {
        text.push_str(&fill(&world.host_of(filled.place).shm_path, filled));
        text.push('\n');
    }
    if let Some(more) = mounts.len().checked_sub(MOST_MOUNTS).filter(|more| *more > 0) {
        text.push_str(&format!("and {more} mounts that use less\n"));
    }
    let totals = rows.totals();
    let of = |verdict| totals.by_verdict.get(&verdict).copied().unwrap_or_default();
    let (orphaned, reclaimable) = of(Verdict::Orphaned);
    let (unclaimed, perhaps) = of(Verdict::Unclaimed);
    text.push_str(&format!("orphaned {orphaned} ({})", show_size(reclaimable)));
    if unclaimed > 0 {
        text.push_str(&format!(", unclaimed {unclaimed} ({})", show_size(perhaps)));
    }
    if orphaned > 0 {
        text.push_str("; rtrack reap removes what is orphaned");
    }
    text
}
