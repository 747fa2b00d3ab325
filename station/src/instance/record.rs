//! The record of an instance for the next station on this machine: its state, since when, and how often it was restarted.

use std::path::{Path, PathBuf};

use quilt_core::disk::WriteBehind;
use quilt_core::files;
use quilt_protocol::Digest;
use quilt_protocol::control::{InstanceReport, State};
use serde::{Deserialize, Serialize};

use crate::identity;

/// The longest record that is read, in bytes.
const LENGTH_MAX: u64 = 1 << 20;

/// The last lasting state of an instance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    digest: Digest,
    boot_id: Option<String>,
    state: State,
    detail: String,
    pub(super) since_ms: u64,
    pub(super) restarts: u32,
}

impl Record {
    /// The record of an instance as its report shows it.
    pub(super) fn new(report: &InstanceReport) -> Self {
        Self {
            digest: report.digest,
            boot_id: identity::boot_id(),
            state: report.state,
            detail: report.detail.clone(),
            since_ms: report.since_ms,
            restarts: report.restarts,
        }
    }

    /// Reads the record of an instance. `None` if there is none, or if it is of another configuration or an earlier boot.
    pub(super) fn read(instance: &Path, digest: Digest) -> Option<Self> {
        let record: Self = serde_json::from_slice(&files::read_regular(&path(instance), LENGTH_MAX).ok()?).ok()?;
        (record.digest == digest && record.boot_id == identity::boot_id()).then_some(record)
    }

    /// Has the record written. Without it the next station only counts anew and tries a failed instance again, so nothing waits for
    /// the disk.
    pub(super) fn write(&self, file: &WriteBehind) {
        file.replace(serde_json::to_vec(self).expect("it has text keys"));
    }

    /// Since when the instance has been in `state`, if it was when the record was written; in milliseconds since 1970.
    pub(super) fn since(&self, state: State) -> Option<u64> {
        (self.state == state).then_some(self.since_ms)
    }

    /// Why the instance was given up, if it was.
    pub(super) fn given_up(&self) -> Option<&str> {
        (self.state == State::Failed).then_some(&*self.detail)
    }
}

/// The file of an instance's record.
pub(super) fn path(instance: &Path) -> PathBuf {
    instance.join("record.json")
}
