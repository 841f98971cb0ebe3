//! The table for people, and the plain lines for `-0`.

use std::io::{self, Write};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, Table, Width};
use unicode_width::UnicodeWidthChar;
use unicode_width::UnicodeWidthStr;

use super::columns::{Column, SHRINKS};
use super::{Group, Row};
use crate::commands::values::show_size;
use crate::tracker::resource::escape;
use crate::tracker::verdict::Verdict;

/// Rows that comfy-table renders at once: its time and memory grow faster than the rows.
const CHUNK: usize = 200;

/// The column of names.
const NEVER_CUT: &str = "id";

/// A name wider than this has a line of its own.
const WIDEST_NAME: usize = 72;

/// What an outcome takes that is not known yet: `opened-meanwhile`.
const WIDEST_OUTCOME: usize = 16;

/// Between columns.
pub(super) const GAP: usize = 2;

/// The column of what became of an object, which shrinks too.
const SAYS: &str = "says";

/// What is left of REASON on the narrowest terminal.
pub(super) const NARROWEST: usize = 16;

/// How the table is to look.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Columns of the terminal; `None` when there is none and nothing is cut.
    pub width: Option<usize>,
    /// Whether verdicts are coloured.
    pub colored: bool,
    /// Whether there are headings.
    pub headings: bool,
}

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
        let mut table = Chunk::new(&self.columns, &self.widths, self.look);
        table.head();
        table.flush(out)
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
        let mut table = Chunk::new(&self.columns, &widths, self.look);
        for row in rows {
            for (column, width) in
                self.columns.iter().zip(&widths).filter(|(c, _)| c.key == NEVER_CUT)
            {
                let name = (column.text)(row);
                if name.width() > *width {
                    table.flush(out)?;
                    writeln!(out, "{name}")?;
                }
            }
            table.add(row);
            if table.rows >= CHUNK {
                table.flush(out)?;
            }
        }
        table.flush(out)
    }
}

/// A part of the table, rendered at once.
struct Chunk<'a> {
    columns: &'a [&'a Column],
    widths: &'a [usize],
    look: Look,
    table: Table,
    rows: usize,
}

impl<'a> Chunk<'a> {
    fn new(columns: &'a [&'a Column], widths: &'a [usize], look: Look) -> Self {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if look.colored {
            // Whether NO_COLOR counts was decided before.
            crossterm::style::force_color_output(true);
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        Self { columns, widths, look, table, rows: 0 }
    }

    fn head(&mut self) {
        self.table.add_row(self.columns.iter().zip(self.widths).map(|(column, width)| {
            align(Cell::new(cut(column.heading, *width)).add_attribute(Attribute::Bold), column)
        }));
        self.rows += 1;
    }

    fn add(&mut self, row: &Row<'_>) {
        let cells = self.columns.iter().zip(self.widths);
        self.table.add_row(cells.map(|(column, width)| cell(row, column, *width)));
        self.rows += 1;
    }

    fn flush(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        for (index, width) in self.widths.iter().enumerate() {
            if let Some(column) = self.table.column_mut(index) {
                let gap = if index + 1 == self.widths.len() { 0 } else { GAP };
                column.set_padding((0, u16::try_from(gap).unwrap_or(0)));
                let width = u16::try_from(width + gap).unwrap_or(u16::MAX);
                column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
            }
        }
        for line in self.table.lines() {
            writeln!(out, "{}", line.trim_end())?;
        }
        *self = Self::new(self.columns, self.widths, self.look);
        Ok(())
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
    let total: usize = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
    if let Some(place) =
        columns.iter().position(|column| column.key == SHRINKS || column.key == SAYS)
        && let Some(width) = widths.get_mut(place)
    {
        let says = columns.get(place).is_some_and(|column| column.key == SAYS);
        let rest = total - *width;
        let room = terminal.saturating_sub(rest).max(NARROWEST);
        *width = if unknown && says { room } else { room.min(*width) };
    }
    widths
}

fn cell(row: &Row<'_>, column: &Column, width: usize) -> Cell {
    let mut text = cut(&(column.text)(row), width);
    if column.key == NEVER_CUT && (column.text)(row).width() > width {
        // It stands on the line before.
        text.clear();
    }
    let cell = align(Cell::new(text), column);
    if column.key != "verdict" {
        return cell;
    }
    match row.judgement.verdict {
        Verdict::Held => cell.fg(Color::Green),
        Verdict::Claimed => cell.fg(Color::Cyan),
        Verdict::Unknown => cell.fg(Color::Magenta),
        Verdict::Unclaimed => cell.fg(Color::Yellow),
        Verdict::Orphaned => cell.fg(Color::Red),
    }
}

fn align(cell: Cell, column: &Column) -> Cell {
    if column.right { cell.set_alignment(CellAlignment::Right) } else { cell }
}

/// `text` in at most `width` columns of the terminal.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used + 1 > width {
            break;
        }
        kept.push(c);
    }
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_by_columns_of_the_terminal() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abcde…");
        assert_eq!(cut("日本語日本語", 6), "日本…");
    }
}
