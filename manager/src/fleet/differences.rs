//! What differs between two documents.

use std::collections::{BTreeMap, BTreeSet};

use quilt_protocol::Name;
use quilt_protocol::control::{ChangeKind, Document, InstanceChange, PluginChange};

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
    let flat = |document: &Document| -> BTreeMap<(Name, Name), serde_json::Map<String, serde_json::Value>> {
        let roles = document.roles.iter();
        let all = roles.flat_map(|(role, instances)| {
            instances.iter().map(|(instance, config)| ((role.clone(), instance.clone()), config.clone()))
        });
        all.collect()
    };
    let (before, after) = (flat(before), flat(after));
    let mut changes = Vec::new();
    for ((role, instance), config) in &after {
        let change = |change, keys| InstanceChange { role: role.clone(), instance: instance.clone(), change, keys };
        match before.get(&(role.clone(), instance.clone())) {
            None => changes.push(change(ChangeKind::Added, Vec::new())),
            Some(old) if old == config => {}
            Some(old) => {
                let mut keys: Vec<_> = old.keys().chain(config.keys()).cloned().collect();
                keys.retain(|key| old.get(key) != config.get(key));
                keys.sort();
                keys.dedup();
                changes.push(change(ChangeKind::Changed, keys));
            }
        }
    }
    for (role, instance) in before.keys().filter(|key| !after.contains_key(*key)) {
        let (role, instance) = (role.clone(), instance.clone());
        changes.push(InstanceChange { role, instance, change: ChangeKind::Removed, keys: Vec::new() });
    }
    changes
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
