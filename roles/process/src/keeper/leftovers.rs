//! Processes that a program leaves running. They are found by marks that nothing carries by accident, never by command line, and are
//! killed only if they are proven to belong to the run.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use nix::poll::{PollTimeout, poll};
use quilt_core::processes::{PidFd, ProcessStat, unless_gone};

use super::paths::is_keeper;
use super::{RUN_VARIABLE, Run};

/// How often whatever is found is killed again: what is killed may have begun something in this very moment.
const ROUNDS: usize = 5;
/// How long to wait after a look that failed, in milliseconds.
const LOOK_PAUSE_MS: u8 = 50;

/// The processes that are left of a run whose keeper is gone; none as long as that lives, because it ends its program itself.
///
/// # Errors
///
/// This process cannot look now: nobody knows what is left.
pub(crate) fn of(run: &Run) -> io::Result<Vec<ProcessStat>> {
    // In another boot or namespace the same numbers mean other processes.
    if !run.is_here()? {
        return Ok(Vec::new());
    }
    // It may be another station's, of which this one's data is a copy.
    if PidFd::proven(run.keeper, run.keeper_started_ticks)?.is_some() && is_keeper(run.keeper)? {
        return Ok(Vec::new());
    }
    of_run(run, &ProcessStat::all()?, |seen| carries_mark(seen.pid, &run.id), |seen| holds_pipe(seen.pid, run))
}

/// Kills the processes that are left of a run whose keeper is gone. Some may take their time to end: [`of`] still shows them.
///
/// # Errors
///
/// This process cannot look now: nobody knows what is left.
pub(crate) fn kill(run: &Run) -> io::Result<()> {
    for _ in 0..ROUNDS {
        let left = of(run)?;
        if left.is_empty() {
            break;
        }
        for seen in &left {
            end(seen)?;
        }
    }
    Ok(())
}

/// Which of all processes are a run's: those that carry its mark, and those in its session. A stranger that runs the same
/// command, or got the same number later, is in neither.
///
/// A session is the run's if its leader began when the run's main process did. When the leader is gone its number stays the
/// session's, but a later session can have had the same number: then one member must prove it for all, with the mark or with
/// an end of the run's output. A run that left neither is left alone.
fn of_run(
    run: &Run,
    all: &[ProcessStat],
    carries_mark: impl Fn(&ProcessStat) -> io::Result<bool>,
    holds_pipe: impl Fn(&ProcessStat) -> io::Result<bool>,
) -> io::Result<Vec<ProcessStat>> {
    let mut marked = BTreeSet::new();
    for seen in all {
        if carries_mark(seen)? {
            marked.insert(seen.pid);
        }
    }
    let in_session = |seen: &&ProcessStat| seen.session == run.pid && seen.started_ticks >= run.started_ticks;
    let mut is_ours = all.iter().any(|seen| seen.pid == run.pid && seen.started_ticks == run.started_ticks);
    if !all.iter().any(|seen| seen.pid == run.pid) {
        for seen in all.iter().filter(in_session) {
            is_ours |= marked.contains(&seen.pid) || holds_pipe(seen)?;
        }
    }
    Ok(all.iter().filter(|seen| (is_ours && in_session(seen)) || marked.contains(&seen.pid)).copied().collect())
}

fn carries_mark(pid: u32, run: &str) -> io::Result<bool> {
    let mark = format!("{RUN_VARIABLE}={run}");
    let environment = if_seen(fs::read(format!("/proc/{pid}/environ")))?.unwrap_or_default();
    Ok(environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()))
}

fn holds_pipe(pid: u32, run: &Run) -> io::Result<bool> {
    let names = run.pipes.map(|inode| format!("pipe:[{inode}]"));
    let open = if_seen(fs::read_dir(format!("/proc/{pid}/fd")))?.into_iter().flatten().flatten();
    let mut targets = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    Ok(targets.any(|target| names.iter().any(|name| target.as_os_str() == name.as_str())))
}

/// `None` also if a process is none of this user's, and so none of its station's.
fn if_seen<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        looked => unless_gone(looked),
    }
}

/// All descendants of a process. A keeper is the parent of whatever its program has left (it is a subreaper).
///
/// # Errors
///
/// This process cannot look now.
pub(super) fn descendants(of: u32) -> io::Result<Vec<ProcessStat>> {
    let all = ProcessStat::all()?;
    let mut found: Vec<ProcessStat> = Vec::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        let children = all.iter().filter(|seen| seen.parent == parent);
        parents.extend(children.clone().map(|seen| seen.pid));
        found.extend(children);
    }
    Ok(found)
}

