//! Applying fleet files.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fleet_file::{cameras, counter, file};
use crate::station::{Answer, Fate, Station};
use crate::world::{World, moment, seconds};

#[tokio::test(start_paused = true)]
async fn an_apply_reaches_the_station_that_it_names_and_no_other() {
    let mut world = World::new().await;
    let [one, other] = world.stations(["cam-1", "cam-2"]).await;
    let before = other.offered();
    let reply = world.apply(counter("cam-1", 1)).await;
    assert!(reply.stored && reply.failures.is_empty(), "{reply:?}");
    moment().await;
    assert_eq!(one.config("counter/main"), json!({ "step": 1 }));
    assert_eq!(world.shown("cam-1").await, ["counter/main active"]);
    let view = world.view("cam-1").await;
    assert_eq!((view.desired_revision, view.rejected), (view.applied_revision, None));
    assert_eq!((other.offered(), other.config("counter/main")), (before, Value::Null));
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_one_station_refuses_changes_nothing_on_any() {
    let mut world = World::new().await;
    let stations = world.stations(["cam-1", "cam-2", "cam-3"]).await;
    world.apply(cameras(1)).await;
    moment().await;
    for station in &stations[1..] {
        station.on_plan(Answer::Refuses("too large a step"));
    }
    let before = world.view("cam-1").await.desired_revision;
    let reply = world.apply(cameras(2)).await;
    assert!(!reply.stored);
    let problems = reply.rejection.unwrap().problems;
    assert_eq!(problems.iter().map(|problem| problem.station.as_str()).collect::<Vec<_>>(), ["cam-2", "cam-3"]);
    seconds(5).await;
    world.restart().await;
    for station in &stations {
        assert_eq!(station.config("counter/main"), json!({ "step": 1 }));
    }
    assert_eq!(world.view("cam-1").await.desired_revision, before);
}

#[tokio::test(start_paused = true)]
async fn an_apply_that_is_forced_is_stored_and_shown_as_rejected() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.on_plan(Answer::Refuses("no"));
    cam.on_push(Answer::Refuses("no"));
    let reply = world.apply(counter("cam-1", 1).force()).await;
    assert!(reply.stored && reply.rejection.is_some());
    moment().await;
    let view = world.view("cam-1").await;
    assert_eq!(view.rejected.map(|rejected| rejected.revision), view.desired_revision);
    assert_eq!(cam.config("counter/main"), Value::Null);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_tells_what_would_change_and_changes_nothing() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    let reply = world.apply(counter("cam-1", 1).dry_run()).await;
    assert!(!reply.stored);
    assert_eq!((reply.changes[0].station.as_str(), reply.changes[0].revision), ("cam-1", None));
    seconds(1).await;
    assert_eq!(cam.offered(), Vec::<u64>::new());
    assert_eq!(world.view("cam-1").await.desired_revision, None);
}

#[tokio::test(start_paused = true)]
async fn a_station_that_never_answers_the_plan_is_told_of_and_offered_it_all_the_same() {
    let mut world = World::new().await;
    let [one, silent] = world.stations(["cam-1", "cam-2"]).await;
    silent.on_plan(Answer::IsSilent);
    let reply = world.apply(cameras(1)).await;
    assert!(reply.notes.iter().any(|note| note.contains("cam-2 did not answer within 5 s")), "{:?}", reply.notes);
    moment().await;
    for station in [one, silent] {
        assert_eq!(station.config("counter/main"), json!({ "step": 1 }));
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_taken_out_of_a_file_goes() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(file("[station.cam-1.roles.counter]\na = {}\nb = {}")).await;
    moment().await;
    assert_eq!(cam.instances(), ["counter/a", "counter/b"]);
    world.apply(file("[station.cam-1.roles.counter]\nb = {}")).await;
    moment().await;
    assert_eq!(cam.instances(), ["counter/b"]);
    assert_eq!(world.shown("cam-1").await, ["counter/b active"]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_applied_again_changes_nothing() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    let revision = cam.applied();
    let reply = world.apply(counter("cam-1", 1)).await;
    assert!(reply.stored && reply.changes.is_empty());
    moment().await;
    assert_eq!(cam.applied(), revision);
}

#[tokio::test(start_paused = true)]
async fn a_second_file_is_applied_while_the_first_waits() {
    let mut world = World::new().await;
    let [slow, quick] = world.stations(["cam-1", "cam-2"]).await;
    slow.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(20)));
    let first = world.begin(counter("cam-1", 1).source("a.toml").wait());
    seconds(1).await;
    let second = world.apply(counter("cam-2", 1).source("b.toml").wait()).await;
    assert!(second.failures.is_empty() && first.is_under_way());
    assert_eq!(quick.config("counter/main"), json!({ "step": 1 }));
    let first = first.reply().await;
    assert!(first.failures.is_empty(), "{first:?}");
}

#[tokio::test(start_paused = true)]
async fn an_apply_that_waits_is_told_that_a_newer_one_took_its_place() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(20)));
    let first = world.begin(counter("cam-1", 1).wait());
    seconds(1).await;
    world.apply(counter("cam-1", 2)).await;
    let first = first.reply().await;
    let why = &first.failures["cam-1"];
    assert!(why.starts_with("revision 2 (fleet.toml by tool:tool) took over meanwhile"), "{why}");
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 2 }));
}

#[tokio::test(start_paused = true)]
async fn two_applies_at_once_are_planned_one_after_the_other_and_both_are_there() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.on_plan(Answer::TakesAfter(Duration::from_secs(3)));
    let one = world.begin(file("[group.a]\nmatch = \"name=cam-1\"\n[group.a.roles.counter.a]").source("a.toml"));
    let other = world.begin(file("[group.b]\nmatch = \"name=cam-1\"\n[group.b.roles.counter.b]").source("b.toml"));
    assert!(one.reply().await.stored && other.reply().await.stored);
    moment().await;
    assert_eq!(cam.instances(), ["counter/a", "counter/b"]);
}

#[tokio::test(start_paused = true)]
async fn two_files_that_configure_an_instance_differently_are_refused() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    let group = |name: &str, step: u32| {
        let text = format!("[group.{name}]\nmatch = \"name=cam-*\"\n[group.{name}.roles.counter.main]\nstep = {step}");
        file(&text).source(name)
    };
    world.apply(group("a", 1)).await;
    let reply = world.apply(group("b", 2).force()).await;
    assert!(!reply.stored && reply.rejection.is_some());
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn a_station_that_is_named_before_it_is_known_gets_its_configuration_when_it_comes() {
    let mut world = World::new().await;
    let reply = world.apply(counter("cam-1", 1)).await;
    assert!(reply.notes.iter().any(|note| note.contains("`cam-1` is not known yet")), "{:?}", reply.notes);
    let cam = world.station("cam-1").await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn a_station_that_comes_while_others_plan_gets_what_is_applied() {
    let mut world = World::new().await;
    let slow = world.station("cam-1").await;
    slow.on_plan(Answer::TakesAfter(Duration::from_secs(4)));
    let applying = world.begin(cameras(1));
    seconds(1).await;
    let late = Station::new("cam-2");
    world.connect(&late).await;
    assert!(applying.is_under_way());
    assert!(applying.reply().await.stored);
    moment().await;
    assert_eq!(late.config("counter/main"), json!({ "step": 1 }));
}
