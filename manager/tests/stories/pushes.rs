//! Pushes that are slow, refused, or not answered.

use std::time::Duration;

use serde_json::json;

use crate::fleet_file::counter;
use crate::station::Answer;
use crate::world::{World, moment, seconds};

#[tokio::test(start_paused = true)]
async fn a_station_in_trouble_is_offered_its_configuration_again_with_growing_pauses() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.on_push(Answer::HasTrouble("the disk is full"));
    world.apply(counter("cam-1", 1)).await;
    seconds(200).await;
    assert_eq!(cam.pauses(), [1, 2, 4, 8, 16, 32, 60, 60]);
    let view = world.view("cam-1").await;
    assert!(view.rejected.unwrap().rejection.message.contains("the disk is full"));
    let told = world.kinds("cam-1").await.iter().filter(|kind| *kind == "push.rejected").count();
    assert_eq!(told, 1, "told once, however often it is tried");
    cam.on_push(Answer::Takes);
    seconds(60).await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
    assert_eq!(world.view("cam-1").await.rejected, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_applied_while_a_station_is_in_trouble_is_offered_at_once() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.on_push(Answer::HasTrouble("the disk is full"));
    world.apply(counter("cam-1", 1)).await;
    seconds(100).await;
    cam.on_push(Answer::Takes);
    world.apply(counter("cam-1", 2)).await;
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 2 }));
    let offered = cam.offered().len();
    seconds(200).await;
    assert_eq!(cam.offered().len(), offered, "nothing is left to be tried again");
}

#[tokio::test(start_paused = true)]
async fn a_station_that_does_not_answer_a_push_is_asked_again() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.on_push(Answer::IsSilent);
    world.apply(counter("cam-1", 1)).await;
    seconds(31).await;
    cam.on_push(Answer::Takes);
    seconds(5).await;
    assert_eq!(cam.pauses(), [35]);
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn one_push_is_under_way_at_a_time_and_the_next_is_the_newest() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.on_push(Answer::TakesAfter(Duration::from_secs(10)));
    for step in 1..5 {
        world.apply(counter("cam-1", step)).await;
    }
    seconds(25).await;
    assert_eq!((cam.offered().len(), cam.pauses()), (2, vec![10]));
    assert_eq!(cam.config("counter/main"), json!({ "step": 4 }));
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_was_refused_for_want_of_a_role_is_offered_again_when_the_roles_change() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.on_push(Answer::Refuses("there is no such role"));
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    cam.on_push(Answer::Takes);
    cam.offer_roles(&["counter", "camera"]).await;
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn a_push_to_a_session_that_is_gone_does_not_hold_up_the_next_session() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.on_push(Answer::IsSilent);
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    cam.cut();
    cam.on_push(Answer::Takes);
    world.connect(&cam).await;
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
    let offered = cam.offered().len();
    seconds(120).await;
    assert_eq!(cam.offered().len(), offered);
}
