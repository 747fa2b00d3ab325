//! The program that stations run in a round: known by its mark, with a journal of what happened to it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};

use crate::fleet::{Kind, Mark, station_name};

/// How long an earlier program of the instance, which was just killed, may take to be gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long until a program counts as one that runs.
const STEADY_AFTER: Duration = Duration::from_secs(2);
/// How long one that says when it is ready takes for that.
const READY_AFTER: Duration = Duration::from_secs(1);
/// How long a slow one takes to stop.
const SLOW: Duration = Duration::from_millis(500);

/// Runs as a program until it is told to stop.
pub(crate) fn run(journals: &Path, mark: &Mark, kind: &str) -> anyhow::Result<ExitCode> {
    if kind == Kind::Fails.name() {
        return Ok(ExitCode::from(3));
    }
    // Before there is another thread.
    let stop: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    stop.thread_block()?;
    let path = journal_path(journals, mark, std::process::id());
    let mut journal = OpenOptions::new().create(true).append(true).open(&path).context("the journal")?;
    writeln!(journal, "began")?;
    let lock = File::create(journals.join(format!("{}.{}.lock", station_name(mark.station), mark.instance)))?;
    let until = Instant::now() + GONE_TIMEOUT;
    while let Err(error) = lock.try_lock() {
        anyhow::ensure!(matches!(error, TryLockError::WouldBlock), "the lock: {error}");
        if Instant::now() > until {
            writeln!(journal, "twice")?;
            break;
        }
        pause(Duration::from_millis(10));
    }
    if kind == Kind::Forks.name() {
        let child = Command::new("/proc/self/exe")
            .arg("child")
            .arg(mark.to_string())
            .arg(std::process::id().to_string())
            .arg(journals)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        // Without a task to spare it is one that does not fork.
        drop(child);
    }
    if kind == Kind::Ready.name() {
        writeln!(journal, "waits")?;
        pause(READY_AFTER);
        writeln!(journal, "ready")?;
    }
    println!("ready");
    let _ = std::thread::Builder::new().spawn(move || {
        pause(STEADY_AFTER);
        OpenOptions::new().append(true).open(path).and_then(|mut journal| writeln!(journal, "steady"))
    });
    stop.wait()?;
    writeln!(journal, "asked")?;
    if kind == Kind::Slow.name() {
        pause(SLOW);
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs as what a program started, in a session of its own, until it is killed.
pub(crate) fn run_child() -> anyhow::Result<ExitCode> {
    // It is no leader of a group, or it is one already.
    let _ = nix::unistd::setsid();
    SigSet::empty().thread_set_mask()?;
    loop {
        std::thread::park();
    }
}

/// Where a program keeps its journal.
fn journal_path(journals: &Path, mark: &Mark, pid: u32) -> PathBuf {
    journals.join(format!("{}.{}.v{}.{pid}", station_name(mark.station), mark.instance, mark.version))
}

/// The mark and pid in the name of a journal.
pub(crate) fn of_journal(name: &str) -> Option<(Mark, u32)> {
    let [station, instance, version, pid] = name.split('.').collect::<Vec<_>>()[..] else { return None };
    Some((format!("{station}/{instance}/{version}").parse().ok()?, pid.parse().ok()?))
}

#[allow(clippy::disallowed_methods, reason = "a supervised program that takes time, not a test that waits")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_known_by_its_name() {
        let mark = Mark { station: 1, instance: "p3".into(), version: 4 };
        let path = journal_path(Path::new("/j"), &mark, 99);
        assert_eq!(of_journal(path.file_name().unwrap().to_str().unwrap()), Some((mark, 99)));
        assert_eq!(of_journal("s1.p3.lock"), None);
    }
}
