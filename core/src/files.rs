//! Files and folders that survive crashes, and belong to one process at a time.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use sha2::{Digest as _, Sha256};

/// Replaces `path` with `content` so that a crash at any moment leaves the old file or the new one, never a mixture:
/// a temporary file beside it, fsync, rename, fsync of the folder.
///
/// # Errors
///
/// What the operating system says; the old file is then untouched.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a path without a folder"))?;
    let temporary = temporary(path);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

/// Replaces `path` with `content` so that a crash of the process leaves the old file or the new one. Does not wait for the disk, so a
/// power failure may leave neither: use it only for files that can be lost.
///
/// # Errors
///
/// What the operating system says; the old file is then untouched.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}

/// Opens a file of quilt's own, in whose place something else may be: a link is not followed, and a FIFO is not waited for.
///
/// # Errors
///
/// What the operating system says, or that it is no regular file; the text names the file.
pub fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    use std::os::unix::fs::FileTypeExt as _;
    let named = |kind: io::ErrorKind, text: String| io::Error::new(kind, format!("{}: {text}", path.display()));
    let other = |what: &str| {
        named(
            io::ErrorKind::InvalidInput,
            format!("expected a regular file, found {what}; remove it or put the file back"),
        )
    };
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = options.custom_flags(flags).open(path).map_err(|error| match error.raw_os_error() {
        Some(nix::libc::ELOOP) => other("a link"),
        // Opening one to write that nobody reads.
        Some(nix::libc::ENXIO) => other("a FIFO or a socket"),
        Some(nix::libc::EISDIR) => other("a folder"),
        _ => named(error.kind(), error.to_string()),
    })?;
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_fifo() => Err(other("a FIFO")),
        kind if kind.is_dir() => Err(other("a folder")),
        _ => Err(other("a device")),
    }
}

/// Reads such a file, at most `limit` bytes of it.
///
/// # Errors
///
/// As [`open_regular`], or that it is longer.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path, OpenOptions::new().read(true))?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let text =
            format!("{}: expected at most {limit} bytes, found more; remove it or put the file back", path.display());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// One writer per file: a left-over of a crash is overwritten by the next write.
fn temporary(path: &Path) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    temporary.into()
}

/// Makes a folder, and those above it, that only its owner can look into.
///
/// # Errors
///
/// What the operating system says.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if fs::metadata(path)?.permissions().mode() & 0o077 != 0 && path.read_dir()?.next().is_none() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Makes the folder `name` of a daemon in `data_dir`, unless it is there, and gives it. What is in it is what the daemon runs, so nobody
/// else may be able to change it.
///
/// # Errors
///
/// What the operating system says, or that one of the two folders belongs to another user or can be changed by others.
pub fn create_data_dir(data_dir: &Path, name: &str) -> io::Result<PathBuf> {
    let folder = data_dir.join(name);
    create_private_dir(&folder)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))?;
    let ours = nix::unistd::geteuid().as_raw();
    for path in [data_dir, &folder] {
        let (metadata, path) = (fs::metadata(path)?, path.display());
        let refuse = |text: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{path} {text}")));
        let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        if owner != ours && owner != 0 {
            return refuse(format!("belongs to user {owner}, expected root or user {ours}; use a folder of its own"));
        }
        // A folder for all, as /tmp, is safe with its sticky bit.
        if mode & 0o022 != 0 && mode & 0o1000 == 0 {
            return refuse(format!(
                "can be changed by others, its mode is {mode:04o}; `chmod go-w` it if nobody else has"
            ));
        }
    }
    let metadata = fs::metadata(&folder)?;
    if metadata.uid() == ours && metadata.mode() & 0o077 != 0 {
        // Who may open it may lock it, and keep the daemon out.
        match fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)) {
            Err(error) if error.kind() != io::ErrorKind::ReadOnlyFilesystem => return Err(error),
            _ => {}
        }
    }
    Ok(folder)
}

/// Where data goes unless `--data-dir` says otherwise: `/var/lib/quilt` for root, `$XDG_STATE_HOME/quilt` or
/// `~/.local/state/quilt` for others.
pub fn default_data_dir() -> PathBuf {
    // Empty and relative ones are to be ignored, says the XDG specification; the folder must not depend on where one stands.
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    if nix::unistd::geteuid().is_root() {
        PathBuf::from("/var/lib/quilt")
    } else {
        let home = || folder("HOME").unwrap_or_else(|| "/".into()).join(".local/state");
        folder("XDG_STATE_HOME").unwrap_or_else(home).join("quilt")
    }
}

/// A file that one process holds, with its pid in it. The kernel releases it whatever becomes of the process, so a
/// stale file never blocks; existence and content decide nothing.
///
/// The process that holds it must not open the file elsewhere: closing any descriptor of the file releases the lock.
#[derive(Debug)]
pub struct PidFile {
    /// Held for its lock; `None` only while it is dropped.
    file: Option<File>,
    inode: Inode,
}

