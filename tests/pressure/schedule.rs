//! What happens in a round, drawn from a seed: the same seed gives the same schedule, as long as this file and the machine's
//! abilities are the same. Values only.

use std::collections::BTreeMap;
use std::fmt;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::fleet::{Fleet, Kind, Program, station_name};

/// The names of programs on every station.
const NAMES: [&str; 5] = ["p0", "p1", "p2", "p3", "p4"];

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
    /// What is left: descriptors, tasks, or KiB; for the disk, how many milliseconds each wait takes. Negative: descriptors fewer than
    /// are open, so that closing one does not help either.
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
    /// One after the other, each after a pause in milliseconds.
    pub(crate) verbs: Vec<(u64, Verb)>,
    pub(crate) shortages: Vec<Shortage>,
    pub(crate) blows: Vec<Blow>,
}

impl Schedule {
    /// Draws a round in which only these resources are taken.
    pub(crate) fn draw(seed: u64, resources: &[Resource]) -> Self {
        let mut draw = Draw { random: StdRng::seed_from_u64(seed), stations: 0 };
        draw.stations = draw.below(2..4);
        let first = draw.first_fleet();
        let (mut fleets, mut verbs) = (vec![first.clone()], Vec::new());
        for _ in 0..draw.below(2..7) {
            let pause = draw.pause();
            verbs.push((pause, draw.verb(&mut fleets)));
        }
        let mut shortages: Vec<Shortage> = Vec::new();
        for _ in 0..draw.below(1..4) {
            let drawn = draw.shortage(resources, &fleets);
            // Giving one back would give back both.
            let is_new = |one: &Shortage| !shortages.iter().any(|other| (other.of, &other.from) == (one.of, &one.from));
            shortages.extend(drawn.filter(is_new));
        }
        let until = shortages.iter().map(|one| one.at_ms + one.for_ms).max().unwrap_or(2_000);
        let mut blows: Vec<_> = (0..draw.below(0..4)).map(|_| draw.blow(until, resources, &fleets)).collect();
        blows.sort_by_key(|blow| blow.at_ms);
        Self { seed, first, verbs, shortages, blows }
    }

    /// How many stations there are.
    pub(crate) fn stations(&self) -> usize {
        self.first.stations.len()
    }
}

struct Draw {
    random: StdRng,
    stations: usize,
}

impl Draw {
    fn below(&mut self, range: std::ops::Range<usize>) -> usize {
        self.random.random_range(range)
    }

    fn ms(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.random.random_range(range)
    }

