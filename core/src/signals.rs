//! How a daemon is told to end.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

use crate::log;

/// How to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// INT: end, and what runs here ends too.
    All,
    /// TERM: end, and what can outlive this process goes on (a restart or an upgrade).
    Detach,
}

/// Waits for INT or TERM. Call it once, early: from the first call on these signals no longer kill the process, nor does
/// HUP, which opens the log anew and has `reload` read the configuration again.
///
/// # Errors
///
/// What the operating system says.
pub fn stop(reload: impl Fn()) -> io::Result<impl Future<Output = Stop>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Stop::All,
                _ = terminate.recv() => return Stop::Detach,
                _ = hangup.recv() => {
                    log::reopen();
                    reload();
                }
            }
        }
    })
}

/// Whether this process was started with HUP ignored, as `nohup` does, so that it lives on when its terminal closes. Call it before
/// [`stop`], which installs a handler for HUP.
pub fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    ignored & (1 << (nix::libc::SIGHUP - 1)) != 0
}
