//! Where a folder is, whatever it is called: through a symbolic link, a bind mount or `..`, and after it was moved or removed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use quilt_core::processes::unless_gone;

/// What the kernel appends to the name of an open folder that was removed.
const DELETED: &[u8] = b" (deleted)";

/// One folder on the way up to the root: its name, and device and inode if it exists.
#[derive(Debug)]
struct Level {
    name: Option<OsString>,
    identity: Option<(u64, u64)>,
}

/// A folder and those above it.
#[derive(Debug)]
pub(super) struct Place(Vec<Level>);

impl Place {
    /// The place that a path names. The folder need not exist.
    pub(super) fn of(folder: &Path) -> Self {
        Self::new(folder, |up| folder.ancestors().nth(up).unwrap_or(folder).to_owned())
    }

    /// The place of the folder of this name that a process holds open. `None` if it holds none, or if this process may not look.
    ///
    /// # Errors
    ///
    /// This process cannot look now, for want of descriptors or memory.
    pub(super) fn held_by(pid: u32, name: Option<&OsStr>) -> io::Result<Option<Self>> {
        let open = match fs::read_dir(format!("/proc/{pid}/fd")) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            open => unless_gone(open)?,
        };
        let open = open.into_iter().flatten().flatten().map(|entry| entry.path());
        let folders = open.filter(|open| open.metadata().is_ok_and(|found| found.is_dir()));
        let mut places = folders.filter_map(|open| Some((fs::read_link(&open).ok()?, open))).map(|(link, open)| {
            // `..` leads from a folder that was removed to the one that it was in.
            Self::new(&without_mark(link), |up| (0..up).fold(open.clone(), |path, _| path.join("..")))
        });
        Ok(places.find(|place| place.0.first().is_some_and(|level| level.name.as_deref() == name)))
    }

    fn new(path: &Path, at: impl Fn(usize) -> PathBuf) -> Self {
        let level = |(up, path): (usize, &Path)| Level {
            name: path.file_name().map(OsStr::to_owned),
            identity: at(up).metadata().ok().map(|found| (found.dev(), found.ino())),
        };
        Self(path.ancestors().enumerate().map(level).collect())
    }

    /// The place of the folder that is so many levels up.
    pub(super) fn above(mut self, levels: usize) -> Self {
        self.0.drain(..levels.min(self.0.len()));
        self
    }

    /// The names of the innermost levels, from the outer to the inner.
    pub(super) fn last_names<const COUNT: usize>(&self) -> Option<[String; COUNT]> {
        let names = self.0.iter().take(COUNT).map(|level| level.name.as_ref()?.to_str().map(str::to_owned));
        let mut names = names.collect::<Option<Vec<_>>>()?;
        names.reverse();
        names.try_into().ok()
    }

    /// Whether both are one folder, or have the same names below one folder: then one of them was removed and made again.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        for (ours, theirs) in self.0.iter().zip(&other.0) {
            if ours.identity.is_some() && ours.identity == theirs.identity {
                return true;
            }
            if ours.name != theirs.name {
                return false;
            }
        }
        false
    }
}

/// A path of `sibling`, which lies beside the open folder that was opened as `named`, that leads there from the open folder. It stays
/// right wherever a folder above the instance's is moved, and if those in between are removed and made again. Where links make such a
/// path lead elsewhere it begins further down, or is `sibling` itself.
pub(super) fn beside(open: &File, named: &Path, sibling: &Path) -> PathBuf {
    let identity = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    let begin = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    for levels in (1..=LEVELS_UP).rev() {
        let (Some(above), Some(ours)) = (sibling.ancestors().nth(levels), named.ancestors().nth(levels)) else {
            continue;
        };
        let up = (0..levels).fold(begin.clone(), |path, _| path.join(".."));
        let is_there = identity(&up).is_some() && identity(&up) == identity(above) && above == ours;
        if let Some(rest) = sibling.strip_prefix(above).ok().filter(|_| is_there) {
            return up.join(rest);
        }
    }
    sibling.to_owned()
}

/// How far up [`beside`] begins: instances / role / instance / state.
const LEVELS_UP: usize = 3;

