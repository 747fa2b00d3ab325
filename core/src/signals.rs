//! How a daemon is told to end.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// How to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// INT: end, and what runs here ends too.
    All,
    /// TERM: end, and what can outlive this process goes on (a restart or an upgrade).
    Detach,
}

/// Waits for INT or TERM. Call it once, early: from the first call on these signals no longer kill the process.
///
/// # Errors
///
/// What the operating system says.
pub fn stop() -> io::Result<impl Future<Output = Stop>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => Stop::All,
            _ = terminate.recv() => Stop::Detach,
        }
    })
}
