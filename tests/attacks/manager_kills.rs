//! Kills of the manager under writes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use quilt_client::Client;
use quilt_client::control::Apply;
use quilt_tests::World;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Writers, each with a fleet file of its own.
const WRITERS: usize = 4;
/// A kill comes when so many more writes were acknowledged: a station's history has room for more than that.
const WRITES: usize = 24;

/// Writes that were acknowledged, by their instance's name; emptied once they were seen in the history.
type Acknowledged = Arc<Mutex<BTreeSet<String>>>;

/// Kills the manager so many times. No acknowledged write may be missing afterwards.
pub(crate) async fn run(kills: usize) -> String {
    let mut world = World::new().await;
    world.station("s0", &[]).await;
    world.station("s1", &[]).await;
    let (acknowledged, mut writes) = (Acknowledged::default(), 0);
    for turn in 0..kills {
        let stop = CancellationToken::new();
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let (address, acknowledged, stop) = (world.address.clone(), acknowledged.clone(), stop.clone());
            writers.spawn(async move { write(&address, writer, turn, &acknowledged, &stop).await });
        }
        let enough = async |_: &World| acknowledged.lock().unwrap().len() >= WRITES;
        world.eventually("enough writes are acknowledged", enough).await;
        world.end_manager(Signal::SIGKILL).await;
        stop.cancel();
        writers.join_all().await;
        world.start_manager().await;
        let stored = stored(&world).await;
        let expected = std::mem::take(&mut *acknowledged.lock().unwrap());
        let lost: Vec<_> = expected.iter().filter(|name| !stored.contains(*name)).collect();
        assert!(lost.is_empty(), "acknowledged and lost after kill {turn}: {lost:?}");
        writes += expected.len();
    }
    let client = world.client().await;
    for name in ["s0", "s1"] {
        let history = client.history(name).await.unwrap();
        let newest = history[0].digest;
        world
            .eventually("stations have what is desired", async |world| {
                let stations = world.stations().await;
                stations.iter().any(|view| view.name == *name && view.applied_digest == Some(newest))
            })
            .await;
    }
    format!("{kills} kills of the manager, {writes} acknowledged writes, none lost")
}

/// Applies one configuration after the other until it is told to stop.
async fn write(address: &str, writer: usize, turn: usize, acknowledged: &Acknowledged, stop: &CancellationToken) {
    let Ok(client) = Client::connect(address, &format!("writer-{writer}")).await else { return };
    for number in 0.. {
        let name = format!("w{writer}-{turn}-{number}");
        let roles = json!({ "counter": { &name: {} } });
        let group = json!({ format!("w{writer}"): { "match": format!("name=s{}", writer % 2), "roles": roles } });
        let fleet = json!({ "name": format!("file-{writer}"), "group": group });
        let apply = Apply {
            source: String::new(),
            fleet: serde_json::from_value(fleet).unwrap(),
            dry_run: false,
            force: false,
            wait: None,
            batch: None,
        };
        let done = tokio::select! {
            done = client.apply(&apply).reply() => done,
            () = stop.cancelled() => return,
        };
        // What has no answer may be stored or not.
        let Ok(reply) = done else { return };
        assert!(reply.stored, "{reply:?}");
        acknowledged.lock().unwrap().insert(format!("counter/{name}"));
    }
}

/// All instances in the histories.
async fn stored(world: &World) -> BTreeSet<String> {
    let client = world.client().await;
    let mut revisions = BTreeSet::new();
    let mut stored = BTreeSet::new();
    for name in ["s0", "s1"] {
        for entry in client.history(name).await.unwrap() {
            assert!(revisions.insert((name, entry.revision)), "revision {} is there twice", entry.revision);
            stored.extend(entry.instances);
        }
    }
    client.close();
    stored
}
