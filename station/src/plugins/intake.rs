//! Taking a file in: one private copy, made while its hash is computed, is what is judged and loaded. The file itself may be
//! changed or cut at any time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc;
use sha2::{Digest as _, Sha256};

use super::elf::{self, Inspection};
use super::{FoundPlugin, LoadError, Trust};

/// The longest library, in bytes.
pub(crate) const LENGTH_MAX: u64 = 256 << 20;

/// A file that was taken in and may be loaded.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) sha256: String,
    pub(crate) path: PathBuf,
    pub(crate) inspection: Inspection,
}

/// A file that is not there, or not for this user, is so until somebody changes that; anything else is trouble of this machine.
fn unreadable(error: io::Error) -> LoadError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => LoadError::NotFound(error.to_string()),
        _ => LoadError::StationFault(format!("it cannot be read: {error}")),
    }
}

/// Opens a file that may be anything: a link is not followed, a FIFO not waited for.
fn open(path: &Path) -> Result<File, LoadError> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(file),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Err(LoadError::NotRegular("a symbolic link".into())),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Err(LoadError::NotRegular("a socket".into())),
        Err(error) => Err(unreadable(error)),
    }
}

fn check_kind(file: &File) -> Result<fs::Metadata, LoadError> {
    use std::os::unix::fs::FileTypeExt as _;
    let metadata = file.metadata().map_err(unreadable)?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let what = match kind {
            kind if kind.is_dir() => "a folder",
            kind if kind.is_fifo() => "a FIFO",
            _ => "a device",
        };
        return Err(LoadError::NotRegular(what.into()));
    }
    if metadata.len() > LENGTH_MAX {
        return Err(LoadError::TooLarge { size: metadata.len(), limit: LENGTH_MAX });
    }
    Ok(metadata)
}

/// Only root and the station's own user may be able to change the file.
fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), LoadError> {
    let ours = nix::unistd::geteuid().as_raw();
    let mut looked_at = vec![(metadata.uid(), metadata.mode())];
    for folder in path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
        let metadata = fs::metadata(folder).map_err(unreadable)?;
        looked_at.push((metadata.uid(), metadata.mode()));
    }
    for (owner, mode) in looked_at {
        if owner != 0 && owner != ours {
            return Err(LoadError::BadOwner { owner, expected: format!("root or user {ours}") });
        }
        // A folder for all, as /tmp, is safe with its sticky bit.
        if mode & 0o022 != 0 && mode & 0o1000 == 0 {
            return Err(LoadError::BadMode { mode: mode & 0o7777 });
        }
    }
    Ok(())
}

/// Takes a file in; `folder` holds the private copies.
///
/// # Errors
///
/// Why it may not be loaded. Nothing of it has run.
pub(crate) fn take(path: &Path, folder: &Path, trust: &Trust) -> Result<Taken, LoadError> {
    let mut file = open(path)?;
    let metadata = check_kind(&file)?;
    if *trust != Trust::Any {
        let path = fs::canonicalize(path).map_err(unreadable)?;
        check_owner(&path, &metadata)?;
    }
    let copied =
        copy(&mut file, folder).map_err(|error| LoadError::StationFault(format!("its private copy: {error}")))?;
    let (sha256, path, bytes) = copied;
    if let Trust::Sha256(trusted) = trust
        && !trusted.contains(&sha256)
    {
        let _ = fs::remove_file(&path);
        return Err(LoadError::Untrusted(sha256));
    }
    match elf::inspect(&bytes) {
        Ok(inspection) => Ok(Taken { sha256, path, inspection }),
        Err(error) => {
            // Nothing will ever load it.
            let _ = fs::remove_file(&path);
            Err(error)
        }
    }
}

/// Looks at a private copy again before it is loaded.
///
/// # Errors
///
/// Why it may not be.
pub(super) fn retake(path: &Path, sha256: &str, trust: &Trust) -> Result<Taken, LoadError> {
    let bytes = fs::read(path).map_err(unreadable)?;
    let found = hex(&Sha256::digest(&bytes));
    if found != sha256 {
        let _ = fs::remove_file(path);
        return Err(LoadError::NotFetched("its copy on this disk was damaged; it is fetched anew next time".into()));
    }
    match trust {
        Trust::Sha256(trusted) if !trusted.contains(&found) => Err(LoadError::Untrusted(found)),
        _ => Ok(Taken { sha256: found, path: path.to_owned(), inspection: elf::inspect(&bytes)? }),
    }
}

/// Looks at a file without taking it in.
///
/// # Errors
///
/// Why it could not be loaded.
pub(super) fn look(path: &Path) -> Result<FoundPlugin, LoadError> {
    let mut file = open(path)?;
    check_kind(&file)?;
    let mut bytes = Vec::new();
    let read = file.by_ref().take(LENGTH_MAX).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    let inspection = elf::inspect(&bytes)?;
    Ok(FoundPlugin { sha256: hex(&Sha256::digest(&bytes)), size: bytes.len() as u64, inspection })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn copy(file: &mut File, folder: &Path) -> io::Result<(String, PathBuf, Vec<u8>)> {
    quilt_core::files::create_private_dir(folder)?;
    let mut bytes = Vec::new();
    file.take(LENGTH_MAX).read_to_end(&mut bytes)?;
    let sha256 = hex(&Sha256::digest(&bytes));
    let path = folder.join(format!("{sha256}.so"));
    // A copy is never changed, so one that is whole is the one.
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == bytes.len() as u64) && fs::read(&path)? == bytes {
        return Ok((sha256, path, bytes));
    }
    quilt_core::files::write_atomically(&path, &bytes)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o500))?;
    Ok((sha256, path, bytes))
}
