//! What happens in a round. Values only; `draw` makes them from a seed.

use std::fmt;

use crate::fleet::{Fleet, station_name};

/// A kind of thing that can be taken away.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub(crate) enum Resource {
    /// Open descriptors of a process.
    Descriptors,
    /// New tasks of a daemon and of all that it starts.
    Tasks,
    /// Space in a data folder.
    Space,
    /// Time of the disk: synchronising takes long.
    Disk,
    /// The processor of a process.
    Processor,
    /// Files of an instance, removed while it runs.
    Files,
    /// Descriptors of a station, by many who follow its logs.
    Logs,
    /// The time of day: it jumps for a while.
    Clock,
}

/// From whom something is taken.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Target {
    Manager,
    Station(usize),
    /// The keeper of a program.
    Keeper(usize, String),
}

/// Something that is taken away for a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Shortage {
    pub(crate) at_ms: u64,
    pub(crate) for_ms: u64,
    pub(crate) of: Resource,
    pub(crate) from: Target,
    /// What is left: descriptors, tasks, or KiB; for the disk, how many milliseconds each wait takes; for the clock, by how many seconds
    /// it jumps. Negative: descriptors fewer than are open, so that closing one does not help either.
    pub(crate) amount: i64,
}

/// Something that happens to a process or file at once and is not taken back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Blow {
    pub(crate) at_ms: u64,
    pub(crate) to: Victim,
}

/// What a blow is to. Times are how long until the service manager starts a daemon again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Victim {
    KillManager {
        down_ms: u64,
    },
    KillStation {
        station: usize,
        down_ms: u64,
    },
    /// Ended by TERM: its programs go on.
    RestartStation {
        station: usize,
        down_ms: u64,
    },
    KillKeeper(usize, String),
    KillProgram(usize, String),
    /// The file by whose lock a keeper is known.
    RemoveLock(usize, String),
    /// The whole state folder of an instance.
    RemoveState(usize, String),
    /// Either of them, after the station was killed and before it is started again.
    RemoveWhileAway {
        station: usize,
        instance: String,
        all: bool,
        down_ms: u64,
    },
}

/// What an operator does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verb {
    Apply {
        fleet: Fleet,
        wait: bool,
        rollback: bool,
    },
    Order {
        station: usize,
        instance: String,
        action: Action,
    },
    /// Follows a log until the end of the round.
    Follow {
        station: usize,
        instance: String,
    },
    /// Goes back to what a station ran well last.
    Rollback {
        station: usize,
    },
    /// Gives a build of the plugin to all stations.
    Push {
        build: usize,
    },
}

/// What an operator wants of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Start,
    Stop,
    Restart,
}

impl Action {
    /// The verb of `quiltctl`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

/// A round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    /// What runs when it begins.
    pub(crate) first: Fleet,
    /// Whether every station runs an instance of the plugin.
    pub(crate) has_plugin: bool,
    /// One after the other, each after a pause in milliseconds.
    pub(crate) verbs: Vec<(u64, Verb)>,
    pub(crate) shortages: Vec<Shortage>,
    pub(crate) blows: Vec<Blow>,
}

impl Schedule {
    /// How many stations there are.
    pub(crate) fn stations(&self) -> usize {
        self.first.stations.len()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manager => f.write_str("the manager"),
            Self::Station(station) => f.write_str(&station_name(*station)),
            Self::Keeper(station, name) => write!(f, "the keeper of {}/{name}", station_name(*station)),
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at_ms, for_ms, of, from, amount } = self;
        let left = match of {
            Resource::Descriptors => format!("descriptors of {from}, {amount} left"),
            Resource::Tasks => format!("new tasks of {from}, {amount} left"),
            Resource::Space => format!("space of {from}, {amount} KiB left"),
            Resource::Disk => format!("disk time of {from}, {amount} ms a wait"),
            Resource::Processor => format!("processor of {from}"),
            Resource::Files => format!("files of {from}"),
            Resource::Logs => format!("descriptors of {from}, by followers of logs, {amount} left"),
            Resource::Clock => format!("time of day of {from}, {amount} s off"),
        };
        write!(f, "from {at_ms} to {} ms: {left}", at_ms + for_ms)
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |station: &usize, instance: &str| format!("{}/{instance}", station_name(*station));
        match self {
            Self::KillManager { down_ms } => write!(f, "kill the manager, start it {down_ms} ms later"),
            Self::KillStation { station, down_ms } => {
                write!(f, "kill {}, start it {down_ms} ms later", station_name(*station))
            }
            Self::RestartStation { station, down_ms } => {
                write!(f, "stop {}, start it {down_ms} ms later", station_name(*station))
            }
            Self::KillKeeper(station, instance) => write!(f, "kill the keeper of {}", name(station, instance)),
            Self::KillProgram(station, instance) => write!(f, "kill the program {}", name(station, instance)),
            Self::RemoveLock(station, instance) => write!(f, "remove keeper.lock of {}", name(station, instance)),
            Self::RemoveState(station, instance) => write!(f, "remove the state folder of {}", name(station, instance)),
            Self::RemoveWhileAway { station, instance, all, down_ms } => {
                let (name, station) = (name(station, instance), station_name(*station));
                let what = if *all { "the state folder" } else { "keeper.lock" };
                write!(f, "kill {station}, remove {what} of {name}, start {station} {down_ms} ms later")
            }
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apply { fleet, wait, rollback } => {
                let more = [(*wait, " --wait"), (*rollback, " --rollback"), (fleet.fails(), " (one program fails)")];
                let more: String = more.iter().filter(|(said, _)| *said).map(|(_, text)| *text).collect();
                write!(f, "apply {}{more}", fleet.number)
            }
            Self::Order { station, instance, action } => {
                write!(f, "{} {}/{instance}", action.name(), station_name(*station))
            }
            Self::Follow { station, instance } => write!(f, "follow the log of {}/{instance}", station_name(*station)),
            Self::Rollback { station } => write!(f, "rollback {}", station_name(*station)),
            Self::Push { build } => write!(f, "push build {build} of the plugin"),
        }
    }
}

impl fmt::Display for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fleet {}:", self.number)?;
        for (station, programs) in self.stations.iter().enumerate() {
            let programs: Vec<_> =
                programs.iter().map(|(name, one)| format!("{name}=v{} {}", one.version, one.kind.name())).collect();
            write!(f, " {} [{}]", station_name(station), programs.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {}", self.first)?;
        for (pause, verb) in &self.verbs {
            writeln!(f, "  {pause} ms later: {verb}")?;
            if let Verb::Apply { fleet, .. } = verb {
                writeln!(f, "    {fleet}")?;
            }
        }
        self.shortages.iter().try_for_each(|shortage| writeln!(f, "  {shortage}"))?;
        self.blows.iter().try_for_each(|blow| writeln!(f, "  at {} ms: {}", blow.at_ms, blow.to))
    }
}
