//! The folders of instances: what is there, and the end of those whose instance was removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quilt_protocol::control::InstanceFolder;

use crate::instance::instance_dir;
use crate::spec::Key;

/// How many bytes the folders of all removed instances may have.
const REMOVED_BYTES_MAX: u64 = 1 << 30;

/// The folders of all instances that there are or were, in the order of their names. Reads them whole.
pub(crate) fn list(folder: &Path, is_used: impl Fn(&Key) -> bool) -> Vec<InstanceFolder> {
    let mut all: Vec<_> = keys(folder).into_iter().map(|key| look(folder, key, &is_used)).collect();
    all.sort_by(|a, b| (&a.role, &a.instance).cmp(&(&b.role, &b.instance)));
    all
}

fn keys(folder: &Path) -> Vec<Key> {
    let names = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let of_role = |role: String| {
        let instances = names(&folder.join(&role)).into_iter();
        instances.filter_map(move |instance| format!("{role}/{instance}").parse().ok()).collect::<Vec<Key>>()
    };
    names(folder).into_iter().flat_map(of_role).collect()
}

fn look(folder: &Path, key: Key, is_used: impl Fn(&Key) -> bool) -> InstanceFolder {
    let (mut bytes, mut changed) = (0, UNIX_EPOCH);
    let mut open = vec![instance_dir(folder, &key)];
    while let Some(path) = open.pop() {
        // A link counts as itself.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        changed = changed.max(metadata.modified().unwrap_or(UNIX_EPOCH));
        if metadata.is_dir() {
            open.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else {
            bytes += metadata.len();
        }
    }
    let changed_ms = changed.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let used = is_used(&key);
    InstanceFolder { role: key.role, instance: key.instance, used, bytes, changed_ms }
}

/// Which folders of removed instances are to be deleted: those that nothing has changed for `keep`, and the oldest of the others as far
/// as all together have more than [`REMOVED_BYTES_MAX`].
pub(crate) fn expired(all: &[InstanceFolder], keep: Duration, now_ms: u64) -> Vec<Key> {
    let mut removed: Vec<_> = all.iter().filter(|folder| !folder.used).collect();
    removed.sort_by_key(|folder| std::cmp::Reverse(folder.changed_ms));
    let mut bytes = 0;
    let is_expired = |folder: &&InstanceFolder| {
        bytes += folder.bytes;
        let age = Duration::from_millis(now_ms.saturating_sub(folder.changed_ms));
        age >= keep || bytes > REMOVED_BYTES_MAX
    };
    let expired = removed.into_iter().filter(is_expired);
    expired.map(|folder| Key { role: folder.role.clone(), instance: folder.instance.clone() }).collect()
}

/// When a role changed what it keeps in an instance's state folder; nothing if there is nothing in it.
pub(crate) fn last_state(folder: &Path, key: &Key) -> Option<SystemTime> {
    let entries = fs::read_dir(instance_dir(folder, key).join("state")).ok()?;
    entries.flatten().filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()
}

/// Takes the folder of an instance away at once: an instance of that name finds nothing from here on. What is to be deleted then.
///
/// # Errors
///
/// What the operating system says.
pub(crate) fn set_aside(folder: &Path, key: &Key) -> std::io::Result<PathBuf> {
    let aside = folder.with_file_name("purged");
    fs::create_dir_all(&aside)?;
    let to = aside.join(format!("{}~{}", key.role, key.instance));
    // Left by a station that ended in the middle of it.
    let _ = fs::remove_dir_all(&to);
    fs::rename(instance_dir(folder, key), &to)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_removed_instances_are_kept_for_a_time_and_up_to_a_size_and_those_in_use_for_ever() {
        const DAY: u64 = 86_400_000;
        let folder = |instance: &str, used, days, bytes| InstanceFolder {
            role: "process".parse().unwrap(),
            instance: instance.parse().unwrap(),
            used,
            bytes,
            changed_ms: 100 * DAY - days * DAY,
        };
        let gigabyte = REMOVED_BYTES_MAX;
        let all = [
            folder("used", true, 99, 9 * gigabyte),
            folder("old", false, 31, 1),
            folder("yesterday", false, 1, gigabyte / 2),
            folder("today", false, 0, gigabyte / 2),
            folder("before", false, 2, 1),
        ];
        let expired = |keep| {
            let keys = expired(&all, Duration::from_millis(keep), 100 * DAY).into_iter();
            keys.map(|key| key.instance.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(expired(30 * DAY), ["before", "old"]);
        assert_eq!(expired(0), ["today", "yesterday", "before", "old"]);
    }

    #[test]
    fn folders_are_listed_with_what_is_in_them_and_what_is_set_aside_is_not_found_any_more() {
        let world = tempfile::tempdir().unwrap();
        let folder = world.path().join("instances");
        for (place, text) in [("process/web/state/a", "four"), ("process/web/log/b/c", "three"), ("imp/x/state/a", "")]
        {
            fs::create_dir_all(folder.join(place).parent().unwrap()).unwrap();
            fs::write(folder.join(place), text).unwrap();
        }
        std::os::unix::fs::symlink("/", folder.join("imp/x/state/all")).unwrap();
        // Nobody's.
        fs::create_dir_all(folder.join("process/..x")).unwrap();
        let names = || {
            let all = list(&folder, |key| key.instance.as_str() == "web");
            all.into_iter()
                .map(|one| (format!("{}/{}", one.role, one.instance), one.used, one.bytes))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(), [("imp/x".into(), false, 1), ("process/web".into(), true, 9)]);
        let key: Key = "imp/x".parse().unwrap();
        assert!(last_state(&folder, &key).is_some());
        let aside = set_aside(&folder, &key).unwrap();
        assert!(aside.join("state/a").exists());
        assert_eq!(names(), [("process/web".into(), true, 9)]);
        assert!(last_state(&folder, &key).is_none());
        assert!(set_aside(&folder, &key).is_err());
    }
}
