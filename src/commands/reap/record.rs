//! What is recorded of a reap, and what becomes of the reap when it cannot be.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::commands::error::{CommandError, Kind as ErrorKind};
use crate::commands::ui::Ui;
use crate::tracker::audit::{self, Action, Audit, AuditError, Ending, Entry, Place, Run, Why};
use crate::tracker::inventory::Object;
use crate::tracker::reap::{Fate, Outcome, Report, Witness};
use crate::tracker::resource::Name;
use crate::tracker::survey::owner_name;
use crate::tracker::sys::{self, Stat};

/// What the operator can do where nothing can be recorded.
const HINT: &str = "--audit FILE records it elsewhere, --no-audit removes without a record";

/// The options about the record.
#[derive(Debug, clap::Args)]
pub(super) struct AuditArgs {
    /// Record what is removed, and why, in this file, a JSON object a line; by default in
    /// /var/log/rtrack/reap.jsonl for root, else in rtrack/reap.jsonl in $XDG_STATE_HOME or
    /// ~/.local/state
    #[arg(long, value_name = "FILE", conflicts_with = "no_audit")]
    audit: Option<PathBuf>,

    /// Keep no record
    #[arg(long)]
    no_audit: bool,
}

/// Where a record is by default.
///
/// # Errors
/// Nothing says where the home of this user is; the hint names `instead`.
pub(in crate::commands) fn usual_place(instead: &str) -> Result<Place, CommandError> {
    let euid = nix::unistd::geteuid().as_raw();
    Place::usual(euid, |name| std::env::var_os(name)).ok_or_else(|| {
        let message = "audit: neither XDG_STATE_HOME nor HOME is an absolute path";
        CommandError::new(ErrorKind::Failed, anyhow::anyhow!(message)).hint(instead)
    })
}

/// The record of one reap. Once something could not be written to it, nothing more is begun.
pub(super) struct Record<'a> {
    ui: &'a Ui,
    args: &'a AuditArgs,
    /// The identity of the plan that is carried out, if it was given.
    plan: Option<String>,
    proc: PathBuf,
    open: Option<(Audit, Run)>,
    /// The object in hand.
    begun: Option<Entry>,
    /// What is in leftovers, by directory and name, with the last that was recorded of it.
    settled: HashMap<(Name, Name), (Entry, Option<Fate>)>,
    /// Why nothing more is begun, and the errno.
    stopped: Option<(String, i32)>,
}

impl<'a> Record<'a> {
    /// One that is not open yet. `proc` is where procfs is.
    pub(super) fn new(ui: &'a Ui, args: &'a AuditArgs, plan: Option<String>, proc: &Path) -> Self {
        let (begun, settled, stopped) = (None, HashMap::new(), None);
        Self { ui, args, plan, proc: proc.into(), open: None, begun, settled, stopped }
    }

    /// Opens or makes the file, unless there is to be no record.
    ///
    /// # Errors
    /// It cannot be: status 3.
    pub(super) fn open(&mut self) -> Result<(), CommandError> {
        if self.args.no_audit || self.open.is_some() {
            return Ok(());
        }
        let place = match &self.args.audit {
            Some(path) => Place::Given(path.clone()),
            None => usual_place(HINT)?,
        };
        // Its default is to kill; a file that has its full size is to be an error.
        sys::ignore_signal(libc::SIGXFSZ)?;
        let audit = Audit::open(&place).map_err(|error| CommandError::from(error).hint(HINT))?;
        self.open = Some((audit, Run::new(&self.proc, self.plan.as_deref())));
        Ok(())
    }

    /// The file, once it is open.
    pub(super) fn path(&self) -> Option<&Path> {
        self.open.as_ref().map(|(audit, _)| audit.path())
    }

    /// Why nothing more is begun.
    pub(super) fn stops(&self) -> Option<Report> {
        let (why, errno) = self.stopped.as_ref()?;
        let report = Report::new(Outcome::Failed, format!("not begun: {why}"));
        Some(Report { errno: Some(*errno), ..report })
    }

