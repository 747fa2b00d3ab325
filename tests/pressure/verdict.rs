//! Judges what was seen after a round. Values only.

use std::collections::{BTreeMap, BTreeSet};

use crate::expected::{Expected, Order};
use crate::fleet::{Fleet, GREETER, Kind, Mark, PLUGIN, station_name};

/// What there is at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Whether the manager says that it is ready.
    pub(crate) is_ready: bool,
    /// Programs that run, with their pids.
    pub(crate) programs: Vec<(Mark, u32)>,
    /// Processes that programs started: whose, the pid of that program, their own pid.
    pub(crate) children: Vec<(Mark, u32, u32)>,
    /// What the manager shows, by name of the station.
    pub(crate) stations: BTreeMap<String, StationSeen>,
}

/// What a manager shows of a station.
#[derive(Clone, Debug, Default)]
pub(crate) struct StationSeen {
    pub(crate) state: String,
    /// Whether it applied what is desired.
    pub(crate) has_desired: bool,
    /// State and pid by `role/instance`.
    pub(crate) instances: BTreeMap<String, (String, Option<u32>)>,
    /// The instances of each revision, the newest first.
    pub(crate) history: Vec<Vec<String>>,
    /// The build of the plugin that it uses, if it is one of the driver's.
    pub(crate) build: Option<usize>,
}

impl StationSeen {
    /// Numbers of the applies in its history, the newest first.
    fn applies(&self) -> impl Iterator<Item = usize> {
        self.history.iter().flatten().filter_map(|instance| number(instance))
    }
}

/// The number of the apply that a marker tells.
fn number(instance: &str) -> Option<usize> {
    instance.strip_prefix("counter/a")?.parse().ok()
}

/// What is wrong; nothing if all is as it must be.
pub(crate) fn judge(expected: &Expected, seen: &Seen) -> Vec<String> {
    let stations = expected.candidates().next().map_or(0, |fleet| fleet.stations.len());
    let mut wrong = Vec::new();
    if !seen.is_ready {
        wrong.push("the manager: /readyz does not answer 200".into());
    }
    for station in 0..stations {
        judge_station(expected, seen, station, &mut wrong);
    }
    for (mark, parent, pid) in &seen.children {
        if !seen.programs.iter().any(|(_, program)| program == parent) {
            wrong.push(format!("{mark}: process {pid} runs on, and its program {parent} is gone"));
        }
    }
    wrong
}

fn judge_station(expected: &Expected, seen: &Seen, station: usize, wrong: &mut Vec<String>) {
    let name = station_name(station);
    let Some(shown) = seen.stations.get(&name) else {
        wrong.push(format!("{name}: expected to be listed, and is not"));
        return;
    };
    if shown.state != "connected" {
        wrong.push(format!("{name}: expected to be connected, is {}", shown.state));
    }
    if !shown.has_desired {
        wrong.push(format!("{name}: has not applied what is desired"));
    }
    let stored: BTreeSet<_> = shown.applies().collect();
    for lost in expected.acknowledged().difference(&stored) {
        wrong.push(format!("{name}: apply {lost} was acknowledged and is not in the history, which has {stored:?}"));
    }
    let has: Vec<_> = shown.instances.keys().filter_map(|instance| number(instance)).collect();
    let fleet = expected.candidates().find(|fleet| has == [fleet.number]);
    let Some(fleet) = fleet else {
        let expected: Vec<_> = expected.candidates().map(|fleet| fleet.number).collect();
        wrong.push(format!("{name}: expected to have one of the applies {expected:?}, has {has:?}"));
        return;
    };
    if shown.applies().next() != Some(fleet.number) {
        wrong.push(format!("{name}: has apply {}, and the newest in its history is another", fleet.number));
    }
    judge_programs(expected, seen, fleet, station, shown, wrong);
    if !expected.builds().is_empty() {
        judge_plugin(expected, &name, shown, wrong);
    }
}