    fn is(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn pause(&mut self) -> u64 {
        if self.is(30) { 0 } else { self.ms(50..1_500) }
    }

    fn kind(&mut self) -> Kind {
        *Kind::RUNNABLE.choose(&mut self.random).expect("there are some")
    }

    fn station(&mut self) -> usize {
        self.below(0..self.stations)
    }

    fn instance(&mut self) -> (usize, String) {
        let name = *NAMES.choose(&mut self.random).expect("there are some");
        (self.station(), name.to_owned())
    }

    /// An instance that the last fleet that can run has, if it has any.
    fn configured(&mut self, fleets: &[Fleet]) -> (usize, String) {
        let last = fleets.iter().rev().find(|fleet| !fleet.fails()).expect("the first can run");
        let all = last.stations.iter().enumerate();
        let all: Vec<_> = all.flat_map(|(station, all)| all.keys().map(move |name| (station, name.clone()))).collect();
        all.choose(&mut self.random).cloned().unwrap_or((0, NAMES[0].to_owned()))
    }

    /// An instance that one of the fleets has.
    fn any_configured(&mut self, fleets: &[Fleet]) -> (usize, String) {
        let number = self.below(0..fleets.len());
        self.configured(&fleets[..=number])
    }

    fn first_fleet(&mut self) -> Fleet {
        let mut stations = Vec::new();
        for _ in 0..self.stations {
            let mut programs = BTreeMap::new();
            for name in NAMES {
                if self.is(60) {
                    programs.insert(name.to_owned(), Program { version: 0, kind: self.kind() });
                }
            }
            stations.push(programs);
        }
        Fleet { number: 0, stations }
    }

    /// Another fleet, made from the last one that can run.
    fn next_fleet(&mut self, fleets: &[Fleet], fails: bool) -> Fleet {
        let number = fleets.len();
        let base = fleets.iter().rev().find(|fleet| !fleet.fails()).expect("the first can run");
        let mut stations = base.stations.clone();
        for programs in &mut stations {
            for name in NAMES {
                match self.below(0..100) {
                    0..55 => {}
                    55..75 => drop(programs.remove(name)),
                    _ => drop(programs.insert(name.to_owned(), Program { version: number, kind: self.kind() })),
                }
            }
        }
        if fails {
            let (station, name) = self.instance();
            stations[station].insert(name, Program { version: number, kind: Kind::Fails });
        }
        Fleet { number, stations }
    }

    fn verb(&mut self, fleets: &mut Vec<Fleet>) -> Verb {
        match self.below(0..100) {
            0..50 => {
                let (wait, rollback) = (self.is(40), self.is(15));
                let fleet = self.next_fleet(fleets, false);
                fleets.push(fleet.clone());
                Verb::Apply { fleet, wait, rollback }
            }
            50..62 => {
                let fleet = self.next_fleet(fleets, true);
                fleets.push(fleet.clone());
                Verb::Apply { fleet, wait: true, rollback: true }
            }
            62..92 => {
                let (station, instance) = self.configured(fleets);
                let actions = [Action::Stop, Action::Stop, Action::Start, Action::Restart];
                let action = *actions.choose(&mut self.random).expect("there are some");
                Verb::Order { station, instance, action }
            }
            _ => {
                let (station, instance) = self.configured(fleets);
                Verb::Follow { station, instance }
            }
        }
    }

    fn shortage(&mut self, resources: &[Resource], fleets: &[Fleet]) -> Option<Shortage> {
        let shortages: Vec<_> = resources.iter().filter(|one| **one != Resource::Files).collect();
        let of = **shortages.choose(&mut self.random)?;
        let for_ms = match self.below(0..100) {
            0..50 => self.ms(200..3_000),
            50..88 => self.ms(3_000..12_000),
            _ => self.ms(12_000..45_000),
        };
        let station = Target::Station(self.station());
        let from = match (of, self.below(0..10)) {
            (_, 0..3) => Target::Manager,
            (Resource::Descriptors | Resource::Processor, 7..10) => {
                let (station, name) = self.any_configured(fleets);
                Target::Keeper(station, name)
            }
            _ => station,
        };
        let amount = match of {
            Resource::Descriptors => self.random.random_range(-8..7),
            Resource::Tasks => self.random.random_range(0..3),
            Resource::Space => *[0, 0, 4, 64].choose(&mut self.random)?,
            Resource::Disk => self.random.random_range(200..20_000),
            Resource::Processor | Resource::Files => 0,
        };
        Some(Shortage { at_ms: self.ms(0..2_500), for_ms, of, from, amount })
    }

    fn blow(&mut self, until: u64, resources: &[Resource], fleets: &[Fleet]) -> Blow {
        let at_ms = self.ms(0..until.max(1));
        let down_ms = if self.is(60) { self.ms(50..500) } else { self.ms(500..4_000) };
        let station = self.station();
        let (of, name) = self.any_configured(fleets);
        let to = match self.below(0..100) {
            0..20 => Victim::KillManager { down_ms },
            20..45 => Victim::KillStation { station, down_ms },
            45..60 => Victim::RestartStation { station, down_ms },
            60..72 => Victim::KillKeeper(of, name),
            72..84 => Victim::KillProgram(of, name),
            _ if !resources.contains(&Resource::Files) => Victim::KillStation { station, down_ms },
            84..87 => Victim::RemoveLock(of, name),
            87..90 => Victim::RemoveState(of, name),
            _ => Victim::RemoveWhileAway { station: of, instance: name, all: self.is(50), down_ms },
        };
        Blow { at_ms, to }
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

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Resource; 6] =
        [Resource::Descriptors, Resource::Tasks, Resource::Space, Resource::Disk, Resource::Processor, Resource::Files];

    #[test]
    fn a_seed_gives_the_same_round_again() {
        for seed in 0..50 {
            assert_eq!(Schedule::draw(seed, &ALL), Schedule::draw(seed, &ALL));
        }
        assert_ne!(Schedule::draw(1, &ALL).to_string(), Schedule::draw(2, &ALL).to_string());
    }

    #[test]
    fn a_few_hundred_rounds_take_everything_from_everybody() {
        let rounds: Vec<_> = (0..500).map(|seed| Schedule::draw(seed, &ALL)).collect();
        for of in ALL.into_iter().filter(|one| *one != Resource::Files) {
            let taken = rounds.iter().flat_map(|round| &round.shortages).filter(|one| one.of == of);
            let from: Vec<_> = taken.map(|one| &one.from).collect();
            assert!(from.contains(&&Target::Manager) && from.contains(&&Target::Station(0)), "{of:?}");
        }
        let blows: String = rounds.iter().map(ToString::to_string).collect();
        for text in
            ["kill the manager", "kill s1", "stop s0", "kill the keeper", "keeper.lock", "state folder", "fails"]
        {
            assert!(blows.contains(text), "{text}");
        }
    }

    #[test]
    fn what_is_not_to_be_taken_is_not() {
        for seed in 0..100 {
            let round = Schedule::draw(seed, &[Resource::Processor]);
            assert!(round.shortages.iter().all(|one| one.of == Resource::Processor));
            let removes = |blow: &Blow| blow.to.to_string().contains("remove");
            assert!(!round.blows.iter().any(removes));
        }
    }

    #[test]
    fn later_applies_have_higher_numbers_and_a_failing_program_is_never_kept() {
        for seed in 0..100 {
            let round = Schedule::draw(seed, &ALL);
            let applied = round.verbs.iter().filter_map(|(_, verb)| match verb {
                Verb::Apply { fleet, rollback, .. } => Some((fleet, *rollback)),
                _ => None,
            });
            for (index, (fleet, rollback)) in applied.enumerate() {
                assert_eq!(fleet.number, index + 1);
                assert!(rollback || !fleet.fails());
                let failing = fleet.stations.iter().flat_map(BTreeMap::values).filter(|one| one.kind == Kind::Fails);
                assert!(failing.into_iter().all(|one| one.version == fleet.number));
            }
        }
    }
}
