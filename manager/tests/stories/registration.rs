//! Stations that come, go and come back.

use serde_json::{Value, json};

use crate::fleet_file::{cameras, counter, file};
use crate::station::{Answer, Station};
use crate::world::{World, moment, seconds};

#[tokio::test(start_paused = true)]
async fn a_station_that_leaves_is_disconnected_and_one_that_is_lost_is_unknown() {
    let mut world = World::new().await;
    let [leaves, lost] = world.stations(["cam-1", "cam-2"]).await;
    leaves.leave();
    lost.cut();
    moment().await;
    assert_eq!(world.states().await, ["cam-1 disconnected", "cam-2 unknown"]);
    assert_eq!(world.shown("cam-1").await, Vec::<String>::new(), "nothing stale is shown");
    world.restart().await;
    assert_eq!(world.states().await, ["cam-1 disconnected", "cam-2 unknown"]);
    for station in [leaves, lost] {
        world.connect(&station).await;
    }
    assert_eq!(world.states().await, ["cam-1 connected", "cam-2 connected"]);
}

#[tokio::test(start_paused = true)]
async fn a_station_from_which_nothing_is_heard_for_three_beats_is_lost() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.hold();
    seconds(10).await;
    assert_eq!(world.states().await, ["cam-1 connected"]);
    seconds(10).await;
    assert_eq!(world.states().await, ["cam-1 unknown"]);
}

#[tokio::test(start_paused = true)]
async fn a_station_that_comes_back_is_offered_what_it_has_and_touches_nothing() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    cam.cut();
    world.connect(&cam).await;
    moment().await;
    let revision = cam.applied().unwrap();
    assert_eq!(cam.offered(), [revision, revision]);
    let accepted = world.kinds("cam-1").await.iter().filter(|kind| *kind == "push.accepted").count();
    assert_eq!(accepted, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_applied_and_taken_out_while_a_station_was_away_holds_when_it_comes_back() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(file("[station.cam-1.roles.counter]\na = {}\nb = {}")).await;
    moment().await;
    cam.cut();
    moment().await;
    world.apply(file("[station.cam-1.roles.counter]\nb = {}\nc = {}")).await;
    world.connect(&cam).await;
    moment().await;
    assert_eq!(cam.instances(), ["counter/b", "counter/c"]);
}

#[tokio::test(start_paused = true)]
async fn a_second_station_of_a_name_gets_a_number_and_nothing_of_the_first() {
    let mut world = World::new().await;
    world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    let second = Station::new("cam-1");
    let registered = world.connect(&second).await;
    assert_eq!((registered.name.as_str(), registered.adopted), ("cam-1~2", true));
    moment().await;
    assert_eq!(second.config("counter/main"), Value::Null);
    assert!(world.view("cam-1~2").await.flags.iter().any(|flag| flag.contains("cam-1 is taken")));
}

#[tokio::test(start_paused = true)]
async fn a_station_that_comes_back_under_another_name_keeps_what_it_runs() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    cam.cut();
    cam.rename("kitchen");
    let registered = world.connect(&cam).await;
    assert_eq!((registered.name.as_str(), registered.adopted), ("kitchen", true));
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
    assert_eq!(world.states().await, ["kitchen connected"]);
    world.restart().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn a_station_that_comes_back_under_a_name_with_an_entry_gets_that() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(file("[station.cam-1.roles.counter.a]\n[station.kitchen.roles.counter.b]")).await;
    moment().await;
    cam.cut();
    cam.rename("kitchen");
    world.connect(&cam).await;
    moment().await;
    assert_eq!(cam.instances(), ["counter/b"]);
}

#[tokio::test(start_paused = true)]
async fn a_station_of_another_fleet_keeps_what_it_runs_until_it_is_adopted() {
    let mut elsewhere = World::new().await;
    let cam = elsewhere.station("cam-1").await;
    elsewhere.apply(counter("cam-1", 7)).await;
    moment().await;
    cam.cut();
    let mut world = World::new().await;
    world.apply(cameras(1)).await;
    let registered = world.connect(&cam).await;
    assert!(!registered.adopted);
    let offered = cam.offered();
    let reply = world.apply(cameras(2)).await;
    assert_eq!(reply.away, ["cam-1"]);
    seconds(5).await;
    assert_eq!((world.states().await, cam.offered()), (vec!["cam-1 unadopted".to_owned()], offered));
    world.tool().adopt("cam-1", false).await.unwrap();
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 7 }), "it keeps what it ran");
    assert_eq!(world.states().await, ["cam-1 connected"]);
    world.restart().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 7 }));
    assert_eq!(world.states().await, ["cam-1 connected"]);
}

#[tokio::test(start_paused = true)]
async fn a_station_that_is_adopted_to_be_replaced_gets_what_the_fleet_says() {
    let mut elsewhere = World::new().await;
    let cam = elsewhere.station("cam-1").await;
    elsewhere.apply(counter("cam-1", 7)).await;
    moment().await;
    cam.cut();
    let mut world = World::new().await;
    world.apply(cameras(1)).await;
    world.connect(&cam).await;
    world.tool().adopt("cam-1", true).await.unwrap();
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
    assert!(world.tool().adopt("cam-1", true).await.unwrap_err().to_string().contains("adopted already"));
}

#[tokio::test(start_paused = true)]
async fn a_station_is_forgotten_only_while_it_is_away_and_is_a_stranger_afterwards() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    assert!(world.tool().forget("cam-1").await.unwrap_err().to_string().contains("is connected"));
    cam.leave();
    moment().await;
    world.tool().forget("cam-1").await.unwrap();
    assert_eq!(world.states().await, Vec::<String>::new());
    world.restart().await;
    let registered = world.connect(&cam).await;
    assert!(!registered.adopted, "nobody empties it");
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn a_station_that_says_too_much_of_itself_is_turned_away_and_others_are_not() {
    let mut world = World::new().await;
    let boasts = (0..65).fold(Station::new("cam-1"), |station, number| station.with_label(&number.to_string(), "x"));
    let refused = world.try_connect(&boasts).await.unwrap_err().to_string();
    assert!(refused.contains("65 labels; at most 64 are taken"), "{refused}");
    let boasts = Station::new("cam-1").with_fact("cpu", &"x".repeat(1025));
    let refused = world.try_connect(&boasts).await.unwrap_err().to_string();
    assert!(refused.contains("fact `cpu` has a value of 1025 bytes"), "{refused}");
    world.station("cam-1").await;
    assert_eq!(world.states().await, ["cam-1 connected"]);
}

#[tokio::test(start_paused = true)]
async fn a_station_that_rejects_what_it_is_given_is_offered_it_again_when_it_comes_back() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.on_push(Answer::Refuses("no"));
    world.apply(counter("cam-1", 1)).await;
    seconds(600).await;
    assert_eq!(cam.offered().len(), 1, "once is enough");
    cam.on_push(Answer::Takes);
    cam.cut();
    world.connect(&cam).await;
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
    assert_eq!(world.view("cam-1").await.rejected, None);
}
