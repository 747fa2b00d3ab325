//! The part of a station's configuration that an apply answers for. Pure.

use std::collections::{BTreeMap, BTreeSet};

use quilt_protocol::control::PLUGIN_SOURCE;
use quilt_protocol::{Digest, Name};

use crate::fleet::{Document, Instances, instances_of};
use crate::state::InstanceKey;

/// Which instances and plugins of a station's document an apply answers for. The instances of the document that are in none of the
/// sets are the file's own.
///
/// What the file neither gives nor changes does not decide over it: an operator who applies a file asks whether that file works. An
/// instance of another file that flaps is active now and then, so its state at the moment when the apply begins says nothing.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Part {
    /// Instances that other files give and the apply does not change. It is not judged by them.
    pub(crate) others: BTreeSet<InstanceKey>,
    /// Instances that other files give and the apply changes, by a label for which another group matches or by a plugin. It is judged
    /// by them until another apply gives them something else.
    pub(crate) affected: BTreeSet<InstanceKey>,
    /// Instances that it takes away.
    pub(crate) removed: BTreeSet<InstanceKey>,
    /// Plugins that it changes, each with its new build; none if it takes the plugin away.
    pub(crate) plugins: BTreeMap<Name, Option<Digest>>,
}

impl Part {
    /// The part of the apply of a file `source`, which gives the instances `own`. A pushed plugin answers for every instance, also where
    /// it was pushed before: nobody here knows whose roles are its own.
    pub(crate) fn of(source: &str, before: &Document, after: &Document, own: &BTreeSet<InstanceKey>) -> Self {
        let mut part = Self::new(before, after, own);
        if source.starts_with(PLUGIN_SOURCE) {
            part.affected.append(&mut part.others);
        }
        part
    }

    /// Compares the documents `before` and `after` an apply; `own` are the instances that the applied file gives.
    pub(crate) fn new(before: &Document, after: &Document, own: &BTreeSet<InstanceKey>) -> Self {
        let mut part = Self::default();
        for plugin in before.plugins.keys().chain(after.plugins.keys()) {
            let build = after.plugins.get(plugin);
            if before.plugins.get(plugin) != build {
                part.plugins.insert(plugin.clone(), build.copied());
            }
        }
        for (role, instances) in &after.roles {
            for (instance, config) in instances {
                let key = (role.clone(), instance.clone());
                if own.contains(&key) {
                    continue;
                }
                let is_same = before.roles.get(role).and_then(|all| all.get(instance)) == Some(config);
                // Another build of its plugin may mend an instance, or break it.
                let is_other = is_same && part.plugins.is_empty();
                let of_other_files = if is_other { &mut part.others } else { &mut part.affected };
                of_other_files.insert(key);
            }
        }
        for (role, instances) in &before.roles {
            let is_left = |instance: &&Name| after.roles.get(role).is_some_and(|all| all.contains_key(*instance));
            let removed = instances.keys().filter(|instance| !is_left(instance));
            part.removed.extend(removed.map(|instance| (role.clone(), instance.clone())));
        }
        part
    }

    /// Says what a newer document does not have as the apply left it; none if the apply's part is still in force. `given` are the
    /// instances of the apply's document. What the apply took away may be there again if `others_may_give` it, because another file
    /// may give what this one does not give any more.
    pub(crate) fn missing_from(&self, given: &Instances, newer: &Newer, others_may_give: bool) -> Option<String> {
        if let Some((plugin, _)) =
            self.plugins.iter().find(|(plugin, build)| newer.plugins.get(*plugin) != build.as_ref())
        {
            return Some(format!("does not have plugin {plugin} as this apply gave it"));
        }
        let is_own = |key: &InstanceKey| !self.others.contains(key) && !self.affected.contains(key);
        if let Some(((role, instance), _)) =
            given.iter().find(|(key, digest)| is_own(key) && newer.instances.get(*key) != Some(*digest))
        {
            return Some(format!("does not have {role}/{instance} as this apply gave it"));
        }
        let (role, instance) =
            self.removed.iter().find(|key| !others_may_give && newer.instances.contains_key(*key))?;
        Some(format!("has {role}/{instance} again, which this apply took away"))
    }

    /// Whether an apply is judged by an instance of its document, once the station was given `newer` if that is so.
    pub(crate) fn is_judged_by(&self, key: &InstanceKey, digest: &Digest, newer: Option<&Newer>) -> bool {
        let is_given_otherwise = || newer.is_some_and(|newer| newer.instances.get(key) != Some(digest));
        let is_others = self.others.contains(key);
        let is_taken_over = self.affected.contains(key) && is_given_otherwise();
        !(is_others || is_taken_over)
    }
}

