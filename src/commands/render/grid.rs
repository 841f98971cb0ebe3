//! Cells as lines: what every table with colours is made of.

use std::io::{self, Write};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, Table, Width};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::columns::Field;

/// Rows that comfy-table renders at once: its time and memory grow faster than the rows.
const CHUNK: usize = 200;

/// Between columns.
pub(super) const GAP: usize = 2;

/// What is left of the column that shrinks on the narrowest terminal.
pub(super) const NARROWEST: usize = 16;

/// How a table is to look.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Columns of the terminal; `None` when there is none and nothing is cut.
    pub width: Option<usize>,
    /// Whether there are colours.
    pub colored: bool,
    /// Whether there are headings.
    pub headings: bool,
}

/// One column of cells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// What stands above it.
    pub(super) heading: &'static str,
    /// Whether its cells stand to the right.
    pub(super) right: bool,
    /// Its width; longer cells are cut.
    pub(super) width: usize,
}

/// Rows of which so many are rendered at once.
#[derive(Debug)]
pub(super) struct Grid {
    shapes: Vec<Shape>,
    look: Look,
    table: Table,
    rows: usize,
}

impl Grid {
    /// An empty one.
    pub(super) fn new(shapes: Vec<Shape>, look: Look) -> Self {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if look.colored {
            // Whether NO_COLOR counts was decided before.
            crossterm::style::force_color_output(true);
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        Self { shapes, look, table, rows: 0 }
    }

    /// Adds the headings.
    pub(super) fn head(&mut self) {
        self.table.add_row(self.shapes.iter().map(|shape| {
            let heading = cut(shape.heading, shape.width);
            align(Cell::new(heading).add_attribute(Attribute::Bold), shape)
        }));
        self.rows += 1;
    }

    /// Adds a row: of each cell the text and its colour.
    ///
    /// # Errors
    /// Whatever writing failed with.
    pub(super) fn add(
        &mut self,
        out: &mut dyn Write,
        row: impl IntoIterator<Item = (String, Option<Color>)>,
    ) -> io::Result<()> {
        self.table.add_row(row.into_iter().zip(&self.shapes).map(|((text, color), shape)| {
            let cell = align(Cell::new(cut(&text, shape.width)), shape);
            match color {
                Some(color) => cell.fg(color),
                None => cell,
            }
        }));
        self.rows += 1;
        if self.rows >= CHUNK { self.flush(out) } else { Ok(()) }
    }

    /// Writes what was added since the last time.
    ///
    /// # Errors
    /// Whatever writing failed with.
    pub(super) fn flush(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        for (index, shape) in self.shapes.iter().enumerate() {
            if let Some(column) = self.table.column_mut(index) {
                let gap = if index + 1 == self.shapes.len() { 0 } else { GAP };
                column.set_padding((0, u16::try_from(gap).unwrap_or(0)));
                let width = u16::try_from(shape.width + gap).unwrap_or(u16::MAX);
                column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
            }
        }
        for line in self.table.lines() {
            writeln!(out, "{}", line.trim_end())?;
        }
        *self = Self::new(std::mem::take(&mut self.shapes), self.look);
        Ok(())
    }
}

/// Writes `rows` of cells as a table of `columns`, each as wide as it needs to be but for the one called
/// `shrinks`, which shrinks to the width of the terminal.
///
/// # Errors
/// Whatever writing failed with.
pub(super) fn write<T, V>(
    out: &mut dyn Write,
    rows: Vec<Vec<(String, Option<Color>)>>,
    columns: &[&Field<T, V>],
    shrinks: &str,
    look: Look,
) -> io::Result<()> {
    let heading = |column: &Field<T, V>| if look.headings { column.heading.width() } else { 1 };
    let mut widths: Vec<usize> = columns.iter().map(|column| heading(column)).collect();
    for row in &rows {
        for (width, (cell, _)) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    if let Some(terminal) = look.width
        && let Some(place) = columns.iter().position(|column| column.key == shrinks)
    {
        let room = room(&widths, place, terminal);
        if let Some(width) = widths.get_mut(place) {
            *width = room.min(*width);
        }
    }
    let shapes = columns.iter().zip(widths).map(|(column, width)| Shape {
        heading: column.heading,
        right: column.right,
        width,
    });
    let mut grid = Grid::new(shapes.collect(), look);
    if look.headings {
        grid.head();
    }
    for row in rows {
        grid.add(out, row)?;
    }
    grid.flush(out)
}

/// What a terminal of so many columns leaves to the column at `place`.
pub(super) fn room(widths: &[usize], place: usize, terminal: usize) -> usize {
    let others = widths.iter().enumerate().filter(|(index, _)| *index != place);
    let rest: usize = others.map(|(_, width)| width + GAP).sum();
    terminal.saturating_sub(rest).max(NARROWEST)
}

fn align(cell: Cell, shape: &Shape) -> Cell {
    if shape.right { cell.set_alignment(CellAlignment::Right) } else { cell }
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

    #[test]
    fn more_rows_than_are_rendered_at_once() {
        let look = Look { width: None, colored: false, headings: true };
        let shapes = [("A", false, 3), ("B", true, 5)];
        let shapes = shapes.map(|(heading, right, width)| Shape { heading, right, width });
        let mut grid = Grid::new(shapes.to_vec(), look);
        let mut out = Vec::new();
        grid.head();
        for number in 0..2 * CHUNK {
            grid.add(&mut out, [("abcd".into(), None), (number.to_string(), None)]).unwrap();
        }
        grid.flush(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2 * CHUNK + 1);
        assert_eq!((lines[0], lines[1], lines[400]), ("A        B", "ab…      0", "ab…    399"));
    }
}
