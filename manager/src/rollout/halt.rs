//! Halting a rollout in batches: what it had not reached keeps what it had.

use std::sync::Arc;

use quilt_protocol::control::Document;
use quilt_protocol::{Revision, StationId};

use super::STORE_RETRY_INTERVAL;
use crate::store::Origin;
use crate::{Core, desired};

/// Halts what rollouts had not reached when the manager ended: nobody watches over the rest of them, unless they are on trial and go on.
pub(crate) async fn halt_interrupted(core: Arc<Core>) {
    let resumed = core.state().resumed.clone();
    let held = held(&core, |_| true).into_iter().filter(|held| !resumed.contains(held)).collect();
    keep_trying(core, held, "the manager ended during its rollout").await;
}

/// The revisions that wait for their batch, of these stations.
pub(super) fn held(core: &Core, is_meant: impl Fn(StationId) -> bool) -> Vec<(StationId, Revision)> {
    let state = core.state();
    let held = state.held.iter().map(|(id, revision)| (*id, *revision));
    held.filter(|(id, _)| is_meant(*id)).collect()
}

/// Gives these stations what they had before the revisions that they wait for. Until that is stored, nothing is pushed to them.
pub(super) async fn keep_trying(core: Arc<Core>, held: Vec<(StationId, Revision)>, why: &'static str) {
    while let Err(error) = try_halt(&core, &held, why).await {
        tracing::warn!(%error, "a rollout is not halted yet; tried again");
        if !core.pause(STORE_RETRY_INTERVAL).await {
            return;
        }
    }
}

async fn try_halt(core: &Arc<Core>, held: &[(StationId, Revision)], why: &str) -> anyhow::Result<()> {
    for (id, revision) in held.iter().copied() {
        let _one_at_a_time = core.applying.lock().await;
        if !core.state().is_held(id) || core.state().held.get(&id) != Some(&revision) {
            // It was halted, or given something newer, meanwhile.
            continue;
        }
        let history = core.store.history(id).await?;
        let document = history.desired.into_iter().find(|desired| desired.revision < revision && !desired.held);
        let found = document.as_ref().map(|desired| desired.revision);
        if let Some((_, place)) =
            history.damaged.iter().find(|(damaged, _)| *damaged < revision && Some(*damaged) > found)
        {
            tracing::error!(station = %id, place, "the configuration before an interrupted rollout is damaged; apply a file for this station");
            continue;
        }
        let document = document.map_or_else(|| Document::default().to_json().into(), |desired| desired.document);
        let source = format!("revision {revision} was halted: {why}");
        desired::set_desired(core, id, document, Origin::Pinned, "manager", &source)
            .await
            .map_err(anyhow::Error::msg)?;
        core.state().held.remove(&id);
        let name = core.state().stations.get(&id).map(|station| station.record.name.to_string());
        core.events.add("fleet.halted", name.as_deref(), None, source);
    }
    Ok(())
}