/// How many descendants this process has; 0 if it cannot look.
pub(super) fn count_descendants() -> usize {
    descendants(std::process::id()).map_or(0, |found| found.len())
}

/// Kills all descendants of this process. Waits as long as it cannot look or cannot reach one: this process is the last that knows
/// them, and they would run on for ever.
pub(super) fn kill_descendants() {
    kill_until_gone(|| descendants(std::process::id()), kill_all);
}

/// Kills what each look shows until nothing is left. What fails is repeated: the machine is short of something.
fn kill_until_gone(
    mut look: impl FnMut() -> io::Result<Vec<ProcessStat>>,
    mut kill: impl FnMut(&[ProcessStat]) -> io::Result<()>,
) {
    let mut rounds = 0;
    while rounds < ROUNDS {
        match look() {
            Ok(left) if left.is_empty() => return,
            Ok(left) if kill(&left).is_ok() => rounds += 1,
            _ => drop(poll(&mut [], PollTimeout::from(LOOK_PAUSE_MS))),
        }
    }
}

/// Kills processes as they were seen.
///
/// # Errors
///
/// One of them cannot be reached now; the others were killed.
pub(super) fn kill_all(seen: &[ProcessStat]) -> io::Result<()> {
    seen.iter().map(end).fold(Ok(()), Result::and)
}

/// Sends a signal to the processes that were seen, as far as they are still there.
///
/// # Errors
///
/// One of them cannot be reached now; the others got it.
pub(super) fn signal_all(seen: &[ProcessStat], signal: i32) -> io::Result<()> {
    let send = |seen: &ProcessStat| match PidFd::proven(seen.pid, seen.started_ticks)? {
        Some(process) => unless_gone(process.send(signal)).map(drop),
        None => Ok(()),
    };
    seen.iter().map(send).fold(Ok(()), Result::and)
}

/// Kills the process that was seen, not a later one with its pid.
fn end(seen: &ProcessStat) -> io::Result<()> {
    if let Some(process) = PidFd::proven(seen.pid, seen.started_ticks)? {
        process.kill();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        serde_json::from_str(
            r#"{"id":"r","digest":"d","pid":100,"keeper":99,"boot_id":"b","started_ms":1,"started_ticks":50}"#,
        )
        .unwrap()
    }

    fn seen(pid: u32, session: u32, started_ticks: u64) -> ProcessStat {
        ProcessStat { pid, parent: 1, group: session, session, started_ticks, is_frozen: false }
    }

    fn pids(all: &[ProcessStat], marked: &[u32], piped: &[u32]) -> Vec<u32> {
        let is_in = |pids: &[u32], seen: &ProcessStat| Ok(pids.contains(&seen.pid));
        let left = of_run(&run(), all, |seen| is_in(marked, seen), |seen| is_in(piped, seen)).unwrap();
        left.iter().map(|seen| seen.pid).collect()
    }

    #[test]
    fn a_session_is_the_runs_only_if_that_is_proven() {
        let leader = seen(100, 100, 50);
        let member = seen(101, 100, 60);
        let stranger = seen(102, 102, 60);
        assert_eq!(pids(&[leader, member, stranger], &[], &[]), [100, 101]);
        // The number of the leader was given to another process, whose session it is.
        assert_eq!(pids(&[seen(100, 100, 70), seen(101, 100, 71), stranger], &[], &[]), [0; 0]);
        // The leader is gone: the session may be a later one of the same number, which a daemon has left.
        assert_eq!(pids(&[member, stranger], &[], &[]), [0; 0]);
        // One that has the run's output, or its mark, speaks for the others in its session.
        let other = seen(103, 100, 80);
        assert_eq!(pids(&[member, other, stranger], &[], &[101]), [101, 103]);
        assert_eq!(pids(&[member, other, stranger], &[103], &[]), [101, 103]);
        // The mark is enough anywhere.
        assert_eq!(pids(&[leader, stranger], &[102], &[]), [100, 102]);
    }

    #[test]
    fn what_cannot_be_seen_or_reached_for_a_while_is_killed_afterwards() {
        let short = || io::Error::from_raw_os_error(nix::libc::EMFILE);
        let (mut looks, mut kills) = (0, 0);
        let look = || {
            looks += 1;
            if looks <= ROUNDS { Err(short()) } else { Ok(vec![seen(101, 101, 60)]) }
        };
        let kill = |left: &[ProcessStat]| {
            kills += left.len();
            if kills <= ROUNDS { Err(short()) } else { Ok(()) }
        };
        kill_until_gone(look, kill);
        assert_eq!(kills, 2 * ROUNDS, "the kills that failed were not repeated");
    }
}
