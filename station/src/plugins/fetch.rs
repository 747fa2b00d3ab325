//! Fetching a plugin's file from the manager: in pieces, going on where an earlier attempt was cut, bounded and checked.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quilt_core::files;
use quilt_protocol::control::{FilePiece, ReadFile, command};
use quilt_protocol::{Address, Digest, Encoding};

use super::LoadError;
use super::intake::LENGTH_MAX;
use crate::session::Link;

/// How long the manager may take for a piece.
const PIECE: Duration = Duration::from_secs(30);

/// Fetches the file with this hash into `folder`, unless it is there.
pub(super) async fn fetch(link: &Link, sha256: Digest, folder: &Path) -> Result<PathBuf, LoadError> {
    let path = folder.join(format!("{sha256}.so"));
    if path.exists() {
        return Ok(path);
    }
    let failed = |text: String| LoadError::NotFetched(text);
    let disk = |error: io::Error| failed(format!("this station's disk: {error}"));
    if !link.is_connected() {
        return Err(failed("there is no manager now to fetch it from".into()));
    }
    let part = folder.join(format!("{sha256}.part"));
    let mut file = OpenOptions::new().append(true).create(true).open(&part).map_err(disk)?;
    let mut there = file.metadata().map_err(disk)?.len();
    loop {
        let manager = link.manager().await.ok_or_else(|| failed("there is no manager now to fetch it from".into()))?;
        let request = ReadFile { sha256, offset: there };
        let asked = manager.ask(Address::Manager, command::READ_FILE, Encoding::Bincode, &request, PIECE).await;
        let FilePiece { size, piece } = asked.map_err(|error| failed(error.to_string()))?;
        if size > LENGTH_MAX {
            return Err(LoadError::TooLarge { size, limit: LENGTH_MAX });
        }
        there += piece.len() as u64;
        if there > size || (piece.is_empty() && there < size) {
            let _ = fs::remove_file(&part);
            return Err(failed(format!("{there} of {size} bytes came; it is fetched anew next time")));
        }
        file.write_all(&piece).map_err(disk)?;
        if there == size {
            break;
        }
    }
    file.sync_all().map_err(disk)?;
    drop(file);
    let checking = tokio::task::spawn_blocking(move || {
        let checked = check(&part, &path, sha256);
        // An attempt that was given up checks what it has to the end, and may have been first.
        checked.or_else(|error| if path.exists() { Ok(path) } else { Err(error) })
    });
    checking.await.unwrap_or_else(|error| Err(failed(error.to_string())))
}

/// Only what has the hash that was asked for gets the name under which it is loaded.
fn check(part: &Path, path: &Path, sha256: Digest) -> Result<PathBuf, LoadError> {
    use std::os::unix::fs::PermissionsExt as _;
    let disk = |error: io::Error| LoadError::NotFetched(format!("this station's disk: {error}"));
    if Digest(files::sha256_of(part).map_err(disk)?) != sha256 {
        fs::remove_file(part).map_err(disk)?;
        return Err(LoadError::NotFetched("what came has another hash; it is fetched anew next time".into()));
    }
    fs::set_permissions(part, fs::Permissions::from_mode(0o500)).map_err(disk)?;
    fs::rename(part, path).map_err(disk)?;
    Ok(path.to_owned())
}
