//! What commands are described by: kept once for all instances that offer the same, and bounded for each plugin and for the station.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use quilt_plugin_api::{CommandRecord, Fingerprint};
use quilt_protocol::Digest;
use quilt_protocol::control::schema_text;

/// How long all records of a plugin may be together, in bytes. A command with three schemas of usual length takes 5 KiB.
pub(crate) const PLUGIN_MAX: usize = 4 << 20;
/// The same of all plugins of a station: a listing has them all.
pub(crate) const STATION_MAX: usize = 16 << 20;

/// A JSON Schema as its text.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) text: String,
    pub(crate) digest: Digest,
}

impl Schema {
    pub(crate) fn new(schema: &serde_json::Value) -> Self {
        let text = schema_text(schema);
        Self { digest: Digest::of(text.as_bytes()), text }
    }
}

/// What discovery knows of a command.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) doc: String,
    pub(crate) read: bool,
    pub(crate) streaming: bool,
    pub(crate) fingerprint: Fingerprint,
    /// Of request, reply and error.
    pub(crate) schemas: [Schema; 3],
    /// Tells it from records with other content.
    digest: Digest,
    room: Option<Room>,
}

/// What a record takes of the room of its plugin and of the station, until it is dropped.
#[derive(Debug)]
struct Room {
    length: usize,
    taken: [Arc<AtomicUsize>; 2],
}

impl Drop for Room {
    fn drop(&mut self) {
        for taken in &self.taken {
            taken.fetch_sub(self.length, Ordering::Relaxed);
        }
    }
}

impl Record {
    pub(crate) fn new(record: &CommandRecord) -> Self {
        let CommandRecord { group, name, doc, read, streaming, fingerprint, .. } = record.clone();
        let schemas = [&record.request_schema, &record.reply_schema, &record.error_schema].map(|one| Schema::new(one));
        let digests = schemas.each_ref().map(|schema| schema.digest.to_string());
        let whole = format!("{:?}", (&group, &name, &doc, read, streaming, fingerprint, digests));
        let digest = Digest::of(whole.as_bytes());
        Self { group, name, doc, read, streaming, fingerprint, schemas, digest, room: None }
    }

    fn length(&self) -> usize {
        let schemas: usize = self.schemas.iter().map(|schema| schema.text.len()).sum();
        self.group.len() + self.name.len() + self.doc.len() + schemas
    }
}

/// There is no room for a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum RecordLimit {
    #[error("the names, docs and schemas of its plugin's commands may come to at most {} MiB", PLUGIN_MAX >> 20)]
    Plugin,
    #[error("the names, docs and schemas of all commands of a station may come to at most {} MiB", STATION_MAX >> 20)]
    Station,
}

/// The records that are in use.
#[derive(Default)]
pub(super) struct Records {
    by_owner: HashMap<String, Owned>,
    taken: Arc<AtomicUsize>,
}

/// Those of one plugin, by content.
#[derive(Default)]
struct Owned {
    records: HashMap<Digest, Weak<Record>>,
    taken: Arc<AtomicUsize>,
    /// At so many entries those that nobody uses any more are removed.
    sweep_at: usize,
}

impl Records {
    /// The one record of this content. Takes the same time however many there are.
    pub(super) fn share(&mut self, owner: &str, mut record: Record) -> Result<Arc<Record>, RecordLimit> {
        if !self.by_owner.contains_key(owner) {
            self.by_owner.insert(owner.to_owned(), Owned::default());
        }
        let owned = self.by_owner.get_mut(owner).expect("it was put there above");
        if let Some(known) = owned.records.get(&record.digest).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let length = record.length();
        if owned.taken.load(Ordering::Relaxed) + length > PLUGIN_MAX {
            return Err(RecordLimit::Plugin);
        }
        if self.taken.load(Ordering::Relaxed) + length > STATION_MAX {
            return Err(RecordLimit::Station);
        }
        let taken = [owned.taken.clone(), self.taken.clone()];
        for taken in &taken {
            taken.fetch_add(length, Ordering::Relaxed);
        }
        record.room = Some(Room { length, taken });
        let record = Arc::new(record);
        owned.records.insert(record.digest, Arc::downgrade(&record));
        if owned.records.len() > owned.sweep_at {
            owned.records.retain(|_, record| record.strong_count() > 0);
            owned.sweep_at = 2 * owned.records.len();
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, length: usize) -> Record {
        let schema = || Arc::new(serde_json::json!(true));
        Record::new(&CommandRecord {
            group: "g".into(),
            name: name.into(),
            doc: "x".repeat(length),
            read: true,
            streaming: false,
            inline: false,
            fingerprint: [0; 16],
            request_schema: schema(),
            reply_schema: schema(),
            error_schema: schema(),
        })
    }

    #[test]
    fn records_are_bounded_by_plugin_and_by_station_and_what_many_instances_share_counts_once() {
        let mut records = Records::default();
        let half = PLUGIN_MAX / 2;
        let shared: Vec<_> = (0..20).map(|_| records.share("a", record("same", half)).unwrap()).collect();
        assert!(shared.iter().all(|other| Arc::ptr_eq(other, &shared[0])));
        assert_eq!(records.share("a", record("other", half)).err(), Some(RecordLimit::Plugin));
        let mut kept = vec![records.share("a", record("other", half - 1000)).unwrap()];
        for owner in ["b", "c", "d"] {
            kept.push(records.share(owner, record("same", PLUGIN_MAX - 1000)).unwrap());
        }
        assert_eq!(records.share("e", record("same", half)).err(), Some(RecordLimit::Station));
        assert!(records.share("e", record("short", 100)).is_ok());
        // What is not offered any more leaves its room.
        drop(shared);
        assert!(records.share("a", record("other one", half)).is_ok());
    }
}
