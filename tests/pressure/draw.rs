//! Draws the schedule of a round from a seed: the same seed gives the same schedule, as long as this file and the machine's abilities are
//! the same. Values only.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::fleet::{Fleet, Kind, Program};
use crate::schedule::{Action, Blow, Resource, Schedule, Shortage, Target, Verb, Victim};

/// The names of programs on every station.
const NAMES: [&str; 5] = ["p0", "p1", "p2", "p3", "p4"];
/// How many builds of the plugin there are to push.
pub(crate) const BUILDS: usize = 3;

/// Draws a round in which only these resources are taken.
pub(crate) fn draw(seed: u64, resources: &[Resource], has_plugin: bool) -> Schedule {
    let mut draw = Draw { random: StdRng::seed_from_u64(seed), stations: 0, has_plugin };
    draw.stations = draw.below(2..4);
    let first = draw.first_fleet();
    let (mut fleets, mut verbs) = (vec![first.clone()], Vec::new());
    for _ in 0..draw.below(2..7) {
        let pause = draw.pause();
        verbs.push((pause, draw.verb(&mut fleets)));
    }
    // With one shortage and nothing else more is promised, see `meanwhile`.
    let is_calm = draw.is(25);
    let mut shortages: Vec<Shortage> = Vec::new();
    for _ in 0..if is_calm { 1 } else { draw.below(1..4) } {
        let drawn = draw.shortage(resources, &fleets);
        // Giving one back would give back both.
        let is_new = |one: &Shortage| {
            let sort = |of| if of == Resource::Logs { Resource::Descriptors } else { of };
            !shortages.iter().any(|other| (sort(other.of), &other.from) == (sort(one.of), &one.from))
        };
        shortages.extend(drawn.filter(is_new));
    }
    let count = if is_calm { 0 } else { draw.below(0..4) };
    let mut blows: Vec<_> = (0..count).map(|_| draw.blow(&shortages, resources, &fleets)).collect();
    blows.sort_by_key(|blow| blow.at_ms);
    Schedule { seed, first, has_plugin, verbs, shortages, blows }
}

struct Draw {
    random: StdRng,
    stations: usize,
    has_plugin: bool,
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
            0..46 => {
                let (wait, rollback) = (self.is(40), self.is(15));
                let fleet = self.next_fleet(fleets, false);
                fleets.push(fleet.clone());
                Verb::Apply { fleet, wait, rollback }
            }
            46..58 => {
                let fleet = self.next_fleet(fleets, true);
                fleets.push(fleet.clone());
                Verb::Apply { fleet, wait: true, rollback: true }
            }
            58..88 => {
                let (station, instance) = self.configured(fleets);
                let actions = [Action::Stop, Action::Stop, Action::Start, Action::Restart];
                let action = *actions.choose(&mut self.random).expect("there are some");
                Verb::Order { station, instance, action }
            }
            88..92 => {
                let (station, instance) = self.configured(fleets);
                Verb::Follow { station, instance }
            }
            92..97 if self.has_plugin => Verb::Push { build: self.below(0..BUILDS) },
            _ => Verb::Rollback { station: self.station() },
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
            (Resource::Logs, _) => station,
            (_, 0..3) => Target::Manager,
            (Resource::Descriptors | Resource::Processor, 7..10) => {
                let (station, name) = self.any_configured(fleets);
                Target::Keeper(station, name)
            }
            _ => station,
        };
        let amount = match of {
            Resource::Descriptors => self.random.random_range(-8..7),
            Resource::Tasks => *[0, 0, 1, 2].choose(&mut self.random)?,
            Resource::Space => *[0, 0, 4, 64].choose(&mut self.random)?,
            Resource::Disk => self.random.random_range(200..20_000),
            // More than a station keeps in reserve, fewer than its followers would take.
            Resource::Logs => self.random.random_range(80..120),
            Resource::Clock => *[-3_600, -60, 3_600].choose(&mut self.random)?,
            Resource::Processor | Resource::Files => 0,
        };
        Some(Shortage { at_ms: self.ms(0..2_500), for_ms, of, from, amount })
    }

    fn blow(&mut self, shortages: &[Shortage], resources: &[Resource], fleets: &[Fleet]) -> Blow {
        let until = shortages.iter().map(|one| one.at_ms + one.for_ms).max().unwrap_or(2_000);
        let mut at_ms = self.ms(0..until.max(1));
        let down_ms = if self.is(60) { self.ms(50..500) } else { self.ms(500..4_000) };
        let mut station = self.station();
        let (mut of, mut name) = self.any_configured(fleets);
        // Half of them are to what is short of something, and early enough that it must outlast both together.
        if self.is(50)
            && let Some(shortage) = shortages.choose(&mut self.random)
        {
            at_ms = shortage.at_ms + self.ms(0..(shortage.for_ms / 2).max(1));
            match &shortage.from {
                Target::Manager => {}
                Target::Station(at) => station = *at,
                Target::Keeper(at, instance) => (station, of, name) = (*at, *at, instance.clone()),
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Resource; 8] = [
        Resource::Descriptors,
        Resource::Tasks,
        Resource::Space,
        Resource::Disk,
        Resource::Processor,
        Resource::Files,
        Resource::Logs,
        Resource::Clock,
    ];

    fn drawn(seed: u64) -> Schedule {
        draw(seed, &ALL, true)
    }

    #[test]
    fn a_seed_gives_the_same_round_again() {
        for seed in 0..50 {
            assert_eq!(drawn(seed), drawn(seed));
        }
        assert_ne!(drawn(1).to_string(), drawn(2).to_string());
    }

    #[test]
    fn a_few_hundred_rounds_take_everything_from_everybody() {
        let rounds: Vec<_> = (0..500).map(drawn).collect();
        for of in ALL.into_iter().filter(|one| *one != Resource::Files) {
            let taken = rounds.iter().flat_map(|round| &round.shortages).filter(|one| one.of == of);
            let from: Vec<_> = taken.map(|one| &one.from).collect();
            let is_manager_spared = of == Resource::Logs;
            assert!(from.contains(&&Target::Manager) != is_manager_spared, "{of:?}");
            assert!(from.contains(&&Target::Station(0)), "{of:?}");
        }
        let blows: String = rounds.iter().map(ToString::to_string).collect();
        for text in [
            "kill the manager",
            "kill s1",
            "stop s0",
            "kill the keeper",
            "keeper.lock",
            "state folder",
            "fails",
            "rollback",
            "push",
        ] {
            assert!(blows.contains(text), "{text}");
        }
    }

    #[test]
    fn what_is_not_to_be_taken_is_not() {
        for seed in 0..100 {
            let round = draw(seed, &[Resource::Processor], false);
            assert!(round.shortages.iter().all(|one| one.of == Resource::Processor));
            let removes = |blow: &Blow| blow.to.to_string().contains("remove");
            assert!(!round.blows.iter().any(removes));
            assert!(!round.verbs.iter().any(|(_, verb)| matches!(verb, Verb::Push { .. })));
        }
    }

    #[test]
    fn later_applies_have_higher_numbers_and_a_failing_program_is_never_kept() {
        for seed in 0..100 {
            let round = drawn(seed);
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
