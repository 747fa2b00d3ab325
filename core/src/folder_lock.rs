//! A data folder belongs to one process at a time.
//!
//! The lock is on the folder itself. A lock on a file in it would protect nothing once somebody has removed that file: the next
//! process makes a new file of that name and locks that one.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the process that holds a folder may take to end.
const HELD_PATIENCE: Duration = Duration::from_secs(2);
/// How often a folder that is held is tried again.
const HELD_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A folder that this process holds, whatever the folder is called, until this is dropped or the process ends. The lock is advisory
/// (`flock`): it keeps out only those who ask for it.
#[derive(Debug)]
pub struct FolderLock(File);

/// Why a [`FolderLock`] cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FolderLockError {
    /// Another process holds it, or this one does already.
    #[error("the data folder {folder} is in use by {}; stop that one first, or use another data folder", called(*holder))]
    Held {
        /// The folder.
        folder: PathBuf,
        /// The process that holds it; `None` if this process may not see it.
        holder: Option<u32>,
    },
    /// The folder cannot be opened or locked.
    #[error("the data folder {folder}: {error}")]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
}

/// What to call the process that holds a folder.
pub fn called(holder: Option<u32>) -> String {
    let hidden = || "a process that cannot be seen from here, of another container or another user".to_owned();
    holder.map_or_else(hidden, |pid| format!("process {pid}"))
}

impl FolderLock {
    /// Takes the folder for this process.
    ///
    /// Blocks for up to two seconds while another process holds it: one that was killed holds its locks until the kernel has taken
    /// it down, and so does a child of it between fork and exec. The next start may come before that.
    ///
    /// # Errors
    ///
    /// [`FolderLockError`].
    pub fn take(folder: &Path) -> Result<Self, FolderLockError> {
        let failed = |error| FolderLockError::Io { folder: folder.to_owned(), error };
        let file = File::open(folder).map_err(failed)?;
        let until = Instant::now() + HELD_PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let holder = holder(folder);
            if holder == Some(std::process::id()) || Instant::now() >= until {
                return Err(FolderLockError::Held { folder: folder.to_owned(), holder });
            }
            #[allow(clippy::disallowed_methods, reason = "the kernel tells nobody that a lock was released")]
            std::thread::sleep(HELD_POLL_INTERVAL);
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Not left to the closing of the descriptor: a child between fork and exec has another one of it.
        let _ = self.0.unlock();
    }
}

/// Whether any process holds the folder. A folder that does not exist is held by none.
///
/// # Errors
///
/// The folder cannot be opened.
pub fn is_held(folder: &Path) -> io::Result<bool> {
    let file = match File::open(folder) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The process that holds the folder. `None` if none does, or if this process may not see it. Looks at every descriptor of every
/// process.
pub fn holder(folder: &Path) -> Option<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes.find(|pid| holds(*pid, folder))
}

/// Whether a process holds the folder. `false` also if this process may not look.
pub fn holds(pid: u32, folder: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino())).ok();
    let Some(wanted) = identity(folder) else { return false };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut ours = descriptors.filter(|descriptor| identity(&descriptor.path()) == Some(wanted));
    ours.any(|descriptor| {
        let number = descriptor.file_name();
        let info = fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(number)).unwrap_or_default();
        info.lines().any(|line| is_lock_of(line, pid))
    })
}

/// Whether a line of `/proc/PID/fdinfo/N` is about an exclusive lock of the open file that this process took: a child that has
/// the descriptor from it shows the lock as well.
fn is_lock_of(line: &str, pid: u32) -> bool {
    let fields: Vec<_> = line.split_whitespace().collect();
    matches!(fields[..], ["lock:", _, "FLOCK", _, "WRITE", by, ..] if by == pid.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Another process that holds the folder, and takes a little to end once its standard input is closed.
    fn other(folder: &Path) -> Child {
        let script = "import fcntl, os, sys, time; folder = os.open(sys.argv[1], os.O_RDONLY); \
                      fcntl.flock(folder, fcntl.LOCK_EX); print(flush=True); sys.stdin.read(); time.sleep(0.1)";
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    #[test]
    fn a_folder_has_one_holder_whatever_is_removed_from_it_and_however_its_path_is_spelled() {
        let top = tempfile::tempdir().unwrap();
        let (folder, link) = (top.path().join("data"), top.path().join("link"));
        assert!(!is_held(&folder).unwrap(), "it does not exist");
        fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        let held = FolderLock::take(&folder).unwrap();
        for entry in fs::read_dir(&folder).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let moved = top.path().join("moved");
        fs::rename(&folder, &moved).unwrap();
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&moved, &link).unwrap();
        for path in [&moved, &link] {
            let error = FolderLock::take(path).unwrap_err().to_string();
            assert!(error.contains(&format!("is in use by process {}; stop", std::process::id())), "{error}");
            assert!(is_held(path).unwrap());
            assert_eq!(holder(path), Some(std::process::id()));
        }
        // A child has nothing of it.
        let input = held.0.try_clone().unwrap();
        let mut child = Command::new("sleep").arg("1000").stdin(input).spawn().unwrap();
        assert!(!holds(child.id(), &moved));
        drop(held);
        let free = FolderLock::take(&moved);
        child.kill().unwrap();
        child.wait().unwrap();
        free.unwrap();
        assert!(!is_held(&moved).unwrap());
        assert_eq!(holder(&moved), None);
    }

    #[test]
    fn a_folder_that_an_ending_process_holds_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut other = other(folder.path());
        assert_eq!(holder(folder.path()), Some(other.id()));
        drop(other.stdin.take());
        let taken = FolderLock::take(folder.path());
        other.wait().unwrap();
        taken.unwrap();
    }
}
