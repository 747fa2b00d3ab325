//! Folders of instances: they outlive their instance until somebody purges them.

use nix::sys::signal::Signal;
use quilt_tests::{Fleet, World};

const TARGET: &str = "cam-1/process/main";
const OLD: &str = "begins with the state of an earlier instance of this name";

#[tokio::test]
async fn the_folder_of_a_removed_instance_is_listed_until_it_is_purged_and_an_instance_of_its_name_says_that_it_found_it()
 {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let begin = async |world: &World| {
        let keys = "command = ['sh', '-c', 'echo hello; sleep 1000']\n";
        world.apply(Fleet::new().with(TARGET, keys).text()).await.with_code(0);
        world.until_state(TARGET, "active").await;
    };
    let remove = async |world: &World| {
        world.apply(Fleet::new().empty_station("cam-1").text()).await.with_code(0);
        world.eventually("it is gone", async |world| world.show("cam-1").await.instances.is_empty()).await;
    };
    let folders = async |world: &World| {
        let list = world.ctl(&["station", "folders", "cam-1", "-o", "json"]).await.with_code(0).json();
        list.as_array().unwrap().iter().map(|one| (one["instance"].clone(), one["used"].clone())).collect::<Vec<_>>()
    };
    let log = async |world: &World| world.ctl(&["logs", TARGET, "-n", "1000"]).await.with_code(0).out;
    begin(&world).await;
    assert!(!log(&world).await.contains(OLD));
    assert_eq!(folders(&world).await, [("main".into(), true.into())]);
    let purge = ["station", "purge", "cam-1", "process/main"];
    let refused = world.ctl(&purge).await.with_code(4).err;
    assert!(refused.contains("process/main is in use"), "{refused}");

    remove(&world).await;
    assert_eq!(folders(&world).await, [("main".into(), false.into())]);
    begin(&world).await;
    assert!(log(&world).await.contains(OLD));

    remove(&world).await;
    world.ctl(&purge).await.with_code(0);
    assert_eq!(folders(&world).await, []);
    assert!(!world.station_folder("cam-1").join("station/instances/process/main").exists());
    assert!(world.ctl(&["station", "purge", "cam-1", "--all"]).await.with_code(0).err.contains("no folders"));
    world.ctl(&purge).await.with_code(2);
    begin(&world).await;
    assert!(!log(&world).await.contains(OLD));
}

#[tokio::test]
async fn folders_of_removed_instances_are_deleted_when_they_have_been_kept_for_their_time() {
    let mut world = World::new().await;
    world.station("cam-1", &["--keep-removed", "1s"]).await;
    let program = "command = ['sh', '-c', 'echo hello; sleep 1000']\n";
    let fleet = Fleet::new().with("cam-1/process/stays", program);
    world.apply(fleet.with(TARGET, program).text()).await.with_code(0);
    world.apply(Fleet::new().with("cam-1/process/stays", program).text()).await.with_code(0);
    let instances = world.station_folder("cam-1").join("station/instances/process");
    world.eventually("the folder is deleted", async |_| !instances.join("main").exists()).await;
    assert!(instances.join("stays/log/log").exists());
    // One that was removed while no station was there, too.
    let world = &mut world;
    world.apply(Fleet::new().with("cam-1/process/stays", program).with(TARGET, program).text()).await.with_code(0);
    world.end_station("cam-1", Signal::SIGTERM).await;
    let path = world.fleet_file("f.toml", Fleet::new().with("cam-1/process/stays", program).text());
    world.ctl(&["apply", "-f", &path]).await.with_code(0);
    world.station("cam-1", &["--keep-removed", "1s"]).await;
    world.eventually("the folder is deleted", async |_| !instances.join("main").exists()).await;
    assert!(instances.join("stays/log/log").exists());
}