fn judge_plugin(expected: &Expected, name: &str, shown: &StationSeen, wrong: &mut Vec<String>) {
    let (builds, build) = (expected.builds(), shown.build);
    if !build.is_some_and(|build| builds.contains(&build)) {
        wrong.push(format!("{name}: expected to use one of the builds {builds:?} of the plugin, uses {build:?}"));
    }
    let state = shown.instances.get(&format!("{PLUGIN}/{GREETER}")).map_or("missing", |(state, _)| state);
    if state != "active" {
        wrong.push(format!("{name}/{PLUGIN}/{GREETER}: expected to be active, is {state}"));
    }
}

fn judge_programs(
    expected: &Expected,
    seen: &Seen,
    fleet: &Fleet,
    station: usize,
    shown: &StationSeen,
    wrong: &mut Vec<String>,
) {
    let programs = &fleet.stations[station];
    let here: Vec<_> = seen.programs.iter().filter(|(mark, _)| mark.station == station).collect();
    for (mark, pid) in &here {
        match programs.get(&mark.instance) {
            None => wrong.push(format!("{mark}: runs as process {pid}, and nobody wants it")),
            Some(program) if program.version != mark.version => {
                wrong.push(format!("{mark}: runs as process {pid}; expected version {}", program.version));
            }
            Some(_) => {}
        }
    }
    // One that fails is there only where nobody watched the apply, and does not run for long.
    let runnable = programs.iter().filter(|(_, program)| program.kind != Kind::Fails);
    for instance in runnable.map(|(name, _)| name) {
        let name = format!("{}/{instance}", station_name(station));
        let pids: Vec<_> = here.iter().filter(|(mark, _)| mark.instance == *instance).map(|(_, pid)| *pid).collect();
        let (state, shown_pid) = shown.instances.get(&format!("process/{instance}")).cloned().unwrap_or_default();
        let runs = match (expected.order(station, instance), &pids[..]) {
            (Order::Run, [_]) | (Order::Either, [_]) => true,
            (Order::Stopped, []) | (Order::Either, []) => false,
            (order, _) => {
                let order = if order == Order::Stopped { "stopped" } else { "run once" };
                wrong.push(format!("{name}: expected to be {order}, runs as {pids:?}; shown as {state:?}"));
                continue;
            }
        };
        let expected = if runs { ("active", pids.first().copied()) } else { ("stopped", None) };
        if (state.as_str(), shown_pid) != expected {
            wrong.push(format!("{name}: expected to be shown as {expected:?}, is shown as {state:?} {shown_pid:?}"));
        }
    }
}

/// What a program wrote down of itself.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    pub(crate) mark: Mark,
    pub(crate) pid: u32,
    pub(crate) lines: Vec<String>,
}

/// What is wrong with what programs wrote down. `excused` are instances that the round itself killed, `alive` the pids of programs
/// that run.
pub(crate) fn judge_journals(journals: &[Journal], excused: &BTreeSet<(usize, String)>, alive: &[u32]) -> Vec<String> {
    let mut wrong = Vec::new();
    for Journal { mark, pid, lines } in journals {
        let has = |line: &str| lines.iter().any(|one| one == line);
        if has("twice") {
            wrong.push(format!("{mark}: began as process {pid} while another program of the instance ran"));
        }
        let is_excused = excused.contains(&(mark.station, mark.instance.clone()));
        // A start that is given up is killed; what ran for a while is asked to stop first.
        if has("steady") && !has("asked") && !alive.contains(pid) && !is_excused {
            wrong.push(format!("{mark}: process {pid} was killed without having been asked to stop"));
        }
    }
    wrong
}

/// What is wrong right after a stop was acknowledged.
pub(crate) fn judge_stop(seen: &[(Mark, u32)], station: usize, instance: &str) -> Vec<String> {
    let still = seen.iter().filter(|(mark, _)| mark.station == station && mark.instance == instance);
    still.map(|(mark, pid)| format!("{mark}: its stop was acknowledged while process {pid} ran")).collect()
}

