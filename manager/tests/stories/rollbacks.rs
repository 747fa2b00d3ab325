//! Going back to an earlier configuration.

use quilt_protocol::Revision;
use serde_json::json;

use crate::fleet_file::counter;
use crate::station::{Fate, Station};
use crate::world::{World, moment, seconds};

/// A station that ran two configurations well, first with step 1, then with step 2.
async fn with_a_past() -> (World, Station) {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1).wait()).await;
    world.apply(counter("cam-1", 2).wait()).await;
    (world, cam)
}

#[tokio::test(start_paused = true)]
async fn a_rollback_goes_to_the_last_configuration_that_ran_well() {
    let (world, cam) = with_a_past().await;
    cam.set_fate("counter/main", Fate::Fails("no"));
    world.apply(counter("cam-1", 3)).await;
    world.apply(counter("cam-1", 4)).await;
    moment().await;
    cam.set_fate("counter/main", Fate::Runs);
    let back = world.tool().rollback("cam-1", None).await.unwrap();
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 2 }));
    assert_eq!(back.undone_by, ["fleet.toml"]);
    assert_eq!(world.view("cam-1").await.desired_revision, Some(back.revision));
}

#[tokio::test(start_paused = true)]
async fn a_rollback_to_a_revision_goes_there_and_the_next_apply_undoes_it() {
    let (world, cam) = with_a_past().await;
    let history = world.tool().history("cam-1").await.unwrap();
    let oldest = history.iter().rfind(|entry| !entry.instances.is_empty()).unwrap().revision;
    let back = world.tool().rollback("cam-1", Some(oldest)).await.unwrap();
    assert_eq!(back.to, oldest);
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
    world.apply(counter("cam-1", 2)).await;
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 2 }));
}

#[tokio::test(start_paused = true)]
async fn a_rollback_without_anything_to_go_back_to_is_refused() {
    let mut world = World::new().await;
    world.station("cam-1").await;
    let refused = world.tool().rollback("cam-1", None).await.unwrap_err().to_string();
    assert!(refused.contains("has no earlier revision that ran well"), "{refused}");
    let refused = world.tool().rollback("cam-1", Some(Revision(7))).await.unwrap_err().to_string();
    assert!(refused.contains("cam-1 has no revision 7"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_rollback_of_a_station_that_is_away_holds_when_it_comes_back() {
    let (mut world, cam) = with_a_past().await;
    cam.cut();
    moment().await;
    world.tool().rollback("cam-1", None).await.unwrap();
    world.restart().await;
    world.connect(&cam).await;
    moment().await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
    // A registration alone does not undo it.
    cam.cut();
    world.connect(&cam).await;
    seconds(3).await;
    assert_eq!(cam.config("counter/main"), json!({ "step": 1 }));
}
