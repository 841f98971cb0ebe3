//! What people and programs see: one table of columns feeds the table, JSON and NDJSON.

pub mod columns;
pub mod document;
pub mod table;

use crate::tracker::evidence::holders::Holder;
use crate::tracker::host::Host;
use crate::tracker::inventory::posix::Object;
use crate::tracker::reap::Report;
use crate::tracker::survey::Survey;
use crate::tracker::verdict::{CreatorState, Judgement};

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
    /// The pid in its name.
    pub creator: Option<(i32, CreatorState)>,
    /// The owner's name.
    pub user: &'a str,
    /// When it was seen, in nanoseconds since 1970.
    pub now: i128,
    /// What `reap` did with it.
    pub report: Option<Report>,
}

impl Row<'_> {
    /// Nanoseconds since birth.
    #[must_use]
    pub fn age(&self) -> i128 {
        self.now - self.object.stat.born.unwrap_or(self.object.stat.changed)
    }
}

/// A row for each object of the survey.
#[must_use]
pub fn rows<'a>(host: &Host, survey: &'a Survey) -> Vec<Row<'a>> {
    survey
        .objects
        .iter()
        .enumerate()
        .filter_map(|(index, object)| {
            Some(Row {
                object,
                index,
                judgement: survey.judge(host, index)?,
                holders: survey.holders(index),
                producer: survey
                    .producer(object)
                    .map(|m| (m.producer.id.as_str(), m.producer.software.as_str())),
                creator: survey.creator(object),
                user: survey.owner(object.stat.uid),
                now: survey.taken_at,
                report: None,
            })
        })
        .collect()
}
