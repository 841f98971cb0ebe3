//! One look at the machine for `list`, `show` and `reap`: what was selected, what was found, and
//! what the operator has to be told about what was not seen.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::io;

use serde_json::{Map, Value};

use super::error::{CommandError, Kind as ErrorKind};
use super::render::{self, Lines, Rank, Row, document};
use super::selecting::{SelectArgs, SortKey, explain};
use super::ui::Ui;
use crate::tracker::evidence::sight::Blind;
use crate::tracker::host::Usage;
use crate::tracker::inventory::{Key, Object};
use crate::tracker::reap;
use crate::tracker::survey::{Judging, Survey, Wanted};
use crate::tracker::verdict::Verdict;
use crate::tracker::world::{Scope, World};

/// What one look found.
#[derive(Debug)]
pub struct Look {
    /// Where.
    pub world: World,
    /// How full the mounts were, our own first.
    pub mounts: Vec<Filled>,
    /// The objects that were selected, and what is known about them.
    pub survey: Survey,
    /// Other namespaces were asked for, too.
    pub wide: bool,
}

/// How full one mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Its place in the world.
    pub place: usize,
    /// Its device number.
    pub dev: u64,
    /// What the file system says.
    pub usage: Usage,
    /// Bytes that belonged to objects with a name, selected or not.
    pub visible: u64,
    /// Bytes of what has no name any more, as far as those who hold it were seen, and it was selected.
    pub deleted: u64,
}

impl Filled {
    /// How full each mount of the world is, in which there are `objects`.
    ///
    /// # Errors
    /// Our own mount does not tell. Another one that does not is left out.
    fn all(world: &World, objects: &[Object]) -> io::Result<Vec<Self>> {
        let mut visible = HashMap::new();
        let mut counted = HashSet::new();
        for object in objects {
            // One of several names of one file is as good as the others.
            if object.stat.nlink == 1 || counted.insert((object.stat.dev, object.stat.ino)) {
                *visible.entry(object.place).or_insert(0) += object.allocated();
            }
        }
        let mut mounts = Vec::new();
        for (place, host) in world.wanted_shm() {
            let visible = visible.get(&place).copied().unwrap_or(0);
            match host.usage().and_then(|usage| Ok((usage, host.shm_dev()?))) {
                Ok((usage, dev)) => mounts.push(Self { place, dev, usage, visible, deleted: 0 }),
                Err(error) if place == 0 => return Err(error),
                Err(_) => {}
            }
        }
        Ok(mounts)
    }
}

/// What was selected of what exists.
#[derive(Debug)]
pub struct Chosen {
    /// The objects.
    pub objects: Vec<Object>,
    /// Those that were selected whatever the other options say.
    pub forced: HashSet<Key>,
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
        scope: Scope,
        unlinked: bool,
        choose: impl FnOnce(&World, Vec<Object>) -> Result<Chosen, CommandError>,
    ) -> Result<Self, CommandError> {
        let mut world = World::own().map_err(|error| {
            CommandError::from(error).hint("rtrack looks at the tmpfs mounted at /dev/shm")
        })?;
        world.widen(&scope)?;
        if matches!(scope, Scope::Named(_)) && world.places.iter().all(|place| !place.wanted) {
            return Err(no_such_namespace(select, &world));
        }
        let (mut inventory, catalogue) = Survey::begin(&world)?;
        let mounts = Filled::all(&world, &inventory.objects)?;
        let Chosen { objects, forced, judging, by_plan } = choose(&world, inventory.objects)?;
        inventory.objects = objects;
        let (filter, now) = (select.filter()?, (world.host.clock.wall)());
        let named = !select.names.is_empty() || !forced.is_empty();
        // What has taken its name meanwhile is selected by the same rules. A name may have said a kind.
        let wanted = |before: &Object, object: &Object| {
            !by_plan
                && (!named || before.kind == object.kind)
                && (forced.contains(&before.key()) || filter.passes(object, now))
        };
        let without_name = select.test(now)?;
        let without_name: &dyn Fn(&Object) -> bool = &without_name;
        let wanted = Wanted { instead: &wanted, unlinked: unlinked.then_some(without_name) };
        let survey = Survey::take(&world, judging, (inventory, catalogue), wanted);
        select.check_producers(survey.catalogue())?;
        let wide = scope != Scope::Own;
        let mut mounts = mounts;
        for object in survey.objects.iter().filter(|object| object.deleted) {
            for filled in mounts.iter_mut().filter(|filled| filled.dev == object.stat.dev) {
                filled.deleted += object.allocated();
            }
        }
        Ok(Self { world, mounts, survey, wide })
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
        let look = Self::take(select, select.scope(), true, |world, objects| {
            let (objects, none) = select.select(objects, (world.host.clock.wall)())?;
            missing = none;
            Ok(Chosen { objects, forced: HashSet::new(), judging, by_plan: false })
        })?;
        // What has lost its name may be known by the one it had.
        let unlinked = look.survey.objects.iter().filter(|object| object.deleted);
        let unlinked: Vec<Object> = unlinked.cloned().collect();
        select.still_missing(&mut missing, &unlinked);
        if look.survey.objects.is_empty() && !missing.is_empty() {
            return Err(explain(missing.remove(0)));
        }
        Ok((look, missing.into_iter().map(explain).collect()))
    }

    /// The objects of the producers that were selected and of these verdicts (any, if none is
    /// given), sorted.
    #[must_use]
    pub fn rows(&self, select: &SelectArgs, verdicts: &[Verdict]) -> Vec<Row<'_>> {
        let mut rows = render::rows(&self.world, &self.survey);
        rows.retain(|row| {
            select.passes_producer(row.producer.map(|(id, _)| id))
                && (verdicts.is_empty() || verdicts.contains(&row.verdict()))
        });
        sort(&mut rows, select.sort, select.reverse);
        rows
    }

    /// The same as lines, to be rendered bit by bit; `judged` if their verdicts matter for more than that.
    #[must_use]
    pub fn lines(&self, select: &SelectArgs, verdicts: &[Verdict], judged: bool) -> Lines<'_> {
        let judged = judged || !verdicts.is_empty() || select.sort == SortKey::Verdict;
        let mut lines = Lines::new(&self.world, &self.survey, judged);
        if !verdicts.is_empty() || select.chooses_producers() {
            lines.retain(|row| {
                select.passes_producer(row.producer.map(|(id, _)| id))
                    && (verdicts.is_empty() || verdicts.contains(&row.verdict()))
            });
        }
        lines.sort_by(|a, b| order(a, b, select.sort, select.reverse));
        lines
    }

    /// What stands at the head of every JSON document.
    #[must_use]
    pub fn head(&self, schema: &str) -> Map<String, Value> {
        let mounts = self.mounts.iter().map(|filled| document::mount(&self.world, filled));
        let mut head = document::head(schema, &self.world.host, &self.survey, mounts.collect());
        if self.wide {
            head.insert("namespaces".into(), document::namespaces(&self.world));
        }
        head
    }

    /// Says what could not be seen, what went wrong with single objects, and what is wrong with
    /// the operators' catalogue; whether the exit status has to tell of it, or with `strict`, of
    /// partial sight.
    pub fn say(&self, strict: bool, ui: &Ui) -> bool {
        say_what_was_not_seen(&self.survey, ui);
        let unseen = &self.world.unseen;
        for what in &unseen.left_out {
            ui.note(format_args!("note: not looked at: {what}"));
        }
        if unseen.processes > 0 {
            ui.note(format_args!(
                "note: the namespaces of {} processes may not be seen",
                unseen.processes
            ));
        }
        if unseen.ended > 0 {
            ui.note(format_args!(
                "note: {} namespaces ended while they were looked at",
                unseen.ended
            ));
        }
        let unseen = !unseen.left_out.is_empty() || unseen.processes > 0;
        say_troubles(&self.survey, strict, ui) || strict && unseen
    }
}

