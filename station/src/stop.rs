//! Stopping a station from outside: `quilt-station stop`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use quilt_core::folder_lock;
use quilt_core::processes::PidFd;
use quilt_core::words::count;
use quilt_role_process::keeper;

use crate::config::StationConfig;

/// How long a station may take to stop, its roles included.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a station that was killed may hold its folder without being seen.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the lock is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Stops the station that holds the data folder, and with `roles` everything it runs. Says what it did.
///
/// # Errors
///
/// It cannot be signalled or does not stop.
pub async fn stop(config: &StationConfig, roles: bool) -> anyhow::Result<String> {
    let folder = crate::folder(config);
    let mut said = "no station runs here".to_owned();
    if let Some((pid, process)) = holder(&folder).await? {
        let signal = if roles { Signal::SIGINT } else { Signal::SIGTERM };
        process.send(signal as i32).with_context(|| format!("cannot signal process {pid}"))?;
        let stopped = async {
            while is_held(&folder)? {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(STOP_TIMEOUT, stopped).await {
            Ok(stopped) => stopped?,
            Err(_) => bail!("process {pid} does not stop within {STOP_TIMEOUT:?}"),
        }
        said = format!("stopped process {pid}");
    }
    if roles {
        let stopped = keeper::stop_all(&folder.join("instances")).await;
        if !stopped.survivors.is_empty() {
            bail!("{said}, but not every program: {}", stopped.survivors.join("; "));
        }
        if stopped.count > 0 {
            said += &format!("; stopped {} of an earlier station", count(stopped.count, "program"));
        }
    }
    Ok(said)
}

fn is_held(folder: &Path) -> anyhow::Result<bool> {
    folder_lock::is_held(folder).with_context(|| format!("the data folder {}", folder.display()))
}

/// The process that holds the folder, and a descriptor of it; `None` if none does.
async fn holder(folder: &Path) -> anyhow::Result<Option<(u32, PidFd)>> {
    let until = Instant::now() + EXIT_TIMEOUT;
    while is_held(folder)? {
        let holder = folder_lock::holder(folder).and_then(|pid| Some((pid, PidFd::open(pid).ok()?)));
        // It holds the folder after its descriptor was opened too, so its pid has not become another process's.
        if let Some((pid, process)) = holder.filter(|(pid, _)| folder_lock::holds(*pid, folder)) {
            return Ok(Some((pid, process)));
        }
        if Instant::now() >= until {
            bail!(
                "the data folder {} is in use by {}; stop it in its own container, as the user that it runs as or as root",
                folder.display(),
                folder_lock::called(None)
            );
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(None)
}
