//! Objects as they are listed: judged and rendered bit by bit, by all processors.

use std::cmp::Ordering;
use std::io;

use super::{Group, Row, row};
use crate::tracker::inventory::Object;
use crate::tracker::parallel;
use crate::tracker::survey::Survey;
use crate::tracker::verdict::Verdict;
use crate::tracker::world::World;

/// What the order of objects depends on.
#[derive(Debug, Clone, Copy)]
pub struct Rank<'a> {
    /// The object.
    pub object: &'a Object,
    /// The owner's name.
    pub user: &'a str,
    /// Its verdict, if that was asked for.
    pub verdict: Option<Verdict>,
    /// When it was seen, in nanoseconds since 1970.
    pub(super) now: i128,
}

impl Rank<'_> {
    /// Nanoseconds since birth, if that or the last change is known.
    #[must_use]
    pub fn age(&self) -> Option<i128> {
        let known = !self.object.is_known_by_mapping_only();
        known.then(|| self.now - self.object.stat.born.unwrap_or(self.object.stat.changed))
    }
}

/// So many objects are rendered by one thread at once.
const PIECE: usize = 16;

/// Objects that are listed: of each no more than what their order depends on.
#[derive(Debug)]
pub struct Lines<'a> {
    world: &'a World,
    survey: &'a Survey,
    lines: Vec<Line>,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
struct Line {
    index: usize,
    verdict: Option<Verdict>,
}

impl<'a> Lines<'a> {
    /// All objects of the survey, with their verdicts if those matter for more than to be shown.
    #[must_use]
    pub fn new(world: &'a World, survey: &'a Survey, judged: bool) -> Self {
        let all = (0..survey.objects.len()).map(|index| Line { index, verdict: None });
        let mut lines: Vec<Line> = all.collect();
        if judged {
            let verdict = |line: &Line| line.row(world, survey).map(|row| row.verdict());
            lines = parallel::map(&lines, |line| Line { verdict: verdict(line), ..*line });
        }
        Self { world, survey, lines }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Keeps those that pass `test`.
    pub fn retain(&mut self, test: impl Fn(&Row<'_>) -> bool) {
        let (world, survey) = (self.world, self.survey);
        self.lines.retain(|line| line.row(world, survey).is_some_and(|row| test(&row)));
    }

    /// Sorts them by `order`.
    pub fn sort_by(&mut self, order: impl Fn(&Rank<'_>, &Rank<'_>) -> Ordering) {
        let survey = self.survey;
        let rank = |line: &Line| {
            let object = survey.objects.get(line.index)?;
            let user = survey.owner(object.stat.uid);
            Some(Rank { object, user, now: survey.taken_at, verdict: line.verdict })
        };
        self.lines.sort_by(|a, b| match (rank(a), rank(b)) {
            (Some(a), Some(b)) => order(&a, &b),
            _ => Ordering::Equal,
        });
    }

    /// Their rows, one by one.
    pub fn iter(&self) -> impl Iterator<Item = Row<'a>> {
        self.lines.iter().filter_map(|line| line.row(self.world, self.survey))
    }

    /// How many of each verdict there are, and how much memory they use.
    #[must_use]
    pub fn totals(&self) -> Group {
        let mut totals = Group::new("");
        self.iter().for_each(|row| totals.add(&row));
        totals
    }

    /// Gives `write` what `render` makes of a few rows at once, in order, bit by bit: memory does not grow with how
    /// many there are.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn render<R: Send>(
        &self,
        render: impl Fn(&[Row<'_>]) -> R + Sync,
        write: impl FnMut(R) -> io::Result<()>,
    ) -> io::Result<()> {
        let piece = |lines: &&[Line]| {
            let rows = lines.iter().filter_map(|line| line.row(self.world, self.survey));
            render(&rows.collect::<Vec<_>>())
        };
        let pieces: Vec<&[Line]> = self.lines.chunks(PIECE).collect();
        parallel::in_order(&pieces, piece, write)
    }
}

impl Line {
    fn row<'a>(&self, world: &'a World, survey: &'a Survey) -> Option<Row<'a>> {
        Some(Row { verdict: self.verdict, ..row(world, survey, self.index)? })
    }
}
