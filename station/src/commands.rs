//! The commands that instances offer now.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{PoisonError, RwLock};

use quilt_plugin_api::{CommandRecord, Handler};
use tokio_util::sync::CancellationToken;

use crate::spec::Key;

/// Every callable command, and how to end the calls of an instance.
#[derive(Default)]
pub(crate) struct Commands {
    instances: RwLock<HashMap<Key, Offered>>,
}

#[derive(Default)]
struct Offered {
    commands: BTreeMap<(String, String), (CommandRecord, Handler)>,
    /// Cancelled before an update or stop.
    calls: CancellationToken,
}

/// Why a name does not lead to a command.
pub(crate) enum NoHandler {
    /// No such instance, or none that is started.
    NoTarget,
    /// It has no such command.
    NoCommand,
    /// Several groups have one; for people.
    Ambiguous(String),
}

/// A command that was found.
pub(crate) struct Found {
    pub(crate) handler: Handler,
    pub(crate) fingerprint: quilt_plugin_api::Fingerprint,
    pub(crate) streaming: bool,
    pub(crate) calls: CancellationToken,
}

impl Commands {
    /// Makes a command callable; false if there is one of that name.
    pub(crate) fn register(&self, key: &Key, record: CommandRecord, handler: Handler) -> bool {
        let mut instances = self.instances.write().unwrap_or_else(PoisonError::into_inner);
        let offered = instances.entry(key.clone()).or_default();
        let name = (record.group.clone(), record.name.clone());
        // The first that registers a name keeps it: a second never takes calls away from it.
        match offered.commands.entry(name) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert((record, handler));
                true
            }
        }
    }

    pub(crate) fn de_register(&self, key: &Key, group: &str, name: &str) {
        let mut instances = self.instances.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(offered) = instances.get_mut(key) {
            offered.commands.remove(&(group.to_owned(), name.to_owned()));
        }
    }

    /// Ends the running calls of an instance; new ones go on as before.
    pub(crate) fn cancel_calls(&self, key: &Key) {
        let mut instances = self.instances.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(offered) = instances.get_mut(key) {
            std::mem::take(&mut offered.calls).cancel();
        }
    }

    /// Forgets an instance and ends its calls.
    pub(crate) fn remove(&self, key: &Key) {
        if let Some(offered) = self.instances.write().unwrap_or_else(PoisonError::into_inner).remove(key) {
            offered.calls.cancel();
        }
    }

    /// Finds `name`, or `group:name`.
    pub(crate) fn find(&self, key: &Key, command: &str) -> Result<Found, NoHandler> {
        let instances = self.instances.read().unwrap_or_else(PoisonError::into_inner);
        let offered = instances.get(key).ok_or(NoHandler::NoTarget)?;
        let found = |(record, handler): &(CommandRecord, Handler)| Found {
            handler: handler.clone(),
            fingerprint: record.fingerprint,
            streaming: record.streaming,
            calls: offered.calls.clone(),
        };
        if let Some((group, name)) = command.rsplit_once(':') {
            let exact = offered.commands.get(&(group.to_owned(), name.to_owned()));
            return exact.map(found).ok_or(NoHandler::NoCommand);
        }
        let matching: Vec<_> = offered.commands.iter().filter(|((_, name), _)| name == command).collect();
        match matching[..] {
            [] => Err(NoHandler::NoCommand),
            [(_, only)] => Ok(found(only)),
            _ => {
                let names: Vec<_> = matching.iter().map(|((group, name), _)| format!("{group}:{name}")).collect();
                Err(NoHandler::Ambiguous(format!("several groups have it; say which: {}", names.join(", "))))
            }
        }
    }

    /// What every instance offers.
    pub(crate) fn all(&self) -> Vec<(Key, CommandRecord)> {
        let instances = self.instances.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = instances
            .iter()
            .flat_map(|(key, offered)| offered.commands.values().map(|(record, _)| (key.clone(), record.clone())))
            .collect();
        all.sort_by(|a, b| (&a.0, &a.1.group, &a.1.name).cmp(&(&b.0, &b.1.group, &b.1.name)));
        all
    }
}
