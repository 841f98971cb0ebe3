//! What people and programs see: one table of columns feeds the table, JSON and NDJSON.

pub mod columns;
pub mod document;
pub mod grid;
pub mod limits;
mod lines;
pub mod records;
mod sysv;
pub mod table;
pub mod trackers;

pub use lines::{Lines, Rank};

use std::cell::OnceCell;

use crate::tracker::evidence::holders::Holder;
use crate::tracker::inventory::Object;
use crate::tracker::reap::Report;
use crate::tracker::survey::{Sought, Survey};
use crate::tracker::verdict::{CreatorState, Judgement, Verdict};
use crate::tracker::world::{Namespace, World};

/// One object with everything that a column may want. What takes long to find out is found out when it is
/// asked for first.
#[derive(Debug)]
pub struct Row<'a> {
    world: &'a World,
    survey: &'a Survey,
    /// The object.
    pub object: &'a Object,
    /// Its place in the survey.
    pub index: usize,
    verdict: Option<Verdict>,
    judgement: OnceCell<Judgement>,
    /// Who holds it.
    pub holders: &'a [Holder],
    /// Id and name of its producer.
    pub producer: Option<(&'a str, &'a str)>,
    creator: OnceCell<Option<(i32, CreatorState)>>,
    /// The owner's name.
    pub user: &'a str,
    /// Where it is, unless that is our own namespace.
    pub namespace: Option<&'a Namespace>,
    /// When it was seen, in nanoseconds since 1970.
    pub now: i128,
    /// What `reap` did with it.
    pub report: Option<Report>,
    /// Whether the operator forces `reap` to remove it.
    pub forced: bool,
}

impl<'a> Row<'a> {
    /// One of what is not in the survey any more, with the verdict that it had.
    #[must_use]
    pub fn absent(
        world: &'a World,
        survey: &'a Survey,
        object: &'a Object,
        judgement: Judgement,
    ) -> Self {
        let (judgement, creator) = (OnceCell::from(judgement), OnceCell::from(None));
        Self { judgement, creator, ..Self::of(world, survey, object, usize::MAX) }
    }

    fn of(world: &'a World, survey: &'a Survey, object: &'a Object, index: usize) -> Self {
        Self {
            world,
            survey,
            object,
            index,
            verdict: None,
            judgement: OnceCell::new(),
            holders: survey.holders(index),
            producer: None,
            creator: OnceCell::new(),
            user: "",
            namespace: world.namespace(object.place),
            now: survey.taken_at,
            report: None,
            forced: false,
        }
    }

    /// Its verdict, with why.
    pub fn judgement(&self) -> &Judgement {
        // Every object of a survey has one.
        let judge = || self.survey.judge(self.world, self.index).unwrap_or_else(Judgement::none);
        self.judgement.get_or_init(judge)
    }

    /// Its verdict.
    pub fn verdict(&self) -> Verdict {
        self.verdict.unwrap_or_else(|| self.judgement().verdict)
    }

    /// Whether it was looked who holds it.
    pub fn sought(&self) -> bool {
        self.survey.sought(self.index)
    }

    /// Whether nobody looked for more holders than one.
    pub fn may_have_more_holders(&self) -> bool {
        self.survey.judging().sought == Sought::Some && !self.holders.is_empty()
    }

    /// Whether those who were found are all who hold it; nothing where that cannot be known.
    pub fn has_all_holders(&self) -> Option<bool> {
        let all_seen = self.sought() && self.survey.snapshot.sight.holders.is_empty();
        if self.may_have_more_holders() { Some(false) } else { all_seen.then_some(true) }
    }

    /// The pid in its name, or that the kernel records.
    pub fn creator(&self) -> Option<&(i32, CreatorState)> {
        self.creator.get_or_init(|| self.survey.creator(self.object)).as_ref()
    }

    /// What its place among others depends on.
    pub fn rank(&self) -> Rank<'_> {
        let (object, user, now) = (self.object, self.user, self.now);
        Rank { object, user, now, verdict: Some(self.verdict()) }
    }

    /// Nanoseconds since birth, if that or the last change is known.
    #[must_use]
    pub fn age(&self) -> Option<i128> {
        Rank { object: self.object, user: self.user, now: self.now, verdict: None }.age()
    }
}

/// Objects that have something in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What they have in common.
    pub name: String,
    /// How many.
    pub objects: usize,
    /// Memory that they use.
    pub bytes: u64,
    /// How many of them, and how much memory, have each verdict.
    pub by_verdict: std::collections::BTreeMap<Verdict, (usize, u64)>,
}

impl Group {
    /// An empty one.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), objects: 0, bytes: 0, by_verdict: Default::default() }
    }

    /// Adds an object.
    pub fn add(&mut self, row: &Row<'_>) {
        let bytes = row.object.allocated();
        self.objects += 1;
        self.bytes += bytes;
        let of_verdict = self.by_verdict.entry(row.verdict()).or_default();
        of_verdict.0 += 1;
        of_verdict.1 += bytes;
    }
}

/// A row for each object of the survey.
#[must_use]
pub fn rows<'a>(world: &'a World, survey: &'a Survey) -> Vec<Row<'a>> {
    (0..survey.objects.len()).filter_map(|index| row(world, survey, index)).collect()
}

/// The row of the object at `index`.
#[must_use]
pub fn row<'a>(world: &'a World, survey: &'a Survey, index: usize) -> Option<Row<'a>> {
    let object = survey.objects.get(index)?;
    let producer = survey.producer(object);
    Some(Row {
        producer: producer.map(|m| (m.producer.id.as_str(), m.producer.software.as_str())),
        user: survey.owner(object.stat.uid),
        ..Row::of(world, survey, object, index)
    })
}
