//! The keeper: a small process of ours that a program runs under, so that the station can crash, restart or be
//! upgraded while the program goes on and not a line of its output is lost.
//!
//! ```text
//! station --- spawns --> keeper (own session) --- spawns --> exec stage --- exec --> the program (own group)
//!    \____ unix socket, JSON lines ____/  \__ pipes: out, err __ log folder
//! ```
//!
//! The keeper is blocking code on a few threads: it has one program, and should be small and hard to break. What it
//! knows is on disk before it matters: who runs (`Run`) before the program begins, how it ended (`Exit`) before
//! anybody is told. A lock on the instance's state folder makes sure that an instance has one keeper: whatever removes old
//! files cannot remove it, and a keeper makes its files again when it is asked to (HUP). If the keeper itself is
//! killed, the kernel kills its program (`PR_SET_PDEATHSIG`), and the station what that leaves (`leftovers`), so a program
//! is never run twice. What a program leaves behind when it ends is ended too.

pub(crate) mod children;
mod copy;
mod exec;
mod interpreter;
pub(crate) mod leftovers;
mod oom;
mod paths;
mod place;
mod serve;
mod station;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quilt_core::clean_start::{self, Scheduling};
use quilt_core::processes;
use serde::{Deserialize, Serialize};

pub(crate) use self::paths::Paths;
use crate::signals;

/// The first argument that makes a quilt binary a keeper.
pub(crate) const KEEPER: &str = "keeper";
/// What a keeper is called in lists of processes.
pub(crate) const KEEPER_NAME: &str = "quilt-keeper";
/// The first argument that makes a quilt binary the stage that becomes a program.
pub(crate) const EXEC: &str = "exec";
/// What the stage is called in lists of processes until it becomes the program.
pub(crate) const EXEC_NAME: &str = "quilt-exec";
/// Marks a program and its descendants, so that what is left of a run is told apart from strangers.
const RUN_VARIABLE: &str = "QUILT_RUN";

/// To be called first thing in `main` of every binary that hosts this role: becomes a keeper if it was started as one.
pub fn become_keeper_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    let mode = arguments.next();
    let failed = |error: io::Error| {
        let _ = writeln!(io::stdout(), "{error}");
        std::process::exit(1);
    };
    match mode.as_ref().and_then(|mode| mode.to_str()) {
        Some(KEEPER) => {
            let folders = (arguments.next().map(PathBuf::from), arguments.next().map(PathBuf::from));
            if let (Some(state), Some(log)) = folders {
                clean_start::begin(c"quilt-keeper");
                // Its own are the defaults; what its program has is configured.
                Scheduling::default().apply().unwrap_or_else(failed);
                serve::keep(Paths::new(&state), &log).unwrap_or_else(failed);
                std::process::exit(0);
            }
        }
        Some(EXEC) => {
            clean_start::begin(c"quilt-exec");
            exec::become_program()
        }
        _ => {}
    }
}

/// What a program needs to begin. Keeper and stage get it on standard input, never on a command line, where others could read it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) command: Vec<String>,
    pub(crate) env: std::collections::BTreeMap<String, String>,
    pub(crate) cwd: PathBuf,
    pub(crate) user: Option<SpecUser>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    #[serde(flatten)]
    pub(crate) scheduling: Scheduling,
    pub(crate) stop_signal: i32,
    /// Tells whether a running program is the configured one.
    pub(crate) digest: String,
    /// The station's process.
    pub(crate) station: u32,
    /// Milliseconds to go on without a station.
    pub(crate) orphan_timeout_ms: Option<u64>,
    /// Milliseconds between asking to stop and killing, when no station says otherwise.
    pub(crate) stop_timeout_ms: u64,
}

/// The user that a program runs as.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct SpecUser {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
}

/// A run of a program; on disk before the program begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) id: String,
    pub(crate) digest: String,
    pub(crate) pid: u32,
    pub(crate) keeper: u32,
    pub(crate) boot_id: String,
    pub(crate) started_ms: u64,
    /// How long it may take to stop, in milliseconds.
    #[serde(default)]
    pub(crate) stop_timeout_ms: u64,
    /// When its main process began, in clock ticks since the machine did: tells it from a later one of the same number.
    #[serde(default)]
    pub(crate) started_ticks: u64,
    /// When its keeper began, in clock ticks since boot.
    #[serde(default)]
    pub(crate) keeper_started_ticks: u64,
    /// The pid namespace of its pids.
    #[serde(default)]
    pub(crate) pid_namespace: String,
    /// The inodes of the pipes that take its output.
    #[serde(default)]
    pub(crate) pipes: [u64; 2],
}

impl Run {
    /// Whether its pids are of this boot and this pid namespace; otherwise they mean other processes.
    pub(crate) fn is_here(&self) -> bool {
        self.boot_id == processes::boot_id() && self.pid_namespace == processes::pid_namespace()
    }
}

/// How a run ended; on disk before anybody is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) run: String,
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) at_ms: u64,
    /// How many processes it left running when it ended by itself; they were ended.
    #[serde(default)]
    pub(crate) left: usize,
    /// Whether the kernel's out-of-memory killer was at work when it was killed.
    #[serde(default)]
    pub(crate) out_of_memory: bool,
}

