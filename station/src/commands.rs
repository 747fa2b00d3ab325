//! The commands that instances offer now.

mod records;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use quilt_plugin_api::{CommandRecord, Handler};
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use self::records::Records;
use crate::spec::Key;

pub(crate) use self::records::{PLUGIN_MAX, Record, RecordLimit, Schema};

/// How many commands an instance may offer.
pub(crate) const COMMANDS_MAX: usize = 1000;

/// Every callable command, and how to end the calls of an instance.
#[derive(Default)]
pub(crate) struct Commands {
    tables: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    /// What is callable.
    active: FxHashMap<Key, Offered>,
    /// What the next run of an instance offers once it takes over from the one before.
    staged: FxHashMap<Key, Offered>,
    /// What all of them are described by.
    records: Records,
}

struct Offered {
    /// Which run of the instance offers them.
    run: u64,
    /// By `group:name`, as typed callers ask for them.
    commands: BTreeMap<String, Arc<Offer>>,
    /// Cancelled before an update or stop. Shared, since every call has it and few look at it.
    calls: Arc<CancellationToken>,
    /// Counts the calls under way.
    under_way: TaskTracker,
}

/// A command, and who carries it out.
pub(crate) struct Offer {
    pub(crate) record: Arc<Record>,
    /// Whether it may run where it arrives.
    pub(crate) inline: bool,
    /// The run that carries it out.
    pub(crate) run: u64,
    pub(crate) handler: Handler,
    /// Hears of a panic in it, which ends the instance: what it left half done is not used again.
    pub(crate) crashed: mpsc::Sender<String>,
}

/// Why a command is not offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum NotOffered {
    #[error("the instance offers one of that name already")]
    NameTaken,
    #[error("an instance may offer at most {COMMANDS_MAX} commands")]
    TooMany,
    #[error(transparent)]
    TooLong(#[from] RecordLimit),
}

/// What the log of an instance says once about a command that finds no place; for whoever reaches a limit may go on asking.
pub(crate) fn limit_reached(name: &str, why: &NotOffered) -> String {
    format!("command `{name}`, and what may follow, is not offered: {why}")
}

impl Offered {
    fn new(run: u64) -> Self {
        Self { run, commands: BTreeMap::new(), calls: Arc::default(), under_way: TaskTracker::new() }
    }
}

impl Tables {
    /// What a run offers, wherever that is.
    fn of(&mut self, key: &Key, run: u64) -> Option<&mut Offered> {
        let active = self.active.get_mut(key).filter(|offered| offered.run == run);
        active.or(self.staged.get_mut(key).filter(|offered| offered.run == run))
    }
}

/// The calls of a run that was replaced.
pub(crate) struct Replaced {
    calls: Arc<CancellationToken>,
    under_way: TaskTracker,
}

impl Replaced {
    /// Waits until its calls have ended, but no longer than `time`; the rest is cancelled.
    pub(crate) async fn drain(self, time: Duration) {
        self.under_way.close();
        if tokio::time::timeout(time, self.under_way.wait()).await.is_err() {
            self.calls.cancel();
            self.under_way.wait().await;
        }
    }
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
    pub(crate) offer: Arc<Offer>,
    pub(crate) calls: Arc<CancellationToken>,
    /// Says that the call is under way until it is dropped.
    pub(crate) under_way: TaskTrackerToken,
}

/// A command's name with that of its group.
pub(crate) fn full_name(group: &str, name: &str) -> String {
    format!("{group}:{name}")
}

