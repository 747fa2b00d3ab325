//! What a manager must not forget, in the domain's words: stations, desired configurations, fleet entries, events.
//!
//! One trait, two implementations: SQLite for managers, memory for tests and simulations. Both pass the suite in
//! `conformance`. While a manager runs, its memory is the truth that questions are answered from; the store is what it
//! starts from again, so reads are few.

mod memory;
mod sqlite;

#[cfg(test)]
mod conformance;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quilt_net::BoxFuture;
use quilt_protocol::control::{Facts, FleetEvent, Share, Wait};
use quilt_protocol::{Digest, FleetId, Labels, Name, Revision, StationId};
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

pub use memory::MemoryStore;
pub use sqlite::{SqliteStore, Summary, back_up, restore};

/// The store's file in a manager's folder.
pub const STORE_FILE: &str = "fleet.db";
/// How many desired configurations are kept of each station, besides the newest.
pub const HISTORY_MAX: usize = 50;
/// How many events are kept.
pub const EVENTS_MAX: u64 = 100_000;

/// Durable state. `commit` is the only way to change it.
pub trait Store: Send + Sync + 'static {
    /// Everything a manager starts from. The first call ever makes the fleet's identity; each raises the epoch. A store that can
    /// be read and not written is loaded all the same: [`Store::trouble`] then tells why it takes no changes.
    ///
    /// Rows that are damaged are left out and named in [`Loaded::damage`].
    ///
    /// # Errors
    ///
    /// [`StoreError`]; a damaged store is never taken for an empty one.
    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>>;

    /// Makes all `changes` or none. They are on disk when this is ready.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was changed.
    ///
    /// # Cancel safety
    ///
    /// Once called the changes are made, whether or not the future is awaited.
    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'static, Result<(), StoreError>>;

    /// A station's desired configurations.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn history(&self, station: StationId) -> BoxFuture<'static, Result<History, StoreError>>;

    /// Puts everything that was asked for on disk, in one file, before the manager ends.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn close(&self) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Why the store takes no changes, if it does not: the last commit failed, or has waited for the disk for long. The store
    /// itself tries again and again whether it takes changes, so this heals without a commit.
    fn trouble(&self) -> Option<String>;

    /// How many commits wait for the disk.
    fn backlog(&self) -> usize;

    /// At most `limit` events after number `after`, oldest first. An event that is damaged says so in its text.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn events(&self, after: u64, limit: usize) -> BoxFuture<'static, Result<Vec<FleetEvent>, StoreError>>;
}

/// Why a store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the store: {0}")]
pub struct StoreError(pub String);

/// What a manager starts from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The fleet's identity.
    pub fleet: FleetId,
    /// Grows with every start; tells a restored copy from the store it was copied from.
    pub epoch: u64,
    /// The highest revision ever given.
    pub last_revision: Revision,
    /// The highest number of an event.
    pub last_event: u64,
    /// Known stations.
    pub stations: Vec<StationRecord>,
    /// The newest desired configuration of each station that has one.
    pub desired: BTreeMap<StationId, Desired>,
    /// What fleet files say, by entry.
    pub entries: BTreeMap<EntryKey, Entry>,
    /// Applies that are to be taken back if they fail and have neither settled nor failed.
    pub trials: Vec<Trial>,
    /// Rows that do not verify. What they held is not among the above.
    pub damage: Vec<Damage>,
}

/// A row that is not what was written: its checksum or the digest of its document says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What the row holds.
    pub row: DamagedRow,
    /// Where it lies, for people: the file, the table and the key.
    pub place: String,
}

/// What a damaged row holds, as far as its key can still be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DamagedRow {
    /// The record of a station.
    Station,
    /// The newest desired configuration of a station.
    Desired(StationId),
    /// A fleet entry; without its key if that cannot be read.
    Entry(Option<EntryKey>),
    /// An apply that was to be taken back if it failed.
    Trial,
}

/// A station's desired configurations, newest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct History {
    /// Those that verify.
    pub desired: Vec<Desired>,
    /// Those that do not, each with the place of its row.
    pub damaged: Vec<(Revision, String)>,
}

