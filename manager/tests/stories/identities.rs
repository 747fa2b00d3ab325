//! Two machines with one identity, and managers with an older store.

use serde_json::json;

use crate::fleet_file::counter;
use crate::station::Station;
use crate::world::{World, moment, seconds};

/// A station that runs something, and a copy of its disk in another machine, which has registered too.
async fn cloned() -> (World, Station, Station) {
    let mut world = World::new().await;
    let original = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    let clone = original.cloned_disk();
    let registered = world.connect(&clone).await;
    assert!(!registered.adopted && registered.notes[0].contains("live elsewhere"), "{registered:?}");
    (world, original, clone)
}

#[tokio::test(start_paused = true)]
async fn a_cloned_disk_is_quarantined_while_the_original_lives() {
    let (world, original, clone) = cloned().await;
    let mut states = world.states().await;
    states.sort();
    assert_eq!(states, ["cam-1 connected", "cam-1 quarantined"]);
    world.apply(counter("cam-1", 2)).await;
    moment().await;
    assert_eq!(original.config("counter/main"), json!({ "step": 2 }));
    assert_eq!(clone.offered(), Vec::<u64>::new());
    clone.leave();
    moment().await;
    assert_eq!(world.states().await, ["cam-1 connected"]);
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_replaces_the_original_takes_its_place_and_its_configuration() {
    let (world, original, clone) = cloned().await;
    world.apply(counter("cam-1", 2)).await;
    world.tool().replace("cam-1").await.unwrap();
    moment().await;
    assert!(!original.is_connected());
    assert_eq!(world.states().await, ["cam-1 connected"]);
    assert_eq!(clone.config("counter/main"), json!({ "step": 2 }));
}

#[tokio::test(start_paused = true)]
async fn a_clone_with_a_new_identity_is_a_stranger_that_keeps_what_it_runs() {
    let (mut world, original, clone) = cloned().await;
    world.tool().renew("cam-1").await.unwrap();
    assert_ne!(original.id(), clone.id());
    clone.cut();
    let registered = world.connect(&clone).await;
    assert_eq!((registered.name.as_str(), registered.adopted), ("cam-1~2", false));
    moment().await;
    assert_eq!(world.states().await, ["cam-1 connected", "cam-1~2 unadopted"]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_silent_gives_way_to_a_newer_one_of_its_station() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.hold();
    let registered = world.connect(&cam).await;
    assert!(registered.adopted);
    assert_eq!(world.states().await, ["cam-1 connected"]);
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_older_than_what_a_station_runs_is_not_pushed_over_it() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    let backup = world.backup();
    world.apply(counter("cam-1", 2)).await;
    moment().await;
    world.restore(backup).await;
    let registered = world.connect(&cam).await;
    assert!(!registered.adopted, "{registered:?}");
    seconds(5).await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 2 }));
    world.tool().adopt("cam-1", true).await.unwrap();
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
    world.restart().await;
    assert_eq!(world.states().await, ["cam-1 connected"]);
}

#[tokio::test(start_paused = true)]
async fn an_older_store_is_known_by_its_epoch_even_if_its_contents_are_the_same() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    let backup = world.backup();
    for _ in 0..3 {
        world.restart().await;
    }
    world.restore(backup).await;
    let registered = world.connect(&cam).await;
    assert!(!registered.adopted && registered.notes[0].contains("epoch"), "{registered:?}");
    let offered = cam.offered();
    seconds(5).await;
    assert_eq!(cam.offered(), offered);
}

#[tokio::test(start_paused = true)]
async fn an_older_store_is_known_by_contents_even_if_it_has_overtaken_epoch_and_numbers() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    let backup = world.backup();
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    world.restore(backup).await;
    world.restart().await;
    for step in 2..9 {
        world.apply(counter("cam-1", step)).await;
    }
    let registered = world.connect(&cam).await;
    assert!(!registered.adopted && registered.notes[0].contains("never gave"), "{registered:?}");
    seconds(5).await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}
