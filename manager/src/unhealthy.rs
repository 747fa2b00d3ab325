//! Instances that were not healthy before an apply, and that it does not change: they say nothing about the apply. Pure.

use std::collections::{BTreeMap, BTreeSet};

use quilt_protocol::control::{InstanceReport, Owner, State};

use crate::fleet::Document;
use crate::state::InstanceKey;

/// Picks the unhealthy instances that an apply is not to be judged by, from what a station reports just before the apply: those
/// that are configured the same in the document `before` and `after`. Of the file's `own` instances only those that failed count,
/// and those that waited beside them: an operator who applies a file again waits for the rest of it.
pub(crate) fn unhealthy_before(
    reports: &BTreeMap<InstanceKey, InstanceReport>,
    before: &Document,
    after: &Document,
    own: &BTreeSet<InstanceKey>,
) -> BTreeSet<InstanceKey> {
    if before.plugins != after.plugins {
        // Another build of its plugin may mend an instance, or break it.
        return BTreeSet::new();
    }
    let is_unchanged = |(role, instance): &InstanceKey| {
        let config = |document: &Document| document.roles.get(role).and_then(|all| all.get(instance)).cloned();
        config(after).is_some_and(|after| config(before) == Some(after))
    };
    let mut unhealthy = BTreeMap::new();
    for (key, report) in reports {
        if report.owner == Owner::Fleet && !report.state.is_as_wanted() && is_unchanged(key) {
            unhealthy.insert(key, report.state);
        }
    }
    let any_failed = unhealthy.values().any(|state| matches!(state, State::Failed | State::Backoff));
    let counts = |key: &InstanceKey, state: State| match state {
        _ if !own.contains(key) => true,
        State::Failed => true,
        State::Waiting => any_failed,
        _ => false,
    };
    unhealthy.into_iter().filter(|(key, state)| counts(key, *state)).map(|(key, _)| key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use quilt_protocol::Digest;

    use super::*;

    fn key(instance: &str) -> InstanceKey {
        ("p".parse().unwrap(), instance.parse().unwrap())
    }

    fn reports(states: &[(&str, State)]) -> BTreeMap<InstanceKey, InstanceReport> {
        let report = |instance: &str, state| {
            let (role, instance) = key(instance);
            let (attributes, digest) = (BTreeMap::new(), Digest::of(b""));
            let (detail, pid, restarts, since_ms, held_back) = (String::new(), None, 0, 0, None);
            let owner = Owner::Fleet;
            InstanceReport {
                role,
                instance,
                owner,
                digest,
                state,
                detail,
                pid,
                restarts,
                since_ms,
                attributes,
                held_back,
            }
        };
        states.iter().map(|(instance, state)| (key(instance), report(instance, *state))).collect()
    }

    fn document(json: serde_json::Value) -> Document {
        serde_json::from_value(json).unwrap()
    }

    fn names(keys: &BTreeSet<InstanceKey>) -> Vec<&str> {
        keys.iter().map(|(_, instance)| instance.as_str()).collect()
    }

    #[test]
    fn what_an_apply_changes_or_was_healthy_before_it_is_judged() {
        let before =
            document(serde_json::json!({ "roles": { "p": { "bad": {}, "changed": {}, "fine": {}, "gone": {} } } }));
        let after = document(
            serde_json::json!({ "roles": { "p": { "bad": {}, "changed": { "x": 1 }, "fine": {}, "new": {} } } }),
        );
        let failed =
            [("bad", State::Failed), ("changed", State::Failed), ("fine", State::Active), ("gone", State::Failed)];
        let reports = reports(&failed);
        let own = BTreeSet::new();
        assert_eq!(names(&unhealthy_before(&reports, &before, &after, &own)), ["bad"]);
        // A build of a plugin may be what it failed for want of.
        let plugins = serde_json::json!({ "camera": Digest::of(b"build") });
        let with_plugin = Document { plugins: serde_json::from_value(plugins).unwrap(), ..after };
        assert!(unhealthy_before(&reports, &before, &with_plugin, &own).is_empty());
    }

    #[test]
    fn a_file_that_is_applied_again_waits_for_its_own_instances_unless_they_failed() {
        let all = document(serde_json::json!({ "roles": { "p": { "a": {}, "b": {}, "c": {}, "d": {} } } }));
        let states = [("a", State::Starting), ("b", State::Backoff), ("c", State::Waiting), ("d", State::Failed)];
        let own: BTreeSet<_> = ["a", "b", "c", "d"].map(key).into();
        let of = |states: &[(&str, State)], own| unhealthy_before(&reports(states), &all, &all, own);
        assert_eq!(names(&of(&states, &own)), ["c", "d"]);
        assert_eq!(names(&of(&[states[0], states[2]], &own)), Vec::<&str>::new());
        assert_eq!(names(&of(&states, &BTreeSet::new())), ["a", "b", "c", "d"]);
    }
}
