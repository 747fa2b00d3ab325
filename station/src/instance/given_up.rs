//! That an instance was given up, remembered across restarts of the station; not across those of the machine.

use std::fs;
use std::path::{Path, PathBuf};

use quilt_core::files;
use quilt_protocol::Digest;
use serde::{Deserialize, Serialize};

use crate::identity;
use crate::spec::Spec;

/// The record in an instance's folder.
pub(super) struct GivenUp(PathBuf);

#[derive(Serialize, Deserialize)]
struct Record {
    digest: Digest,
    boot_id: Option<String>,
    why: String,
}

impl GivenUp {
    pub(super) fn new(instance: &Path) -> Self {
        Self(instance.join("given-up.json"))
    }

    pub(super) fn set(&self, spec: &Spec, why: &str) {
        let record = Record { digest: spec.digest, boot_id: identity::boot_id(), why: why.into() };
        let json = serde_json::to_vec(&record).expect("it has text keys");
        // Without the record the next station tries again, which is no harm.
        if let Err(error) = files::write_atomically(&self.0, &json) {
            tracing::warn!(%error, instance = %spec.key, "cannot record that it was given up");
        }
    }

    pub(super) fn clear(&self) {
        let _ = fs::remove_file(&self.0);
    }

    /// Why it was given up with this configuration, if it was.
    pub(super) fn why(&self, spec: &Spec) -> Option<String> {
        let record: Record = serde_json::from_slice(&fs::read(&self.0).ok()?).ok()?;
        (record.digest == spec.digest && record.boot_id == identity::boot_id()).then_some(record.why)
    }
}
