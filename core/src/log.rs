//! Where a daemon's own log goes.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

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
            let file = OpenOptions::new().append(true).create(true).open(path)?;
            builder.with_ansi(false).with_writer(Mutex::new(file)).try_init()
        }
        None => {
            let colour = io::IsTerminal::is_terminal(&io::stderr()) && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).with_writer(io::stderr).try_init()
        }
    };
    drop(started);
    Ok(())
}
