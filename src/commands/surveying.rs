//! One look at the machine for `list`, `show` and `reap`: what was selected, what was found, and
//! what the operator has to be told about what was not seen.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::error::CommandError;
use super::render::{self, Row, document};
use super::selecting::{SelectArgs, SortKey};
use super::ui::Ui;
use crate::tracker::evidence::sight::Blind;
use crate::tracker::host::{Host, Usage};
use crate::tracker::inventory::posix::Object;
use crate::tracker::resource::Name;
use crate::tracker::survey::{Judging, Survey};
use crate::tracker::verdict::Verdict;

/// What one look found.
#[derive(Debug)]
pub struct Look {
    /// Where.
    pub host: Host,
    /// How full the mount was.
    pub usage: Usage,
    /// Bytes that belonged to objects with a name, selected or not.
    pub visible: u64,
    /// The objects that were selected, and what is known about them.
    pub survey: Survey,
}

/// What was selected of what exists.
#[derive(Debug)]
pub struct Chosen {
    /// The objects.
    pub objects: Vec<Object>,
    /// The names, in the directory, of those that were selected whatever the other options say.
    pub forced: HashSet<Name>,
    /// How they are judged.
    pub judging: Judging,
    /// They were selected by what they are, and nothing that has taken their names stands for them.
    pub by_plan: bool,
}

impl Look {
    /// Reads what exists, keeps what `choose` chooses, and finds out what is known about it.
    ///
    /// # Errors
    /// /dev/shm cannot be read, or is no tmpfs: status 3; else that of `choose`, or of options
    /// that name what there is not.
    pub fn take(
        select: &SelectArgs,
        choose: impl FnOnce(&Host, Vec<Object>) -> Result<Chosen, CommandError>,
    ) -> Result<Self, CommandError> {
        let host = Host::real().map_err(|error| {
            CommandError::from(error).hint("rtrack looks at the tmpfs mounted at /dev/shm")
        })?;
        let mut inventory = Survey::inventory(&host)?;
        let visible = inventory.objects.iter().map(Object::allocated).sum();
        let usage = host.usage()?;
        let Chosen { objects, forced, judging, by_plan } = choose(&host, inventory.objects)?;
        inventory.objects = objects;
        let (filter, now) = (select.filter()?, (host.clock.wall)());
        let named = !select.names.is_empty() || !forced.is_empty();
        // What has taken its name meanwhile is selected by the same rules. A name may have said a kind.
        let wanted = |before: &Object, object: &Object| {
            !by_plan
                && (!named || before.kind == object.kind)
                && (forced.contains(&object.file) || filter.passes(object, now))
        };
        let survey = Survey::take(&host, judging, inventory, &wanted);
        select.check_producers(survey.catalogue())?;
        Ok(Self { host, usage, visible, survey })
    }

    /// The same for what `select` selects; and for each name that no object has, the error.
    ///
    /// # Errors
    /// As [`Look::take`] and [`SelectArgs::select`].
    pub fn of_selected(
        select: &SelectArgs,
        judging: Judging,
    ) -> Result<(Self, Vec<CommandError>), CommandError> {
        let mut missing = Vec::new();
        let look = Self::take(select, |host, objects| {
            let (objects, none) = select.select(objects, (host.clock.wall)())?;
            missing = none;
            if objects.is_empty() && !missing.is_empty() {
                return Err(missing.remove(0));
            }
            Ok(Chosen { objects, forced: HashSet::new(), judging, by_plan: false })
        })?;
        Ok((look, missing))
    }

    /// The objects of the producers that were selected and of these verdicts (any, if none is
    /// given), sorted.
    #[must_use]
    pub fn rows(&self, select: &SelectArgs, verdicts: &[Verdict]) -> Vec<Row<'_>> {
        let mut rows = render::rows(&self.host, &self.survey);
        rows.retain(|row| {
            select.passes_producer(row.producer.map(|(id, _)| id))
                && (verdicts.is_empty() || verdicts.contains(&row.judgement.verdict))
        });
        sort(&mut rows, select.sort, select.reverse);
        rows
    }

    /// What stands at the head of every JSON document.
    #[must_use]
    pub fn head(&self, schema: &str) -> Map<String, Value> {
        let mount = document::mount(&self.host, self.usage, self.visible);
        document::head(schema, &self.host, &self.survey, mount)
    }

    /// Says what could not be seen, what went wrong with single objects, and what is wrong with
    /// the operators' catalogue; whether the exit status has to tell of it, or with `strict`, of
    /// partial sight.
    pub fn say(&self, strict: bool, ui: &Ui) -> bool {
        say_what_was_not_seen(&self.survey, ui);
        say_troubles(&self.survey, strict, ui)
    }
}

/// Sorts as `--sort` says; equal ones by name, so that two runs agree.
pub fn sort(rows: &mut [Row<'_>], key: SortKey, reverse: bool) {
    rows.sort_by(|a, b| {
        let order = match key {
            SortKey::Size => b.object.size().cmp(&a.object.size()),
            SortKey::Name => std::cmp::Ordering::Equal,
            SortKey::Age => b.age().cmp(&a.age()),
            SortKey::User => a.user.cmp(b.user),
            SortKey::Kind => a.object.kind.cmp(&b.object.kind),
            SortKey::Verdict => b.judgement.verdict.cmp(&a.judgement.verdict),
        };
        let order = order.then_with(|| a.object.file.cmp(&b.object.file));
        if reverse { order.reverse() } else { order }
    });
}

fn say_troubles(survey: &Survey, strict: bool, ui: &Ui) -> bool {
    for (id, error) in &survey.troubles {
        ui.line(format_args!("error: {id}: {error}"));
    }
    let broken = survey.catalogue().broken();
    for broken in broken {
        ui.line(format_args!("error: {broken}"));
    }
    if !broken.is_empty() {
        ui.line(
            "hint: until it is mended, nothing is orphaned by what the catalogue of producers says",
        );
    }
    let partial =
        !survey.snapshot.sight.reasons().is_empty() || !survey.lease_works || survey.reaper_at_work;
    !survey.troubles.is_empty() || !broken.is_empty() || (strict && partial)
}

/// What could not be seen, and what that means for the verdicts.
fn say_what_was_not_seen(survey: &Survey, ui: &Ui) {
    let sight = &survey.snapshot.sight;
    if !survey.lease_works {
        ui.note(
            "note: leases do not work on this mount, so holders are known only as far as processes can be seen",
        );
    }
    if survey.reaper_at_work {
        ui.note("note: another reap is at work: the kernel was not asked who uses what");
    }
    if sight.assumed_complete {
        ui.note("note: assuming that nothing outside this PID namespace uses /dev/shm");
    }
    let reasons: Vec<&str> = sight.reasons().iter().map(|blind| blind.says()).collect();
    if reasons.is_empty() {
        return;
    }
    ui.note(format_args!(
        "note: not everything could be seen: {} ({} processes seen, {} of them not readable)",
        reasons.join("; "),
        sight.seen,
        sight.unreadable
    ));
    if sight.processes.contains(&Blind::PidNamespace) {
        ui.note("hint: --assume-complete if nothing outside this PID namespace uses /dev/shm");
    } else if !nix::unistd::geteuid().is_root() {
        ui.note("hint: root sees all processes");
    }
}
