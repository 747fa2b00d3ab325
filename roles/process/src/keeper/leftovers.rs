//! Processes that a program leaves running. They are found by marks that nothing carries by accident, never by command line, and are
//! killed only if they are proven to belong to the run.

use std::fs;

use quilt_core::processes::{PidFd, ProcessStat};

use super::paths::is_keeper;
use super::{RUN_VARIABLE, Run};

/// How often whatever is found is killed again: what is killed may have begun something in this very moment.
const ROUNDS: usize = 5;

/// Kills the processes that are left of a run whose keeper is gone.
pub(crate) fn kill(run: &Run) {
    // In another boot or namespace the same numbers mean other processes.
    if !run.is_here() {
        return;
    }
    // A keeper that lives ends its program itself. It may be another station's, of which this one's data is a copy.
    if PidFd::proven(run.keeper, run.keeper_started_ticks).is_some() && is_keeper(run.keeper) {
        return;
    }
    for _ in 0..ROUNDS {
        let left =
            of_run(run, &ProcessStat::all(), |seen| carries_mark(seen.pid, &run.id), |seen| holds_pipe(seen.pid, run));
        if left.is_empty() {
            return;
        }
        left.iter().for_each(end);
    }
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
    carries_mark: impl Fn(&ProcessStat) -> bool,
    holds_pipe: impl Fn(&ProcessStat) -> bool,
) -> Vec<ProcessStat> {
    let in_session = |seen: &&ProcessStat| seen.session == run.pid && seen.started_ticks >= run.started_ticks;
    let is_ours = match all.iter().find(|seen| seen.pid == run.pid) {
        Some(leader) => leader.started_ticks == run.started_ticks,
        None => all.iter().filter(in_session).any(|seen| carries_mark(seen) || holds_pipe(seen)),
    };
    all.iter().filter(|seen| (is_ours && in_session(seen)) || carries_mark(seen)).copied().collect()
}

fn carries_mark(pid: u32, run: &str) -> bool {
    let mark = format!("{RUN_VARIABLE}={run}");
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
}

fn holds_pipe(pid: u32, run: &Run) -> bool {
    let names = run.pipes.map(|inode| format!("pipe:[{inode}]"));
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| names.iter().any(|name| target.as_os_str() == name.as_str()))
}

/// All descendants of this process: a keeper is the parent of whatever its program has left (it is a subreaper).
fn descendants() -> Vec<ProcessStat> {
    let all = ProcessStat::all();
    let mut found: Vec<ProcessStat> = Vec::new();
    let mut parents = vec![std::process::id()];
    while let Some(parent) = parents.pop() {
        let children = all.iter().filter(|seen| seen.parent == parent);
        parents.extend(children.clone().map(|seen| seen.pid));
        found.extend(children);
    }
    found
}

/// How many descendants this process has.
pub(super) fn count_descendants() -> usize {
    descendants().len()
}

/// Kills all descendants of this process.
pub(super) fn kill_descendants() {
    for _ in 0..ROUNDS {
        let left = descendants();
        if left.is_empty() {
            return;
        }
        left.iter().for_each(end);
    }
}

/// Kills the process that was seen, not a later one with its pid.
fn end(seen: &ProcessStat) {
    if let Some(process) = PidFd::proven(seen.pid, seen.started_ticks) {
        process.kill();
    }
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
        ProcessStat { pid, parent: 1, group: session, session, started_ticks }
    }

    fn pids(all: &[ProcessStat], marked: &[u32], piped: &[u32]) -> Vec<u32> {
        let left = of_run(&run(), all, |seen| marked.contains(&seen.pid), |seen| piped.contains(&seen.pid));
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
}
