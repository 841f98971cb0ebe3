//! The table for people, and the plain lines for `-0`.

use std::io::{self, Write};

use comfy_table::Color;
use unicode_width::UnicodeWidthStr;

use super::columns::{Column, SHRINKS};
pub use super::grid::Look;
use super::grid::{Grid, Shape, room};
use super::{Group, Lines, Row};
use crate::commands::values::show_size;
use crate::tracker::resource::escape;
use crate::tracker::verdict::Verdict;

/// The column of names.
const NEVER_CUT: &str = "id";

/// The column of verdicts, and its longest word: `unclaimed`.
const VERDICT: &str = "verdict";
const WIDEST_VERDICT: usize = 9;

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

/// The same of what is listed, bit by bit: as wide as the widest cell, but for the last column, which nothing
/// stands behind, and the verdict, which has few words.
///
/// # Errors
/// Whatever writing failed with.
pub fn write_lines(
    out: &mut dyn Write,
    lines: &Lines<'_>,
    columns: Vec<&'static Column>,
    look: Look,
) -> io::Result<()> {
    let measured = columns.len().saturating_sub(1);
    let mut widths: Vec<usize> = headings(&columns, look);
    let width = |row: &Row<'_>, column: &Column| match column.key {
        VERDICT => WIDEST_VERDICT,
        _ => (column.text)(row).width(),
    };
    let widest = |rows: &[Row<'_>], column: &Column| {
        let fit = rows.iter().map(|row| width(row, column)).filter(|width| *width <= most(column));
        fit.max().unwrap_or(0)
    };
    lines.render(
        |rows| {
            let measured = columns.iter().take(measured);
            measured.map(|column| widest(rows, column)).collect::<Vec<_>>()
        },
        |found| {
            let all = widths.iter_mut().zip(found);
            all.for_each(|(width, found)| *width = (*width).max(found));
            Ok(())
        },
    )?;
    if let (Some(last), Some(width)) = (columns.last(), widths.last_mut()) {
        *width = if look.width.is_some() && last.key == SHRINKS { usize::MAX } else { *width };
    }
    shrink(&mut widths, &columns, look, false);
    let frame = Frame { columns, widths, look, empty: lines.is_empty() };
    frame.head(out)?;
    lines.render(
        |rows| {
            let mut text = Vec::new();
            frame.rows(&mut text, rows)?;
            Ok(text)
        },
        |text: io::Result<Vec<u8>>| out.write_all(&text?),
    )
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
    let mut widths = headings(columns, look);
    for (column, width) in columns.iter().zip(&mut widths) {
        let cells = rows.iter().map(|row| (column.text)(row).width());
        *width = cells.filter(|width| *width <= most(column)).max().unwrap_or(0).max(*width);
        if unknown && column.key == "outcome" {
            *width = (*width).max(WIDEST_OUTCOME);
        }
    }
    shrink(&mut widths, columns, look, unknown);
    widths
}

/// The widths of the headings.
fn headings(columns: &[&Column], look: Look) -> Vec<usize> {
    let width = |column: &&Column| if look.headings { column.heading.width() } else { 1 };
    columns.iter().map(width).collect()
}

/// Cells wider than this do not make the column wider.
fn most(column: &Column) -> usize {
    if column.key == NEVER_CUT { WIDEST_NAME } else { usize::MAX }
}

/// Makes a column narrower so that the table fits the terminal.
fn shrink(widths: &mut [usize], columns: &[&Column], look: Look, unknown: bool) {
    let Some(terminal) = look.width else { return };
    if let Some(place) =
        columns.iter().position(|column| column.key == SHRINKS || column.key == SAYS)
    {
        let says = columns.get(place).is_some_and(|column| column.key == SAYS);
        let room = room(widths, place, terminal);
        if let Some(width) = widths.get_mut(place) {
            *width = if unknown && says { room } else { room.min(*width) };
        }
    }
}

/// A cell and its colour.
fn cell(row: &Row<'_>, column: &Column, width: usize) -> (String, Option<Color>) {
    let mut text = (column.text)(row);
    if column.key == NEVER_CUT && text.width() > width {
        // It stands on the line before.
        text.clear();
    }
    let color = (column.key == VERDICT).then_some(match row.verdict() {
        Verdict::Held => Color::Green,
        Verdict::Claimed => Color::Cyan,
        Verdict::Unknown => Color::Magenta,
        Verdict::Unclaimed => Color::Yellow,
        Verdict::Orphaned => Color::Red,
    });
    (text, color)
}
