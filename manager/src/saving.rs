//! Records of stations on their way to the store.
//!
//! A station that comes is taken in whether or not the store takes its record: it runs programs, and a full disk of the manager is
//! no reason to turn it away. What is not stored yet is tried again until it is.

use std::sync::Arc;
use std::time::Duration;

use quilt_protocol::StationId;

use crate::store::{Change, StoreError};
use crate::{Core, push};

/// How long a registration waits for the disk. Without waiting, a storm of registrations would fill memory with commits.
const SAVE_PATIENCE: Duration = Duration::from_secs(1);
/// How often what the store did not take is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Stores what is new about a station, and waits for that for a moment. A desired configuration among the changes is not offered
/// before it is stored.
pub(crate) async fn save(core: &Arc<Core>, id: StationId, changes: Vec<Change>) {
    if changes.is_empty() {
        return;
    }
    for change in &changes {
        if let Change::PutDesired(id, desired) = change {
            core.state().unsaved_desired.insert(*id, desired.revision);
        }
    }
    let mut saving = core.store.commit(changes);
    match tokio::time::timeout(SAVE_PATIENCE, &mut saving).await {
        Ok(saved) => note_saved(core, id, saved),
        Err(_) => {
            let core_of_task = core.clone();
            core.spawn(async move { note_saved(&core_of_task, id, saving.await) });
        }
    }
}

/// Has a station's record stored soon.
pub(crate) fn save_soon(core: &Core, id: StationId) {
    core.state().unsaved.insert(id);
    core.save.notify_one();
}

fn note_saved(core: &Arc<Core>, id: StationId, saved: Result<(), StoreError>) {
    match saved {
        Ok(()) => note_desired_saved(core, id),
        // The store has said why.
        Err(_) => save_soon(core, id),
    }
}

fn note_desired_saved(core: &Arc<Core>, id: StationId) {
    if core.state().unsaved_desired.remove(&id).is_some() {
        push::offer(core, id);
    }
}

/// Stores records that are to be stored soon, until the manager stops.
pub(crate) async fn keep_saving(core: Arc<Core>) {
    while core.until_stopped(core.save.notified()).await.is_some() {
        while save_all(&core).await.is_err() {
            if !core.pause(RETRY_INTERVAL).await {
                return;
            }
        }
    }
}

/// Stores all records that are to be stored soon. What an operator changes of stations is stored after it: a configuration without its
/// station would make that one a stranger at the next start.
///
/// # Errors
///
/// [`StoreError`]; they are still to be stored.
pub(crate) async fn save_all(core: &Arc<Core>) -> Result<(), StoreError> {
    let _one_at_a_time = core.saving.lock().await;
    let (ids, changes) = {
        let mut state = core.state();
        let ids = std::mem::take(&mut state.unsaved);
        let mut changes = Vec::new();
        // One that was forgotten meanwhile is not there.
        for station in ids.iter().filter_map(|id| state.stations.get(id)) {
            let id = station.record.id;
            changes.push(Change::PutStation(Box::new(station.record.clone())));
            let unsaved = state.unsaved_desired.get(&id);
            if let Some(desired) = station.desired.as_ref().filter(|desired| unsaved == Some(&desired.revision)) {
                changes.push(Change::PutDesired(id, Box::new(desired.clone())));
            }
        }
        (ids, changes)
    };
    if changes.is_empty() {
        return Ok(());
    }
    if let Err(error) = core.store.commit(changes).await {
        core.state().unsaved.extend(ids);
        return Err(error);
    }
    ids.into_iter().for_each(|id| note_desired_saved(core, id));
    Ok(())
}
