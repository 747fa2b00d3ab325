//! What this process is short of: descriptors, tasks, or room on its disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::disk;

/// How many descriptors are kept for what must go on when there are few: stopping and starting programs, and the connections that
/// there are.
pub const DESCRIPTORS_RESERVED: u64 = 64;
/// How many bytes a disk must take to count as usable.
const ROOM: usize = 64 << 10;
/// How long a disk may take to say whether it is usable.
const PATIENCE: Duration = Duration::from_secs(2);

/// Raises the soft limit of open files of this process to the hard one. Call it at the start of a daemon. Programs get a limit of their
/// own, see [`clean_start`](crate::clean_start).
pub fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, hard, "the limit of open files stays as it is");
    }
}

/// Whether a descriptor that was just opened is one of the last [`DESCRIPTORS_RESERVED`]. The kernel gives the lowest number that is
/// free, so one near the limit says that all below it are taken.
pub fn is_reserved(descriptor: &impl AsFd) -> bool {
    getrlimit(Resource::RLIMIT_NOFILE)
        .is_ok_and(|(soft, _)| descriptor.as_fd().as_raw_fd() as u64 >= soft.saturating_sub(DESCRIPTORS_RESERVED))
}

/// Whether only the last [`DESCRIPTORS_RESERVED`] descriptors are free, or fewer.
pub fn is_short_of_descriptors() -> bool {
    File::open("/dev/null").map_or(true, |file| is_reserved(&file))
}

/// Says what keeps this process from working in `folder`, if anything does: no descriptors, no tasks, or a disk that takes nothing.
/// What failed meanwhile may not be at fault itself. Blocks.
pub fn find(folder: &Path) -> Option<String> {
    // Two, as most work needs more than one.
    if let Err(error) = File::open("/dev/null").and_then(|file| file.try_clone()) {
        return Some(format!("this process cannot open files: {error}"));
    }
    if let Err(error) = thread::Builder::new().spawn(|| ()) {
        return Some(format!("this process cannot start tasks: {error}"));
    }
    let probe = folder.join("probe.new");
    let tried = try_to_write(&probe);
    let _ = fs::remove_file(&probe);
    tried.err().map(|error| format!("this station's disk takes nothing: {}: {error}", folder.display()))
}

/// The same away from the runtime's workers. A disk that hangs counts as one that takes nothing.
///
/// # Cancel safety
///
/// It only looks.
pub async fn look(folder: &Path) -> Option<String> {
    let folder = folder.to_owned();
    let finding = tokio::time::timeout(PATIENCE, disk::run(move || find(&folder))).await;
    finding.unwrap_or_else(|_| Some("this station's disk does not answer".to_owned()))
}

fn try_to_write(probe: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(probe)?;
    file.write_all(&[0; ROOM])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_can_be_written_lacks_nothing_and_one_that_is_gone_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find(folder.path()), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the probe is gone");
        let gone = folder.path().join("gone");
        assert!(find(&gone).unwrap().contains(gone.to_str().unwrap()));
    }
}
