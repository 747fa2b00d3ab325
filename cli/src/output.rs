//! Results on standard output: tables for people, JSON and YAML for programs. Everything else goes to standard error.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use tokio::sync::Notify;

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
        Format::Yaml => line(&yaml(items)?),
    }
}

/// Prints one thing: as a document, or as `text`.
pub(crate) fn one<T: Serialize>(format: Format, item: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    match format {
        Format::Table | Format::Wide => line(&text(item)),
        Format::Json => line(&serde_json::to_string_pretty(item).expect("views have text keys")),
        Format::Jsonl => json_line(item),
        Format::Yaml => line(&yaml(item)?),
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

/// A YAML document that readers of YAML 1.1 and 1.2 take for the same: to the former a bare `52:54:00:12:34:56` is a number,
/// and `no` is false.
fn yaml(item: impl Serialize) -> Result<String, Failure> {
    let text = serde_saphyr::to_string(&item).map_err(|error| Failure::new(error.to_string()))?;
    Ok(text.trim_end().to_owned())
}

/// Prints one JSON document on one line.
pub(crate) fn json_line<T: Serialize + ?Sized>(item: &T) -> Result<(), Failure> {
    line(&serde_json::to_string(item).expect("views have text keys"))
}

/// Prints a line at once, as [`text`] does.
pub(crate) fn line(line: &str) -> Result<(), Failure> {
    text(&format!("{line}\n"));
    Ok(())
}

/// Prints text at once. If it cannot be written because nobody reads (`| head`) or the disk is full, the verb still does all its work.
/// Reports the first failure on standard error, unless the reader left.
pub(crate) fn text(text: &str) {
    let mut out = io::stdout().lock();
    if IS_CLOSED.load(Ordering::Relaxed) {
        return;
    }
    let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) else { return };
    IS_CLOSED.store(true, Ordering::Relaxed);
    CLOSED.notify_one();
    if error.kind() != io::ErrorKind::BrokenPipe {
        IS_INCOMPLETE.store(true, Ordering::Relaxed);
        eprintln!("quiltctl: standard output cannot be written, what follows is lost: {error}");
    }
}

/// Standard output can no longer be written.
static IS_CLOSED: AtomicBool = AtomicBool::new(false);
/// Output was lost for another reason than a reader that left.
static IS_INCOMPLETE: AtomicBool = AtomicBool::new(false);

/// Whether output was lost that somebody wanted.
pub(crate) fn is_incomplete() -> bool {
    IS_INCOMPLETE.load(Ordering::Relaxed)
}

/// Runs a verb that follows something until nobody can read standard output any more ([`reader_left`], or a failed write); the verb
/// then ends with success. Notices this even while there is nothing to print.
pub(crate) async fn while_read(work: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    tokio::select! {
        done = work => done,
        () = reader_left() => Ok(ExitCode::SUCCESS),
        () = CLOSED.notified() => Ok(ExitCode::SUCCESS),
    }
}

/// Notified when a write to standard output fails.
static CLOSED: Notify = Notify::const_new();

/// Waits until the reader of standard output is gone: the other end of the pipe or the terminal is closed. Call it once only: it
/// leaves a waiting thread behind.
pub(crate) async fn reader_left() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let waiting = move || {
        // No event is asked for: errors and hang-ups are always told.
        let out = io::stdout();
        let mut polled = [PollFd::new(out.as_fd(), PollFlags::empty())];
        while matches!(poll(&mut polled, PollTimeout::NONE), Err(nix::errno::Errno::EINTR)) {}
        let _ = tell.send(());
    };
    if std::thread::Builder::new().spawn(waiting).is_err() || told.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// How long ago a time was, for people; documents show the time itself.
pub(crate) fn age(then: &str) -> String {
    plain(&quilt_core::time::age_text(then, std::time::SystemTime::now()))
}

/// Text from a fleet member, made safe for a terminal: control characters are shown, not obeyed.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_yaml_1_1_takes_for_something_else_is_quoted() {
        let texts = ["52:54:00:12:34:56", "no", "on", "12:30:45", "2026-11-28", "1.10", "0777", "1_000", "~", "<<"];
        for text in texts {
            let document = yaml(serde_json::json!({ "label": text })).unwrap();
            assert_eq!(document, format!("label: {text:?}"));
        }
        let view = serde_json::json!([{ "name": "cam-1", "no": 1, "ip": null, "roles": ["process"], "more": {} }]);
        assert_eq!(yaml(&view).unwrap(), "- name: cam-1\n  \"no\": 1\n  ip: null\n  roles:\n  - process\n  more: {}");
    }
}
