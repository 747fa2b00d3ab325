//! Roles of third parties: found, offered, run in a child or in the station.

use crate::imp::{Build, Descriptors, Echo, Slow, SlowBegun};
use nix::sys::signal::Signal;
use quilt_client::{CallError, Outcome};
use quilt_tests::{Fleet, World, is_alive, plugins};

/// A station with the test plugin, and an instance of its role.
pub(crate) async fn world(keys: &str) -> World {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.plug(&plugins::imp("one"), "libimp.so");
    world.until_offered("cam-1", "imp").await;
    world.apply(Fleet::new().with("cam-1/imp/main", keys).text()).await.with_code(0);
    world
}

pub(crate) const TARGET: &str = "cam-1/imp/main";

#[tokio::test]
async fn a_library_that_is_copied_into_a_running_stations_folder_is_offered_and_used_without_a_restart() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let station = world.station_pid("cam-1");
    world.plug(&plugins::machine(), "libmachine.so");
    world.until_offered("cam-1", "machine").await;
    world.apply(Fleet::new().with("cam-1/machine/main", "every_ms = 50\n").text()).await.with_code(0);
    let commands = world.ctl(&["commands", "cam-1", "-o", "json"]).await.with_code(0).json();
    let read = commands.as_array().unwrap().iter().find(|one| one["command"] == "read_memory").unwrap();
    assert_eq!(read["doc"], "Replies how much memory there is of a kind, in bytes.");
    assert_eq!(read["request_schema"]["properties"]["key"]["type"], "string");
    let bytes = world.ctl(&["call", "cam-1/machine/main", "read_memory", "{\"key\":\"MemTotal\"}"]).await.with_code(0);
    assert!(bytes.json().as_u64().unwrap() > 1 << 20);
    let error = world.ctl(&["call", "cam-1/machine/main", "read_memory", "{\"key\":\"X\"}"]).await.with_code(4);
    assert!(error.err.contains("there is no X in meminfo"), "{}", error.err);
    let items = world.ctl(&["call", "cam-1/machine/main", "watch", "{\"items\":3,\"every_ms\":1}"]).await.with_code(0);
    assert_eq!(items.out.lines().count(), 3);
    world
        .eventually("it publishes", async |world| {
            world.instance("cam-1/machine/main").await.is_some_and(|view| view.attributes.contains_key("load"))
        })
        .await;
    assert_eq!(world.station_pid("cam-1"), station);
}

#[tokio::test]
async fn a_typed_caller_gets_typed_replies_and_errors_from_a_child_and_from_the_station_itself() {
    let world = world("say = 'hello'\n").await;
    let fleet = world.client().await;
    let child = world.pid(TARGET).await;
    assert_ne!(child, world.station_pid("cam-1"));
    for isolation in ["process", "inproc"] {
        let keys = format!("say = 'hello'\nisolation = '{isolation}'\n");
        world.apply(Fleet::new().with(TARGET, &keys).text()).await.with_code(0);
        assert_eq!(fleet.call(TARGET, &Echo { text: "you".into() }).await.unwrap(), "hello you");
        match fleet.call(TARGET, &crate::imp::Decline { why: "tired".into() }).await {
            Err(CallError::Command(sulk)) => assert_eq!(sulk, crate::imp::Sulk("tired".into())),
            other => panic!("{other:?}"),
        }
        let bulk = fleet.call(TARGET, &crate::imp::Bulk { bytes: 16 << 20 }).await.unwrap();
        assert_eq!(bulk.len(), 16 << 20);
        let (outcome, answer) = fleet
            .call(TARGET, &crate::imp::Call { target: "manager".into(), text: "name=cam-1".into() })
            .await
            .unwrap();
        assert!(outcome == "reply" && answer.contains("cam-1"), "{outcome}: {answer}");
    }
    // Nothing needs the child any more.
    world.eventually("the child is gone", async |_| !is_alive(child)).await;
}

