//! What must be true after a round, from what the operator was told. Values only.

use std::collections::{BTreeMap, BTreeSet};

use crate::fleet::Fleet;
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
    /// Applies that stay although a program of theirs fails, because nobody watched it.
    unwatched: BTreeSet<usize>,
    orders: BTreeMap<(usize, String), Order>,
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
        }
    }

    /// Takes note of an apply.
    pub(crate) fn applied(&mut self, fleet: Fleet, rollback: bool, outcome: Outcome) {
        let (number, fails) = (fleet.number, fleet.fails());
        if outcome == Outcome::Refused {
            return;
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
        // One that fails is never what stays if it was watched.
        self.candidates.retain(|number| !self.fleets[number].fails() || self.unwatched.contains(number));
        if outcome == Outcome::RolledBack {
            self.candidates.remove(&number);
        }
    }

    /// Takes note of an order for an instance.
    pub(crate) fn ordered(&mut self, station: usize, instance: &str, action: Action, outcome: Outcome) {
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
    use crate::fleet::{Kind, Program};

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
