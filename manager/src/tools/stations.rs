//! Lists stations and tools.

use std::sync::Arc;

use quilt_core::time;
use quilt_protocol::control::{ClientView, Empty, StationView, Stations};
use quilt_protocol::{Name, StationId};

use super::{Failure, refused};
use crate::Core;
use crate::list_reply::ListReply;
use crate::selector::Selector;
use crate::state::SharedMacs;

/// How many stations are looked at before others get their turn.
const LOOKED_AT: usize = 64;

/// How many instances are shown before others get their turn.
const INSTANCES_AT_ONCE: usize = 500;

/// Lists the stations that a selector means, by name; of one name, those in quarantine last.
pub(super) async fn stations(core: Arc<Core>, request: Stations, mut list: ListReply) {
    let made = add_stations(&core, &request, &mut list).await;
    list.end(made);
}

async fn add_stations(core: &Core, request: &Stations, list: &mut ListReply) -> Result<(), Failure> {
    let selector = match request.selector.as_str() {
        "" => None,
        text => Some(Selector::of_stations(text).map_err(refused)?),
    };
    let Found { stations, newcomers, macs } = found(core, selector.as_ref());
    let mut newcomers = newcomers.into_iter().peekable();
    for (number, (name, id)) in stations.into_iter().enumerate() {
        while let Some(newcomer) = newcomers.next_if(|newcomer| newcomer.name < name) {
            list.add(&newcomer).await?;
        }
        // Each as it is when its turn comes. One that was forgotten meanwhile is left out.
        let (view, has_more) = {
            let state = core.state();
            let mut view = state.view_of(id, selector.as_ref(), &macs);
            let has_more = view.as_mut().is_some_and(|view| state.add_instances(view, INSTANCES_AT_ONCE));
            (view, has_more)
        };
        match view {
            Some(view) if has_more => add_large(core, view, list).await?,
            Some(view) => list.add(&view).await?,
            None => {}
        }
        if number % LOOKED_AT == LOOKED_AT - 1 {
            tokio::task::yield_now().await;
        }
    }
    for newcomer in newcomers {
        list.add(&newcomer).await?;
    }
    Ok(())
}

/// Adds a station that has so many instances that showing them takes long.
async fn add_large(core: &Core, mut view: StationView, list: &mut ListReply) -> Result<(), Failure> {
    while core.state().add_instances(&mut view, INSTANCES_AT_ONCE) {
        tokio::task::yield_now().await;
    }
    let text = core.compute(move || serde_json::value::to_raw_value(&view)).await;
    list.add(&text.expect("views have text keys")).await
}

/// What a listing is made of.
struct Found {
    stations: Vec<(Name, StationId)>,
    newcomers: Vec<StationView>,
    macs: SharedMacs,
}

fn found(core: &Core, selector: Option<&Selector>) -> Found {
    let state = core.state();
    let meant = state.stations.values().filter(|station| station.is_meant_by(selector));
    let mut stations: Vec<_> = meant.map(|station| (station.record.name.clone(), station.record.id)).collect();
    stations.sort_unstable();
    Found { stations, newcomers: state.newcomers(selector), macs: state.shared_macs() }
}

/// Lists connected tools.
pub(super) async fn clients(core: Arc<Core>, _: Empty, list: ListReply) {
    let clients = {
        let state = core.state();
        let view = |(name, client): (&Name, &crate::state::Client)| ClientView {
            name: name.clone(),
            software: client.software.clone(),
            peer: client.peer.clone(),
            since: time::ms_text(client.since_ms),
        };
        state.clients.iter().map(view).collect::<Vec<_>>()
    };
    list.answer(Ok(clients)).await;
}