#[tokio::test]
async fn what_a_plugin_traces_reaches_the_stations_log_and_the_fleets_events_and_obeys_the_filter_as_it_changes() {
    let mut world = World::new().await;
    let log = world.folder().join("station.log");
    let config = world.folder().join("config/quilt.toml");
    std::fs::write(&config, "[station]\nlog_level = \"info\"\n").unwrap();
    world.station("cam-1", &["--log-file", log.to_str().unwrap()]).await;
    world.plug(&plugins::imp("one"), "libimp.so");
    world.until_offered("cam-1", "imp").await;
    world.apply(Fleet::new().with(TARGET, "say = 'loud'\n").text()).await.with_code(0);
    let text = || std::fs::read_to_string(&log).unwrap();
    world.eventually("it is in the log", async |_| text().contains("starts plugin=\"imp\"")).await;
    assert!(text().contains("instance=\"imp/main\"") && !text().contains("in detail"));
    world
        .eventually("it is an event", async |world| {
            let events = world.ctl(&["events", "-o", "jsonl"]).await.out;
            events.lines().any(|line| line.contains("role.trace") && line.contains("imp/main") && line.contains("loud"))
        })
        .await;
    std::fs::write(&config, "[station]\nlog_level = \"debug\"\n").unwrap();
    let pid = nix::unistd::Pid::from_raw(world.station_pid("cam-1") as i32);
    nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    world.eventually("the filter is read again", async |_| text().contains("read the configuration again")).await;
    world
        .eventually("what is debugged is in the log too", async |world| {
            world.ctl(&["restart", TARGET]).await;
            text().contains("in detail")
        })
        .await;
}

#[tokio::test]
async fn a_plugin_is_pushed_to_stations_that_never_saw_its_file_and_stays_across_restarts() {
    let mut world = World::new().await;
    for name in ["cam-1", "cam-2", "cam-3"] {
        world.station(name, &["--label", "room=a"]).await;
    }
    let library = plugins::imp("one");
    let pushed = world.ctl(&["plugin", "push", library.to_str().unwrap(), "--on", "room=a"]).await.with_code(0);
    assert_eq!(pushed.out.matches("+ plugin imp").count(), 3, "{}", pushed.out);
    let fleet = ["cam-1", "cam-2", "cam-3"]
        .iter()
        .fold(Fleet::new(), |fleet, name| fleet.with(&format!("{name}/imp/main"), "say = 'hi'\n"));
    world.apply(fleet.text()).await.with_code(0);
    let client = world.client().await;
    for name in ["cam-1", "cam-2", "cam-3"] {
        let target = format!("{name}/imp/main");
        assert_eq!(client.call(&target, &Echo { text: "x".into() }).await.unwrap(), "hi x");
    }
    // Without a manager, from its own disk.
    world.end_station("cam-2", Signal::SIGTERM).await;
    world.end_manager(Signal::SIGKILL).await;
    world.start_station("cam-2", &["--label", "room=a"]).await;
    world.start_manager().await;
    world.until_state("cam-2/imp/main", "active").await;
    world
        .eventually("all are back", async |world| {
            let stations = world.stations().await;
            stations.iter().filter(|view| view.state.name() == "connected").count() == 3
        })
        .await;
    // And away again, but not while a fleet file asks for its role.
    let asked_for = world.ctl(&["plugin", "remove", "imp"]).await.with_code(4);
    assert!(asked_for.err.contains("a fleet file asks for a role that would be gone"), "{}", asked_for.err);
    let gone = ["cam-1", "cam-2", "cam-3"].iter().fold(Fleet::new(), |fleet, name| fleet.empty_station(name));
    world.apply(gone.text()).await.with_code(0);
    world.ctl(&["plugin", "remove", "imp"]).await.with_code(0);
    world.ctl(&["plugin", "remove", "imp"]).await.with_code(1);
    let library = plugins::imp("one");
    let nobody = ["plugin", "push", library.to_str().unwrap(), "--on", "name=nobody-*", "--wait", "0"];
    let nobody = world.ctl(&nobody).await.with_code(0);
    assert!(nobody.err.contains("imp is stored for stations that match"), "{}", nobody.err);
    // It is listed, and can be taken back, although no station has it.
    let given = world.ctl(&["plugin", "list", "--pushed", "-o", "json"]).await.with_code(0).json();
    assert_eq!((&given[0]["plugin"], &given[0]["on"]), (&"imp".into(), &"name=nobody-*".into()), "{given}");
    assert_eq!(given[0]["stations"], serde_json::json!([]));
    let listed = world.ctl(&["plugin", "list"]).await.with_code(0);
    assert!(listed.err.contains("no station matches: imp (on name=nobody-*)"), "{}", listed.err);
    world.ctl(&["plugin", "remove", "imp"]).await.with_code(0);
    world.ctl(&["plugin", "remove", "imp"]).await.with_code(1);
    world
        .eventually("nobody offers it", async |world| {
            world.stations().await.iter().all(|view| !view.roles.iter().any(|role| role == "imp"))
        })
        .await;
}

