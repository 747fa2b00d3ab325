//! What must be true after a round, from what the operator was told. Values only.

use std::collections::{BTreeMap, BTreeSet};

use crate::fleet::{Fleet, Kind};
use crate::schedule::Action;

/// What the operator knows of something that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Acknowledged.
    Done,
    /// Acknowledged, for stations that were away: nobody watches what becomes of it there.
    Unwatched,
    /// Stored, found to be unhealthy and taken back.
    RolledBack,
    /// Nothing was changed.
    Refused,
    /// There was no answer, or one that leaves open what was changed.
    Unknown,
}

/// Whether an instance should run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    Run,
    Stopped,
    /// Nobody can tell, for ever: an order without an answer may be carried out late.
    Either,
}

/// What must be true.
#[derive(Debug)]
pub(crate) struct Expected {
    fleets: BTreeMap<usize, Fleet>,
    /// Applies one of which every station must have in the end.
    candidates: BTreeSet<usize>,
    /// Applies without an answer: each may be stored as late as one likes.
    unanswered: BTreeSet<usize>,
    acknowledged: BTreeSet<usize>,
    /// Applies that stay although a program of theirs fails, because nobody watched it or an operator stopped it.
    unwatched: BTreeSet<usize>,
    orders: BTreeMap<(usize, String), Order>,
    /// Builds of the plugin one of which every station must have in the end; empty if there is none.
    builds: BTreeSet<usize>,
    /// Builds that some push gave, with or without an answer: a rollback may bring any of them back.
    pushed: BTreeSet<usize>,
    /// Builds that were pushed without an answer.
    unanswered_builds: BTreeSet<usize>,
}

impl Expected {
    /// After the first apply, which everybody has.
    pub(crate) fn new(first: Fleet) -> Self {
        let number = BTreeSet::from([first.number]);
        Self {
            fleets: BTreeMap::from([(first.number, first)]),
            candidates: number.clone(),
            unanswered: BTreeSet::new(),
            acknowledged: number,
            unwatched: BTreeSet::new(),
            orders: BTreeMap::new(),
            builds: BTreeSet::new(),
            pushed: BTreeSet::new(),
            unanswered_builds: BTreeSet::new(),
        }
    }

    /// Takes note of a push of the plugin.
    pub(crate) fn pushed(&mut self, build: usize, outcome: Outcome) {
        match outcome {
            Outcome::Refused => return,
            Outcome::Unknown => {
                self.unanswered_builds.insert(build);
            }
            Outcome::Done | Outcome::Unwatched | Outcome::RolledBack => self.builds.clone_from(&self.unanswered_builds),
        }
        self.builds.insert(build);
        self.pushed.insert(build);
    }

    /// Takes note of a rollback of a station. Whether it went back, and how far, is for the manager to know.
    pub(crate) fn rolled_back(&mut self, station: usize, outcome: Outcome) {
        if outcome == Outcome::Refused {
            return;
        }
        self.candidates.extend(&self.acknowledged);
        self.builds.extend(&self.pushed);
        if outcome == Outcome::Unknown {
            // It may be carried out after what is asked for next.
            self.unanswered.extend(&self.acknowledged);
            self.unanswered_builds.extend(&self.pushed);
        }
        self.keep_what_can_stay();
        for ((at, _), order) in &mut self.orders {
            if *at == station && *order != Order::Run {
                *order = Order::Either;
            }
        }
    }

    /// Whether an operator may have stopped all that fails of a fleet: then none of it begins.
    fn is_failing_stopped(&self, fleet: &Fleet) -> bool {
        fleet.stations.iter().enumerate().all(|(station, programs)| {
            let mut failing = programs.iter().filter(|(_, program)| program.kind == Kind::Fails);
            failing.all(|(name, _)| self.order(station, name) != Order::Run)
        })
    }

    /// One that fails is never what stays if it was watched.
    fn keep_what_can_stay(&mut self) {
        self.candidates.retain(|number| !self.fleets[number].fails() || self.unwatched.contains(number));
    }

