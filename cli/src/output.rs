//! Results on standard output: tables for people, JSON and YAML for programs. Everything else goes to standard error.

use std::io::Write as _;

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::exit::Failure;

/// How to print results.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Format {
    /// A table
    Table,
    /// A table with more columns
    Wide,
    /// One JSON document
    Json,
    /// One JSON document a line
    Jsonl,
    /// YAML
    Yaml,
}

impl Format {
    /// Whether programs read it: then failures are documents as well.
    pub(crate) fn is_for_programs(self) -> bool {
        !matches!(self, Self::Table | Self::Wide)
    }
}

/// Prints a list: as documents, or as a table with `columns` and a row made of each.
pub(crate) fn list<T: Serialize>(
    format: Format,
    items: &[T],
    columns: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<(), Failure> {
    match format {
        Format::Table | Format::Wide => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(columns.iter().copied());
            for item in items {
                table.add_row(row(item));
            }
            line(&table.to_string().lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n"))
        }
        Format::Json => line(&serde_json::to_string_pretty(items).expect("views have text keys")),
        Format::Jsonl => items.iter().try_for_each(|item| json_line(item)),
        Format::Yaml => {
            line(serde_yaml_ng::to_string(items).map_err(|error| Failure::new(error.to_string()))?.trim_end())
        }
    }
}

/// Prints one thing: as a document, or as `text`.
pub(crate) fn one<T: Serialize>(format: Format, item: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    match format {
        Format::Table | Format::Wide => line(&text(item)),
        Format::Json => line(&serde_json::to_string_pretty(item).expect("views have text keys")),
        Format::Jsonl => json_line(item),
        Format::Yaml => {
            line(serde_yaml_ng::to_string(item).map_err(|error| Failure::new(error.to_string()))?.trim_end())
        }
    }
}

/// Prints one item of a stream: a JSON document on a line of its own, or a document of a YAML stream.
pub(crate) fn item<T: Serialize>(format: Format, item: &T) -> Result<(), Failure> {
    match format {
        Format::Yaml => {
            line("---")?;
            one(format, item, |_| String::new())
        }
        _ => json_line(item),
    }
}

/// Prints one JSON document on one line.
pub(crate) fn json_line<T: Serialize + ?Sized>(item: &T) -> Result<(), Failure> {
    line(&serde_json::to_string(item).expect("views have text keys"))
}

/// Prints a line at once. A reader that has gone away ends the program quietly, as `head` expects.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}

/// How long ago a time was. Documents have the time itself; people would have to reckon.
pub(crate) fn age(then: &str) -> String {
    plain(&quilt_core::time::age_text(then, std::time::SystemTime::now()))
}

/// Text from a fleet member, made safe for a terminal: control characters are shown, not obeyed.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}
