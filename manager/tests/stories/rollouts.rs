//! Applies that wait for their effect.

use std::time::Duration;

use quilt_client::control::{Phase, State};
use serde_json::json;
use tokio::time::Instant;

use crate::fleet_file::{cameras, counter, file};
use crate::station::{Fate, Station};
use crate::world::{World, moment, seconds};

#[tokio::test(start_paused = true)]
async fn an_apply_that_waits_ends_once_everything_has_run_well_for_as_long_as_it_settles() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(3)));
    let began = Instant::now();
    let (told, reply) = world.begin(counter("cam-1", 1).wait()).told().await;
    assert!(reply.failures.is_empty() && !reply.timed_out, "{reply:?}");
    assert!((5..7).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let phases: Vec<_> = told.iter().map(|(_, phase)| *phase).collect();
    assert_eq!(phases[phases.len() - 2..], [Phase::Healthy, Phase::Settled], "{phases:?}");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_fails_is_told_with_its_reason_and_stays_as_it_was_applied() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1).wait()).await;
    cam.set_fate("counter/main", Fate::Fails("no camera is plugged in"));
    let reply = world.apply(counter("cam-1", 2).wait()).await;
    assert_eq!(reply.failures["cam-1"], "counter/main: no camera is plugged in");
    assert!(!reply.timed_out && !reply.rolled_back);
    assert_eq!(cam.config("counter/main"), json!({ "step": 2 }));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_fails_has_the_whole_apply_taken_back_if_that_was_asked_for() {
    let mut world = World::new().await;
    let [good, bad] = world.stations(["cam-1", "cam-2"]).await;
    world.apply(cameras(1).wait()).await;
    bad.set_fate("counter/main", Fate::Fails("no"));
    let applying = world.begin(cameras(2).rollback());
    seconds(1).await;
    bad.set_fate("counter/main", Fate::Runs);
    let reply = applying.reply().await;
    assert!(reply.rolled_back && reply.failures.contains_key("cam-2"), "{reply:?}");
    moment().await;
    for station in [good, bad] {
        assert_eq!(station.config("counter/main"), json!({ "step": 1 }));
    }
    // Whoever comes later gets what is there since, not what was taken back.
    let late = world.station("cam-3").await;
    assert_eq!(late.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_restarted_again_and_again_never_settles() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.set_fate("counter/main", Fate::Flaps);
    let reply = world.apply(counter("cam-1", 1).wait()).await;
    assert!(reply.timed_out);
    let why = &reply.failures["cam-1"];
    assert!(why.starts_with("not healthy in time: counter/main was restarted"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_fails_just_before_it_has_settled_is_a_failure() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    let applying = world.begin(counter("cam-1", 1).wait());
    seconds(1).await;
    cam.turn("counter/main", State::Failed, "it burnt out").await;
    assert_eq!(applying.reply().await.failures["cam-1"], "counter/main: it burnt out");
}

#[tokio::test(start_paused = true)]
async fn the_second_batch_gets_nothing_before_the_first_has_settled() {
    let mut world = World::new().await;
    let [one, two, three] = world.stations(["cam-1", "cam-2", "cam-3"]).await;
    world.apply(cameras(1).wait()).await;
    for station in [&one, &two, &three] {
        station.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(10)));
    }
    let applying = world.begin(cameras(2).wait().batch(1));
    let steps = || [&one, &two, &three].map(|station| station.config("counter/main")["step"].as_u64().unwrap());
    seconds(5).await;
    let first = steps();
    assert_eq!(first.iter().filter(|step| **step == 2).count(), 1, "{first:?}");
    seconds(13).await;
    assert_eq!(steps().iter().filter(|step| **step == 2).count(), 2);
    let reply = applying.reply().await;
    assert!(reply.failures.is_empty(), "{reply:?}");
    assert_eq!(steps(), [2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_leaves_the_others_what_they_had() {
    let mut world = World::new().await;
    let stations = world.stations(["cam-1", "cam-2", "cam-3"]).await;
    world.apply(cameras(1).wait()).await;
    for station in &stations {
        station.set_fate("counter/main", Fate::Fails("no"));
    }
    let reply = world.apply(cameras(2).wait().batch(1)).await;
    assert_eq!(reply.failures.len(), 1, "{reply:?}");
    assert!(reply.notes.iter().any(|note| note.starts_with("halted: ")), "{:?}", reply.notes);
    seconds(5).await;
    let with_new = stations.iter().filter(|station| station.config("counter/main") == json!({ "step": 2 })).count();
    assert_eq!(with_new, 1);
    // Also once they come back.
    world.restart().await;
    let with_new = stations.iter().filter(|station| station.config("counter/main") == json!({ "step": 2 })).count();
    assert_eq!(with_new, 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_has_all_batches_taken_back_if_that_was_asked_for() {
    let mut world = World::new().await;
    let stations = world.stations(["cam-1", "cam-2", "cam-3"]).await;
    world.apply(cameras(1).wait()).await;
    let last = stations.iter().max_by_key(|station| station.id()).unwrap();
    last.set_fate("counter/main", Fate::Fails("no"));
    let reply = world.apply(cameras(2).rollback().batch(1)).await;
    assert!(reply.rolled_back, "{reply:?}");
    moment().await;
    for station in &stations {
        assert_eq!(station.config("counter/main"), json!({ "step": 1 }), "{}", station.name());
    }
}

#[tokio::test(start_paused = true)]
async fn a_station_that_is_lost_meanwhile_and_comes_back_settles_all_the_same() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(5)));
    let applying = world.begin(counter("cam-1", 1).wait());
    seconds(1).await;
    cam.cut();
    seconds(2).await;
    world.connect(&cam).await;
    let reply = applying.reply().await;
    assert!(reply.failures.is_empty(), "{reply:?}");
}

#[tokio::test(start_paused = true)]
async fn a_station_that_is_lost_meanwhile_and_stays_away_is_late() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(5)));
    let applying = world.begin(counter("cam-1", 1).wait());
    seconds(1).await;
    cam.cut();
    let reply = applying.reply().await;
    assert!(reply.timed_out);
    assert_eq!(reply.failures["cam-1"], "not healthy in time: it was lost");
}

