//! The table for people, and the plain lines for `-0`.

use std::io::{self, Write};

use comfy_table::Color;
use unicode_width::UnicodeWidthStr;

use super::columns::{Column, SHRINKS};
pub use super::grid::Look;
use super::grid::{Grid, Shape, room};
use super::{Group, Row};
use crate::commands::values::show_size;
use crate::tracker::resource::escape;
use crate::tracker::verdict::Verdict;

/// The column of names.
const NEVER_CUT: &str = "id";

/// A name wider than this has a line of its own.
const WIDEST_NAME: usize = 72;

/// What an outcome takes that is not known yet: `opened-meanwhile`.
const WIDEST_OUTCOME: usize = 16;

/// The column of what became of an object, which shrinks too.
const SAYS: &str = "says";

/// The width of the terminal at stdout.
#[must_use]
pub fn terminal_width() -> Option<usize> {
    terminal_size::terminal_size().map(|(width, _)| usize::from(width.0))
}

/// Writes `rows` as a table, headings first.
///
/// # Errors
/// Whatever writing failed with.
pub fn write(
    out: &mut dyn Write,
    rows: &[Row<'_>],
    columns: Vec<&'static Column>,
    look: Look,
) -> io::Result<()> {
    let frame = Frame::new(rows, columns, look);
    frame.head(out)?;
    frame.rows(out, rows)
}

/// A table whose columns have their widths, so that its headings can be written before it is known
/// what the rows say.
#[derive(Debug)]
pub struct Frame {
    columns: Vec<&'static Column>,
    widths: Vec<usize>,
    look: Look,
    empty: bool,
}

impl Frame {
    /// The frame for `rows`, as far as they are known.
    #[must_use]
    pub fn new(rows: &[Row<'_>], columns: Vec<&'static Column>, look: Look) -> Self {
        let widths = widths(rows, &columns, look);
        Self { columns, widths, look, empty: rows.is_empty() }
    }

    /// Writes the headings, unless there are no rows.
    ///
    /// # Errors
    /// Whatever writing failed with.
    pub fn head(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.empty || !self.look.headings {
            return Ok(());
        }
        let mut grid = self.grid(&self.widths);
        grid.head();
        grid.flush(out)
    }

    fn grid(&self, widths: &[usize]) -> Grid {
        let shapes = self.columns.iter().zip(widths).map(|(column, width)| Shape {
            heading: column.heading,
            right: column.right,
            width: *width,
        });
        Grid::new(shapes.collect(), self.look)
    }

    /// Writes `rows`. Names are never cut: one that would push everybody else's row off the screen
    /// stands on a line before its own. The reason takes what is left of the line.
    ///
    /// # Errors
    /// Whatever writing failed with.
    pub fn rows(&self, out: &mut dyn Write, rows: &[Row<'_>]) -> io::Result<()> {
        let mut widths = self.widths.clone();
        if let (None, Some(last), Some(column)) =
            (self.look.width, widths.last_mut(), self.columns.last())
        {
            let cells = rows.iter().map(|row| (column.text)(row).width());
            *last = cells.max().unwrap_or(0).max(*last);
        }
        let mut grid = self.grid(&widths);
        for row in rows {
            for (column, width) in
                self.columns.iter().zip(&widths).filter(|(c, _)| c.key == NEVER_CUT)
            {
                let name = (column.text)(row);
                if name.width() > *width {
                    grid.flush(out)?;
                    writeln!(out, "{name}")?;
                }
            }
            let cells = self.columns.iter().zip(&widths);
            grid.add(out, cells.map(|(column, width)| cell(row, column, *width)))?;
        }
        grid.flush(out)
    }
}

/// Writes groups: what they have in common, how many, how much, and how much of it may go.
///
/// # Errors
/// Whatever writing failed with.
pub fn write_groups(
    out: &mut dyn Write,
    key: &str,
    groups: &[Group],
    headings: bool,
) -> io::Result<()> {
    let name = |group: &Group| escape(group.name.as_bytes());
    let width = groups.iter().map(|group| name(group).width()).max().unwrap_or(0).max(key.len());
    if headings && !groups.is_empty() {
        let key = key.to_uppercase();
        writeln!(out, "{key:<width$}  OBJECTS        USED  ORPHANED  RECLAIMABLE")?;
    }
    for group in groups {
        let (orphaned, reclaimable) =
            group.by_verdict.get(&Verdict::Orphaned).copied().unwrap_or_default();
        let name = name(group);
        writeln!(
            out,
            "{name}{}  {:>7}  {:>10}  {orphaned:>8}  {:>11}",
            " ".repeat(width.saturating_sub(name.width())),
            group.objects,
            show_size(group.bytes),
            show_size(reclaimable),
        )?;
    }
    Ok(())
}

fn widths(rows: &[Row<'_>], columns: &[&Column], look: Look) -> Vec<usize> {
    // What became of the objects is not known yet.
    let unknown = rows.iter().any(|row| row.report.is_none());
    let mut widths: Vec<usize> = columns
        .iter()
        .map(|column| {
            let heading = if look.headings { column.heading.width() } else { 1 };
            let most = if column.key == NEVER_CUT { WIDEST_NAME } else { usize::MAX };
            let cells = rows.iter().map(|row| (column.text)(row).width());
            let widest = cells.filter(|width| *width <= most).max().unwrap_or(0).max(heading);
            if unknown && column.key == "outcome" { widest.max(WIDEST_OUTCOME) } else { widest }
        })
        .collect();
    let Some(terminal) = look.width else { return widths };
    if let Some(place) =
        columns.iter().position(|column| column.key == SHRINKS || column.key == SAYS)
    {
        let says = columns.get(place).is_some_and(|column| column.key == SAYS);
        let room = room(&widths, place, terminal);
        if let Some(width) = widths.get_mut(place) {
            *width = if unknown && says { room } else { room.min(*width) };
        }
    }
    widths
}

/// A cell and its colour.
fn cell(row: &Row<'_>, column: &Column, width: usize) -> (String, Option<Color>) {
    let mut text = (column.text)(row);
    if column.key == NEVER_CUT && text.width() > width {
        // It stands on the line before.
        text.clear();
    }
    let color = (column.key == "verdict").then_some(match row.judgement.verdict {
        Verdict::Held => Color::Green,
        Verdict::Claimed => Color::Cyan,
        Verdict::Unknown => Color::Magenta,
        Verdict::Unclaimed => Color::Yellow,
        Verdict::Orphaned => Color::Red,
    });
    (text, color)
}
