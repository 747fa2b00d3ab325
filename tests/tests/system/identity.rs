//! Who a station is: clones, equal names, equal machines.

use nix::sys::signal::Signal;
use quilt_tests::{Fleet, World, clock, copy};

/// A fleet with `cam-1`, and a copy of its disk in another machine.
async fn cloned() -> World {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/main", "start = 5\n").text()).await.with_code(0);
    copy(&world.station_folder("cam-1"), &world.station_folder("clone"));
    world.start_station("clone", &[]).await;
    world
        .eventually("the clone is quarantined", async |world| {
            world.stations().await.iter().any(|station| station.state.name() == "quarantined")
        })
        .await;
    world
}

#[tokio::test]
async fn a_cloned_disk_is_quarantined_and_given_an_identity_of_its_own() {
    let world = cloned().await;
    let stations = world.stations().await;
    let (holder, newcomer) = (world.show("cam-1").await, world.show("clone").await);
    assert_eq!((stations.len(), holder.id), (2, newcomer.id), "both are shown, with their facts");
    assert_eq!(holder.state.name(), "connected");
    assert!(holder.flags.iter().any(|flag| flag.contains("claims its identity")), "{:?}", holder.flags);
    world.ctl(&["station", "renew", "clone"]).await.with_code(0);
    world
        .eventually("the clone is somebody else", async |world| {
            let stations = world.stations().await;
            stations.iter().any(|station| station.id != holder.id && station.state.name() == "unadopted")
        })
        .await;
    world.ctl(&["adopt", "clone"]).await.with_code(0);
    world.until_state("clone/counter/main", "active").await;
}

#[tokio::test]
async fn an_operator_can_let_the_newcomer_take_the_olders_place() {
    let mut world = cloned().await;
    world.ctl(&["station", "replace", "clone"]).await.with_code(0);
    world
        .eventually("the newcomer is the station", async |world| {
            world
                .stations()
                .await
                .iter()
                .any(|station| station.name.as_str() == "clone" && station.state.name() == "connected")
        })
        .await;
    world.end_station("cam-1", Signal::SIGKILL).await;
}

#[tokio::test]
async fn a_name_that_is_taken_gets_a_number_and_not_the_others_configuration() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(clock(&["cam-1"]).text()).await.with_code(0);
    // The same wished name, another identity.
    let mut command = world.command("quilt-station");
    command.arg("--data-dir").arg(world.station_folder("second"));
    command.args(["--manager", &world.address, "--name", "cam-1"]);
    let _second = command.spawn().unwrap();
    world
        .eventually("the second is listed", async |world| {
            world.stations().await.iter().any(|station| station.name.as_str() == "cam-1~2")
        })
        .await;
    let second = world.show("cam-1~2").await;
    assert_eq!((second.desired_revision, second.instances.len()), (None, 0));
    assert!(second.flags.iter().any(|flag| flag.contains("taken")), "{:?}", second.flags);
    let first = world.show("cam-1").await;
    if first.mac.is_some() {
        assert!(first.flags.iter().any(|flag| flag.contains("same MAC as cam-1~2")), "{:?}", first.flags);
    }
    // By identity it can be meant all the same.
    let text = format!("[station.\"id:{}\".roles.counter.main]\n", second.id);
    world.apply(&text).await.with_code(0);
    world.until_state("cam-1~2/counter/main", "active").await;
}

#[tokio::test]
async fn a_station_that_is_away_can_be_forgotten_and_one_that_is_there_cannot() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let refused = world.ctl(&["station", "forget", "cam-1"]).await.with_code(4);
    assert!(refused.err.contains("connected"), "{}", refused.err);
    world.end_station("cam-1", Signal::SIGKILL).await;
    world.eventually("it is away", async |world| world.show("cam-1").await.state.name() == "unknown").await;
    world.ctl(&["station", "forget", "cam-1"]).await.with_code(0);
    assert!(world.stations().await.is_empty());
}

#[tokio::test]
async fn a_second_station_on_one_data_folder_is_told_who_has_it() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let mut command = world.command("quilt-station");
    let output = command.arg("--data-dir").arg(world.station_folder("cam-1")).output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains(&format!("in use by process {}", world.station_pid("cam-1"))), "{text}");
}

#[tokio::test]
async fn a_copy_of_a_stations_data_leaves_the_originals_programs_alone() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(clock(&["cam-1"]).text()).await.with_code(0);
    let pid = world.pid("cam-1/process/clock").await;
    copy(&world.station_folder("cam-1"), &world.station_folder("clone"));
    world.start_station("clone", &[]).await;
    world
        .eventually("the clone is quarantined", async |world| {
            world.stations().await.iter().any(|station| station.state.name() == "quarantined")
        })
        .await;
    let original = world.instance("cam-1/process/clock").await.unwrap();
    assert_eq!((original.pid, original.restarts), (Some(pid), 0));
}

#[tokio::test]
async fn a_station_that_comes_back_under_another_name_keeps_what_it_runs_until_an_apply_names_it() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(clock(&["cam-1"]).text()).await.with_code(0);
    let pid = world.pid("cam-1/process/clock").await;
    world.end_station("cam-1", Signal::SIGTERM).await;
    std::os::unix::fs::symlink(world.station_folder("cam-1"), world.station_folder("hall-1")).unwrap();
    world.station("hall-1", &[]).await;
    world
        .eventually("it took what it has", async |world| {
            let view = world.show("hall-1").await;
            view.desired_revision.is_some() && view.applied_revision == view.desired_revision
        })
        .await;
    let clock = world.until_state("hall-1/process/clock", "active").await;
    assert_eq!(clock.pid, Some(pid));
    let history = world.ctl(&["history", "hall-1", "-o", "json"]).await.with_code(0).json();
    assert_eq!(history[0]["source"], "renamed from cam-1");
    world.apply(Fleet::new().with("hall-1/counter/main", "").text()).await.with_code(0);
    assert!(world.instance("hall-1/process/clock").await.is_none());
}