/// A station as it is remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StationRecord {
    /// Its identity.
    pub id: StationId,
    /// Its name in the fleet.
    pub name: Name,
    /// Whether its configuration is this manager's to push.
    pub adopted: bool,
    /// Its own labels.
    pub labels: Labels,
    /// What it said of its machine.
    pub facts: Facts,
    /// The roles it could run when it was last heard of: groups that match by role also hold while it is away.
    #[serde(default)]
    pub roles: Vec<Name>,
    /// When it was last heard of, in milliseconds since 1970.
    pub last_seen_ms: u64,
    /// Whether it left with a goodbye.
    pub said_goodbye: bool,
}

/// A desired configuration of one station.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// Its number.
    pub revision: Revision,
    /// Hash of `document`.
    pub digest: Digest,
    /// The JSON document, byte for byte as pushed. Stations of which the same is desired share it.
    pub document: Arc<str>,
    /// Where it comes from.
    pub origin: Origin,
    /// Who made it desired.
    pub who: SmolStr,
    /// Which fleet file or action.
    pub source: SmolStr,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Whether every instance of it was seen healthy.
    pub good: bool,
    /// Whether it waits for its batch: the station has not been offered it yet.
    pub held: bool,
}

/// Where a desired configuration comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// From fleet entries: made anew when labels or groups change.
    Fleet,
    /// From what the station ran when it was adopted: stays until an entry names the station.
    Adopted,
    /// From a rollback: stays until the next apply that concerns the station.
    Pinned,
}

/// Names a fleet entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKey {
    /// `[station.NAME]`.
    Station(String),
    /// `[group.NAME]`.
    Group(Name),
}

impl EntryKey {
    /// Whether its entry may say what labels stations have.
    pub(crate) fn has_labels(&self) -> bool {
        matches!(self, Self::Station(_))
    }
}

/// What a fleet file says under one key, as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The file.
    pub source: String,
    /// The entry as JSON.
    pub json: String,
}

/// An apply that is to be taken back if it fails. It is stored with what it changes, so that a manager that starts again keeps what
/// was promised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The lowest revision that it gave: identifies it.
    pub id: Revision,
    /// Who applied it.
    pub who: String,
    /// Which fleet file.
    pub source: String,
    /// How it is followed.
    pub wait: Wait,
    /// How many stations at a time.
    pub batch: Option<Share>,
    /// The entries that it changed.
    pub entries: Vec<TrialEntry>,
    /// The stations that it concerns, in the order in which they get it.
    pub targets: Vec<TrialTarget>,
}

/// An entry that an apply on trial changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialEntry {
    /// Which.
    pub key: EntryKey,
    /// What it said before; none if it was not there.
    pub before: Option<Entry>,
    /// What it says since; none if it is gone.
    pub after: Option<Entry>,
}

/// A station that an apply on trial concerns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialTarget {
    /// Its identity.
    pub id: StationId,
    /// Its name.
    pub name: Name,
    /// The revision that was desired before.
    pub before: Option<Revision>,
    /// The revision that the apply gave; none if nothing changes.
    pub desired: Option<Revision>,
    /// Whether it was connected when the apply began.
    pub was_live: bool,
    /// Role and instance of what was not healthy before, by which the apply is not judged.
    pub unhealthy_before: BTreeSet<(Name, Name)>,
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Remembers a station, or what is new about it.
    PutStation(Box<StationRecord>),
    /// Forgets a station with all that belongs to it.
    ForgetStation(StationId),
    /// Gives a station a new desired configuration. Older ones beyond [`HISTORY_MAX`] go.
    PutDesired(StationId, Box<Desired>),
    /// Notes whether a desired configuration ran well.
    MarkGood(StationId, Revision, bool),
    /// Notes that a desired configuration does not wait for its batch any more.
    Release(StationId, Revision),
    /// Remembers a fleet entry.
    PutEntry(EntryKey, Entry),
    /// Forgets a fleet entry.
    RemoveEntry(EntryKey),
    /// Remembers that an apply is to be taken back if it fails.
    PutTrial(Box<Trial>),
    /// Forgets that: it has settled, or was taken back.
    EndTrial(Revision),
    /// Raises the epoch to at least this.
    RaiseEpoch(u64),
    /// Adds an event. Those older than [`EVENTS_MAX`] go.
    AddEvent(FleetEvent),
}