impl Commands {
    fn tables(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a command of a run callable, once it is the one that counts. `owner` is the plugin that describes it, or the linked role.
    ///
    /// # Errors
    ///
    /// The instance has one of that name, or a limit is reached.
    pub(crate) fn register(
        &self,
        key: &Key,
        run: u64,
        owner: &str,
        record: CommandRecord,
        carried_out_by: (Handler, mpsc::Sender<String>),
    ) -> Result<(), NotOffered> {
        self.has_place_for(key, run, &full_name(&record.group, &record.name))?;
        // Not under the lock: a long one takes its time.
        let (inline, record, (handler, crashed)) = (record.inline, Record::new(&record), carried_out_by);
        let mut guard = self.tables();
        let tables = &mut *guard;
        if tables.of(key, run).is_none() {
            // Until it takes over: all that a run offers becomes callable at once.
            tables.staged.insert(key.clone(), Offered::new(run));
        }
        let Tables { active, staged, records } = tables;
        let active = active.get_mut(key).filter(|offered| offered.run == run);
        let offered = active.or(staged.get_mut(key).filter(|offered| offered.run == run));
        let offered = offered.expect("it was put there above");
        if offered.commands.len() >= COMMANDS_MAX {
            return Err(NotOffered::TooMany);
        }
        // The first that registers a name keeps it: a second never takes calls away from it.
        match offered.commands.entry(full_name(&record.group, &record.name)) {
            Entry::Occupied(_) => Err(NotOffered::NameTaken),
            Entry::Vacant(place) => {
                let record = records.share(owner, record)?;
                place.insert(Arc::new(Offer { record, inline, run, handler, crashed }));
                Ok(())
            }
        }
    }

    /// What can be told before the record is read: a role may ask for any number.
    fn has_place_for(&self, key: &Key, run: u64, name: &str) -> Result<(), NotOffered> {
        match self.tables().of(key, run) {
            Some(offered) if offered.commands.contains_key(name) => Err(NotOffered::NameTaken),
            Some(offered) if offered.commands.len() >= COMMANDS_MAX => Err(NotOffered::TooMany),
            _ => Ok(()),
        }
    }

    pub(crate) fn de_register(&self, key: &Key, run: u64, group: &str, name: &str) {
        if let Some(offered) = self.tables().of(key, run) {
            offered.commands.remove(&full_name(group, name));
        }
    }

    /// Lets a run take over from the one before, if there is one: from here on every call reaches it and it only.
    pub(crate) fn take_over(&self, key: &Key, run: u64) -> Option<Replaced> {
        let mut tables = self.tables();
        let next = match tables.staged.remove(key) {
            Some(next) if next.run == run => next,
            // It offers nothing.
            _ => Offered::new(run),
        };
        let before = tables.active.insert(key.clone(), next)?;
        Some(Replaced { calls: before.calls, under_way: before.under_way })
    }

    /// Ends the running calls of an instance; new ones go on as before.
    pub(crate) fn cancel_calls(&self, key: &Key) {
        if let Some(offered) = self.tables().active.get_mut(key) {
            std::mem::take(&mut offered.calls).cancel();
        }
    }

    /// Forgets a run and ends its calls.
    pub(crate) fn remove(&self, key: &Key, run: u64) {
        let mut tables = self.tables();
        let Tables { active, staged, .. } = &mut *tables;
        for table in [active, staged] {
            if table.get(key).is_some_and(|offered| offered.run == run)
                && let Some(offered) = table.remove(key)
            {
                offered.calls.cancel();
            }
        }
    }

    /// Finds `name`, or `group:name`.
    pub(crate) fn find(&self, key: &Key, command: &str) -> Result<Found, NoHandler> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let offered = tables.active.get(key).ok_or(NoHandler::NoTarget)?;
        let found = |offer: &Arc<Offer>| Found {
            offer: offer.clone(),
            calls: offered.calls.clone(),
            under_way: offered.under_way.token(),
        };
        if command.contains(':') {
            return offered.commands.get(command).map(found).ok_or(NoHandler::NoCommand);
        }
        let matching: Vec<_> = offered.commands.iter().filter(|(_, offer)| offer.record.name == command).collect();
        match matching[..] {
            [] => Err(NoHandler::NoCommand),
            [(_, only)] => Ok(found(only)),
            _ => {
                let names: Vec<_> = matching.iter().map(|(name, _)| name.as_str()).collect();
                Err(NoHandler::Ambiguous(format!("several groups have it; say which: {}", names.join(", "))))
            }
        }
    }

    /// What every instance offers.
    pub(crate) fn all(&self) -> Vec<(Key, Arc<Record>)> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = tables
            .active
            .iter()
            .flat_map(|(key, offered)| offered.commands.values().map(|offer| (key.clone(), offer.record.clone())))
            .collect();
        all.sort_by(|a, b| (&a.0, &a.1.group, &a.1.name).cmp(&(&b.0, &b.1.group, &b.1.name)));
        all
    }
}