/// What a station was given after the apply.
#[derive(Debug)]
pub(crate) struct Newer {
    pub(crate) instances: Instances,
    pub(crate) plugins: BTreeMap<Name, Digest>,
}

impl Newer {
    pub(crate) fn of(document: Document) -> Self {
        Self { instances: instances_of(&document), plugins: document.plugins }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(instances: serde_json::Value) -> Document {
        serde_json::from_value(json!({ "roles": { "p": instances } })).unwrap()
    }

    fn with_plugin(document: Document, build: &[u8]) -> Document {
        let plugins = json!({ "camera": Digest::of(build) });
        Document { plugins: serde_json::from_value(plugins).unwrap(), ..document }
    }

    fn keys(instances: &[&str]) -> BTreeSet<InstanceKey> {
        instances.iter().map(|instance| ("p".parse().unwrap(), instance.parse().unwrap())).collect()
    }

    fn missing(part: &Part, given: &Document, newer: &Document, others_may_give: bool) -> Option<String> {
        part.missing_from(&instances_of(given), &Newer::of(newer.clone()), others_may_give)
    }

    #[test]
    fn an_apply_answers_for_what_its_file_gives_and_what_it_changes() {
        let before = document(json!({ "own": {}, "gone": {}, "theirs": {}, "relabelled": {} }));
        let after = document(json!({ "own": {}, "new": {}, "theirs": {}, "relabelled": { "x": 1 } }));
        let part = Part::new(&before, &after, &keys(&["own", "new"]));
        let expected = Part {
            others: keys(&["theirs"]),
            affected: keys(&["relabelled"]),
            removed: keys(&["gone"]),
            plugins: BTreeMap::new(),
        };
        assert_eq!(part, expected);
    }

    #[test]
    fn an_apply_that_changes_a_plugin_answers_for_every_instance() {
        let all = document(json!({ "own": {}, "theirs": {} }));
        let part = Part::new(&all, &with_plugin(all.clone(), b"build"), &keys(&["own"]));
        assert_eq!((part.others.len(), part.affected), (0, keys(&["theirs"])));
        assert_eq!(part.plugins.values().collect::<Vec<_>>(), [&Some(Digest::of(b"build"))]);
    }

    #[test]
    fn a_plugin_that_is_pushed_again_answers_for_every_instance_although_it_changes_nothing() {
        let all = with_plugin(document(json!({ "one": {}, "two": {} })), b"build");
        let part = |source| Part::of(source, &all, &all, &BTreeSet::new());
        assert_eq!(part("plugin:camera"), Part { affected: keys(&["one", "two"]), ..Part::default() });
        assert_eq!(part("fleet.toml"), Part { others: keys(&["one", "two"]), ..Part::default() });
    }

    #[test]
    fn a_newer_document_has_an_applys_part_as_long_as_it_has_its_own_instances() {
        let before = document(json!({ "own": {}, "gone": {}, "theirs": {} }));
        let after = document(json!({ "own": { "x": 1 }, "theirs": {} }));
        let part = Part::new(&before, &after, &keys(&["own"]));
        let missing = |newer, others_may_give| missing(&part, &after, &document(newer), others_may_give);
        // Another file changes what is its own, and gives something new.
        assert_eq!(missing(json!({ "own": { "x": 1 }, "theirs": { "y": 1 }, "more": {} }), true), None);
        assert_eq!(
            missing(json!({ "own": { "x": 2 }, "theirs": {} }), true).unwrap(),
            "does not have p/own as this apply gave it"
        );
        assert_eq!(missing(json!({ "theirs": {} }), true).unwrap(), "does not have p/own as this apply gave it");
        // An instance moves from this file to another one; only a rollback would bring it back to this one.
        assert_eq!(missing(json!({ "own": { "x": 1 }, "gone": {} }), true), None);
        assert_eq!(
            missing(json!({ "own": { "x": 1 }, "gone": {} }), false).unwrap(),
            "has p/gone again, which this apply took away"
        );
    }

    #[test]
    fn a_newer_document_without_the_plugin_that_an_apply_gave_has_not_its_part() {
        let before = document(json!({ "theirs": {} }));
        let after = with_plugin(before.clone(), b"build");
        let part = Part::new(&before, &after, &BTreeSet::new());
        assert_eq!(missing(&part, &after, &after, true), None);
        assert_eq!(missing(&part, &after, &before, true).unwrap(), "does not have plugin camera as this apply gave it");
        assert_eq!(
            missing(&part, &after, &with_plugin(before, b"other"), true).unwrap(),
            "does not have plugin camera as this apply gave it"
        );
    }
}
