//! The keeper: a small process of ours that a program runs under, so that the station can crash, restart or be
//! upgraded while the program goes on and not a line of its output is lost.
//!
//! ```text
//! station --- spawns --> keeper (own session) --- spawns --> exec stage --- exec --> the program (own group)
//!    \____ unix socket, JSON lines ____/  \__ pipes: out, err __ log folder
//! ```
//!
//! The keeper is blocking code on two threads: one waits for everything that happens (`events`), the other copies output, which a
//! disk may hold up. Both are there before the program begins, so that a keeper at work needs no thread that the machine may refuse.
//! What it knows is on disk before it matters: who runs (`Run`) before the program begins, how it ended (`Exit`) before anybody is
//! told. A lock on the instance's state folder makes sure that an instance has one keeper: whatever removes old
//! files cannot remove it, and a keeper makes its files again when it is asked to (HUP). If the keeper itself is
//! killed, the kernel kills its program (`PR_SET_PDEATHSIG`), and the station what that leaves (`leftovers`), so a program
//! is never run twice. What a program leaves behind when it ends is ended too.

pub(crate) mod children;
mod copy;
pub(crate) mod ending;
mod events;
mod exec;
mod interpreter;
pub(crate) mod leftovers;
mod oom;
mod paths;
mod place;
mod serve;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use quilt_core::clean_start::{self, Scheduling};
use quilt_core::processes;
use serde::{Deserialize, Serialize};

pub use self::ending::{Stopped, stop_all};
pub use self::paths::instances_with_keepers;
pub(crate) use self::paths::{Look, Paths};
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
        let _ = writeln!(io::stdout(), "error {} {error}", error.raw_os_error().unwrap_or_default());
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
    /// The signal that asks its program to stop.
    #[serde(default = "term")]
    pub(crate) stop_signal: i32,
}

fn term() -> i32 {
    nix::libc::SIGTERM
}

impl Run {
    /// Whether its pids are of this boot and this pid namespace; otherwise they mean other processes.
    ///
    /// # Errors
    ///
    /// This process cannot find out now which boot and namespace it is in.
    pub(crate) fn is_here(&self) -> io::Result<bool> {
        Ok(self.boot_id == processes::boot_id()? && self.pid_namespace == processes::pid_namespace()?)
    }

    pub(crate) fn stop_timeout(&self) -> Duration {
        Duration::from_millis(self.stop_timeout_ms)
    }
}

/// Who had a keeper end its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StopRequest {
    /// A station.
    Station,
    /// Nobody: no station came back within the program's `orphan_timeout`.
    OrphanTimeout,
    /// Somebody who sent the keeper TERM or INT.
    Signal,
}

impl std::fmt::Display for StopRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Station => "its station told it to stop",
            Self::OrphanTimeout => "its keeper told it to stop, because no station came back within `orphan_timeout`",
            Self::Signal => "its keeper told it to stop, because somebody sent the keeper a signal to end",
        })
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
    /// Who asked for the end; `None` if the program ended by itself.
    #[serde(default)]
    pub(crate) stopped_by: Option<StopRequest>,
}

impl Exit {
    /// The end of a run whose keeper was killed: nobody saw how.
    pub(crate) fn unseen(run: &Run) -> Self {
        let at_ms = quilt_core::time::now_ms();
        Self { run: run.id.clone(), code: None, signal: None, at_ms, left: 0, out_of_memory: false, stopped_by: None }
    }

    /// Whether the program has done its work. One that was told to stop has not, whatever its exit code says.
    pub(crate) fn is_success(&self, codes: &[i32]) -> bool {
        self.stopped_by.is_none() && self.code.is_some_and(|code| codes.contains(&code))
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
        if let Some(request) = self.stopped_by {
            write!(f, "; {request}")?;
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
    /// The answer to [`ToKeeper::Stop`]: the program is asked to stop, and killed after its time-out.
    Stopping,
    /// The answer to [`ToKeeper::Signal`]: the program has the signal.
    Signalled,
    /// Last thing.
    Exited(Exit),
}

#[cfg(test)]
mod tests;
