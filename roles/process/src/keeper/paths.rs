//! The files of an instance's keeper, and whether a keeper is at work. The existence of a file decides nothing. A lock on the
//! folder does, and the run on record, whose keeper is identified by pid and start time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use quilt_core::disk;
use quilt_core::processes::{self, PidFd, ProcessStat, unless_gone};

use super::place::Place;
use super::{Exit, KEEPER, KEEPER_NAME, Run, leftovers};

/// How long a new keeper tries to take the lock: a station that checks it holds it for a moment.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long it waits between two attempts, in milliseconds.
const LOCK_INTERVAL_MS: u8 = 5;

/// What to look for when something is to be gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Look {
    /// Its keeper, which has seen all the rest to be gone.
    Keeper,
    /// Every process of the machine: its keeper may have been killed. Takes about 20 µs for each.
    Everything,
}

/// The files of an instance's keeper, in the instance's state folder. Most methods block on the disk; a station calls them with
/// [`Paths::on_disk`].
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

    /// Calls one of the methods that block, on a thread for disk work.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not cancel work that has begun.
    pub(crate) async fn on_disk<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let paths = self.clone();
        disk::run(move || work(&paths)).await
    }

    /// As [`Paths::on_disk`], for a method that takes a run.
    pub(crate) async fn on_disk_of<T: Send + 'static>(
        &self,
        run: &Run,
        work: impl FnOnce(&Self, &Run) -> T + Send + 'static,
    ) -> T {
        let run = run.clone();
        self.on_disk(move |paths| work(paths, &run)).await
    }

    /// Opens a connection to the keeper. Does not wait for one that accepts none, because it is frozen.
    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        let (_folder, path) = self.socket()?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(stream.as_raw_fd(), &UnixAddr::new(&path)?)?;
        Ok(UnixStream::from(stream))
    }

    pub(super) fn run(&self) -> PathBuf {
        self.folder.join("run.json")
    }

    pub(super) fn exit(&self) -> PathBuf {
        self.folder.join("exit.json")
    }

    /// A name for the socket that fits a socket address however deep the folder is; valid while the file lives.
    pub(crate) fn socket(&self) -> io::Result<(File, PathBuf)> {
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
        let Some(folder) = unless_gone(File::open(&self.folder))? else { return Ok(false) };
        match folder.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether a keeper is at work.
    ///
    /// # Errors
    ///
    /// This process cannot look now, which does not mean that nothing is there. The same holds for every method here that returns an
    /// [`io::Result`].
    pub(crate) fn is_kept(&self) -> io::Result<bool> {
        if self.is_locked()? {
            return Ok(true);
        }
        match self.read_run()? {
            Some(run) => Ok(self.keeper_of(&run)?.is_some()),
            None => Ok(false),
        }
    }

    /// The keeper of a run, if it is there and proven to be this instance's.
    pub(crate) fn keeper_of(&self, run: &Run) -> io::Result<Option<PidFd>> {
        let keeper = match run.keeper_started_ticks {
            // Written by an earlier release, which did not say when it began: its command line alone tells it.
            0 if run.boot_id == processes::boot_id()? => unless_gone(PidFd::open(run.keeper))?,
            ticks if run.is_here()? => PidFd::proven(run.keeper, ticks)?,
            _ => None,
        };
        let Some(keeper) = keeper else { return Ok(None) };
        let is_ours = keepers_place(run.keeper)?.is_some_and(|kept| kept.is_same_as(&Place::of(&self.folder)));
        Ok(is_ours.then_some(keeper))
    }

    /// Looks among all processes for the keeper of this instance, for the case that no record of it is left. Takes
    /// milliseconds.
    pub(crate) fn find_keeper(&self) -> io::Result<Option<ProcessStat>> {
        let place = Place::of(&self.folder);
        Ok(keepers()?.into_iter().find(|(kept, _)| kept.is_same_as(&place)).map(|(_, seen)| seen))
    }

    /// A keeper of this instance that was there before this station and of which no record is left. All processes are read once,
    /// however many instances ask.
    pub(crate) fn forgotten_keeper(&self) -> io::Result<Option<ProcessStat>> {
        static AT_START: OnceLock<Vec<(Place, ProcessStat)>> = OnceLock::new();
        let keepers = match AT_START.get() {
            Some(keepers) => keepers,
            None => {
                let found = keepers()?;
                AT_START.get_or_init(|| found)
            }
        };
        let place = Place::of(&self.folder);
        let Some((_, seen)) = keepers.iter().find(|(kept, _)| kept.is_same_as(&place)) else { return Ok(None) };
        Ok(PidFd::proven(seen.pid, seen.started_ticks)?.map(|_| *seen))
    }

    /// What is at work although it was to be ended, for people; `None` if nothing is. Pass the run if this process knows it: the
    /// record may have been removed.
    pub(crate) fn survivor(&self, run: Option<&Run>, look: Look) -> Option<String> {
        self.look_for_survivor(run, look)
            .unwrap_or_else(|error| Some(format!("what runs of it cannot be looked at: {error}")))
    }

    fn look_for_survivor(&self, run: Option<&Run>, look: Look) -> io::Result<Option<String>> {
        let recorded = self.read_run()?;
        let folder = self.folder.display();
        for run in run.iter().copied().chain(&recorded) {
            if self.keeper_of(run)?.is_some() {
                return Ok(Some(format!("process {} still holds {folder}; end it and try again", run.keeper)));
            }
        }
        if self.is_locked()? {
            let has_open =
                |seen: &ProcessStat| seen.pid != std::process::id() && processes::has_open(seen.pid, &self.folder);
            return Ok(Some(match ProcessStat::all()?.into_iter().find(has_open) {
                Some(ProcessStat { pid, .. }) => format!("process {pid} still holds {folder}; end it and try again"),
                None => format!("a process that is not seen from here still holds {folder}; end it and try again"),
            }));
        }
        let run = run.or(recorded.as_ref()).filter(|_| look == Look::Everything);
        let left = run.map(leftovers::of).transpose()?.unwrap_or_default();
        Ok(left.first().map(|left| format!("process {} of its program still runs; end it and try again", left.pid)))
    }

    /// Asks the keeper to make its files again, if its process can be identified.
    pub(crate) fn ask_for_files(&self) -> io::Result<()> {
        // One of an earlier release locks another file, and takes HUP as the order to stop.
        if !self.is_locked()? {
            return Ok(());
        }
        let recorded = self.read_run()?.map(|run| self.keeper_of(&run)).transpose()?.flatten();
        let keeper = match recorded {
            Some(keeper) => Some(keeper),
            None => self.find_keeper()?.map(|seen| PidFd::proven(seen.pid, seen.started_ticks)).transpose()?.flatten(),
        };
        keeper.map_or(Ok(()), |keeper| keeper.send(libc::SIGHUP))
    }

    pub(crate) fn read_run(&self) -> io::Result<Option<Run>> {
        Ok(unless_gone(read(&self.run()))?.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// How a run ended, if that is on record.
    pub(crate) fn exit_of(&self, run: &Run) -> io::Result<Option<Exit>> {
        let json = unless_gone(read(&self.exit()))?;
        let exit = json.and_then(|json| serde_json::from_slice::<Exit>(&json).ok());
        Ok(exit.filter(|exit| exit.run == run.id))
    }

    /// Forgets the last run, so that the next start begins a new one.
    pub(crate) fn forget(&self) -> io::Result<()> {
        for path in [self.run(), self.exit()] {
            unless_gone(fs::remove_file(path))?;
        }
        Ok(())
    }
}

/// Reads a file. Does not wait for the writer of a FIFO that somebody put in its place.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        let text = format!("{}: expected a regular file, found something else; remove it", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The state folder on the command line of a keeper; `None` if the process is not one.
fn named_folder(pid: u32) -> io::Result<Option<PathBuf>> {
    let command = unless_gone(fs::read(format!("/proc/{pid}/cmdline")))?.unwrap_or_default();
    let mut arguments = command.split(|byte| *byte == 0);
    let is_keeper = arguments.next() == Some(KEEPER_NAME.as_bytes()) && arguments.next() == Some(KEEPER.as_bytes());
    let folder = arguments.next().filter(|_| is_keeper);
    Ok(folder.map(|folder| std::ffi::OsStr::from_bytes(folder).into()))
}

/// Where the state folder is whose keeper a process is. The folder that it holds open counts, because the one on its command line may
/// have been moved. A keeper of an earlier release, or one that does not have the lock yet, holds none.
fn keepers_place(pid: u32) -> io::Result<Option<Place>> {
    let Some(named) = named_folder(pid)? else { return Ok(None) };
    Ok(Some(Place::held_by(pid, named.file_name())?.unwrap_or_else(|| Place::of(&named))))
}

/// All keepers of this machine, of whichever station.
fn keepers() -> io::Result<Vec<(Place, ProcessStat)>> {
    let mut found = Vec::new();
    for seen in ProcessStat::all()? {
        found.extend(keepers_place(seen.pid)?.map(|place| (place, seen)));
    }
    Ok(found)
}

/// The instances below a station's folder of instances that have a keeper, as role and name, whether or not their folders are still
/// there.
///
/// # Errors
///
/// This process cannot look now.
pub fn instances_with_keepers(instances: &Path) -> io::Result<Vec<[String; 2]>> {
    let station = Place::of(instances);
    let found = keepers()?.into_iter().filter_map(|(place, _)| {
        // instances / role / instance / state
        let [role, instance, _] = place.last_names()?;
        place.above(3).is_same_as(&station).then_some([role, instance])
    });
    Ok(found.collect())
}

/// Whether a process is a keeper, of whichever instance.
pub(super) fn is_keeper(pid: u32) -> io::Result<bool> {
    Ok(named_folder(pid)?.is_some())
}
