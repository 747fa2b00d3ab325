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
//! anybody is told. A lock on `keeper.lock` makes sure that an instance has one keeper. If the keeper itself is
//! killed, the kernel kills its program (`PR_SET_PDEATHSIG`), and the station what that leaves (`leftovers`), so a program
//! is never run twice. What a program leaves behind when it ends is ended too.

mod copy;
mod exec;
pub(crate) mod leftovers;
mod serve;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use quilt_core::files;
use serde::{Deserialize, Serialize};

/// The first argument that makes a quilt binary a keeper.
pub(crate) const KEEPER: &str = "keeper";
/// The first argument that makes it the stage that becomes the program.
const EXEC: &str = "keeper-exec";
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
                serve::keep(Paths::new(&state), &log).unwrap_or_else(failed);
                std::process::exit(0);
            }
        }
        Some(EXEC) => exec::become_program(),
        _ => {}
    }
}

/// What a program needs to begin; goes to the keeper on its standard input, never on a command line.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) command: Vec<String>,
    pub(crate) env: std::collections::BTreeMap<String, String>,
    pub(crate) cwd: PathBuf,
    pub(crate) user: Option<SpecUser>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
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
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (_, Some(signal)) => match Signal::try_from(signal) {
                Ok(signal) => write!(f, "killed by {signal}")?,
                Err(_) => write!(f, "killed by signal {signal}")?,
            },
            _ => f.write_str("ended with its keeper")?,
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

/// The files of an instance's keeper, in the instance's state folder.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    folder: PathBuf,
}

impl Paths {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn lock(&self) -> PathBuf {
        self.folder.join("keeper.lock")
    }

    fn run(&self) -> PathBuf {
        self.folder.join("run.json")
    }

    fn exit(&self) -> PathBuf {
        self.folder.join("exit.json")
    }

    /// A name for the socket that fits a socket address however deep the folder is; valid while the file lives.
    pub(crate) fn socket(&self) -> io::Result<(File, PathBuf)> {
        use std::os::fd::AsRawFd as _;
        let folder = File::open(&self.folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/keeper.sock", folder.as_raw_fd()));
        Ok((folder, path))
    }

    /// Whether a keeper is at work.
    pub(crate) fn is_kept(&self) -> io::Result<bool> {
        match OpenOptions::new().read(true).write(true).open(self.lock()) {
            Ok(file) => Ok(files::is_locked(&file)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn read_run(&self) -> Option<Run> {
        serde_json::from_slice(&fs::read(self.run()).ok()?).ok()
    }

    pub(crate) fn read_exit(&self) -> Option<Exit> {
        serde_json::from_slice(&fs::read(self.exit()).ok()?).ok()
    }

    /// Forgets the last run, so that the next start begins a new one.
    pub(crate) fn forget(&self) -> io::Result<()> {
        for path in [self.run(), self.exit()] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Stops the programs of all keepers below a station's folder of instances, as far as they still run, each within its own
/// stop time-out and all at once. Answers how many.
pub async fn stop_all(instances: &Path) -> usize {
    let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut stopping = tokio::task::JoinSet::new();
    for instance in folders(instances).flat_map(|role| folders(&role).collect::<Vec<_>>()) {
        stopping.spawn(async move { end_left_over(&Paths::new(&instance.join("state")), None).await });
    }
    stopping.join_all().await.into_iter().filter(|ran| *ran).count()
}

/// Ends what an earlier station left of an instance, within the time that its keeper knows if no other is given. Answers
/// whether a program ran.
pub(crate) async fn end_left_over(paths: &Paths, stop_timeout: Option<Duration>) -> bool {
    let is_kept = paths.is_kept().unwrap_or_default();
    if is_kept {
        match crate::kept::Kept::connect(paths).await {
            Ok(kept) => drop(kept.stop(paths, stop_timeout).await),
            Err(_) => force_end(paths).await,
        }
    } else if let Some(run) = paths.read_run() {
        leftovers::kill(&run);
    }
    let _ = paths.forget();
    is_kept
}

/// How long a killed keeper may take to be gone.
const KILLED: Duration = Duration::from_secs(2);

/// Ends a keeper that does not answer, and its program with it.
pub(crate) async fn force_end(paths: &Paths) {
    let Some(run) = paths.read_run() else { return };
    let folder = paths.folder.as_os_str().as_encoded_bytes();
    let command = fs::read(format!("/proc/{}/cmdline", run.keeper)).unwrap_or_default();
    // Who has that number now must be a keeper, and this instance's.
    if command.starts_with(b"quilt-keeper\0") && command.split(|byte| *byte == 0).any(|argument| argument == folder) {
        let _ = signal::kill(Pid::from_raw(run.keeper as i32), Signal::SIGKILL);
        let gone = async {
            while paths.is_kept().unwrap_or_default() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(KILLED, gone).await;
    }
    leftovers::kill(&run);
}

/// The identity of this boot of the machine.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}