    /// Records what is about to be done to `object`.
    ///
    /// # Errors
    /// That it cannot be recorded: nothing may be done.
    pub(super) fn begin(
        &mut self,
        object: &Object,
        user: &str,
        why: Why<'_>,
    ) -> Result<(), Report> {
        self.begun = None;
        let Some((audit, run)) = &mut self.open else { return Ok(()) };
        let entry = run.entry(Action::Reap, audit::object(object, user), why);
        match audit.append(&run.intent(&entry)) {
            Ok(()) => {
                self.begun = Some(entry);
                Ok(())
            }
            Err(error) => {
                self.stop(&error, "nothing more is removed");
                Err(self.stops().unwrap_or_else(|| Report::new(Outcome::Failed, "not begun")))
            }
        }
    }

    /// Whether the object in hand was begun.
    pub(super) fn is_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// Records what became of `object`; `why` is for one that was not even begun.
    pub(super) fn end(&mut self, object: &Object, user: &str, why: Why<'_>, report: &Report) {
        if self.stopped.is_some() {
            return;
        }
        let Some((audit, run)) = &mut self.open else { return };
        let entry = self
            .begun
            .take()
            .unwrap_or_else(|| run.entry(Action::Reap, audit::object(object, user), why));
        let last_name = object.directory.is_some() || object.stat.nlink <= 1;
        let freed = report.outcome == Outcome::Reaped && last_name;
        let ending = Ending {
            outcome: report.outcome.as_str(),
            says: &report.says,
            errno: report.errno,
            freed: Some(if freed { object.allocated() } else { 0 }),
            archived: report.archived.as_deref(),
        };
        if let Err(error) = audit.append(&run.outcome(&entry, ending)) {
            let (id, outcome) = (object.shown_id(), report.outcome.as_str());
            self.stop(&error, &format!("{id}: {outcome}, and that is not recorded"));
        }
    }

    fn stop(&mut self, error: &AuditError, says: &str) {
        let why = format!("{error}: {}", error.source);
        self.ui.line(format_args!("error: {why}: {says}"));
        self.ui.line(format_args!("hint: {HINT}"));
        self.stopped = Some((why, error.errno()));
    }
}

impl Witness for Record<'_> {
    fn before(&mut self, directory: &Name, file: &Name, stat: &Stat) -> Result<(), String> {
        // Nothing was to be done, so it is not open; this was left behind since.
        if self.stopped.is_none()
            && let Err(error) = self.open()
        {
            self.ui.errors(std::slice::from_ref(&error));
            self.stopped = Some((format!("{:#}", error.source), libc::EIO));
        }
        if let Some((why, _)) = &self.stopped {
            return Err(why.clone());
        }
        let Some((audit, run)) = &mut self.open else { return Ok(()) };
        let key = (directory.clone(), file.clone());
        if self.settled.contains_key(&key) {
            return Ok(());
        }
        let object = audit::object(&Object::of(file, *stat), &owner_name(stat.uid));
        let why = Why { directory: Some(directory), ..Why::default() };
        let entry = run.entry(Action::Settle, object, why);
        match audit.append(&run.intent(&entry)) {
            Ok(()) => {
                self.settled.insert(key, (entry, None));
                Ok(())
            }
            Err(error) => {
                self.stop(&error, "nothing more is removed");
                Err(format!("{error}: {}", error.source))
            }
        }
    }

    fn after(&mut self, directory: &Name, file: &Name, stat: &Stat, fate: &Fate) {
        let Some((audit, run)) = &mut self.open else { return };
        let Some((entry, last)) = self.settled.get_mut(&(directory.clone(), file.clone())) else {
            return;
        };
        if self.stopped.is_some() || last.as_ref() == Some(fate) {
            return;
        }
        let (outcome, says) = match fate {
            Fate::PutBack => ("put-back", "back under its name"),
            Fate::Finished => ("finished", "removed, as an interrupted reap had begun"),
            Fate::Left(why) => ("left", why.as_str()),
        };
        let freed = *fate == Fate::Finished && stat.nlink <= 1;
        let freed = Some(if freed { stat.allocated } else { 0 });
        let line = run.outcome(entry, Ending { outcome, says, errno: None, freed, archived: None });
        *last = Some(fate.clone());
        if let Err(error) = audit.append(&line) {
            self.stop(&error, &format!("{directory}: {file}: {outcome}, and that is not recorded"));
        }
    }
}
