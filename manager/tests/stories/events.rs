//! What happens, in order.

use quilt_client::control::State;
use quilt_manager::store::Change;

use crate::fleet_file::counter;
use crate::world::{World, moment};

#[tokio::test(start_paused = true)]
async fn the_events_of_a_push_come_in_their_order() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    cam.leave();
    moment().await;
    let kinds = world.kinds("cam-1").await;
    let expected =
        ["station.registered", "push.accepted", "push.applying", "instance.active", "push.applied", "station.left"];
    assert_eq!(kinds, expected);
}

#[tokio::test(start_paused = true)]
async fn whoever_follows_sees_every_event_once() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    let before = world.events().await;
    let mut following = world.tool().events(Some(before[1].number), true);
    for number in 0..5 {
        cam.turn("counter/main", State::Waiting, &number.to_string()).await;
    }
    let all = world.events().await;
    for event in &all[2..] {
        assert_eq!(following.next().await.as_ref(), Some(event));
    }
    assert_eq!(all.len(), before.len() + 5);
}

#[tokio::test(start_paused = true)]
async fn numbers_of_events_grow_by_one_over_restarts() {
    let mut world = World::new().await;
    world.station("cam-1").await;
    world.stop_and_start().await;
    world.station("cam-2").await;
    let numbers: Vec<_> = world.events().await.iter().map(|event| event.number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_not_stored_is_followed_all_the_same() {
    let mut world = World::new().await;
    let mut following = world.tool().events(None, true);
    while following.next().await.unwrap().kind != "manager.started" {}
    world.fail_all(|change| matches!(change, Change::AddEvent(_)));
    world.station("cam-1").await;
    assert_eq!(following.next().await.unwrap().kind, "station.registered");
}
