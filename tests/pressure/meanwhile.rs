//! What is promised while something is taken away, and whether it is kept. Values only.
//!
//! Most verbs may fail during a shortage. A station that lacks nothing but a disk goes on talking, and one whose disk is full or whose
//! logs are followed by many still stops and restarts programs.

use std::collections::BTreeMap;

use crate::expected::Outcome;
use crate::fleet::{Mark, station_name};
use crate::schedule::{Action, Resource, Schedule, Target, Victim};
use crate::verdict::{Journal, StationSeen};

/// What a round promises of a station, because little else happens to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Promises {
    /// Its session with the manager lives on.
    pub(crate) connected: bool,
    /// It stops and restarts programs.
    pub(crate) obeys: bool,
    /// What an operator stopped stays so. A stop waits for no disk, so a station that ends before it is on record starts it again.
    pub(crate) records: bool,
}

/// What is promised of a station during a whole round.
pub(crate) fn promises(schedule: &Schedule, station: usize) -> Promises {
    let ends = schedule.blows.iter().any(|blow| match &blow.to {
        Victim::KillStation { station: hit, .. }
        | Victim::RestartStation { station: hit, .. }
        | Victim::RemoveWhileAway { station: hit, .. } => *hit == station,
        _ => false,
    });
    let lacks_disk = schedule.shortages.iter().any(|shortage| {
        shortage.from == Target::Station(station)
            && matches!(shortage.of, Resource::Space | Resource::Disk | Resource::Descriptors | Resource::Tasks)
    });
    let is_left_alone = schedule.blows.iter().all(|blow| match &blow.to {
        Victim::KillManager { .. } => false,
        Victim::KillStation { station: hit, .. }
        | Victim::RestartStation { station: hit, .. }
        | Victim::RemoveWhileAway { station: hit, .. }
        | Victim::KillKeeper(hit, _)
        | Victim::KillProgram(hit, _)
        | Victim::RemoveLock(hit, _)
        | Victim::RemoveState(hit, _) => *hit != station,
    });
    let lacks_only = |of_station: &[Resource], of_manager: &[Resource]| {
        schedule.shortages.iter().all(|shortage| match &shortage.from {
            Target::Manager => of_manager.contains(&shortage.of),
            Target::Station(from) if *from == station => of_station.contains(&shortage.of),
            Target::Keeper(from, _) => *from != station,
            Target::Station(_) => true,
        })
    };
    let disk = [Resource::Disk, Resource::Space, Resource::Clock];
    Promises {
        connected: is_left_alone && lacks_only(&[&disk[..], &[Resource::Logs]].concat(), &disk),
        records: !(ends && lacks_disk),
        obeys: is_left_alone && lacks_only(&[Resource::Space, Resource::Logs, Resource::Clock], &[Resource::Clock]),
    }
}

/// What is wrong with what the manager shows of stations during a round.
/// `journals` must have been read after that.
pub(crate) fn judge_meanwhile(
    promises: &[Promises],
    stations: &BTreeMap<String, StationSeen>,
    journals: &[Journal],
) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, promised) in promises.iter().enumerate() {
        let name = station_name(number);
        let Some(shown) = stations.get(&name) else { continue };
        if promised.connected && shown.state != "connected" {
            wrong.push(format!("{name}: is {} although it lacks nothing that its session needs", shown.state));
        }
    }
    for Journal { mark, pid, lines } in journals {
        let has = |line: &str| lines.iter().any(|one| one == line);
        let instance = format!("process/{}", mark.instance);
        let shown = stations.get(&station_name(mark.station)).and_then(|shown| shown.instances.get(&instance));
        if has("waits") && !has("ready") && shown == Some(&("active".to_owned(), Some(*pid))) {
            wrong.push(format!("{mark}: process {pid} is shown as active before it said that it is ready"));
        }
    }
    wrong
}

