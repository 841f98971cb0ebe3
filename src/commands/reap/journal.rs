//! `reap --journal`: what a daemon that was killed had registered.

use std::path::Path;

use crate::commands::error::{CommandError, Kind};
use crate::commands::ui::Ui;
use crate::tracker::evidence::registrations::Left;
use crate::tracker::inventory::Object;
use crate::tracker::journal::JournalError;
use crate::tracker::service::found;
use crate::tracker::service::ledger::{Heir, Inheritance, Ledger};
use crate::tracker::service::listener::Peer;

/// A journal, which no daemon has.
pub(super) struct Journal {
    ledger: Ledger,
    inheritance: Inheritance,
    left: Left,
    /// What processes have registered that live still, and may use it.
    lives: Left,
}

impl Journal {
    /// Opens it, and says what of it does not count.
    pub(super) fn open(path: &Path, ui: &Ui) -> Result<Self, CommandError> {
        let failed = |error: anyhow::Error| CommandError::new(Kind::Failed, error);
        // Opening would make it.
        std::fs::symlink_metadata(path).map_err(|error| {
            failed(anyhow::Error::new(error).context(format!("journal {}", path.display())))
        })?;
        let (ledger, mut inheritance) = Ledger::open(path).map_err(|error| {
            let in_use = matches!(error, JournalError::InUse { .. });
            let error = failed(error.into());
            if in_use {
                error.hint("a live daemon has it, and will clean it itself")
            } else {
                error
            }
        })?;
        for warning in std::mem::take(&mut inheritance.warnings) {
            ui.line(format_args!("warning: {warning}"));
        }
        // What is left to a process that lives is not by hand's either.
        for heir in &mut inheritance.heirs {
            heir.entries.retain(|entry| !entry.is_bare_path());
        }
        let (living, dead): (Vec<Heir>, Vec<Heir>) =
            std::mem::take(&mut inheritance.heirs).into_iter().partition(lives);
        let names: usize = living.iter().map(|heir| heir.entries.len()).sum();
        if names > 0 {
            let belong = if names == 1 { "name belongs" } else { "names belong" };
            ui.note(format_args!("note: {names} {belong} to processes that live, and stay"));
        }
        let (left, lives) = (Left::new(&dead), Left::new(&living));
        inheritance.heirs = dead;
        Ok(Self { ledger, inheritance, left, lives })
    }

    /// Whether an object is what was registered, and by nobody who lives.
    pub(super) fn has(&self, object: &Object) -> bool {
        self.left.has(object) && !self.lives.names(object)
    }

    /// Writes down what is there no longer, by whoever it was removed.
    pub(super) fn settle(mut self, ui: &Ui) {
        for heir in &self.inheritance.heirs {
            let gone = |rtype, name: &[u8]| {
                found::is_known_place(rtype) && found::anywhere(rtype, name).is_none()
            };
            for entry in heir.entries.iter().filter(|entry| gone(entry.rtype, &entry.name)) {
                self.ledger.taken_back(heir.id, entry.rtype, &entry.name);
            }
        }
        if let Some(warning) = self.ledger.write() {
            ui.line(format_args!("warning: {warning}"));
        }
    }
}

/// Whether the process lives that registered something. Of who writes to a pipe nothing is known, but that the
/// daemon was killed.
fn lives(heir: &Heir) -> bool {
    // One that cannot be looked at may live.
    heir.process
        .as_ref()
        .is_some_and(|owner| Peer::of_the_past(owner).map_or(true, |peer| !peer.has_ended()))
}
