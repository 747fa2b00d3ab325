//! Groups, labels and selectors.

use crate::fleet_file::{File, file};
use crate::station::Station;
use crate::world::{World, moment};

/// A group with one instance of its own name.
fn group(name: &str, selector: &str) -> File {
    file(&format!("[group.{name}]\nmatch = \"{selector}\"\n[group.{name}.roles.counter.{name}]")).source(name)
}

#[tokio::test(start_paused = true)]
async fn a_station_in_several_groups_gets_what_all_of_them_say() {
    let mut world = World::new().await;
    let [both, one] = [Station::new("cam-1").with_label("room", "a"), Station::new("cam-2")];
    for station in [&both, &one] {
        world.connect(station).await;
    }
    world.apply(group("rooms", "room=a")).await;
    world.apply(group("cameras", "name=cam-*")).await;
    moment().await;
    assert_eq!(both.instances(), ["counter/cameras", "counter/rooms"]);
    assert_eq!(one.instances(), ["counter/cameras"]);
}

#[tokio::test(start_paused = true)]
async fn a_label_that_a_file_gives_brings_a_station_into_a_group_and_out_again() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(group("rooms", "room=a")).await;
    moment().await;
    assert_eq!(cam.instances(), Vec::<String>::new());
    world.apply(file("[station.cam-1]\nlabels = { room = \"a\" }")).await;
    moment().await;
    assert_eq!(cam.instances(), ["counter/rooms"]);
    assert_eq!(world.tool().stations("room=a").await.unwrap().len(), 1);
    world.apply(file("[station.cam-1]\nlabels = { room = \"b\" }")).await;
    moment().await;
    assert_eq!(cam.instances(), Vec::<String>::new());
    world.restart().await;
    assert_eq!(cam.instances(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn labels_of_a_file_beat_those_of_the_station() {
    let mut world = World::new().await;
    let cam = Station::new("cam-1").with_label("room", "a");
    world.connect(&cam).await;
    world.apply(file("[station.cam-1]\nlabels = { room = \"b\" }")).await;
    world.apply(group("a", "room=a")).await;
    world.apply(group("b", "room=b")).await;
    moment().await;
    assert_eq!(cam.instances(), ["counter/b"]);
}

#[tokio::test(start_paused = true)]
async fn a_station_that_comes_back_with_another_label_changes_its_group() {
    let mut world = World::new().await;
    let cam = Station::new("cam-1").with_label("room", "a");
    world.connect(&cam).await;
    world.apply(group("a", "room=a")).await;
    world.apply(group("b", "room=b")).await;
    moment().await;
    assert_eq!(cam.instances(), ["counter/a"]);
    cam.cut();
    let cam = cam.with_label("room", "b");
    world.connect(&cam).await;
    moment().await;
    assert_eq!(cam.instances(), ["counter/b"]);
}

#[tokio::test(start_paused = true)]
async fn a_station_that_learns_a_role_joins_the_group_of_those_that_have_it() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(group("cameras", "role=camera")).await;
    moment().await;
    assert_eq!(cam.instances(), Vec::<String>::new());
    cam.offer_roles(&["camera", "counter"]).await;
    moment().await;
    assert_eq!(cam.instances(), ["counter/cameras"]);
}

#[tokio::test(start_paused = true)]
async fn a_selector_that_matches_nothing_is_warned_of() {
    let mut world = World::new().await;
    world.station("cam-1").await;
    let reply = world.apply(group("rooms", "rooom=a")).await;
    assert!(reply.stored);
    assert!(reply.warnings[0].text.contains("matches no station"), "{:?}", reply.warnings);
}