/// Identifies a file regardless of its name: device and inode number.
type Inode = (u64, u64);

/// The pid files that this process holds. A record lock belongs to the process, so the kernel would grant a second one of the same
/// file as well.
static HELD: Mutex<BTreeSet<Inode>> = Mutex::new(BTreeSet::new());

/// How long a process that holds a pid file may take to end.
const HELD_PATIENCE: Duration = Duration::from_secs(2);
/// How often a pid file that is held is tried again.
const HELD_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Why a [`PidFile`] cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{path} is in use by process {holder}; stop that one first, or use another file")]
    Held {
        /// The file.
        path: PathBuf,
        /// The pid in it.
        holder: String,
    },
    /// The file cannot be opened; the text names it.
    #[error("{0}")]
    Opening(io::Error),
    /// The file cannot be locked or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
}

impl PidFile {
    /// Takes the file for this process. Call it in the final process, after any fork.
    ///
    /// The lock is the process's own, see [`lock_whole`]; it excludes other programs' `lockf`. Blocks for up to two seconds while
    /// another process holds it: one that was killed holds its locks until the kernel has taken it down, and the next start
    /// may come before that.
    ///
    /// # Errors
    ///
    /// [`LockError`]; the file is then as it was.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let until = Instant::now() + HELD_PATIENCE;
        loop {
            match Self::try_take(path) {
                Err(LockError::Held { holder, .. })
                    if holder != std::process::id().to_string() && Instant::now() < until =>
                {
                    #[allow(clippy::disallowed_methods, reason = "the kernel tells nobody that a lock was released")]
                    std::thread::sleep(HELD_POLL_INTERVAL);
                }
                taken => return taken,
            }
        }
    }

    fn try_take(path: &Path) -> Result<Self, LockError> {
        let failed = |error: io::Error| LockError::Io { path: path.to_owned(), error };
        let named = |error: io::Error| LockError::Opening(error);
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(metadata) = fs::symlink_metadata(path)
            && held.contains(&inode(&metadata))
        {
            return Err(LockError::Held { path: path.to_owned(), holder: std::process::id().to_string() });
        }
        // Not truncated on open: until the lock is ours the content is somebody else's.
        let mut options = OpenOptions::new();
        let mut file = open_regular(path, options.read(true).write(true).create(true).truncate(false).mode(0o600))
            .map_err(named)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.uid() != nix::unistd::geteuid().as_raw() {
            let text = format!("it belongs to user {}; remove it or use another file", metadata.uid());
            return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, text)));
        }
        if metadata.mode() & 0o077 != 0 {
            // Who may read it may lock it, and keep this process out.
            file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
        }
        if let Err(error) = lock_whole(&file) {
            if is_read_locked(&file).unwrap_or(false) {
                // No daemon: those write. Its file is left to it.
                fs::remove_file(path).map_err(failed)?;
                drop(held);
                return Self::try_take(path);
            }
            if matches!(error, nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) {
                let mut holder = String::new();
                let _ = file.take(32).read_to_string(&mut holder);
                return Err(LockError::Held { path: path.to_owned(), holder: holder.trim().to_owned() });
            }
            return Err(failed(error.into()));
        }
        let pid = format!("{}\n", std::process::id());
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(pid.as_bytes())
        };
        write(&mut file).map_err(failed)?;
        let inode = inode(&file.metadata().map_err(failed)?);
        held.insert(inode);
        Ok(Self { file: Some(file), inode })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        // Closed before it is removed from the set: closing it later would release a lock that this process has taken since.
        self.file = None;
        held.remove(&self.inode);
    }
}

fn inode(metadata: &fs::Metadata) -> Inode {
    (metadata.dev(), metadata.ino())
}

/// Locks the whole of a file for this process, until it ends or closes any descriptor of the file.
///
/// This is a record lock (`F_SETLK`), which belongs to the process. A lock of the open file (`F_OFD_SETLK`, `flock`) passes through
/// fork: if the process is killed, a child between fork and exec would still hold it and keep the next process out.
///
/// # Errors
///
/// `EAGAIN` if another process holds a lock on it.
pub fn lock_whole(file: &impl AsFd) -> nix::Result<()> {
    fcntl(file.as_fd(), FcntlArg::F_SETLK(&whole_file())).map(drop)
}

/// Whether any process, this one included, holds a lock of any kind on the file. Takes no lock itself.
///
/// # Errors
///
/// What the operating system says.
pub fn is_locked(file: &impl AsFd) -> nix::Result<bool> {
    let mut lock = whole_file();
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != nix::libc::F_UNLCK as nix::libc::c_short)
}