    /// Takes note of an apply.
    pub(crate) fn applied(&mut self, fleet: Fleet, rollback: bool, outcome: Outcome) {
        let number = fleet.number;
        if outcome == Outcome::Refused {
            return;
        }
        let fails = fleet.fails() && !self.is_failing_stopped(&fleet);
        if fleet.fails() && !fails {
            self.unwatched.insert(number);
        }
        // What was removed and comes back may have been stopped before and after; whether anybody saw it gone is open.
        for ((station, instance), order) in &mut self.orders {
            if *order != Order::Run && !fleet.stations[*station].contains_key(instance) {
                *order = Order::Either;
            }
        }
        self.fleets.insert(number, fleet);
        if matches!(outcome, Outcome::Done | Outcome::Unwatched | Outcome::RolledBack) {
            self.acknowledged.insert(number);
        }
        if outcome == Outcome::Unwatched {
            self.unwatched.insert(number);
        }
        let may_go_back = outcome == Outcome::RolledBack || rollback && (fails || outcome == Outcome::Unknown);
        if may_go_back {
            // To what ran well last, and that is for the manager to know.
            self.candidates.extend(&self.acknowledged);
        }
        match outcome {
            Outcome::Done | Outcome::Unwatched if !fails => {
                self.candidates = self.unanswered.clone();
                self.candidates.insert(number);
            }
            Outcome::Unknown if !fails => {
                self.unanswered.insert(number);
                self.candidates.insert(number);
            }
            _ => {}
        }
        if outcome == Outcome::Unwatched {
            self.candidates.insert(number);
        }
        self.keep_what_can_stay();
        if outcome == Outcome::RolledBack {
            self.candidates.remove(&number);
        }
    }

    /// Takes note of an order for an instance.
    pub(crate) fn ordered(&mut self, station: usize, instance: &str, action: Action, outcome: Outcome) {
        if action == Action::Stop && outcome != Outcome::Refused {
            // What nobody has answered yet may find it stopped, and then nothing of it fails.
            let fails = |fleet: &&Fleet| {
                fleet.stations[station].get(instance).is_some_and(|program| program.kind == Kind::Fails)
            };
            for number in self.fleets.values().filter(fails).map(|fleet| fleet.number) {
                self.unwatched.insert(number);
                self.candidates.insert(number);
                self.unanswered.insert(number);
            }
        }
        let order = self.orders.entry((station, instance.to_owned())).or_insert(Order::Run);
        *order = match (outcome, action, *order) {
            (Outcome::Refused, ..) => return,
            (Outcome::Unknown, Action::Stop, _) => Order::Either,
            (_, Action::Stop, Order::Run | Order::Stopped) => Order::Stopped,
            (_, Action::Start | Action::Restart, Order::Run) => Order::Run,
            (Outcome::Done, Action::Start | Action::Restart, Order::Stopped) => Order::Run,
            _ => Order::Either,
        };
    }

