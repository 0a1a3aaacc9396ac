//! What is printed: a table for people, JSON or YAML for programs, from the same value.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

/// In which form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For programs.
    Yaml,
}

/// How a command ends: the program's exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 0: it works, it is allowed, nothing is wrong.
    Good,
    /// 1: the question was answered, and the answer is bad.
    Bad,
}

impl Outcome {
    /// Good or bad.
    pub fn of(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }
}

/// Prints a value in the form asked for; its `Display` is the table.
pub fn print<T: Serialize + fmt::Display>(value: &T, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Table => print_text(&value.to_string()),
        Format::Json => print_text(&(serde_json::to_string_pretty(value)? + "\n")),
        Format::Yaml => {
            // By way of JSON, so that both have the same names and leave out the same fields.
            print_text(&serde_saphyr::to_string(&serde_json::to_value(value)?)?)
        }
    }
}

/// Text on standard output. A reader that has enough (`| head`) is no failure.
pub fn print_text(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Rows under a heading, each column as wide as its widest cell.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this heading.
    pub fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self {
            rows: vec![heading.map(str::to_owned).into()],
        }
    }

    /// A table of rows, the first of which is the heading.
    pub fn from_rows(rows: Vec<Vec<String>>) -> Self {
        Self { rows }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// Nothing but the heading.
    pub fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return Ok(());
        }
        let columns = self.rows[0].len();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line += cell;
                line += &" ".repeat(width + 2 - cell.chars().count());
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_an_empty_table_is_nothing() {
        let mut table = Table::new(["A", "B"]);
        assert_eq!(table.to_string(), "");
        table.row(["long".to_owned(), "x".to_owned()]);
        assert_eq!(table.to_string(), "A     B\nlong  x\n");
    }
}
