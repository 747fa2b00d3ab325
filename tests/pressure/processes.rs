//! The processes of a round, as the kernel lists them.

use std::fs;
use std::path::Path;

use crate::fleet::{Mark, station_name};

/// A process with its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) arguments: Vec<String>,
    /// When it began, in clock ticks since the machine did: tells it from a later one of its number.
    pub(crate) started_ticks: u64,
}

/// All processes that have a path below a folder among their arguments.
pub(crate) fn below(folder: &Path) -> Vec<Process> {
    let folder = format!("{}/", folder.display());
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let here = pids.filter_map(read).filter(|process| process.arguments.iter().any(|one| one.contains(&folder)));
    here.collect()
}

/// A process that is there and no zombie.
pub(crate) fn read(pid: u32) -> Option<Process> {
    let stat = quilt_core::processes::ProcessStat::read(pid).ok().flatten()?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|arguments| !arguments.is_empty())?;
    let arguments = arguments.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    Some(Process { pid, arguments, started_ticks: stat.started_ticks })
}

impl Process {
    fn argument(&self, index: usize) -> &str {
        self.arguments.get(index).map_or("", String::as_str)
    }

    /// Its mark, if it is a program of a station.
    pub(crate) fn program(&self) -> Option<Mark> {
        if self.argument(1) == "program" { self.argument(3).parse().ok() } else { None }
    }

    /// Its mark and the pid of the program that started it, if it is such a process.
    pub(crate) fn child(&self) -> Option<(Mark, u32)> {
        if self.argument(1) != "child" {
            return None;
        }
        Some((self.argument(2).parse().ok()?, self.argument(3).parse().ok()?))
    }

    /// Whether it is the keeper of an instance.
    pub(crate) fn is_keeper_of(&self, station: usize, instance: &str) -> bool {
        let state = format!("/{}/station/instances/process/{instance}/state", station_name(station));
        self.argument(0) == "quilt-keeper" && self.arguments.iter().any(|one| one.ends_with(&state))
    }

    /// Whether it is still the same process and there.
    pub(crate) fn is_there(&self) -> bool {
        read(self.pid).is_some_and(|now| now.started_ticks == self.started_ticks)
    }
}
