//! Takes resources away and gives them back.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use quilt_protocol::Name;
use quilt_protocol::control::Logs;
use rustix::process::{Resource as Limited, Rlimit, prlimit};
use tokio::time::Instant;

use crate::fleet::station_name;
use crate::processes::{self, Process};
use crate::schedule::{Resource, Shortage, Target};
use crate::site::{Daemon, Site};

/// How many follow the logs of a station: fewer than the 128 that one tool may.
const FOLLOWERS: usize = 120;
/// How often space is taken again that became free meanwhile.
const FILL_INTERVAL: Duration = Duration::from_millis(50);

/// Takes something away for its time, and gives it back. Answers what was done, for people.
pub(crate) async fn take(site: &Site, shortage: &Shortage) -> anyhow::Result<String> {
    let time = Duration::from_millis(shortage.for_ms);
    let daemon = site.daemon(&shortage.from);
    match (shortage.of, daemon) {
        (Resource::Descriptors, _) => descriptors(site, shortage, time).await,
        (Resource::Processor, _) => processor(site, shortage, time).await,
        (Resource::Logs, _) => logs(site, shortage, time).await,
        (Resource::Tasks, Some(Daemon { group: Some(group), .. })) => {
            tasks(group, shortage.amount.unsigned_abs(), time).await
        }
        (Resource::Space, Some(daemon)) => space(&daemon.data, shortage.amount.unsigned_abs(), time).await,
        (Resource::Disk, Some(daemon)) => control(&daemon.slow_disk, shortage.amount, time).await,
        (Resource::Clock, Some(daemon)) => control(&daemon.clock, shortage.amount, time).await,
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

/// Tells the shim something for a time.
async fn control(control: &Path, amount: i64, time: Duration) -> anyhow::Result<String> {
    std::os::unix::fs::symlink(amount.to_string(), control)?;
    tokio::time::sleep(time).await;
    fs::remove_file(control)?;
    Ok(String::new())
}

/// Has many follow the logs of a station, which has fewer descriptors left than that would take if each took its own.
async fn logs(site: &Site, shortage: &Shortage, time: Duration) -> anyhow::Result<String> {
    let until = Instant::now() + time;
    let Target::Station(station) = shortage.from else { return Ok("it has no logs".into()) };
    // Without the manager nobody follows anything.
    let Ok(client) = site.client().await else { return Ok("the manager cannot be reached".into()) };
    let views = client.stations("").await.unwrap_or_default();
    let view = views.into_iter().find(|view| view.name.as_str() == station_name(station));
    let instances: Vec<_> = view.into_iter().flat_map(|view| view.instances).collect();
    let request = |role: &Name, instance: &Name| Logs {
        role: role.clone(),
        instance: instance.clone(),
        lines: 1,
        follow: true,
        after: None,
    };
    let name: Name = station_name(station).parse()?;
    let followers = if instances.is_empty() { 0 } else { FOLLOWERS };
    let following = async {
        let followed = instances.iter().cycle().take(followers);
        let streams = followed.map(|one| client.logs(name.clone(), &request(&one.role, &one.instance)));
        let streams: Vec<_> = streams.collect();
        tokio::time::sleep_until(until).await;
        drop(streams);
    };
    // In this order: what followers take is not counted as open.
    let taking = descriptors(site, shortage, until.saturating_duration_since(Instant::now()));
    let (done, ()) = tokio::join!(taking, following);
    Ok(format!("{}, {followers} followers of {} logs", done?, instances.len()))
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
