//! Fetching a plugin's file from the manager: in pieces, going on where an earlier attempt was cut, bounded and checked.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quilt_core::{disk, files};
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
    let known = path.clone();
    if disk::run(move || known.exists()).await {
        return Ok(path);
    }
    let failed = |text: String| LoadError::NotFetched(text);
    if !link.is_connected() {
        return Err(failed("there is no manager now to fetch it from".into()));
    }
    let part = folder.join(format!("{sha256}.part"));
    let begun = part.clone();
    let begin = disk::run(move || {
        let file = files::open_regular(&begun, OpenOptions::new().append(true).create(true).mode(0o600))?;
        let there = file.metadata()?.len();
        io::Result::Ok((Arc::new(file), there))
    });
    let (file, mut there) = begin.await.map_err(failed_disk)?;
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
            let _ = disk::run(move || fs::remove_file(&part)).await;
            return Err(failed(format!("{there} of {size} bytes came; it is fetched anew next time")));
        }
        let to = file.clone();
        disk::run(move || to.as_ref().write_all(&piece)).await.map_err(failed_disk)?;
        if there == size {
            break;
        }
    }
    disk::run(move || {
        file.sync_all().map_err(failed_disk)?;
        let checked = check(&part, &path, sha256);
        // An attempt that was given up checks what it has to the end, and may have been first.
        checked.or_else(|error| if path.exists() { Ok(path) } else { Err(error) })
    })
    .await
}

/// Only what has the hash that was asked for gets the name under which it is loaded.
fn check(part: &Path, path: &Path, sha256: Digest) -> Result<PathBuf, LoadError> {
    use std::os::unix::fs::PermissionsExt as _;
    if Digest(files::sha256_of(part).map_err(failed_disk)?) != sha256 {
        fs::remove_file(part).map_err(failed_disk)?;
        return Err(LoadError::NotFetched("what came has another hash; it is fetched anew next time".into()));
    }
    fs::set_permissions(part, fs::Permissions::from_mode(0o500)).map_err(failed_disk)?;
    fs::rename(part, path).map_err(failed_disk)?;
    Ok(path.to_owned())
}

fn failed_disk(error: io::Error) -> LoadError {
    LoadError::StationFault(format!("this station's disk: {error}"))
}
