//! The files of an instance's keeper, and whether a keeper is at work. The existence of a file decides nothing. A lock on the
//! folder does, and the run on record, whose keeper is identified by pid and start time.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollTimeout, poll};
use quilt_core::processes::{self, PidFd, ProcessStat};

use super::place::Place;
use super::{Exit, KEEPER, KEEPER_NAME, Run};

/// How long a new keeper tries to take the lock: a station that checks it holds it for a moment.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long it waits between two attempts, in milliseconds.
const LOCK_INTERVAL_MS: u8 = 5;

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

    pub(super) fn run(&self) -> PathBuf {
        self.folder.join("run.json")
    }

    pub(super) fn exit(&self) -> PathBuf {
        self.folder.join("exit.json")
    }

    /// A name for the socket that fits a socket address however deep the folder is; valid while the file lives.
    pub(crate) fn socket(&self) -> io::Result<(File, PathBuf)> {
        use std::os::fd::AsRawFd as _;
        let folder = File::open(&self.folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/keeper.sock", folder.as_raw_fd()));
        Ok((folder, path))
    }

    /// Locks the folder for this keeper, until the file is closed.
    pub(crate) fn lock(&self) -> io::Result<File> {
        let folder = File::open(&self.folder)?;
        let until = Instant::now() + LOCK_TIMEOUT;
        loop {
            match folder.try_lock() {
                Ok(()) => return Ok(folder),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    let _ = poll(&mut [], PollTimeout::from(LOCK_INTERVAL_MS));
                }
                Err(TryLockError::WouldBlock) => return Err(io::Error::other("another keeper is at work")),
                Err(TryLockError::Error(error)) => {
                    let text = format!("{}: the folder cannot be locked: {error}", self.folder.display());
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
    }

    fn is_locked(&self) -> io::Result<bool> {
        let folder = match File::open(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            folder => folder?,
        };
        match folder.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether a keeper is at work.
    pub(crate) fn is_kept(&self) -> io::Result<bool> {
        Ok(self.is_locked()? || self.read_run().is_some_and(|run| self.keeper_of(&run).is_some()))
    }

    /// The keeper of a run, if it is there and proven to be this instance's.
    pub(crate) fn keeper_of(&self, run: &Run) -> Option<PidFd> {
        let keeper = match run.keeper_started_ticks {
            // Written by an earlier release, which did not say when it began: its command line alone tells it.
            0 if run.boot_id == processes::boot_id() => PidFd::open(run.keeper).ok()?,
            ticks if run.is_here() => PidFd::proven(run.keeper, ticks)?,
            _ => return None,
        };
        keepers_place(run.keeper)?.is_same_as(&Place::of(&self.folder)).then_some(keeper)
    }

    /// Looks among all processes for the keeper of this instance, for the case that no record of it is left. Takes
    /// milliseconds.
    pub(crate) fn find_keeper(&self) -> Option<PidFd> {
        let place = Place::of(&self.folder);
        let is_keeper = |seen: &ProcessStat| keepers_place(seen.pid).is_some_and(|kept| kept.is_same_as(&place));
        let seen = ProcessStat::all().into_iter().find(is_keeper)?;
        PidFd::proven(seen.pid, seen.started_ticks)
    }

    /// What is at work although it was to be ended, for people; `None` if nothing is.
    pub(crate) fn survivor(&self) -> Option<String> {
        if !self.is_kept().unwrap_or_default() {
            return None;
        }
        let keeper = self.read_run().filter(|run| self.keeper_of(run).is_some()).map(|run| run.keeper);
        let has_open =
            |seen: &ProcessStat| seen.pid != std::process::id() && processes::has_open(seen.pid, &self.folder);
        let keeper = keeper.or_else(|| Some(ProcessStat::all().into_iter().find(has_open)?.pid));
        let folder = self.folder.display();
        Some(match keeper {
            Some(pid) => format!("process {pid} still holds {folder}; end it and try again"),
            None => format!("a process that is not seen from here still holds {folder}; end it and try again"),
        })
    }

    /// A keeper of this instance that was there before this station and of which no record is left. All processes are read once,
    /// however many instances ask.
    pub(crate) fn forgotten_keeper(&self) -> Option<PidFd> {
        static AT_START: OnceLock<Vec<(Place, ProcessStat)>> = OnceLock::new();
        let keepers = AT_START.get_or_init(|| {
            let all = ProcessStat::all().into_iter();
            all.filter_map(|seen| Some((keepers_place(seen.pid)?, seen))).collect()
        });
        let place = Place::of(&self.folder);
        let (_, seen) = keepers.iter().find(|(kept, _)| kept.is_same_as(&place))?;
        PidFd::proven(seen.pid, seen.started_ticks)
    }

    /// Asks the keeper to make its files again, if its process can be identified.
    pub(crate) fn ask_for_files(&self) {
        // One of an earlier release locks another file, and takes HUP as the order to stop.
        if !self.is_locked().unwrap_or_default() {
            return;
        }
        let keeper = self.read_run().and_then(|run| self.keeper_of(&run)).or_else(|| self.find_keeper());
        if let Some(keeper) = keeper {
            let _ = keeper.send(libc::SIGHUP);
        }
    }

    pub(crate) fn read_run(&self) -> Option<Run> {
        serde_json::from_slice(&fs::read(self.run()).ok()?).ok()
    }

    pub(crate) fn read_exit(&self) -> Option<Exit> {
        serde_json::from_slice(&fs::read(self.exit()).ok()?).ok()
    }

    /// How a run ended, if that is on record.
    pub(crate) fn exit_of(&self, run: &Run) -> Option<Exit> {
        self.read_exit().filter(|exit| exit.run == run.id)
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

/// The state folder on the command line of a keeper; `None` if the process is not one.
fn named_folder(pid: u32) -> Option<PathBuf> {
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = command.split(|byte| *byte == 0);
    let is_keeper = arguments.next() == Some(KEEPER_NAME.as_bytes()) && arguments.next() == Some(KEEPER.as_bytes());
    let folder = arguments.next().filter(|_| is_keeper)?;
    Some(std::ffi::OsStr::from_bytes(folder).into())
}

/// Where the state folder is whose keeper a process is. The folder that it holds open counts, because the one on its command line may
/// have been moved. A keeper of an earlier release, or one that does not have the lock yet, holds none.
fn keepers_place(pid: u32) -> Option<Place> {
    let named = named_folder(pid)?;
    Some(Place::held_by(pid, named.file_name()).unwrap_or_else(|| Place::of(&named)))
}

/// Whether a process is a keeper, of whichever instance.
pub(super) fn is_keeper(pid: u32) -> bool {
    named_folder(pid).is_some()
}
