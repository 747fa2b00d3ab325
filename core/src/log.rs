//! Where a daemon's own log goes.

mod behind;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde::de::{Deserialize as _, Deserializer, Error as _};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt, reload};

use crate::append::{Losses, is_torn};
use crate::time;

/// The log file of this process.
static LOG: OnceLock<LogFile> = OnceLock::new();

/// Who sees the events that the filter takes.
static OBSERVER: OnceLock<fn(&Event<'_>)> = OnceLock::new();

/// Has `observer` called with every event that the filter takes, on the thread that it comes from. The first call counts.
pub fn observe(observer: fn(&Event<'_>)) {
    let _ = OBSERVER.set(observer);
}

/// Hands events to the observer.
struct Observed;

impl<S: Subscriber> Layer<S> for Observed {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if let Some(observer) = OBSERVER.get() {
            observer(event);
        }
    }
}

type Reload = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;
/// How the filter is changed.
static RELOAD: OnceLock<Reload> = OnceLock::new();
/// Who hears of another filter.
static ON_CHANGE: Mutex<Vec<fn()>> = Mutex::new(Vec::new());

struct LogFile {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl LogFile {
    fn open(&self) -> io::Result<()> {
        // A link is not followed: where this user is root, another could have it write into any file.
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        let file = options.open(&self.path).map_err(|error| match error.raw_os_error() {
            Some(nix::libc::ELOOP) => io::Error::new(error.kind(), "it is a link; name the file that it leads to"),
            _ => error,
        })?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }
}

/// The events that could not be written. Standard error counts too: it is mostly a file or a pipe to one.
static LOSSES: Mutex<Option<Losses>> = Mutex::new(None);

/// Hands events to the thread that writes them. One call of `write` is one event.
struct Appender;

impl io::Write for Appender {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        behind::write(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes an event to whatever file is the log now, or to standard error. `left_out` events before it were not even tried.
fn write_event(event: &[u8], left_out: u64) -> io::Result<()> {
    let mut losses = LOSSES.lock().unwrap_or_else(PoisonError::into_inner);
    let losses = losses.get_or_insert_default();
    if left_out > 0 {
        losses.skip(left_out, "the log's disk or reader did not keep up".into());
    }
    let notice = |text: &str| format!("{} WARN {text}\n", time::now_text()).into_bytes();
    match LOG.get().map(|log| log.file.lock().unwrap_or_else(PoisonError::into_inner)) {
        Some(mut file) => {
            let Some(file) = file.as_mut() else { return Ok(()) };
            let torn = is_torn(file, file.metadata()?.len());
            losses.append(file, Some(torn), event, notice)
        }
        None => losses.append(&mut io::stderr().lock(), None, event, notice),
    }
}

/// Has the log file opened anew under its name, for whoever moved it away. One that cannot be opened leaves the old one.
pub fn reopen() {
    behind::reopen();
}

fn reopen_now() {
    if let Some(log) = LOG.get()
        && let Err(error) = log.open()
    {
        tracing::error!(path = %log.path.display(), %error, "cannot open the log anew; the old one goes on");
    }
}

/// Waits until what was logged before is written, for `patience` at most. Call it before the end of the process.
pub fn flush(patience: Duration) {
    behind::flush(patience);
}

/// Takes another filter from now on.
///
/// # Errors
///
/// It does not parse; the old one goes on.
pub fn set_level(level: &str) -> io::Result<()> {
    let filter = parse(level)?;
    if let Some(reload) = RELOAD.get() {
        reload(filter).map_err(io::Error::other)?;
        ON_CHANGE.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|heard| heard());
    }
    Ok(())
}

/// As [`set_level`] for a daemon that reads its configuration again: says what became of it.
pub fn reload_level(level: &str) {
    match set_level(level) {
        Ok(()) => tracing::info!(level, "read the configuration again"),
        Err(error) => tracing::error!("the log level stays as it was: {error}"),
    }
}

/// Has `heard` called whenever the filter changes.
pub fn on_change(heard: fn()) {
    ON_CHANGE.lock().unwrap_or_else(PoisonError::into_inner).push(heard);
}

fn parse(level: &str) -> io::Result<EnvFilter> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    let filter = filter(level).map_err(invalid)?;
    EnvFilter::try_new(&filter).map_err(|error| invalid(format!("log level {level:?}: {error}")))
}

/// Checks a log level from a command line or a configuration file.
///
/// # Errors
///
/// The text is neither a level nor a filter; the error lists the levels.
pub fn check_level(level: &str) -> Result<String, String> {
    parse(level).map_err(|error| error.to_string())?;
    Ok(level.to_owned())
}

/// Reads a log level from a configuration file. Checking it here lets the parser name its line and column.
///
/// # Errors
///
/// As [`check_level`].
pub fn deserialize_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    check_level(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

/// Translates a level into the subscriber's filter syntax. The subscriber takes an unknown word for the name of a module and then
/// logs nothing else, so each part must be a level or `MODULE=LEVEL`.
fn filter(level: &str) -> Result<String, String> {
    let wrong = |part: &str| {
        let levels = "off, error, warn, info, debug, trace, or a filter such as quilt_net=debug,info";
        format!("log level {part:?}: expected {levels}")
    };
    let parts = level.split(',').map(|part| match part.trim().rsplit_once('=') {
        None => Ok(level_of(part.trim()).ok_or_else(|| wrong(part))?.to_owned()),
        Some((module, part)) if !module.is_empty() => {
            Ok(format!("{module}={}", level_of(part).ok_or_else(|| wrong(part))?))
        }
        Some(_) => Err(wrong(part)),
    });
    Ok(parts.collect::<Result<Vec<_>, _>>()?.join(","))
}

/// The level that a word means, in upper or lower case; other programs' words for the levels are accepted too.
fn level_of(word: &str) -> Option<&'static str> {
    Some(match word.to_ascii_lowercase().as_str() {
        "off" | "none" => "off",
        "error" | "critical" => "error",
        "warn" | "warning" => "warn",
        "info" | "notice" => "info",
        "debug" | "verbose" => "debug",
        "trace" => "trace",
        _ => return None,
    })
}

/// Starts logging: to `file` if given, else to stderr. `level` is a filter such as `info` or `quilt_net=debug,info`.
/// A second call, as when two daemons share a process, changes nothing.
///
/// # Errors
///
/// The file cannot be opened, or the filter does not parse.
pub fn init(file: Option<&Path>, level: &str) -> io::Result<()> {
    let builder = fmt::Subscriber::builder().with_env_filter(parse(level)?).with_target(false);
    // A log that cannot be written must not end whoever writes it.
    let builder = builder.log_internal_errors(false);
    let colour = match file {
        Some(path) => {
            let log = LOG.get_or_init(|| LogFile { path: path.to_owned(), file: Mutex::new(None) });
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            log.open().map_err(named)?;
            false
        }
        None => io::IsTerminal::is_terminal(&io::stderr()) && std::env::var_os("NO_COLOR").is_none(),
    };
    behind::start();
    let builder = builder.with_ansi(colour).with_writer(|| Appender).with_filter_reloading();
    let reload = builder.reload_handle();
    if builder.finish().with(Observed).try_init().is_ok() {
        let _ = RELOAD.set(Box::new(move |filter| reload.reload(filter)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_words_that_people_use_and_any_other_word_is_refused() {
        for (level, meant) in [
            ("info", "info"),
            ("WARNING", "warn"),
            ("verbose", "debug"),
            ("none", "off"),
            ("quilt_net=Debug, warning", "quilt_net=debug,warn"),
            ("quilt_net::connection=trace,quilt=off,info", "quilt_net::connection=trace,quilt=off,info"),
        ] {
            assert_eq!(filter(level).as_deref(), Ok(meant), "{level}");
            check_level(level).unwrap();
        }
        // Each of these but the last was a filter once: for a module of that name, or for nothing.
        for (level, named) in [
            ("", ""),
            ("inof", "inof"),
            ("quilt_net", "quilt_net"),
            ("info,", ""),
            ("quilt_net=", ""),
            ("=info", "=info"),
            ("quilt_net=loud", "loud"),
        ] {
            let error = check_level(level).unwrap_err();
            let start = format!("log level {named:?}: expected off, error, warn, info, debug, trace");
            assert!(error.starts_with(&start), "{error}");
        }
    }
}
