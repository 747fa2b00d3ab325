//! A store that fails or hangs.

use std::time::Duration;

use quilt_client::control::State;
use quilt_manager::store::Change;
use serde_json::{Value, json};

use crate::fleet_file::{File, cameras, counter};
use crate::station::{Fate, Station};
use crate::world::{World, moment, seconds};

fn is_desired(change: &Change) -> bool {
    matches!(change, Change::PutDesired(..))
}

#[tokio::test(start_paused = true)]
async fn an_apply_that_the_store_does_not_take_changes_nothing() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    world.fail_next(is_desired);
    let why = world.fail_to_apply(counter("cam-1", 2).wait()).await;
    assert!(why.contains("the store: the disk takes nothing now"), "{why}");
    seconds(5).await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
    let view = world.view("cam-1").await;
    assert_eq!(view.desired_revision, view.applied_revision);
    world.apply(counter("cam-1", 3)).await;
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 3 }));
}

#[tokio::test(start_paused = true)]
async fn a_station_whose_record_the_store_does_not_take_is_served_and_stored_when_it_can_be() {
    let mut world = World::new().await;
    world.fail_all(|change| matches!(change, Change::PutStation(_)));
    let cam = world.station("cam-1").await;
    assert_eq!(world.states().await, ["cam-1 connected"]);
    seconds(10).await;
    world.store().recover();
    seconds(2).await;
    world.kill().await;
    world.start().await;
    assert_eq!(world.states().await, ["cam-1 unknown"], "it is known");
    assert!(world.connect(&cam).await.adopted);
}

#[tokio::test(start_paused = true)]
async fn a_new_station_gets_nothing_that_is_not_stored() {
    let mut world = World::new().await;
    world.apply(cameras(1)).await;
    world.fail_all(is_desired);
    let cam = world.station("cam-1").await;
    seconds(5).await;
    assert_eq!(cam.offered(), Vec::<u64>::new());
    world.store().recover();
    cam.cut();
    world.connect(&cam).await;
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn a_new_station_gets_its_configuration_once_the_store_recovers() {
    let mut world = World::new().await;
    world.apply(cameras(1)).await;
    world.fail_all(is_desired);
    let cam = world.station("cam-1").await;
    world.store().recover();
    seconds(60).await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_the_store_does_not_take_changes_nothing() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1).wait()).await;
    world.apply(counter("cam-1", 2).wait()).await;
    world.fail_next(is_desired);
    assert!(world.tool().rollback("cam-1", None).await.is_err());
    seconds(5).await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 2 }));
    world.tool().rollback("cam-1", None).await.unwrap();
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn an_apply_that_failed_goes_back_when_the_store_takes_the_way_back() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1).wait()).await;
    cam.set_fate("counter/main", Fate::Fails("no"));
    world.fail_next(|change| matches!(change, Change::EndTrial(_)));
    let why = world.fail_to_apply(counter("cam-1", 2).rollback()).await;
    assert!(why.contains("the store"), "{why}");
    cam.set_fate("counter/main", Fate::Runs);
    seconds(10).await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
    let view = world.view("cam-1").await;
    assert_eq!(view.desired_revision, view.applied_revision);
}

#[tokio::test(start_paused = true)]
async fn an_apply_that_failed_goes_back_even_if_its_instance_runs_well_by_then() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1).wait()).await;
    cam.set_fate("counter/main", Fate::Fails("no"));
    world.fail_all(|change| matches!(change, Change::EndTrial(_)));
    world.fail_to_apply(counter("cam-1", 2).rollback()).await;
    cam.set_fate("counter/main", Fate::Runs);
    cam.turn("counter/main", State::Active, "").await;
    // Long enough to settle.
    seconds(120).await;
    world.store().recover();
    seconds(10).await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }), "it was told as failed");
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_went_well_is_over_even_if_that_is_stored_only_later() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1).wait()).await;
    world.fail_next(|change| matches!(change, Change::EndTrial(_)));
    let reply = world.apply(counter("cam-1", 2).rollback()).await;
    assert!(reply.failures.is_empty() && !reply.rolled_back);
    seconds(3).await;
    world.restart().await;
    cam.turn("counter/main", State::Failed, "much later").await;
    seconds(60).await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 2 }), "it is on trial no more");
}

