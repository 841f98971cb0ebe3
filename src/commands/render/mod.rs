//! What people and programs see: one table of columns feeds the table, JSON and NDJSON.

pub mod columns;
pub mod document;
pub mod grid;
pub mod limits;
pub mod records;
mod sysv;
pub mod table;
pub mod trackers;

use crate::tracker::evidence::holders::Holder;
use crate::tracker::inventory::Object;
use crate::tracker::reap::Report;
use crate::tracker::survey::Survey;
use crate::tracker::verdict::{CreatorState, Judgement, Verdict};
use crate::tracker::world::{Namespace, World};

/// One object with everything that a column may want.
#[derive(Debug)]
pub struct Row<'a> {
    /// The object.
    pub object: &'a Object,
    /// Its place in the survey.
    pub index: usize,
    /// Its verdict.
    pub judgement: Judgement,
    /// Who holds it.
    pub holders: &'a [Holder],
    /// Id and name of its producer.
    pub producer: Option<(&'a str, &'a str)>,
    /// The pid in its name, or that the kernel records.
    pub creator: Option<(i32, CreatorState)>,
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

impl Row<'_> {
    /// Nanoseconds since birth, if that or the last change is known.
    #[must_use]
    pub fn age(&self) -> Option<i128> {
        let known = !self.object.is_known_by_mapping_only();
        known.then(|| self.now - self.object.stat.born.unwrap_or(self.object.stat.changed))
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
        let of_verdict = self.by_verdict.entry(row.judgement.verdict).or_default();
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
    Some(Row {
        object,
        index,
        judgement: survey.judge(world, index)?,
        holders: survey.holders(index),
        producer: survey
            .producer(object)
            .map(|m| (m.producer.id.as_str(), m.producer.software.as_str())),
        creator: survey.creator(object),
        user: survey.owner(object.stat.uid),
        namespace: world.namespace(object.place),
        now: survey.taken_at,
        report: None,
        forced: false,
    })
}