#[tokio::test]
async fn a_plugin_that_a_station_cannot_load_is_refused_before_anything_changes_anywhere() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let library = plugins::imp("one");
    let path = world.folder().join("cut.so");
    let whole = std::fs::read(&library).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let cut = world.ctl(&["plugin", "push", path.to_str().unwrap(), "--on", "name=*"]).await.with_code(4);
    assert!(cut.err.contains("TRUNCATED"), "{}", cut.err);
    world.station("cam-2", &["--plugin-trust", &"0".repeat(64)]).await;
    let pushed = world.ctl(&["plugin", "push", library.to_str().unwrap(), "--on", "name=*"]).await.with_code(4);
    assert!(pushed.err.contains("cam-2") && pushed.err.contains("UNTRUSTED"), "{}", pushed.err);
    assert!(world.stations().await.iter().all(|view| view.desired_revision.is_none()), "something was stored");

    // Stored for a station that comes later and refuses it: pushed again it is refused, and not said to be stored.
    let push = ["plugin", "push", library.to_str().unwrap(), "--on", "name=cam-3", "--wait", "0"];
    world.ctl(&push).await.with_code(0);
    world.station("cam-3", &["--plugin-trust", &"0".repeat(64)]).await;
    world.eventually("it refuses", async |world| world.show("cam-3").await.rejected.is_some()).await;
    let again = world.ctl(&push).await.with_code(4);
    assert!(again.err.contains("UNTRUSTED") && !again.err.contains("is stored"), "{}", again.err);
}

#[tokio::test]
async fn one_missing_role_does_not_keep_other_plugins_from_being_pushed() {
    let mut world = world("say = 'x'\n").await;
    world.end_station("cam-1", Signal::SIGTERM).await;
    std::fs::remove_file(world.folder().join("config/plugins/libimp.so")).unwrap();
    world.station("cam-1", &[]).await;
    world.until_state(TARGET, "failed").await;
    let machine = plugins::machine();
    let push = ["plugin", "push", machine.to_str().unwrap(), "--on", "name=cam-1", "--wait", "20"];
    let pushed = world.ctl(&push).await.with_code(0);
    assert!(pushed.err.contains("imp/main is failed (MISSING_ROLE_FACTORY"), "{}", pushed.err);
    world.until_offered("cam-1", "machine").await;
    world.until_state(TARGET, "failed").await;
    // A file that changes the instance is refused as before; a push of its plugin brings it back.
    let changed = world.fleet_file("fleet.toml", Fleet::new().with(TARGET, "say = 'y'\n").text());
    world.ctl(&["apply", "-f", &changed]).await.with_code(4);
    let imp = plugins::imp("one");
    world.ctl(&["plugin", "push", imp.to_str().unwrap(), "--on", "name=cam-1", "--wait", "20"]).await.with_code(0);
    world.until_state(TARGET, "active").await;
}

#[tokio::test]
async fn what_is_found_in_a_plugin_folder_does_not_end_what_runs_of_other_plugins() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let file = world.folder().join("refuse");
    world.plug(&plugins::imp("one"), "libimp.so");
    world.until_offered("cam-1", "imp").await;
    let keys = format!("say = 'x'\nrefuse_if = '{}'\n", file.display());
    world.apply(Fleet::new().with(TARGET, &keys).text()).await.with_code(0);
    // It would be refused now, but nobody asked for anything else.
    std::fs::write(&file, b"").unwrap();
    std::fs::write(world.folder().join("config/plugins/text.so"), b"hi\n").unwrap();
    world.plug(&plugins::machine(), "libmachine.so");
    world.until_offered("cam-1", "machine").await;
    world.ctl(&["plugin", "reload", "cam-1"]).await.with_code(0);
    let view = world.instance(TARGET).await.unwrap();
    assert_eq!((view.state.name(), view.restarts), ("active", 0));
    assert_eq!(world.client().await.call(TARGET, &Build {}).await.unwrap(), "one");
    // Nor does a restart of the station.
    world.end_station("cam-1", Signal::SIGTERM).await;
    world.station("cam-1", &[]).await;
    world.until_state(TARGET, "active").await;
}