    /// Applies one of which every station must have.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = &Fleet> {
        self.candidates.iter().map(|number| &self.fleets[number])
    }

    /// Builds of the plugin one of which every station must have.
    pub(crate) fn builds(&self) -> &BTreeSet<usize> {
        &self.builds
    }

    /// Applies that were acknowledged, by number.
    pub(crate) fn acknowledged(&self) -> &BTreeSet<usize> {
        &self.acknowledged
    }

    /// Whether an instance should run, if it is configured.
    pub(crate) fn order(&self, station: usize, instance: &str) -> Order {
        self.orders.get(&(station, instance.to_owned())).copied().unwrap_or(Order::Run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Program;

    fn fleet(number: usize, kind: Kind) -> Fleet {
        let programs = BTreeMap::from([("p0".to_owned(), Program { version: number, kind })]);
        Fleet { number, stations: vec![programs] }
    }

    fn numbers(expected: &Expected) -> Vec<usize> {
        expected.candidates().map(|fleet| fleet.number).collect()
    }

    #[test]
    fn the_last_acknowledged_apply_or_any_without_an_answer_is_what_stays() {
        let mut expected = Expected::new(fleet(0, Kind::Plain));
        expected.applied(fleet(1, Kind::Plain), false, Outcome::Unknown);
        assert_eq!(numbers(&expected), [0, 1]);
        expected.applied(fleet(2, Kind::Plain), false, Outcome::Done);
        assert_eq!(numbers(&expected), [1, 2], "the one without an answer may come late");
        expected.applied(fleet(3, Kind::Plain), false, Outcome::Refused);
        assert_eq!(numbers(&expected), [1, 2]);
        assert_eq!(expected.acknowledged(), &BTreeSet::from([0, 2]));
    }

    #[test]
    fn one_that_fails_never_stays_whatever_the_operator_was_told() {
        for outcome in [Outcome::Done, Outcome::RolledBack, Outcome::Unknown] {
            let mut expected = Expected::new(fleet(0, Kind::Plain));
            expected.applied(fleet(1, Kind::Plain), false, Outcome::Done);
            expected.applied(fleet(2, Kind::Fails), true, outcome);
            assert!(numbers(&expected).contains(&1) && !numbers(&expected).contains(&2), "{outcome:?}");
            expected.applied(fleet(3, Kind::Plain), false, Outcome::Done);
            assert_eq!(numbers(&expected), [3], "{outcome:?}");
        }
    }

    #[test]
    fn one_that_fails_may_stay_where_nobody_watched_it() {
        let mut expected = Expected::new(fleet(0, Kind::Plain));
        expected.applied(fleet(1, Kind::Fails), true, Outcome::Unwatched);
        assert_eq!(numbers(&expected), [0, 1]);
        expected.applied(fleet(2, Kind::Plain), false, Outcome::Unwatched);
        assert_eq!(numbers(&expected), [2]);
    }

    #[test]
    fn one_whose_failing_program_an_operator_stopped_may_stay() {
        for is_stopped_before in [true, false] {
            let mut expected = Expected::new(fleet(0, Kind::Plain));
            let stop = |expected: &mut Expected| expected.ordered(0, "p0", Action::Stop, Outcome::Done);
            if is_stopped_before {
                stop(&mut expected);
            }
            expected.applied(fleet(1, Kind::Fails), true, Outcome::Unknown);
            if !is_stopped_before {
                assert_eq!(numbers(&expected), [0]);
                stop(&mut expected);
            }
            assert_eq!(numbers(&expected), [0, 1], "{is_stopped_before}");
        }
    }

    #[test]
    fn a_rollback_leaves_open_what_a_station_goes_back_to_until_the_next_apply_and_push() {
        let mut expected = Expected::new(fleet(0, Kind::Plain));
        expected.pushed(0, Outcome::Done);
        expected.pushed(1, Outcome::Done);
        expected.applied(fleet(1, Kind::Plain), false, Outcome::Done);
        assert_eq!(expected.builds(), &BTreeSet::from([1]));
        expected.rolled_back(0, Outcome::Refused);
        assert_eq!(numbers(&expected), [1]);
        expected.rolled_back(0, Outcome::Done);
        assert_eq!(numbers(&expected), [0, 1]);
        assert_eq!(expected.builds(), &BTreeSet::from([0, 1]));
        expected.applied(fleet(2, Kind::Plain), false, Outcome::Done);
        expected.pushed(2, Outcome::Done);
        assert_eq!((numbers(&expected), expected.builds()), (vec![2], &BTreeSet::from([2])));
        expected.rolled_back(0, Outcome::Unknown);
        expected.applied(fleet(3, Kind::Plain), false, Outcome::Done);
        assert_eq!(numbers(&expected), [0, 1, 2, 3], "the one without an answer may come late");
    }

    #[test]
    fn an_order_holds_until_the_next_and_for_ever_open_if_it_had_no_answer() {
        let mut expected = Expected::new(fleet(0, Kind::Plain));
        assert_eq!(expected.order(0, "p0"), Order::Run);
        for (action, outcome, after) in [
            (Action::Stop, Outcome::Done, Order::Stopped),
            (Action::Start, Outcome::Refused, Order::Stopped),
            (Action::Start, Outcome::Done, Order::Run),
            (Action::Restart, Outcome::Unknown, Order::Run),
            (Action::Stop, Outcome::Unknown, Order::Either),
            (Action::Stop, Outcome::Done, Order::Either),
        ] {
            expected.ordered(0, "p0", action, outcome);
            assert_eq!(expected.order(0, "p0"), after, "{action:?} {outcome:?}");
        }
    }

    #[test]
    fn what_was_stopped_and_removed_may_be_either_when_it_comes_back() {
        let mut expected = Expected::new(fleet(0, Kind::Plain));
        expected.ordered(0, "p0", Action::Stop, Outcome::Done);
        expected.applied(fleet(1, Kind::Plain), false, Outcome::Done);
        assert_eq!(expected.order(0, "p0"), Order::Stopped);
        expected.applied(Fleet { number: 2, stations: vec![BTreeMap::new()] }, false, Outcome::Unknown);
        assert_eq!(expected.order(0, "p0"), Order::Either);
    }
}
