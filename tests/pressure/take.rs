//! Takes resources away and gives them back.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use rustix::process::{Resource as Limited, Rlimit, prlimit};
use tokio::time::Instant;

use crate::processes::{self, Process};
use crate::schedule::{Resource, Shortage, Target};
use crate::site::{Daemon, Site};

/// How often space is taken again that became free meanwhile.
const FILL_INTERVAL: Duration = Duration::from_millis(50);

/// What this machine lets the driver do, and where things are.
pub(crate) struct Abilities {
    /// Where quilt's binaries are.
    binaries: PathBuf,
    /// Control groups of this driver, which limit tasks.
    pub(crate) groups: Option<PathBuf>,
    /// Whether data folders can be file systems of their own.
    pub(crate) space: bool,
    /// The library that makes the disk slow.
    pub(crate) shim: Option<PathBuf>,
}

impl Abilities {
    /// Finds out. Call it before any other thread exists: it gives this process a mount namespace of its own.
    pub(crate) fn find(folder: &Path) -> anyhow::Result<Self> {
        let binaries = std::env::current_exe()?.parent().context("a folder of binaries")?.to_owned();
        let space = unshare(CloneFlags::CLONE_NEWNS).is_ok()
            && mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).is_ok();
        let shim = folder.join("slow_disk.so");
        let source = folder.join("slow_disk.c");
        fs::write(&source, include_str!("slow_disk.c"))?;
        let built =
            std::process::Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(&source).status();
        let shim = built.is_ok_and(|status| status.success()).then_some(shim);
        Ok(Self { binaries, groups: control_groups(), space, shim })
    }

    /// One of quilt's binaries.
    pub(crate) fn binary(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.binaries.join(name);
        anyhow::ensure!(path.exists(), "{} is not built; run `cargo build --bins`", path.display());
        Ok(path)
    }

    /// What can be taken here, and why not the rest.
    pub(crate) fn resources(&self) -> (Vec<Resource>, Vec<&'static str>) {
        let mut can = vec![Resource::Descriptors, Resource::Processor, Resource::Files];
        let mut cannot = Vec::new();
        for (resource, is_able, why) in [
            (Resource::Tasks, self.groups.is_some(), "tasks: no control group of pids can be made here"),
            (Resource::Space, self.space, "space: no mount namespace can be made here"),
            (Resource::Disk, self.shim.is_some(), "disk: there is no C compiler"),
        ] {
            if is_able { can.push(resource) } else { cannot.push(why) }
        }
        (can, cannot)
    }
}

impl Drop for Abilities {
    fn drop(&mut self) {
        if let Some(groups) = &self.groups {
            let _ = fs::remove_dir(groups);
        }
    }
}

/// Makes a folder for control groups that limit tasks: with cgroup v1 or v2, whichever there is.
fn control_groups() -> Option<PathBuf> {
    for root in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"] {
        let groups = Path::new(root).join(format!("quilt-pressure-{}", std::process::id()));
        if fs::create_dir(&groups).is_err() {
            continue;
        }
        // Without this a group of v2 has no limit; v1 has no such file.
        let _ = fs::write(groups.join("cgroup.subtree_control"), "+pids");
        let probe = groups.join("probe");
        let is_able = fs::create_dir(&probe).is_ok() && probe.join("pids.max").exists();
        let _ = fs::remove_dir(&probe);
        if is_able {
            return Some(groups);
        }
        let _ = fs::remove_dir(&groups);
    }
    None
}

/// Takes something away for its time, and gives it back. Answers what was done, for people.
pub(crate) async fn take(site: &Site, shortage: &Shortage) -> anyhow::Result<String> {
    let time = Duration::from_millis(shortage.for_ms);
    let daemon = site.daemon(&shortage.from);
    match (shortage.of, daemon) {
        (Resource::Descriptors, _) => descriptors(site, shortage, time).await,
        (Resource::Processor, _) => processor(site, shortage, time).await,
        (Resource::Tasks, Some(Daemon { group: Some(group), .. })) => {
            tasks(group, shortage.amount.unsigned_abs(), time).await
        }
        (Resource::Space, Some(daemon)) => space(&daemon.data, shortage.amount.unsigned_abs(), time).await,
        (Resource::Disk, Some(daemon)) => disk(&daemon.slow_disk, shortage.amount.unsigned_abs(), time).await,
        _ => Ok("there is nothing to take".into()),
    }
}

