//! What is known of an instance, for the next station on this machine: how it does, since when, and how often it was restarted.

use std::fs;
use std::path::{Path, PathBuf};

use quilt_core::files;
use quilt_protocol::Digest;
use quilt_protocol::control::{InstanceReport, State};
use serde::{Deserialize, Serialize};

use crate::identity;

/// The last state of an instance that lasts.
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
    /// Of an instance as it is shown.
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

    /// Reads what there is of an instance, if it had this configuration and the machine has not been restarted since.
    pub(super) fn read(instance: &Path, digest: Digest) -> Option<Self> {
        let record: Self = serde_json::from_slice(&fs::read(path(instance)).ok()?).ok()?;
        (record.digest == digest && record.boot_id == identity::boot_id()).then_some(record)
    }

    /// Puts it beside what the instance has on disk.
    pub(super) fn write(&self, instance: &Path) {
        let json = serde_json::to_vec(self).expect("it has text keys");
        // Without the record the next station counts from the beginning and tries again, which is no harm.
        if let Err(error) = files::replace(&path(instance), &json) {
            tracing::debug!(%error, instance = %instance.display(), "cannot record how it does");
        }
    }

    /// Removes it.
    pub(super) fn remove(instance: &Path) {
        let _ = fs::remove_file(path(instance));
    }

    /// Since when the instance is in this state, if it was when this was written.
    pub(super) fn since(&self, state: State) -> Option<u64> {
        (self.state == state).then_some(self.since_ms)
    }

    /// Why it was given up, if it was.
    pub(super) fn given_up(&self) -> Option<&str> {
        (self.state == State::Failed).then_some(&*self.detail)
    }
}

fn path(instance: &Path) -> PathBuf {
    instance.join("record.json")
}
