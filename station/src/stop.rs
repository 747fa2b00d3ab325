//! Stopping a station from outside: `quilt-station stop`.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use quilt_core::files;
use quilt_core::processes::{self, PidFd};
use quilt_core::words::count;
use quilt_role_process::keeper;

use crate::config::StationConfig;

/// How long a station may take to stop, its roles included.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the lock is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Stops the station that holds the data folder, and with `roles` everything it runs. Says what it did.
///
/// # Errors
///
/// It cannot be signalled or does not stop.
pub async fn stop(config: &StationConfig, roles: bool) -> anyhow::Result<String> {
    let path = crate::lock_path(config);
    let mut said = match holder(&path)? {
        None => "no station runs here".to_owned(),
        Some(pid) => {
            let signal = if roles { Signal::SIGINT } else { Signal::SIGTERM };
            // The station wrote its own pid. In another pid namespace that pid may be another process's.
            let process = PidFd::open(pid).ok().filter(|_| processes::has_open(pid, &path));
            let Some(process) = process else {
                bail!(
                    "{} is held by a station that calls itself process {pid}, and no such process has it open here; stop it \
                     in its own container, as the user that it runs as or as root",
                    path.display()
                );
            };
            process.send(signal as i32).with_context(|| format!("cannot signal process {pid}"))?;
            let stopped = async {
                while holder(&path)?.is_some() {
                    tokio::time::sleep(LOOK).await;
                }
                anyhow::Ok(())
            };
            match tokio::time::timeout(PATIENCE, stopped).await {
                Ok(stopped) => stopped?,
                Err(_) => bail!("process {pid} does not stop within {PATIENCE:?}"),
            }
            format!("stopped process {pid}")
        }
    };
    if roles {
        let stopped = keeper::stop_all(&config.data_dir.join("station").join("instances")).await;
        if !stopped.survivors.is_empty() {
            bail!("{said}, but not every program: {}", stopped.survivors.join("; "));
        }
        if stopped.count > 0 {
            said += &format!("; stopped {} of an earlier station", count(stopped.count, "program"));
        }
    }
    Ok(said)
}

/// The process that holds the lock. A pid in a file that nobody locks is nobody's.
fn holder(path: &Path) -> anyhow::Result<Option<u32>> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    if !files::is_locked(&file)? {
        return Ok(None);
    }
    let text = fs::read_to_string(path)?;
    Ok(Some(text.trim().parse().with_context(|| format!("{} holds no process id", path.display()))?))
}
