//! What is desired of one station, apart from applies: kept, made anew from the fleet entries, or given by an operator.

use std::sync::Arc;
use std::time::Duration;

use quilt_net::BoxFuture;
use quilt_protocol::{Digest, Name, Revision, StationId};
use smol_str::{SmolStr, format_smolstr};

use crate::fleet::{Said, Subject};
use crate::state::State;
use crate::store::{Change, Desired, Origin};
use crate::workers::LONG;
use crate::{Core, push, saving};

pub(crate) fn new_desired(revision: Revision, document: impl Into<Arc<str>>, origin: Origin, at_ms: u64) -> Desired {
    let document = document.into();
    hashed_desired(revision, Digest::of(document.as_bytes()), document, origin, at_ms)
}

/// The same of a document whose digest is known.
pub(crate) fn hashed_desired(
    revision: Revision,
    digest: Digest,
    document: Arc<str>,
    origin: Origin,
    at_ms: u64,
) -> Desired {
    Desired {
        revision,
        digest,
        document,
        origin,
        who: SmolStr::default(),
        source: SmolStr::default(),
        at_ms,
        good: false,
        held: false,
    }
}

/// Makes `document` desired for one station.
pub(crate) async fn set_desired(
    core: &Arc<Core>,
    id: StationId,
    document: impl Into<Arc<str>>,
    origin: Origin,
    who: &str,
    source: &str,
) -> Result<Revision, String> {
    let desired = {
        let mut state = core.state();
        state.last_revision = Revision(state.last_revision.0 + 1);
        let mut desired = new_desired(state.last_revision, document, origin, state.clock.now_ms());
        (desired.who, desired.source) = (who.into(), source.into());
        desired
    };
    let change = Change::PutDesired(id, Box::new(desired.clone()));
    saving::save_all(core).await.map_err(|error| error.to_string())?;
    core.store.commit(vec![change]).await.map_err(|error| error.to_string())?;
    let revision = desired.revision;
    if let Some(station) = core.state().stations.get_mut(&id) {
        station.set_desired(desired);
    }
    push::offer(core, id);
    core.note_change();
    Ok(revision)
}

/// How often a configuration that the store did not take is made anew.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Makes a station's desired configuration anew from the fleet entries: at registration, when its labels or name may
/// have changed. If the store does not take it, that is tried again until it does. Returns whether another one was made desired, and
/// offered.
pub(crate) async fn refresh(core: &Arc<Core>, id: StationId) -> bool {
    refresh_as(core, id, "manager", "registration").await
}

/// As [`refresh`], on somebody's behalf.
pub(crate) async fn refresh_as(core: &Arc<Core>, id: StationId, who: &str, source: &str) -> bool {
    match made_anew(core, id).await {
        Ok(None) => {}
        Ok(Some(document)) => match set_desired(core, id, document, Origin::Fleet, who, source).await {
            Ok(_) => return true,
            Err(error) => {
                tracing::warn!(station = %id, error, "a desired configuration is not stored yet; tried again");
                core.spawn(refresh_later(core.clone(), id));
            }
        },
        Err((name, text)) => core.events.add("fleet.conflict", Some(name.as_str()), None, text),
    }
    false
}

/// As [`refresh`], once the store takes changes.
fn refresh_later(core: Arc<Core>, id: StationId) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        // Many stations may wait for the store: none of them asks it before it says that it has recovered.
        while core.pause(RETRY_INTERVAL).await {
            if core.store.trouble().is_none() {
                let _one_at_a_time = core.applying.lock().await;
                refresh(&core, id).await;
                return;
            }
        }
    })
}

/// Whether [`refresh`] would change what is desired.
pub(crate) async fn is_out_of_date(core: &Core, id: StationId) -> bool {
    matches!(made_anew(core, id).await, Ok(Some(_)))
}

/// What all entries together say of a station, if there is such a station. A long document is put together where that holds nobody up.
pub(crate) async fn said_of(core: &Core, id: StationId) -> Option<Said> {
    let (fleet, record, state) = {
        let state = core.state();
        let station = state.stations.get(&id)?;
        let subject = station.subject();
        if state.fleet.length_for(&subject) <= LONG {
            return Some(state.fleet.said_of(&subject));
        }
        (state.fleet.clone(), station.record.clone(), station.state().name())
    };
    Some(core.compute(move || fleet.said_of(&Subject::new(&record, state))).await)
}

/// The fleet files that say something else of a station than the document with this digest, which was made desired otherwise.
pub(crate) async fn undone_by(core: &Core, id: StationId, digest: Digest) -> Vec<String> {
    let said = said_of(core, id).await;
    let others = said.filter(|said| said.saying.digest != digest);
    let mut files: Vec<_> = others.iter().flat_map(|said| &said.saying.entries).map(|(file, _)| file.clone()).collect();
    files.dedup();
    files
}

/// Whether what is desired of a station comes from entries, or is to, and they say something else now.
pub(crate) fn is_outdated(desired: Option<&Desired>, said: &Said) -> bool {
    let ours = match desired.map(|desired| desired.origin) {
        Some(Origin::Pinned | Origin::Adopted) => false,
        Some(Origin::Fleet) => true,
        None => said.concerned,
    };
    ours && desired.is_none_or(|desired| desired.digest != said.saying.digest)
}

/// What the entries say of a station, if that is not what is desired and is to be; or its name and how they contradict.
async fn made_anew(core: &Core, id: StationId) -> Result<Option<Arc<str>>, (Name, String)> {
    let Some(said) = said_of(core, id).await else { return Ok(None) };
    let state = core.state();
    let Some(station) = state.stations.get(&id) else { return Ok(None) };
    if station.damage.is_some() || !state.damaged_entries.is_empty() {
        return Ok(None);
    }
    let saying = &said.saying;
    if !saying.conflicts.is_empty() {
        let text = saying.conflicts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        return Err((station.record.name.clone(), text));
    }
    Ok(is_outdated(station.desired.as_ref(), &said).then(|| saying.json.clone()))
}

/// A station that comes back under another name, of which no entry says anything, keeps what is desired of it until an
/// apply names it: a new host name must not end what a machine runs. Gives the change to store.
pub(crate) fn keep_when_renamed(state: &mut State, id: StationId, before: &Name) -> Option<Change> {
    let station = state.stations.get(&id)?;
    let concerned = state.fleet.concerns(&station.subject());
    let kept = station.desired.as_ref().filter(|desired| !concerned && desired.origin == Origin::Fleet)?.clone();
    state.last_revision = Revision(state.last_revision.0 + 1);
    let mut desired = new_desired(state.last_revision, kept.document, Origin::Pinned, state.clock.now_ms());
    (desired.who, desired.source) = ("manager".into(), format_smolstr!("renamed from {before}"));
    state.stations.get_mut(&id)?.set_desired(desired.clone());
    Some(Change::PutDesired(id, Box::new(desired)))
}
