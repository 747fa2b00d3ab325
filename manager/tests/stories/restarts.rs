//! A manager that is killed or stopped in the middle of something.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fleet_file::{cameras, counter};
use crate::station::{Answer, Fate};
use crate::world::{World, moment, seconds};

#[tokio::test(start_paused = true)]
async fn a_manager_that_stops_says_goodbye_and_its_successor_knows_everybody() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    let revision = cam.applied();
    world.stop_and_start().await;
    assert!(!cam.is_connected());
    assert!(world.connect(&cam).await.adopted);
    moment().await;
    assert_eq!((cam.applied(), cam.config("counter/main")), (revision, json!({ "step": 1 })));
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_is_killed_before_an_apply_is_stored_leaves_nothing_of_it() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.store().hang();
    let _applying = world.begin(counter("cam-1", 1));
    seconds(1).await;
    world.restart().await;
    seconds(5).await;
    assert_eq!(cam.config("counter/main"), Value::Null);
    world.apply(counter("cam-1", 2)).await;
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 2 }));
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_is_killed_after_an_apply_is_stored_pushes_it_when_it_starts_again() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.on_push(Answer::IsSilent);
    assert!(world.apply(counter("cam-1", 1)).await.stored);
    cam.on_push(Answer::Takes);
    world.restart().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn an_apply_on_trial_that_fails_after_its_manager_was_killed_is_taken_back() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1).wait()).await;
    cam.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(3600)));
    let _applying = world.begin(counter("cam-1", 2).rollback());
    seconds(5).await;
    world.restart().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 2 }));
    seconds(40).await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
    let kinds: Vec<_> = world.events().await.into_iter().map(|event| event.kind).collect();
    assert!(kinds.contains(&"fleet.resumed".into()) && kinds.contains(&"fleet.rolled_back".into()), "{kinds:?}");
}

#[tokio::test(start_paused = true)]
async fn an_apply_on_trial_that_goes_well_after_its_manager_was_killed_stays() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1).wait()).await;
    cam.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(10)));
    let _applying = world.begin(counter("cam-1", 2).rollback());
    seconds(5).await;
    world.restart().await;
    seconds(60).await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 2 }));
    let events = world.events().await.len();
    world.restart().await;
    seconds(60).await;
    let later: Vec<_> = world.events().await.into_iter().skip(events).map(|event| event.kind).collect();
    assert!(!later.contains(&"fleet.resumed".into()), "it is over: {later:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rollout_in_batches_whose_manager_was_killed_halts_where_it_was() {
    let mut world = World::new().await;
    let stations = world.stations(["cam-1", "cam-2", "cam-3"]).await;
    world.apply(cameras(1).wait()).await;
    for station in &stations {
        station.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(10)));
    }
    let _applying = world.begin(cameras(2).wait().batch(1));
    seconds(5).await;
    world.restart().await;
    seconds(60).await;
    let steps: Vec<_> = stations.iter().map(|station| station.config("counter/main")["step"].clone()).collect();
    assert_eq!(steps.iter().filter(|step| **step == 2).count(), 1, "{steps:?}");
    let halted = world.events().await.iter().filter(|event| event.kind == "fleet.halted").count();
    assert_eq!(halted, 2);
}

#[tokio::test(start_paused = true)]
async fn a_rollout_in_batches_on_trial_goes_on_after_its_manager_was_killed() {
    let mut world = World::new().await;
    let stations = world.stations(["cam-1", "cam-2", "cam-3"]).await;
    world.apply(cameras(1).wait()).await;
    let _applying = world.begin(cameras(2).rollback().batch(1));
    seconds(1).await;
    world.restart().await;
    seconds(60).await;
    for station in &stations {
        assert_eq!(station.config("counter/main"), json!({ "step": 2 }), "{}", station.name());
    }
}

#[tokio::test(start_paused = true)]
async fn a_station_that_the_manager_did_not_hear_out_settles_with_the_next_one() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(3)));
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    world.kill().await;
    seconds(5).await;
    world.start().await;
    world.connect(&cam).await;
    moment().await;
    assert_eq!(world.shown("cam-1").await, ["counter/main active"]);
}

#[tokio::test(start_paused = true)]
async fn every_manager_begins_an_epoch_that_its_stations_learn() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    let mut epochs = vec![cam.epoch()];
    for _ in 0..2 {
        world.restart().await;
        epochs.push(cam.epoch());
    }
    assert!(epochs.is_sorted_by(|earlier, later| earlier < later), "{epochs:?}");
}