/// No place is in a namespace of this name: status 1, or 3 where it may be one that could not be seen.
fn no_such_namespace(select: &SelectArgs, world: &World) -> CommandError {
    let names = crate::tracker::resource::escape(select.namespace.join(",").as_bytes());
    let error = anyhow::anyhow!("--namespace {names}: no such namespace with a place of its own");
    let unseen = &world.unseen;
    if unseen.left_out.is_empty() && unseen.processes == 0 {
        return CommandError::new(ErrorKind::No, error)
            .hint("rtrack list -A -o namespace,id shows them all");
    }
    let hint = unseen.left_out.first().cloned().unwrap_or_else(|| {
        format!("the namespaces of {} processes may not be seen", unseen.processes)
    });
    CommandError::new(ErrorKind::Failed, error).hint(hint)
}

/// Sorts as `--sort` says; equal ones by name, so that two runs agree.
pub fn sort(rows: &mut [Row<'_>], key: SortKey, reverse: bool) {
    rows.sort_by(|a, b| order(&a.rank(), &b.rank(), key, reverse));
}

fn order(a: &Rank<'_>, b: &Rank<'_>, key: SortKey, reverse: bool) -> Ordering {
    let order = match key {
        SortKey::Size => b.object.size().cmp(&a.object.size()),
        SortKey::Name => Ordering::Equal,
        SortKey::Age => b.age().cmp(&a.age()),
        SortKey::User => a.user.cmp(b.user),
        SortKey::Kind => a.object.kind.cmp(&b.object.kind),
        SortKey::Verdict => b.verdict.cmp(&a.verdict),
    };
    let order = order.then_with(|| a.object.file.cmp(&b.object.file));
    if reverse { order.reverse() } else { order }
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
    let partial = !survey.snapshot.sight.reasons().is_empty()
        || survey.lease_works.contains(&false)
        || !survey.reapers_at_work.is_empty();
    !survey.troubles.is_empty() || !broken.is_empty() || (strict && partial)
}

/// What could not be seen, and what that means for the verdicts.
fn say_what_was_not_seen(survey: &Survey, ui: &Ui) {
    let sight = &survey.snapshot.sight;
    if survey.lease_works.contains(&false) {
        ui.note(
            "note: leases do not work on this mount, so holders are known only as far as processes can be seen",
        );
    }
    if !survey.reapers_at_work.is_empty() {
        ui.note("note: another reap is at work: the kernel was not asked who uses what");
    }
    if sight.assumed_complete {
        ui.note("note: assuming that nothing outside this PID namespace uses /dev/shm");
    }
    for object in survey.objects.iter().filter(|object| reap::sysv::is_closed(object)) {
        ui.note(format_args!(
            "note: {}: closed by an interrupted reap; the next reap of its owner, or of root, gives it its permissions back",
            object.shown_id()
        ));
    }
    let silent = &survey.snapshot.registrations.silent;
    if !silent.is_empty() {
        let mut pids: Vec<String> = silent.iter().take(3).map(|(pid, _)| pid.to_string()).collect();
        pids.extend(silent.len().checked_sub(4).map(|more| format!("{} more", more + 1)));
        ui.note(format_args!(
            "note: no answer from the tracker of process {}: what it may have registered is left to it",
            pids.join(", ")
        ));
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