#[tokio::test(start_paused = true)]
async fn a_station_that_is_away_from_the_beginning_is_not_waited_for() {
    let mut world = World::new().await;
    let [here, away] = world.stations(["cam-1", "cam-2"]).await;
    away.leave();
    moment().await;
    let reply = world.apply(cameras(1).wait()).await;
    assert_eq!((reply.away, reply.failures.len()), (vec!["cam-2".to_owned()], 0));
    assert_eq!(here.config("counter/main"), json!({ "step": 1 }));
    world.connect(&away).await;
    moment().await;
    assert_eq!(away.config("counter/main"), json!({ "step": 1 }));
}

#[tokio::test(start_paused = true)]
async fn what_another_file_has_failing_there_is_told_and_fails_nothing() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.set_fate("counter/old", Fate::Fails("worn out"));
    world.apply(file("[group.old]\nmatch = \"name=cam-1\"\n[group.old.roles.counter.old]").source("a.toml")).await;
    moment().await;
    let new = file("[group.new]\nmatch = \"name=cam-1\"\n[group.new.roles.counter.new]").source("b.toml");
    let reply = world.apply(new.rollback()).await;
    assert!(reply.failures.is_empty() && !reply.rolled_back, "{reply:?}");
    assert!(reply.notes.iter().any(|note| note.contains("was not healthy before")), "{:?}", reply.notes);
}

#[tokio::test(start_paused = true)]
async fn a_newer_apply_stays_when_the_older_one_is_taken_back() {
    let mut world = World::new().await;
    let [cam, other] = world.stations(["cam-1", "cam-2"]).await;
    world.apply(cameras(1).wait()).await;
    other.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(60)));
    let older = world.begin(cameras(2).rollback());
    seconds(5).await;
    let newer = file("[group.more]\nmatch = \"name=cam-1\"\n[group.more.roles.counter.more]").source("more.toml");
    assert!(world.apply(newer).await.stored);
    let reply = older.reply().await;
    assert!(reply.rolled_back, "{reply:?}");
    moment().await;
    assert_eq!(cam.instances(), ["counter/main", "counter/more"]);
    for station in [cam, other] {
        assert_eq!(station.config("counter/main"), json!({ "step": 1 }), "{}", station.name());
    }
}

#[tokio::test(start_paused = true)]
async fn a_station_that_comes_during_the_rollout_gets_what_is_applied() {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    cam.set_fate("counter/main", Fate::RunsAfter(Duration::from_secs(10)));
    let applying = world.begin(cameras(1).wait());
    seconds(1).await;
    let late = Station::new("cam-2");
    world.connect(&late).await;
    moment().await;
    assert_eq!(late.config("counter/main"), json!({ "step": 1 }));
    assert!(applying.reply().await.failures.is_empty());
}
