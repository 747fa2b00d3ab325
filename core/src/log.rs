//! Where a daemon's own log goes.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// The log file of this process.
static LOG: OnceLock<LogFile> = OnceLock::new();

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

/// Starts logging: to `file` if given, else to stderr. `level` is a filter such as `info` or `quilt_net=debug,info`.
/// A second call, as when two daemons share a process, changes nothing.
///
/// # Errors
///
/// The file cannot be opened, or the filter does not parse.
pub fn init(file: Option<&Path>, level: &str) -> io::Result<()> {
    let filter = EnvFilter::try_new(level)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("log level {level:?}: {error}")))?;
    let builder = fmt::Subscriber::builder().with_env_filter(filter).with_target(false);
    // A log that cannot be written must not end whoever writes it.
    let builder = builder.log_internal_errors(false);
    let started = match file {
        Some(path) => {
            let log = LOG.get_or_init(|| LogFile { path: path.to_owned(), file: Mutex::new(None) });
            log.open()?;
            builder.with_ansi(false).with_writer(|| Appender).try_init()
        }
        None => {
            let colour = io::IsTerminal::is_terminal(&io::stderr()) && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).with_writer(io::stderr).try_init()
        }
    };
    drop(started);
    Ok(())
}