/// Whether another process has a lock on the file with which others may share it.
fn is_read_locked(file: &impl AsFd) -> nix::Result<bool> {
    let mut lock = whole_file();
    fcntl(file.as_fd(), FcntlArg::F_GETLK(&mut lock))?;
    Ok(lock.l_type == nix::libc::F_RDLCK as nix::libc::c_short)
}

fn whole_file() -> nix::libc::flock {
    nix::libc::flock {
        l_type: nix::libc::F_WRLCK as nix::libc::c_short,
        l_whence: nix::libc::SEEK_SET as nix::libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The SHA-256 of a file, read piece by piece. Blocks.
///
/// # Errors
///
/// What the operating system says.
pub fn sha256_of(path: &Path) -> io::Result<[u8; 32]> {
    let (mut file, mut hasher, mut piece) = (File::open(path)?, Sha256::new(), vec![0; 64 << 10]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finalize().into()),
            count => hasher.update(&piece[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_pid_file_left_by_a_crash_does_not_block_and_is_rewritten_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pid");
        fs::write(&path, "1234567890123456789\nleft over").unwrap();
        let held = PidFile::take(&path).unwrap();
        // Also by another name, and to ask does not drop the lock.
        let link = folder.path().join("link");
        fs::hard_link(&path, &link).unwrap();
        for name in [&path, &link] {
            match PidFile::take(name) {
                Err(LockError::Held { holder, .. }) => assert_eq!(holder, std::process::id().to_string()),
                other => panic!("{other:?}"),
            }
        }
        assert!(is_locked_for_others(&path));
        drop(held);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        PidFile::take(&path).unwrap();
    }

    #[test]
    fn a_pid_file_is_private_and_neither_a_reader_of_it_nor_a_link_in_its_place_keeps_a_daemon_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pid");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let script = "import fcntl, sys; file = open(sys.argv[1], 'r'); fcntl.lockf(file, fcntl.LOCK_SH); print(flush=True); sys.stdin.read()";
        let mut command = std::process::Command::new("python3");
        command.args(["-c", script]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut reader = command.spawn().unwrap();
        reader.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let held = PidFile::take(&path);
        drop(reader.stdin.take());
        reader.wait().unwrap();
        held.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let error = PidFile::take(&link).unwrap_err().to_string();
        assert!(error.contains("link: expected a regular file, found a link"), "{error}");
        assert!(!target.exists());
    }

    #[test]
    fn a_folder_that_another_can_change_is_refused_and_one_that_others_can_read_is_closed() {
        let world = tempfile::tempdir().unwrap();
        let folder = world.path().join("data");
        create_data_dir(&folder, "station").unwrap();
        let own = folder.join("station");
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(&own, 0o755);
        fs::write(own.join("id"), "").unwrap();
        create_data_dir(&folder, "station").unwrap();
        assert_eq!(fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o700);
        for path in [&folder, &own] {
            set(path, 0o770);
            let error = create_data_dir(&folder, "station").unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()) && error.contains("0770"), "{error}");
            set(path, 0o700);
        }
        // As /tmp is.
        set(&folder, 0o1777);
        create_data_dir(&folder, "station").unwrap();
        set(&folder, 0o700);
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&own, Some(12345), None).unwrap();
            let error = create_data_dir(&folder, "station").unwrap_err().to_string();
            assert!(error.contains("belongs to user 12345"), "{error}");
        }
    }

    /// As another process sees it.
    fn is_locked_for_others(path: &Path) -> bool {
        let script = "import fcntl, sys\nf = open(sys.argv[1], 'r+')\ntry: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept OSError: sys.exit(1)";
        !std::process::Command::new("python3").args(["-c", script]).arg(path).status().unwrap().success()
    }

    #[test]
    fn a_child_that_has_the_file_open_does_not_hold_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pid");
        let held = PidFile::take(&path).unwrap();
        // As one does between fork and exec.
        let input = held.file.as_ref().unwrap().try_clone().unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").stdin(input).spawn().unwrap();
        drop(held);
        let free = !is_locked_for_others(&path);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(free, "the child keeps others out");
    }

    #[test]
    fn a_file_that_an_ending_process_holds_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pid");
        // It takes a little to end, as a process with many threads does.
        let script = "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); \
                      print(flush=True); sys.stdin.read(); time.sleep(0.1)";
        let mut command = std::process::Command::new("python3");
        command.args(["-c", script]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = [0];
        child.stdout.take().unwrap().read_exact(&mut said).unwrap();
        drop(child.stdin.take());
        let taken = PidFile::take(&path);
        child.wait().unwrap();
        taken.unwrap();
    }

    #[test]
    fn a_replaced_file_is_whole_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        write_atomically(&path, b"old and long").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
