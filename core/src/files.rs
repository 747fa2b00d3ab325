//! Files and folders that survive crashes, and belong to one process at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

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
    // One writer per file: a left-over of a crash is overwritten by the next write.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(Path::new(&temporary))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
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

/// Where data goes unless `--data-dir` says otherwise: `/var/lib/quilt` for root, `$XDG_STATE_HOME/quilt` or
/// `~/.local/state/quilt` for others.
pub fn default_data_dir() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into()));
    if nix::unistd::geteuid().is_root() {
        PathBuf::from("/var/lib/quilt")
    } else {
        std::env::var_os("XDG_STATE_HOME").map_or_else(|| home().join(".local/state"), PathBuf::from).join("quilt")
    }
}

/// A file that one process holds, with its pid in it. The kernel releases it whatever becomes of the process, so a
/// stale file never blocks; existence and content decide nothing.
#[derive(Debug)]
pub struct PidFile {
    // Held for its lock.
    _file: File,
}

/// Why a [`PidFile`] cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{path} is in use by process {holder}; stop that one first, or use another data folder")]
    Held {
        /// The file.
        path: PathBuf,
        /// The pid in it.
        holder: String,
    },
    /// The file cannot be opened, locked or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        error: io::Error,
    },
}

impl PidFile {
    /// Takes the file for this process. Call it in the final process, after any fork.
    ///
    /// The lock is one of open file descriptions (`F_OFD_SETLK`): it excludes other programs' `lockf`, and closing
    /// another descriptor of the same file does not drop it as a classic record lock would be.
    ///
    /// # Errors
    ///
    /// [`LockError`]; the file is then as it was.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |error: io::Error| LockError::Io { path: path.to_owned(), error };
        // Not truncated on open: until the lock is ours the content is somebody else's.
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path);
        let mut file = options.map_err(failed)?;
        if let Err(error) = lock_whole(&file) {
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
        Ok(Self { _file: file })
    }
}

/// Locks the whole of a file for this open file description.
///
/// # Errors
///
/// `EAGAIN` if another holds a lock on it.
pub fn lock_whole(file: &impl AsFd) -> nix::Result<()> {
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file())).map(drop)
}

/// Whether another open file description holds a lock on the file.
///
/// # Errors
///
/// What the operating system says.
pub fn is_locked(file: &impl AsFd) -> nix::Result<bool> {
    let mut lock = whole_file();
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != nix::libc::F_UNLCK as nix::libc::c_short)
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
    use super::*;

    #[test]
    fn a_pid_file_left_by_a_crash_does_not_block_and_is_rewritten_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pid");
        fs::write(&path, "1234567890123456789\nleft over").unwrap();
        let held = PidFile::take(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        // Reading our own file must not drop the lock.
        drop(File::open(&path).unwrap());
        match PidFile::take(&path) {
            Err(LockError::Held { holder, .. }) => assert_eq!(holder, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(held);
        PidFile::take(&path).unwrap();
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
