//! What differs between two documents.

use std::collections::BTreeSet;

use quilt_protocol::Name;
use quilt_protocol::control::{ChangeKind, InstanceChange, PluginChange};

use super::Document;
use super::configuration::Configuration;

/// Which plugins differ between two documents.
pub(crate) fn plugin_differences(before: &Document, after: &Document) -> Vec<PluginChange> {
    let names: BTreeSet<_> = before.plugins.keys().chain(after.plugins.keys()).cloned().collect();
    let change = |plugin: Name| PluginChange {
        before: before.plugins.get(&plugin).copied(),
        after: after.plugins.get(&plugin).copied(),
        plugin,
    };
    names.into_iter().map(change).filter(|change| change.before != change.after).collect()
}

/// What differs between two documents, by instance and key; never values, which may be secret.
pub(crate) fn differences(before: &Document, after: &Document) -> Vec<InstanceChange> {
    let find = |document: &Document, role: &Name, instance: &Name| -> Option<Configuration> {
        document.roles.get(role)?.get(instance).cloned()
    };
    let mut changes = Vec::new();
    for (role, instance, config) in all(after) {
        let change = |change, keys| InstanceChange { role: role.clone(), instance: instance.clone(), change, keys };
        match find(before, role, instance) {
            None => changes.push(change(ChangeKind::Added, Vec::new())),
            Some(old) if old == *config => {}
            Some(old) => {
                let (old, new) = (old.members(), config.members());
                let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
                let differ = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
                changes.push(change(ChangeKind::Changed, differ.cloned().collect()));
            }
        }
    }
    for (role, instance, _) in all(before).filter(|(role, instance, _)| find(after, role, instance).is_none()) {
        let (role, instance) = (role.clone(), instance.clone());
        changes.push(InstanceChange { role, instance, change: ChangeKind::Removed, keys: Vec::new() });
    }
    changes
}

/// Every instance of a document, in order.
fn all(document: &Document) -> impl Iterator<Item = (&Name, &Name, &Configuration)> {
    let roles = document.roles.iter();
    roles.flat_map(|(role, instances)| instances.iter().map(move |(instance, config)| (role, instance, config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_keys_and_never_values() {
        let document = |json| serde_json::from_value::<Document>(json).unwrap();
        let before = document(serde_json::json!({ "roles": { "p": { "a": { "env": "old" }, "b": {} } } }));
        let after = document(serde_json::json!({ "roles": { "p": { "a": { "env": "secret" }, "c": {} } } }));
        let changes = differences(&before, &after);
        let kinds: Vec<_> = changes.iter().map(|change| (change.instance.as_str(), change.change)).collect();
        assert_eq!(kinds, [("a", ChangeKind::Changed), ("c", ChangeKind::Added), ("b", ChangeKind::Removed)]);
        assert_eq!(changes[0].keys, ["env"]);
    }
}
