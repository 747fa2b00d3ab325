//! What a program leaves running: found by what cannot be forged by accident, never by its command line.

use std::fs;

use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;

use super::{RUN_VARIABLE, Run, boot_id};

/// A process as `/proc/PID/stat` tells it.
#[derive(Clone, Copy)]
struct Seen {
    pid: u32,
    parent: u32,
    session: u32,
    started_ticks: u64,
}

/// How often whatever is found is killed again: what is killed may have begun something in this very moment.
const ROUNDS: usize = 5;

fn look(pid: u32) -> Option<Seen> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may contain anything.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    if matches!(fields.first(), None | Some(&"Z" | &"X")) {
        return None;
    }
    Some(Seen { pid, parent: number(1)? as u32, session: number(3)? as u32, started_ticks: number(19)? })
}

fn all() -> Vec<Seen> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| look(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// When a process began, in clock ticks since the machine did.
pub(super) fn started_ticks(pid: u32) -> u64 {
    look(pid).map_or(0, |seen| seen.started_ticks)
}

/// Kills what is left of a run whose keeper is gone: what carries its mark, and what is in its session. A stranger that runs
/// the same command, or got the same number later, is in neither.
pub(crate) fn kill(run: &Run) {
    // A keeper that lives ends its program itself. It may be another station's, of which this one's data is a copy.
    if run.boot_id != boot_id() || is_keeper(run.keeper) {
        return;
    }
    let mark = format!("{RUN_VARIABLE}={}", run.id);
    for _ in 0..ROUNDS {
        let all = all();
        // As long as the number names a session, the kernel gives it to nobody else.
        let leader = all.iter().find(|seen| seen.pid == run.pid);
        let is_ours = leader.is_none_or(|leader| leader.started_ticks == run.started_ticks);
        let left: Vec<_> = all
            .iter()
            .filter(|seen| (is_ours && seen.session == run.pid) || carries(seen.pid, mark.as_bytes()))
            .collect();
        if left.is_empty() {
            return;
        }
        for seen in left {
            let _ = send(Pid::from_raw(seen.pid as i32), Signal::SIGKILL);
        }
    }
}

/// Whether a process is a keeper.
fn is_keeper(pid: u32) -> bool {
    look(pid).is_some()
        && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| command.starts_with(b"quilt-keeper\0"))
}

fn carries(pid: u32, mark: &[u8]) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == mark)
}

/// This process and all its descendants: a keeper is the parent of whatever its program has left (it is a subreaper).
fn family() -> Vec<u32> {
    let all = all();
    let mut family = vec![std::process::id()];
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        family.extend(all.iter().filter(|seen| seen.parent == parent).map(|seen| seen.pid));
        at += 1;
    }
    family
}

/// How many descendants this process has.
pub(super) fn descendants() -> usize {
    family().len() - 1
}

/// Kills all descendants of this process.
pub(super) fn kill_descendants() {
    for _ in 0..ROUNDS {
        let family = family();
        if family.len() == 1 {
            return;
        }
        for pid in &family[1..] {
            let _ = send(Pid::from_raw(*pid as i32), Signal::SIGKILL);
        }
    }
}