/// The process that is meant, if it is there now.
fn process(site: &Site, target: &Target) -> Option<Process> {
    match target {
        Target::Keeper(station, instance) => {
            processes::below(site.folder()).into_iter().find(|process| process.is_keeper_of(*station, instance))
        }
        _ => processes::read(site.daemon(target)?.pid()?),
    }
}

async fn descriptors(site: &Site, shortage: &Shortage, time: Duration) -> anyhow::Result<String> {
    let Some(process) = process(site, &shortage.from) else { return Ok("there is no such process".into()) };
    let pid = rustix::process::Pid::from_raw(process.pid as i32);
    let open = fs::read_dir(format!("/proc/{}/fd", process.pid)).map(Iterator::count).unwrap_or(0);
    let left = u64::try_from(open)?.saturating_add_signed(shortage.amount);
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid))?;
    let (current, maximum) = open_files(&limits).context("limits of open files")?;
    let limit = |current| Rlimit { current: Some(current), maximum };
    prlimit(pid, Limited::Nofile, limit(left))?;
    tokio::time::sleep(time).await;
    if process.is_there() {
        prlimit(pid, Limited::Nofile, limit(current))?;
    }
    Ok(format!("process {} had {open} open", process.pid))
}

async fn processor(site: &Site, shortage: &Shortage, time: Duration) -> anyhow::Result<String> {
    let Some(process) = process(site, &shortage.from) else { return Ok("there is no such process".into()) };
    let pid = Pid::from_raw(process.pid as i32);
    kill(pid, Signal::SIGSTOP)?;
    tokio::time::sleep(time).await;
    if process.is_there() {
        kill(pid, Signal::SIGCONT)?;
    }
    Ok(format!("process {}", process.pid))
}

async fn tasks(group: &Path, left: u64, time: Duration) -> anyhow::Result<String> {
    let used = fs::read_to_string(group.join("pids.current"))?;
    let used: u64 = used.trim().parse().context("the number of tasks")?;
    fs::write(group.join("pids.max"), (used + left).to_string())?;
    tokio::time::sleep(time).await;
    fs::write(group.join("pids.max"), "max")?;
    Ok(format!("there were {used}"))
}

async fn space(data: &Path, left_kib: u64, time: Duration) -> anyhow::Result<String> {
    let filler = data.join("filler");
    let mut file = fs::File::create(&filler)?;
    let until = Instant::now() + time;
    let mut taken = 0;
    while Instant::now() < until {
        let stat = statvfs(data)?;
        let free = stat.blocks_available() * stat.fragment_size();
        let wanted = free.saturating_sub(left_kib * 1024);
        // Whoever else writes may be quicker: then this is the one that finds the disk full.
        let _ = file.write_all(&vec![1; usize::try_from(wanted)?]);
        taken += wanted;
        tokio::time::sleep_until(until.min(Instant::now() + FILL_INTERVAL)).await;
    }
    drop(file);
    fs::remove_file(&filler)?;
    Ok(format!("{} KiB were free", taken / 1024))
}

async fn disk(control: &Path, delay_ms: u64, time: Duration) -> anyhow::Result<String> {
    std::os::unix::fs::symlink(delay_ms.to_string(), control)?;
    tokio::time::sleep(time).await;
    fs::remove_file(control)?;
    Ok(String::new())
}

/// The soft and hard limit of open files, from the kernel's text.
fn open_files(limits: &str) -> Option<(u64, Option<u64>)> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_whitespace();
    let soft = words.next()?.parse().ok()?;
    Some((soft, words.next()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_open_files_are_read_from_the_kernels_text() {
        let text = "Max processes             96365                96365                processes\n\
                    Max open files            1024                 20000                files     \n";
        assert_eq!(open_files(text), Some((1024, Some(20000))));
        assert_eq!(open_files("Max open files            1024  unlimited  files"), Some((1024, None)));
        assert_eq!(open_files(""), None);
    }
}