/// What is wrong right after an apply was acknowledged as settled.
pub(crate) fn judge_settled(seen: &[(Mark, u32)], fleet: &Fleet) -> Vec<String> {
    let is_wanted = |mark: &Mark| {
        let program = fleet.stations[mark.station].get(&mark.instance);
        program.is_some_and(|program| program.version == mark.version)
    };
    let unwanted = seen.iter().filter(|(mark, _)| !is_wanted(mark));
    unwanted.map(|(mark, pid)| format!("{mark}: apply {} settled while process {pid} ran", fleet.number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expected::Outcome;
    use crate::fleet::Program;
    use crate::schedule::Action;

    fn fleet(number: usize, programs: &[&str]) -> Fleet {
        let program = Program { version: number, kind: Kind::Plain };
        Fleet { number, stations: vec![programs.iter().map(|name| ((*name).to_owned(), program)).collect()] }
    }

    fn mark(instance: &str, version: usize) -> Mark {
        Mark { station: 0, instance: instance.to_owned(), version }
    }

    /// A station with apply 1 and programs `p0` and `p1`, as it should be.
    fn good() -> (Expected, Seen) {
        let mut expected = Expected::new(fleet(0, &["p0"]));
        expected.applied(fleet(1, &["p0", "p1"]), false, Outcome::Done);
        let active = |pid| ("active".to_owned(), Some(pid));
        let shown = StationSeen {
            state: "connected".into(),
            has_desired: true,
            instances: BTreeMap::from([
                ("process/p0".to_owned(), active(10)),
                ("process/p1".to_owned(), active(11)),
                ("counter/a1".to_owned(), ("active".to_owned(), None)),
            ]),
            history: vec![vec!["counter/a1".into(), "process/p0".into()], vec!["counter/a0".into()]],
            build: Some(1),
        };
        let seen = Seen {
            is_ready: true,
            programs: vec![(mark("p0", 1), 10), (mark("p1", 1), 11)],
            children: vec![],
            stations: BTreeMap::from([("s0".to_owned(), shown)]),
        };
        (expected, seen)
    }

    #[track_caller]
    fn is_wrong(change: impl FnOnce(&mut Expected, &mut Seen), text: &str) {
        let (mut expected, mut seen) = good();
        change(&mut expected, &mut seen);
        let wrong = judge(&expected, &seen);
        assert!(wrong.iter().any(|one| one.contains(text)), "{wrong:#?}");
    }

    fn shown(seen: &mut Seen) -> &mut StationSeen {
        seen.stations.get_mut("s0").unwrap()
    }

    #[test]
    fn nothing_is_wrong_with_what_is_as_it_must_be() {
        let (expected, seen) = good();
        assert_eq!(judge(&expected, &seen), Vec::<String>::new());
    }

    #[test]
    fn a_program_that_fails_need_not_run_where_nobody_watched_its_apply() {
        let (mut expected, mut seen) = good();
        let mut fleet = fleet(1, &["p0", "p1"]);
        fleet.stations[0].get_mut("p1").unwrap().kind = Kind::Fails;
        expected.applied(fleet, true, Outcome::Unwatched);
        seen.programs.pop();
        shown(&mut seen).instances.insert("process/p1".into(), ("failed".into(), None));
        assert_eq!(judge(&expected, &seen), Vec::<String>::new());
    }

    #[test]
    fn a_plugin_must_be_of_the_build_that_was_pushed_and_its_instance_must_run() {
        let greet = |seen: &mut Seen, state: &str| {
            shown(seen).instances.insert("hello/greeter".into(), (state.to_owned(), Some(5)));
        };
        let (mut expected, mut seen) = good();
        expected.pushed(1, Outcome::Done);
        greet(&mut seen, "active");
        assert_eq!(judge(&expected, &seen), Vec::<String>::new());
        let push = |expected: &mut Expected, build| expected.pushed(build, Outcome::Done);
        is_wrong(|expected, _| push(expected, 1), "hello/greeter: expected to be active, is missing");
        is_wrong(|expected, _| push(expected, 2), "one of the builds {2} of the plugin, uses Some(1)");
        is_wrong(|expected, seen| (push(expected, 1), greet(seen, "failed")).0, "expected to be active, is failed");
    }

    #[test]
    fn every_broken_promise_is_seen() {
        is_wrong(|_, seen| drop(seen.programs.pop()), "s0/p1: expected to be run once, runs as []");
        is_wrong(|_, seen| seen.programs.push((mark("p1", 1), 12)), "runs as [11, 12]");
        is_wrong(|_, seen| seen.programs.push((mark("p2", 0), 12)), "nobody wants it");
        is_wrong(|_, seen| seen.programs[0].0.version = 0, "expected version 1");
        is_wrong(|_, seen| seen.children.push((mark("p2", 0), 9, 12)), "its program 9 is gone");
        is_wrong(|_, seen| seen.is_ready = false, "/readyz");
        is_wrong(|_, seen| shown(seen).state = "unknown".into(), "is unknown");
        is_wrong(|_, seen| shown(seen).has_desired = false, "has not applied");
        is_wrong(|_, seen| drop(shown(seen).history.pop()), "apply 0 was acknowledged and is not in the history");
        is_wrong(|_, seen| drop(shown(seen).instances.remove("counter/a1")), "expected to have one of the applies [1]");
        is_wrong(|_, seen| shown(seen).history.swap(0, 1), "the newest in its history is another");
        is_wrong(|_, seen| seen.stations.clear(), "expected to be listed");
        let stop = |expected: &mut Expected, _: &mut Seen| expected.ordered(0, "p0", Action::Stop, Outcome::Done);
        is_wrong(stop, "expected to be stopped, runs as [10]");
        let pid = |_: &mut Expected, seen: &mut Seen| {
            shown(seen).instances.insert("process/p0".into(), ("active".into(), Some(99)));
        };
        is_wrong(pid, "expected to be shown as (\"active\", Some(10))");
    }

    #[test]
    fn a_program_that_was_killed_unasked_or_ran_twice_is_told_by_its_journal() {
        let journal = |lines: &[&str]| {
            let lines = lines.iter().map(|line| (*line).to_owned()).collect();
            vec![Journal { mark: mark("p0", 1), pid: 7, lines }]
        };
        let nobody = BTreeSet::new();
        let judge = |lines: &[&str], alive: &[u32]| judge_journals(&journal(lines), &nobody, alive).len();
        assert_eq!(judge(&["began", "steady"], &[7]), 0, "it runs");
        assert_eq!(judge(&["began", "steady", "asked"], &[]), 0, "it was asked");
        assert_eq!(judge(&["began"], &[]), 0, "its start was given up");
        assert_eq!(judge(&["began", "steady"], &[]), 1);
        assert_eq!(judge(&["twice"], &[]), 1);
        let excused = BTreeSet::from([(0, "p0".to_owned())]);
        assert!(judge_journals(&journal(&["began", "steady"]), &excused, &[]).is_empty());
    }

    #[test]
    fn what_was_acknowledged_is_true_at_that_moment() {
        let seen = [(mark("p0", 1), 10), (mark("p1", 0), 11)];
        assert_eq!(judge_stop(&seen, 0, "p2"), Vec::<String>::new());
        assert_eq!(judge_stop(&seen, 0, "p0").len(), 1);
        assert_eq!(judge_settled(&seen, &fleet(1, &["p0"])).len(), 1);
        assert_eq!(judge_settled(&seen[..1], &fleet(1, &["p0"])).len(), 0);
    }
}