impl Exit {
    /// The end of a run whose keeper was killed: nobody saw how.
    pub(crate) fn unseen(run: &Run) -> Self {
        let at_ms = quilt_core::time::now_ms();
        Self { run: run.id.clone(), code: None, signal: None, at_ms, left: 0, out_of_memory: false }
    }

    /// Whether nobody saw how the run ended.
    pub(crate) fn is_unseen(&self) -> bool {
        self.code.is_none() && self.signal.is_none()
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (_, Some(signal)) => write!(f, "killed by {}", signals::name(signal))?,
            _ => f.write_str("ended with its keeper")?,
        }
        if self.out_of_memory {
            f.write_str("; the kernel's out-of-memory killer was at work")?;
        }
        match self.left {
            0 => Ok(()),
            1 => f.write_str("; it left 1 process running, which was ended: a program must stay in the foreground"),
            left => {
                write!(f, "; it left {left} processes running, which were ended: a program must stay in the foreground")
            }
        }
    }
}

/// From station to keeper, one JSON line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToKeeper {
    /// Signal the main process.
    Signal(i32),
    /// Ask the program to stop; kill its group after so many milliseconds, by default those of its configuration.
    Stop { timeout_ms: Option<u64> },
    /// Go on so many milliseconds without a station from now on.
    OrphanTimeout(Option<u64>),
}

/// From keeper to station, one JSON line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromKeeper {
    /// First thing on every connection.
    Running(Run),
    /// Last thing.
    Exited(Exit),
}

/// What [`stop_all`] did.
#[derive(Debug, Default)]
pub struct Stopped {
    /// How many programs it stopped.
    pub count: usize,
    /// What is still at work, for people.
    pub survivors: Vec<String>,
}

/// Stops the programs of all keepers below a station's folder of instances, as far as they still run, each within its own
/// stop time-out and all at once.
pub async fn stop_all(instances: &Path) -> Stopped {
    let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut stopping = tokio::task::JoinSet::new();
    for instance in folders(instances).flat_map(|role| folders(&role).collect::<Vec<_>>()) {
        stopping.spawn(async move {
            let paths = Paths::new(&instance.join("state"));
            (end_left_over(&paths, None).await, paths.survivor())
        });
    }
    let mut stopped = Stopped::default();
    for (ended, survivor) in stopping.join_all().await {
        stopped.count += usize::from(ended);
        stopped.survivors.extend(survivor);
    }
    stopped
}

/// Ends what an earlier station left of an instance, within the time that its keeper knows if no other is given. Answers
/// whether a program ran and was ended.
pub(crate) async fn end_left_over(paths: &Paths, stop_timeout: Option<Duration>) -> bool {
    let is_kept = paths.is_kept().unwrap_or_default();
    if is_kept {
        match crate::kept::Kept::connect(paths).await {
            Ok(kept) => drop(kept.stop(paths, stop_timeout).await),
            Err(_) => force_end(paths, None).await,
        }
    } else if let Some(run) = paths.read_run() {
        leftovers::kill(&run);
    }
    if paths.is_kept().unwrap_or_default() {
        return false;
    }
    let _ = paths.forget();
    is_kept
}

/// Waits until nothing is at work after the end that was forced, which is forced again. Passes on what is at work.
pub(crate) async fn until_free(paths: &Paths, run: Option<&Run>, mut tell: impl FnMut(String)) {
    while let Some(survivor) = paths.survivor() {
        tell(survivor);
        tokio::time::sleep(FORCE_INTERVAL).await;
        force_end(paths, run).await;
    }
}

/// How long a keeper may take to end once it has told the end of its program.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a killed keeper may take to be gone.
const KILLED: Duration = Duration::from_secs(2);
/// How long to wait before an end that was forced in vain is forced again.
const FORCE_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until the keeper of an ended run is gone, and kills it if it stays. While it is there, the next start would take it for the
/// keeper of its own run.
pub(crate) async fn until_gone(paths: &Paths, run: &Run) {
    if let Some(keeper) = paths.keeper_of(run)
        && tokio::time::timeout(LINGER_TIMEOUT, keeper.ended()).await.is_err()
    {
        keeper.kill();
        let _ = tokio::time::timeout(KILLED, keeper.ended()).await;
    }
}

/// Kills a keeper that does not answer, and its program with it. Pass the run if the station knows it: the record on disk may have
/// been removed.
pub(crate) async fn force_end(paths: &Paths, run: Option<&Run>) {
    let run = run.cloned().or_else(|| paths.read_run());
    let keeper = run.as_ref().and_then(|run| paths.keeper_of(run)).or_else(|| paths.find_keeper());
    if let Some(keeper) = keeper {
        keeper.kill();
        let _ = tokio::time::timeout(KILLED, keeper.ended()).await;
    }
    if let Some(run) = run {
        leftovers::kill(&run);
    }
}

#[cfg(test)]
mod tests;
