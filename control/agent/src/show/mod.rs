//! What commands print: tables for people, JSON and YAML for programs.
//!
//! Data goes to stdout; what is said about an empty table goes to stderr, so that a pipe gets nothing but data. Colour
//! is for terminals alone.

mod lists;
mod status;
mod yaml;

#[cfg(test)]
pub(crate) use lists::tests as examples;

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

pub use status::{explanation, status};

use crate::view::{BackendView, FlowView, ServiceView};

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What a command prints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// For stdout, its last newline included; may be empty.
    pub out: String,
    /// A line for stderr.
    pub note: Option<String>,
}

impl Shown {
    /// Prints it. A reader that closed the pipe has seen enough.
    ///
    /// # Errors
    /// If stdout or stderr cannot be written to otherwise.
    pub fn print(&self) -> io::Result<()> {
        let written = io::stdout().lock().write_all(self.out.as_bytes());
        match written {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
        match &self.note {
            Some(note) => writeln!(io::stderr(), "{note}"),
            None => Ok(()),
        }
    }
}

/// Whether stdout is a terminal that wants colour (<https://no-color.org>).
#[must_use]
pub fn wants_colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// `millrace services`.
#[must_use]
pub fn services(rows: &[ServiceView], format: Format, colour: bool) -> Shown {
    list(rows, "no services", format, colour)
}

/// `millrace backends`.
#[must_use]
pub fn backends(rows: &[BackendView], format: Format, colour: bool) -> Shown {
    list(rows, "no backends", format, colour)
}

/// `millrace flows`.
#[must_use]
pub fn flows(rows: &[FlowView], format: Format, colour: bool) -> Shown {
    list(rows, "no flows", format, colour)
}

/// What a line of a table says about its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tint {
    Plain,
    /// It works, but not wholly.
    Warn,
    /// It does not work.
    Bad,
    Header,
}

impl Tint {
    /// Select graphic rendition (ECMA-48 section 8.3.117).
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Warn => "33",
            Self::Bad => "31",
            Self::Header => "1",
        }
    }

    fn paint(self, line: &str, colour: bool) -> String {
        match self.code() {
            code if colour && !code.is_empty() => format!("\x1b[{code}m{line}\x1b[0m"),
            _ => line.to_owned(),
        }
    }
}

/// A row of a table.
trait Row {
    /// Titles of columns; `wide` only adds some at the end.
    fn header(wide: bool) -> Vec<&'static str>;
    /// As many cells.
    fn cells(&self, wide: bool) -> Vec<String>;
    fn tint(&self) -> Tint {
        Tint::Plain
    }
}

fn list<T: Row + Serialize>(rows: &[T], empty: &str, format: Format, colour: bool) -> Shown {
    let wide = match format {
        Format::Json | Format::Yaml => return structured(rows, format),
        Format::Table => false,
        Format::Wide => true,
    };
    if rows.is_empty() {
        return Shown { out: String::new(), note: Some(empty.to_owned()) };
    }
    let cells = rows.iter().map(|row| (row.cells(wide), row.tint()));
    Shown { out: table(&T::header(wide), cells, colour), note: None }
}

/// As JSON or YAML.
fn structured<T: Serialize + ?Sized>(value: &T, format: Format) -> Shown {
    // Views are plain structs with text for keys, which JSON always takes.
    let value = serde_json::to_value(value).unwrap_or_default();
    let out = if format == Format::Yaml { yaml::text(&value) } else { format!("{value:#}\n") };
    Shown { out, note: None }
}

/// Aligned columns, three spaces apart, a line for each row.
fn table(header: &[&str], rows: impl Iterator<Item = (Vec<String>, Tint)>, colour: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    let mut tints = vec![Tint::Header];
    for (cells, tint) in rows {
        // A cell of several lines would be several lines of the table.
        table.add_row(cells.into_iter().map(|cell| cell.replace(['\n', '\r'], " ")));
        tints.push(tint);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let lines = table.lines().zip(tints).map(|(line, tint)| tint.paint(line.trim_end(), colour) + "\n");
    lines.collect()
}

/// `-` where there is nothing.
fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

/// A duration as kubectl shows ages: `45s`, `3m20s`, `5h2m`, `3d4h`.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_says_so_on_stderr_and_prints_no_data() {
        for format in [Format::Table, Format::Wide] {
            assert_eq!(flows(&[], format, true), Shown { out: String::new(), note: Some("no flows".into()) });
        }
        assert_eq!(flows(&[], Format::Json, false), Shown { out: "[]\n".into(), note: None });
        assert_eq!(flows(&[], Format::Yaml, false).note, None);
    }

    #[test]
    fn colour_paints_whole_lines_and_only_when_asked() {
        let rows = || [(vec!["a".to_owned(), "b\nc".to_owned()], Tint::Bad)].into_iter();
        assert_eq!(table(&["X", "LONG"], rows(), false), "X   LONG\na   b c\n");
        assert_eq!(table(&["X", "LONG"], rows(), true), "\x1b[1mX   LONG\x1b[0m\n\x1b[31ma   b c\x1b[0m\n");
    }

    #[test]
    fn ages_have_two_units_at_most() {
        assert_eq!(
            [0, 59, 60, 3599, 3600, 86399, 86400 * 3 + 7200].map(age),
            ["0s", "59s", "1m0s", "59m59s", "1h0m", "23h59m", "3d2h"]
        );
    }
}
