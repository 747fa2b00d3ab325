//! Where a daemon's own log goes.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::{EnvFilter, fmt, reload};

/// The log file of this process.
static LOG: OnceLock<LogFile> = OnceLock::new();

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
        let file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }
}

/// Writes to whatever file is the log now.
struct Appender;

impl io::Write for Appender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let file = LOG.get().map(|log| log.file.lock().unwrap_or_else(PoisonError::into_inner));
        file.as_deref().and_then(Option::as_ref).map_or(Ok(bytes.len()), |mut file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens the log file anew under its name, for whoever moved it away. One that cannot be opened leaves the old one.
pub fn reopen() {
    if let Some(log) = LOG.get()
        && let Err(error) = log.open()
    {
        tracing::error!(path = %log.path.display(), %error, "cannot open the log anew; the old one goes on");
    }
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
    EnvFilter::try_new(level)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("log level {level:?}: {error}")))
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
    match file {
        Some(path) => {
            let log = LOG.get_or_init(|| LogFile { path: path.to_owned(), file: Mutex::new(None) });
            log.open()?;
            let builder = builder.with_ansi(false).with_writer(|| Appender).with_filter_reloading();
            let reload = builder.reload_handle();
            if builder.try_init().is_ok() {
                let _ = RELOAD.set(Box::new(move |filter| reload.reload(filter)));
            }
        }
        None => {
            let colour = io::IsTerminal::is_terminal(&io::stderr()) && std::env::var_os("NO_COLOR").is_none();
            let builder = builder.with_ansi(colour).with_writer(io::stderr).with_filter_reloading();
            let reload = builder.reload_handle();
            if builder.try_init().is_ok() {
                let _ = RELOAD.set(Box::new(move |filter| reload.reload(filter)));
            }
        }
    }
    Ok(())
}