/// The path of an open folder without the mark of one that was removed.
fn without_mark(link: PathBuf) -> PathBuf {
    match link.as_os_str().as_bytes().strip_suffix(DELETED) {
        Some(path) => OsString::from_vec(path.to_owned()).into(),
        None => link,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use quilt_core::lines::{Reader, Writer};

    use super::*;

    #[test]
    fn a_folder_that_is_held_open_is_known_by_every_spelling_also_after_it_was_moved_or_removed() {
        let top = tempfile::tempdir().unwrap();
        // No other folder that this process holds open has this name.
        let tail = "instances/p/state-of-a-place";
        let (data, link, moved) = (top.path().join("data"), top.path().join("link"), top.path().join("moved"));
        let folder = data.join(tail);
        fs::create_dir_all(&folder).unwrap();
        symlink(&data, &link).unwrap();
        let _open = File::open(&folder).unwrap();
        let is_held = |path: &Path| {
            let held = Place::held_by(std::process::id(), folder.file_name()).unwrap().unwrap();
            held.is_same_as(&Place::of(path))
        };
        let is_known = |data: &Path| {
            assert!(is_held(&data.join(tail)));
            assert!(is_held(&data.join("..").join(data.file_name().unwrap()).join(tail)));
            assert!(!is_held(&data.join("instances/q/state-of-a-place")));
            assert!(!is_held(&data.join("instances/p/log")));
            assert!(!is_held(&data.join("instances/p")));
        };
        is_known(&data);
        is_known(&link);

        fs::rename(&data, &moved).unwrap();
        is_known(&moved);
        // A copy by the name of before is another folder.
        fs::create_dir_all(&folder).unwrap();
        assert!(!is_held(&folder) && !is_held(&link.join(tail)));

        fs::remove_dir_all(&data).unwrap();
        fs::remove_file(&link).unwrap();
        symlink(&moved, &link).unwrap();
        for removed in [tail, "instances/p", "instances"] {
            fs::remove_dir_all(moved.join(removed)).unwrap();
            is_known(&moved);
            is_known(&link);
            fs::create_dir_all(moved.join(tail)).unwrap();
            is_known(&moved);
            is_known(&link);
        }
    }

    #[test]
    fn a_log_is_written_where_the_folder_beside_it_is_however_those_above_are_moved_or_removed() {
        let top = tempfile::tempdir().unwrap();
        let (data, moved) = (top.path().join("data"), top.path().join("moved"));
        let (state, log) = (data.join("instances/process/main/state"), data.join("instances/process/main/log"));
        fs::create_dir_all(&state).unwrap();
        let open = File::open(&state).unwrap();
        let mut writer = Writer::open(&beside(&open, &state, &log)).unwrap();
        writer.append("out", "one").unwrap();
        assert!(log.join("log").exists());
        fs::rename(&data, &moved).unwrap();
        writer.append("out", "two").unwrap();
        let log = moved.join("instances/process/main/log");
        assert!(!data.exists(), "the old path was made again");
        assert_eq!(Reader::open(&log, 10).unwrap().more().unwrap().len(), 2);
        for removed in ["main/log", "main", ""] {
            fs::remove_dir_all(moved.join("instances/process").join(removed)).unwrap();
            writer.append("out", "three").unwrap();
            assert_eq!(Reader::open(&log, 10).unwrap().more().unwrap().len(), 1, "{removed}");
        }
        assert!(!data.exists(), "the old path was made again");

        // An instance's folder on another disk.
        let elsewhere = top.path().join("elsewhere");
        fs::create_dir_all(elsewhere.join("state")).unwrap();
        fs::create_dir_all(&data).unwrap();
        let linked = data.join("linked");
        symlink(&elsewhere, &linked).unwrap();
        let open = File::open(linked.join("state")).unwrap();
        Writer::open(&beside(&open, &linked.join("state"), &linked.join("log"))).unwrap().append("out", "x").unwrap();
        assert!(elsewhere.join("log/log").exists());
        assert_eq!(beside(&open, &linked.join("state"), Path::new("/nowhere/log")), Path::new("/nowhere/log"));
    }

    #[test]
    fn a_process_that_holds_no_such_folder_has_no_place() {
        assert!(Place::held_by(std::process::id(), Some(OsStr::new("nowhere"))).unwrap().is_none());
        assert!(Place::held_by(1 << 30, Some(OsStr::new("nowhere"))).unwrap().is_none());
    }
}