#[tokio::test(start_paused = true)]
async fn an_adoption_that_the_store_does_not_take_changes_nothing() {
    let mut elsewhere = World::new().await;
    let cam = elsewhere.station("cam-1").await;
    elsewhere.apply(counter("cam-1", 7)).await;
    moment().await;
    cam.cut();
    let mut world = World::new().await;
    world.connect(&cam).await;
    world.fail_next(|change| matches!(change, Change::RaiseEpoch(_)));
    assert!(world.tool().adopt("cam-1", true).await.is_err());
    assert_eq!(world.states().await, ["cam-1 unadopted"]);
    assert_eq!(cam.config("counter/main"), json!({ "step": 7 }));
}

#[tokio::test(start_paused = true)]
async fn a_station_that_the_store_does_not_forget_stays() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.leave();
    moment().await;
    world.fail_next(|change| matches!(change, Change::ForgetStation(_)));
    assert!(world.tool().forget("cam-1").await.is_err());
    assert_eq!(world.states().await, ["cam-1 disconnected"]);
    assert!(world.connect(&cam).await.adopted);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_keeps_no_station_away_and_the_apply_goes_on_with_it() {
    let mut world = World::new().await;
    let one = world.station("cam-1").await;
    world.store().hang();
    let applying = world.begin(cameras(1));
    let other = Station::new("cam-2");
    let registered = world.connect(&other).await;
    assert!(registered.adopted);
    seconds(30).await;
    assert!(applying.is_under_way());
    assert_eq!((one.config("counter/main"), other.config("counter/main")), (Value::Null, Value::Null));
    assert_eq!(world.states().await, ["cam-1 connected", "cam-2 connected"]);
    world.store().resume();
    assert!(applying.reply().await.stored);
    moment().await;
    for station in [one, other] {
        assert_eq!(station.config("counter/main"), json!({ "step": 1 }));
    }
}

/// Two stations run step 1, and step 2 is applied to one after the other. It fails on the first while the store takes nothing of what
/// `refused` says.
async fn a_batch_that_fails(world: &mut World, file: File, refused: fn(&Change) -> bool) -> [Station; 2] {
    let [first, second] = world.stations(["cam-1", "cam-2"]).await;
    world.apply(cameras(1).wait()).await;
    first.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(20)));
    let applying = world.begin(file);
    seconds(1).await;
    world.fail_all(refused);
    first.turn("counter/main", State::Failed, "no").await;
    assert!(applying.error().await.contains("the store"));
    // Registering is when a station is offered what it should have.
    second.cut();
    moment().await;
    world.connect(&second).await;
    seconds(10).await;
    [first, second]
}

#[tokio::test(start_paused = true)]
async fn a_rollout_whose_halt_the_store_does_not_take_goes_no_further() {
    let mut world = World::new().await;
    let [_, second] = a_batch_that_fails(&mut world, cameras(2).wait().batch(1), is_desired).await;
    assert_eq!(second.config("counter/main"), json!({ "step": 1 }));
    world.store().recover();
    seconds(10).await;
    assert_eq!(second.config("counter/main"), json!({ "step": 1 }));
    let view = world.view("cam-2").await;
    assert_eq!(view.desired_revision, view.applied_revision, "it is halted");
}

#[tokio::test(start_paused = true)]
async fn what_a_batch_was_not_reached_by_it_does_not_get_while_the_store_refuses_the_way_back() {
    let mut world = World::new().await;
    let file = cameras(2).rollback().batch(1);
    let [first, second] = a_batch_that_fails(&mut world, file, |change| matches!(change, Change::EndTrial(_))).await;
    assert_eq!(second.config("counter/main"), json!({ "step": 1 }));
    world.store().recover();
    seconds(10).await;
    for station in [first, second] {
        assert_eq!(station.config("counter/main"), json!({ "step": 1 }));
    }
}