/// What is wrong with an order that a station must carry out: the programs that ran before it and run on.
pub(crate) fn judge_order(
    promised: Promises,
    (mark, action, outcome): (&Mark, Action, Outcome),
    before: &[(Mark, u32)],
    after: &[(Mark, u32)],
) -> Vec<String> {
    if !promised.obeys || outcome == Outcome::Done || action == Action::Start {
        return Vec::new();
    }
    let is_it = |seen: &&(Mark, u32)| seen.0.station == mark.station && seen.0.instance == mark.instance;
    let stays = before.iter().filter(is_it).filter(|seen| after.contains(seen));
    stays.map(|(mark, pid)| format!("{mark}: {} was refused, and process {pid} runs on", action.name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Fleet;
    use crate::schedule::{Blow, Shortage};

    fn round(taken: &[(Resource, Target)], blows: &[Victim]) -> Schedule {
        let shortage =
            |(of, from): &(Resource, Target)| Shortage { at_ms: 0, for_ms: 1, of: *of, from: from.clone(), amount: 0 };
        Schedule {
            seed: 0,
            first: Fleet { number: 0, stations: vec![BTreeMap::new(); 2] },
            has_plugin: false,
            verbs: Vec::new(),
            shortages: taken.iter().map(shortage).collect(),
            blows: blows.iter().map(|to| Blow { at_ms: 0, to: to.clone() }).collect(),
        }
    }

    #[test]
    fn a_station_that_lacks_only_a_disk_stays_and_one_with_a_full_disk_also_obeys() {
        use Resource::{Descriptors, Disk, Logs, Space};
        let here = Target::Station(0);
        let both = |connected, obeys| (connected, obeys);
        for (taken, blows, promised) in [
            (vec![(Disk, here.clone())], vec![], both(true, false)),
            (vec![(Space, here.clone()), (Logs, here.clone())], vec![], both(true, true)),
            (vec![(Disk, Target::Manager)], vec![], both(true, false)),
            (vec![(Descriptors, here.clone())], vec![], both(false, false)),
            (vec![(Descriptors, Target::Station(1))], vec![], both(true, true)),
            (vec![(Descriptors, Target::Keeper(0, "p0".into()))], vec![], both(false, false)),
            (vec![(Space, here.clone())], vec![Victim::KillManager { down_ms: 1 }], both(false, false)),
            (vec![(Space, here)], vec![Victim::KillStation { station: 1, down_ms: 1 }], both(true, true)),
        ] {
            let found = promises(&round(&taken, &blows), 0);
            assert_eq!((found.connected, found.obeys), promised, "{taken:?} {blows:?}");
        }
        let kill = [Victim::KillStation { station: 0, down_ms: 1 }];
        let full = [(Space, Target::Station(0))];
        assert!(!promises(&round(&full, &kill), 0).records);
        assert!(promises(&round(&full, &[]), 0).records && promises(&round(&[], &kill), 0).records);
    }

    #[test]
    fn what_is_promised_meanwhile_is_looked_at_meanwhile() {
        let promised = [Promises { connected: true, obeys: true, records: true }];
        let mark = Mark { station: 0, instance: "p0".into(), version: 1 };
        let mut shown = StationSeen { state: "connected".into(), ..StationSeen::default() };
        shown.instances.insert("process/p0".into(), ("active".into(), Some(7)));
        let seen = |shown: &StationSeen| BTreeMap::from([("s0".to_owned(), shown.clone())]);
        let journal = |lines: &[&str]| {
            let lines = lines.iter().map(|line| (*line).to_owned()).collect();
            vec![Journal { mark: mark.clone(), pid: 7, lines }]
        };
        let judge =
            |shown: &StationSeen, lines: &[&str]| judge_meanwhile(&promised, &seen(shown), &journal(lines)).len();
        assert_eq!(judge(&shown, &["waits", "ready"]), 0);
        assert_eq!(judge(&shown, &["waits"]), 1, "it is not ready");
        shown.state = "unknown".into();
        assert_eq!(judge(&shown, &[]), 1, "it is away");

        let runs = [(mark.clone(), 7)];
        let order = |action, outcome, after: &[(Mark, u32)]| {
            judge_order(promised[0], (&mark, action, outcome), &runs, after).len()
        };
        assert_eq!(order(Action::Stop, Outcome::Unknown, &runs), 1);
        assert_eq!(order(Action::Stop, Outcome::Unknown, &[]), 0, "it did stop");
        assert_eq!(order(Action::Restart, Outcome::Unknown, &[(mark.clone(), 8)]), 0, "another process");
        assert_eq!(order(Action::Restart, Outcome::Done, &runs), 0);
        assert_eq!(judge_order(Promises::default(), (&mark, Action::Stop, Outcome::Unknown), &runs, &runs).len(), 0);
    }
}
