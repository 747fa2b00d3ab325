//! The mark beside a store: which fleet it is of and how far it had got when it last acknowledged something.
//!
//! SQLite takes a write-ahead log that is cut, damaged or missing for one that ends earlier, and a database that was copied
//! without its log for a whole one. The mark tells them from the store that was acknowledged.

use std::io;
use std::path::Path;

use quilt_core::slots::{Found, Slots};
use quilt_protocol::FleetId;
use serde::{Deserialize, Serialize};

/// How far a store has got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The fleet's identity.
    pub(super) fleet: FleetId,
    /// The epoch of the last start.
    pub(super) epoch: u64,
    /// How many transactions with acknowledged changes there were.
    pub(super) writes: u64,
    /// The highest revision ever given.
    pub(super) last_revision: u64,
}

impl Mark {
    /// Whether the store that this is of lacks something that `other` had.
    pub(super) fn is_behind(&self, other: &Self) -> bool {
        self.epoch < other.epoch || self.writes < other.writes || self.last_revision < other.last_revision
    }
}

/// What is found in the place of a mark.
#[derive(Debug)]
pub(super) enum FoundMark {
    /// None was ever put there.
    Nothing,
    /// The last one, or the one before if the last was cut short.
    Mark(Mark),
    /// Something that is not a mark.
    Damaged,
}

/// The file of a mark, which is two that take turns.
pub(super) struct MarkFile(Slots);

impl MarkFile {
    /// Opens the mark of a folder, or makes its files. Blocks.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub(super) fn open(folder: &Path) -> io::Result<(Self, FoundMark)> {
        let (slots, found) = Slots::open(folder, "fleet.mark")?;
        let found = match found {
            Found::Nothing => FoundMark::Nothing,
            Found::Damaged => FoundMark::Damaged,
            Found::Last(json) | Found::Before(json) => {
                serde_json::from_slice(&json).map_or(FoundMark::Damaged, FoundMark::Mark)
            }
        };
        Ok((Self(slots), found))
    }

    /// Replaces the mark; it is on disk when this returns. Blocks.
    ///
    /// # Errors
    ///
    /// What the operating system says; the mark before it still counts.
    pub(super) fn put(&mut self, mark: &Mark) -> io::Result<()> {
        self.0.put(&serde_json::to_vec(mark).expect("a mark has text keys"))
    }

    /// Its first file, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.0.paths()[0]
    }
}
