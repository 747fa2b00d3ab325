//! The configurations a station had, and going back to one.

use std::sync::Arc;

use quilt_core::time;
use quilt_protocol::control::{DocumentOf, HistoryEntry, OneStation, Rollback, RolledBack};
use serde::de::IgnoredAny;

use super::{Failure, find, refused};
use crate::list_reply::ListReply;
use crate::store::{Desired, Origin};
use crate::{Core, desired};

/// Lists what was desired of a station, newest first.
pub(super) async fn history(core: Arc<Core>, request: OneStation, mut list: ListReply) {
    let made = add_history(&core, &request, &mut list).await;
    list.end(made);
}

async fn add_history(core: &Core, request: &OneStation, list: &mut ListReply) -> Result<(), Failure> {
    let id = find(core, &request.station)?;
    let history = core.store.history(id).await.map_err(|error| refused(error.to_string()))?;
    for desired in history.desired {
        let (instances, desired) = core.compute(move || (instances_of(&desired), desired)).await;
        let entry = HistoryEntry {
            revision: desired.revision,
            digest: desired.digest,
            at: time::ms_text(desired.at_ms),
            instances,
            who: desired.who.into(),
            source: desired.source.into(),
            good: desired.good,
        };
        list.add(&entry).await?;
    }
    Ok(())
}

fn instances_of(desired: &Desired) -> Vec<String> {
    // Only the names are read.
    let document: DocumentOf<IgnoredAny> = serde_json::from_str(&desired.document).unwrap_or_default();
    let roles = document.roles.iter();
    roles.flat_map(|(role, instances)| instances.keys().map(move |instance| format!("{role}/{instance}"))).collect()
}

/// Makes an earlier configuration desired again, under a new number.
pub(super) async fn rollback(core: &Arc<Core>, request: &Rollback, who: &str) -> Result<RolledBack, Failure> {
    let _one_at_a_time = core.applying.lock().await;
    let id = find(core, &request.station)?;
    let history = core.store.history(id).await.map_err(|error| refused(error.to_string()))?;
    let current = core.state().stations[&id].desired.as_ref().map(|desired| desired.digest);
    let earlier = match request.to {
        Some(to) => history.desired.iter().find(|desired| desired.revision == to),
        None => history.desired.iter().find(|desired| desired.good && Some(desired.digest) != current),
    };
    let Some(earlier) = earlier else {
        let text = match request.to {
            Some(to) => match history.damaged.iter().find(|(revision, _)| *revision == to) {
                Some((_, place)) => format!("revision {to} of {} is damaged in the store: {place}", request.station),
                None => format!("{} has no revision {to}; `quiltctl history {0}` lists them", request.station),
            },
            None => format!("{} has no earlier revision that ran well; name one with --to", request.station),
        };
        return Err(refused(text));
    };
    let source = format!("rollback to revision {}", earlier.revision);
    core.events.add("station.rolled_back", Some(&request.station), None, source.clone());
    let (document, to) = (earlier.document.clone(), earlier.revision);
    let digest = earlier.digest;
    let revision = desired::set_desired(core, id, document, Origin::Pinned, who, &source).await.map_err(refused)?;
    let undone_by = desired::undone_by(core, id, digest).await;
    Ok(RolledBack { revision, to, undone_by })
}
