//! Halting what a rollout in batches had not reached when the manager ended.

use std::sync::Arc;

use quilt_protocol::control::Document;

use super::STORE_RETRY_INTERVAL;
use crate::store::Origin;
use crate::{Core, desired};

/// What a rollout in batches had not reached when the manager ended keeps what it had: nobody watches over the rest of it, unless it
/// is on trial and goes on. Until that is stored nothing is pushed to these stations.
pub(crate) async fn halt_interrupted(core: Arc<Core>) {
    while let Err(error) = try_halt(&core).await {
        tracing::warn!(%error, "an interrupted rollout is not halted yet; tried again");
        if !core.pause(STORE_RETRY_INTERVAL).await {
            return;
        }
    }
}

async fn try_halt(core: &Arc<Core>) -> anyhow::Result<()> {
    let held: Vec<_> = {
        let state = core.state();
        let held = state.held.iter().map(|(id, revision)| (*id, *revision));
        held.filter(|held| !state.resumed.contains(held)).collect()
    };
    for (id, revision) in held {
        let _one_at_a_time = core.applying.lock().await;
        if !core.state().is_held(id) {
            // It was given something newer meanwhile.
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
        let source = format!("revision {revision} was halted: the manager ended during its rollout");
        desired::set_desired(core, id, document, Origin::Pinned, "manager", &source)
            .await
            .map_err(anyhow::Error::msg)?;
        core.state().held.remove(&id);
        let name = core.state().stations.get(&id).map(|station| station.record.name.to_string());
        core.events.add("fleet.halted", name.as_deref(), None, source);
    }
    Ok(())
}
