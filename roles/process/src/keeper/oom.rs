//! Whether the kernel's out-of-memory killer was at work. The kernel does not say whom it killed; it only counts, per control group
//! and for the machine. A count that grew shortly before a program was killed is the only evidence there is.

use std::fs;
use std::time::{Duration, Instant};

/// The greatest age of the count that the one at the end is compared with.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);

/// A count of processes that the out-of-memory killer has killed.
pub(super) struct OomWatch {
    count: Option<u64>,
    taken: Instant,
}

impl OomWatch {
    /// Takes the count.
    pub(super) fn new() -> Self {
        Self { count: count(), taken: Instant::now() }
    }

    /// When [`OomWatch::refresh`] is due.
    pub(super) fn refresh_at(&self) -> Instant {
        self.taken + REFRESH_INTERVAL
    }

    /// Takes the count again if it is old.
    pub(super) fn refresh(&mut self) {
        if Instant::now() >= self.refresh_at() {
            *self = Self::new();
        }
    }

    /// Whether processes were killed since the count was taken.
    pub(super) fn has_grown(&self) -> bool {
        self.count.zip(count()).is_some_and(|(before, now)| now > before)
    }
}

/// The count of this process's control group, or of the machine if groups do not count.
fn count() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files = count_files(&groups).into_iter().chain(["/proc/vmstat".to_owned()]);
    files.filter_map(|file| parse(&fs::read_to_string(file).ok()?)).next()
}

/// Where the control groups of a process, as `/proc/self/cgroup` lists them, have their counts.
fn count_files(groups: &str) -> Vec<String> {
    let file = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        match (fields.next()?, fields.next()?.trim_end_matches('/')) {
            ("", group) => Some(format!("/sys/fs/cgroup{group}/memory.events")),
            ("memory", group) => Some(format!("/sys/fs/cgroup/memory{group}/memory.oom_control")),
            _ => None,
        }
    };
    groups.lines().filter_map(file).collect()
}

fn parse(counts: &str) -> Option<u64> {
    counts.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_what_each_kind_of_control_group_shows() {
        assert_eq!(
            count_files("0::/system.slice/quilt.service\n"),
            ["/sys/fs/cgroup/system.slice/quilt.service/memory.events"]
        );
        let old = "9:name=systemd:/\n4:memory:/a:b\n0::/\n";
        assert_eq!(count_files(old), ["/sys/fs/cgroup/memory/a:b/memory.oom_control", "/sys/fs/cgroup/memory.events"]);
        assert_eq!(parse("low 0\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\n"), None);
    }
}
