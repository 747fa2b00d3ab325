//! Reports that come late, twice, not at all, or from a session that is over.

use quilt_client::control::{Report, State};

use crate::fleet_file::counter;
use crate::station::Station;
use crate::world::{World, moment, seconds};

async fn with_a_counter() -> (World, Station) {
    let mut world = World::new().await;
    let cam = world.station("cam-1").await;
    world.apply(counter("cam-1", 1)).await;
    moment().await;
    (world, cam)
}

#[tokio::test(start_paused = true)]
async fn a_change_is_shown_as_soon_as_it_is_reported() {
    let (world, cam) = with_a_counter().await;
    cam.turn("counter/main", State::Backoff, "again in 3 s").await;
    assert_eq!(world.shown("cam-1").await, ["counter/main backoff"]);
    assert_eq!(world.view("cam-1").await.instances[0].detail, "again in 3 s");
    cam.turn("counter/main", State::Active, "").await;
    cam.restart("counter/main").await;
    assert_eq!(world.shown("cam-1").await, ["counter/main active"]);
    assert_eq!(world.view("cam-1").await.instances[0].restarts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_is_held_up_counts_when_it_comes() {
    let (world, cam) = with_a_counter().await;
    cam.hold();
    let reporting = tokio::spawn({
        let cam = cam.clone();
        async move { cam.turn("counter/main", State::Failed, "late").await }
    });
    seconds(8).await;
    assert_eq!(world.shown("cam-1").await, ["counter/main active"]);
    cam.go_on();
    reporting.await.unwrap();
    assert_eq!(world.shown("cam-1").await, ["counter/main failed"]);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_is_lost_is_made_good_by_the_next_registration() {
    let (mut world, cam) = with_a_counter().await;
    cam.hold();
    let reporting = tokio::spawn({
        let cam = cam.clone();
        async move { cam.turn("counter/main", State::Failed, "lost").await }
    });
    moment().await;
    cam.cut();
    assert!(reporting.await.is_err(), "nobody took it");
    world.connect(&cam).await;
    assert_eq!(world.shown("cam-1").await, ["counter/main failed"]);
}

#[tokio::test(start_paused = true)]
async fn a_report_of_an_older_session_changes_nothing() {
    let (mut world, cam) = with_a_counter().await;
    let older = cam.session();
    let stale = Report { gone: vec![("counter".parse().unwrap(), "main".parse().unwrap())], ..cam.plain_report() };
    cam.hold();
    let told = tokio::spawn({
        let (cam, older) = (cam.clone(), older.clone());
        async move { cam.send(&older, &stale).await }
    });
    moment().await;
    let link = cam.link();
    world.connect(&cam).await;
    link.go_on();
    assert!(told.await.unwrap().is_err());
    moment().await;
    assert_eq!(world.shown("cam-1").await, ["counter/main active"]);
    assert_eq!(world.states().await, ["cam-1 connected"]);
}

#[tokio::test(start_paused = true)]
async fn a_report_with_too_much_in_it_is_refused_whole() {
    let (world, cam) = with_a_counter().await;
    let remarks = Some(vec!["x".to_owned(); 21]);
    let refused = cam.report(&Report { remarks, applied: None, ..cam.plain_report() }).await.unwrap_err().to_string();
    assert!(refused.contains("21 remarks; at most 20"), "{refused}");
    let view = world.view("cam-1").await;
    assert_eq!(view.applied_revision, view.desired_revision, "nothing of it was taken");
}

#[tokio::test(start_paused = true)]
async fn what_a_quarantined_station_reports_is_shown_of_it_alone() {
    let (mut world, cam) = with_a_counter().await;
    let clone = cam.cloned_disk();
    world.connect(&clone).await;
    clone.turn("counter/main", State::Failed, "in the clone").await;
    let views = world.tool().stations("").await.unwrap();
    let shown: Vec<_> = views.iter().map(|view| (view.state.name(), view.instances[0].state.name())).collect();
    assert!(shown.contains(&("connected", "active")) && shown.contains(&("quarantined", "failed")), "{shown:?}");
}