#[tokio::test]
async fn a_large_plugin_is_fetched_once_although_two_things_ask_for_it_at_the_same_time() {
    let mut world = World::new().await;
    let good = plugins::hostile(world.folder(), "good");
    // Bytes behind the end are no part of the library, and take their time.
    let large = [std::fs::read(&good).unwrap(), vec![0; 100 << 20]].concat();
    std::fs::write(&good, large).unwrap();
    let push = ["plugin", "push", good.to_str().unwrap(), "--on", "name=cam-1", "--wait", "0"];
    world.ctl(&push).await.with_code(0);
    world.station("cam-1", &[]).await;
    for number in 0..3 {
        let fleet = Fleet::new().with("cam-1/counter/main", &format!("start = {number}\n"));
        world.apply(fleet.text()).await.with_code(0);
    }
    world.until_offered("cam-1", "good").await;
}

#[tokio::test]
async fn a_thousand_restarts_leave_memory_descriptors_and_threads_as_they_were() {
    for isolation in ["process", "inproc"] {
        let world = world(&format!("say = 'x'\nisolation = '{isolation}'\n")).await;
        let client = world.client().await;
        let pid = match isolation {
            "process" => world.pid(TARGET).await,
            _ => world.station_pid("cam-1"),
        };
        let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
        let memory = || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let restart = async |times: u32| {
            for _ in 0..times {
                client.control(TARGET, quilt_client::control::Action::Restart).await.unwrap();
            }
            loop {
                match client.call(TARGET, &Descriptors {}).await {
                    Ok(descriptors) => return descriptors,
                    Err(CallError::Ended { outcome: Outcome::NoTarget, .. }) => tokio::task::yield_now().await,
                    Err(other) => panic!("{other}"),
                }
            }
        };
        let descriptors = restart(100).await;
        let (memory_before, threads_before) = (memory(), threads());
        let descriptors_after = restart(1000).await;
        let (memory_after, threads_after) = (memory(), threads());
        assert!(
            descriptors_after <= descriptors + 3,
            "{isolation}: {descriptors} then {descriptors_after} descriptors"
        );
        assert!(threads_after <= threads_before + 2, "{isolation}: {threads_before} then {threads_after} threads");
        assert!(memory_after < memory_before + 2048, "{isolation}: {memory_before} then {memory_after} KiB");
    }
}

#[tokio::test]
async fn a_killed_child_ends_its_calls_as_lost_and_comes_back_while_others_notice_nothing() {
    let world = world("say = 'x'\nrestart = { delay = \"20ms\" }\n").await;
    let with_counter =
        Fleet::new().with(TARGET, "say = 'x'\nrestart = { delay = \"20ms\" }\n").with("cam-1/counter/main", "");
    world.apply(with_counter.text()).await.with_code(0);
    let client = world.client().await;
    let child = world.pid(TARGET).await;
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.call(TARGET, &Slow { ms: 20_000 }).await })
        })
        .collect();
    let under_way = async |_: &World| client.call(TARGET, &SlowBegun {}).await.unwrap() == 100;
    world.eventually("all are under way", under_way).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child as i32), Signal::SIGKILL).unwrap();
    for call in calls {
        match call.await.unwrap() {
            Err(CallError::Ended { outcome: Outcome::PeerLost(_), text }) => {
                assert!(text.contains("SIGKILL") || text.contains("process"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
    client.call("cam-1/counter/main", &quilt_role_counter::api::Increment { by: 1 }).await.unwrap();
    world
        .eventually("it is back", async |world| {
            world
                .instance(TARGET)
                .await
                .is_some_and(|view| view.state.name() == "active" && view.pid.is_some_and(|pid| pid != child))
        })
        .await;
    assert_eq!(client.call(TARGET, &Build {}).await.unwrap(), "one");
}

#[tokio::test]
async fn a_child_that_is_stopped_by_a_signal_is_noticed_and_replaced() {
    let world = world("say = 'x'\nrestart = { delay = \"20ms\" }\n").await;
    let child = world.pid(TARGET).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child as i32), Signal::SIGSTOP).unwrap();
    world
        .eventually("it is replaced", async |world| {
            world
                .instance(TARGET)
                .await
                .is_some_and(|view| view.state.name() == "active" && view.pid.is_some_and(|pid| pid != child))
        })
        .await;
    assert!(!is_alive(child));
}
