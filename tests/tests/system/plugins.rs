//! Roles of third parties: found, offered, run in a child or in the station, replaced while they run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::imp::{Build, Descriptors, Echo, Slow};
use nix::sys::signal::Signal;
use quilt_client::{CallError, Outcome};
use quilt_tests::{Fleet, World, is_alive, plugins};

/// A station with the test plugin, and an instance of its role.
async fn world(keys: &str) -> World {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.plug(&plugins::imp("one"), "libimp.so");
    world.until_offered("cam-1", "imp").await;
    world.apply(Fleet::new().with("cam-1/imp/main", keys).text()).await.with_code(0);
    world
}

const TARGET: &str = "cam-1/imp/main";

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
    assert!(error.err.contains("NoSuchKey"), "{}", error.err);
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
}

/// Calls of a target without end, until told to stop; answers the builds that answered, in order, and what else came.
struct Callers {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    answers: Arc<Mutex<Vec<Result<String, String>>>>,
}

impl Callers {
    async fn start(world: &World, count: usize, ms: u64) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let client = world.client().await;
        let tasks = (0..count).map(|_| {
            let (stop, answers, client) = (stop.clone(), answers.clone(), client.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.call(TARGET, &Slow { ms }).await.map_err(|error| error.to_string());
                    answers.lock().unwrap().push(answer);
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, tasks, answers }
    }

    fn count(&self) -> usize {
        self.answers.lock().unwrap().len()
    }

    async fn end(self) -> Vec<Result<String, String>> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.answers.lock().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_file_takes_over_while_a_thousand_calls_are_under_way_and_each_ends_once_in_one_build() {
    // Before there are connections that a build would hold up.
    let _ = ["one", "two"].map(plugins::imp);
    for isolation in ["process", "inproc"] {
        let world = world(&format!("say = 'x'\nisolation = '{isolation}'\n")).await;
        let callers = Callers::start(&world, 1000, 50).await;
        world.eventually("calls are under way", async |_| callers.count() > 1000).await;
        world.plug(&plugins::imp("two"), "libimp.so");
        world
            .eventually("the new one answers", async |world| {
                let view = world.instance(TARGET).await.unwrap();
                view.attributes.get("build").is_some_and(|build| build == "two")
            })
            .await;
        let so_far = callers.count();
        world.eventually("more calls have ended", async |_| callers.count() > so_far + 2000).await;
        let answers = callers.end().await;
        let failed: Vec<_> = answers.iter().filter(|answer| answer.is_err()).collect();
        assert!(failed.is_empty(), "{isolation}: {} calls failed, such as {:?}", failed.len(), failed[0]);
        let build = |answer: &Result<String, String>| answer.clone().unwrap();
        assert_eq!((build(&answers[0]), build(answers.last().unwrap())), ("one".into(), "two".into()));
        assert_eq!(world.instance(TARGET).await.unwrap().restarts, 0);
    }
}

#[tokio::test]
async fn an_upgrade_that_fails_goes_back_to_the_build_before_on_every_instance() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.plug(&plugins::imp("one"), "libimp.so");
    world.until_offered("cam-1", "imp").await;
    let fleet = Fleet::new()
        .with("cam-1/imp/a", "say = 'a'\n")
        .with("cam-1/imp/b", "say = 'b'\nstart = 'fails'\nonly_build = 'two'\n");
    world.apply(fleet.text()).await.with_code(0);
    world.plug(&plugins::imp("two"), "libimp.so");
    world
        .eventually("the newer file is refused", async |world| {
            let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.json();
            list.as_array().unwrap().iter().any(|plugin| plugin["code"] == "UPGRADE_FAILED")
        })
        .await;
    let client = world.client().await;
    for name in ["a", "b"] {
        let target = format!("cam-1/imp/{name}");
        world.eventually("it is back", async |_| client.call(&target, &Build {}).await.unwrap() == "one").await;
        assert_eq!(world.instance(&target).await.unwrap().restarts, 0);
    }
    // Pushed with --wait it says so, and what is stored goes back as well.
    let library = plugins::imp("two");
    let pushed = ["plugin", "push", library.to_str().unwrap(), "--on", "name=*", "--rollback"];
    let pushed = world.ctl(&pushed).await.with_code(4);
    assert!(pushed.err.contains("was not upgraded") && pushed.err.contains("rolled back"), "{}", pushed.err);
    let goes_on = async |_: &World| client.call("cam-1/imp/a", &Build {}).await.unwrap() == "one";
    world.eventually("the one before goes on", goes_on).await;
}

#[tokio::test]
async fn a_newer_build_goes_through_a_fleet_in_batches_and_no_further_than_where_it_fails() {
    const NAMES: [&str; 3] = ["cam-1", "cam-2", "cam-3"];
    // Before there are connections that a build would hold up.
    let _ = ["one", "two"].map(plugins::imp);
    let mut world = World::new().await;
    for name in NAMES {
        world.station(name, &[]).await;
    }
    let push = async |world: &World, build: &str, more: &[&str]| {
        let library = plugins::imp(build);
        let push = ["plugin", "push", library.to_str().unwrap(), "--on", "name=*", "--batch", "1"];
        world.ctl(&[&push, more].concat()).await
    };
    push(&world, "one", &[]).await.with_code(0);
    // The second of them cannot start with the build to come.
    let fleet = NAMES.iter().fold(Fleet::new(), |fleet, name| {
        let more = if *name == "cam-2" { "start = 'fails'\nonly_build = 'two'\n" } else { "" };
        fleet.with(&format!("{name}/imp/main"), &format!("say = 'x'\n{more}"))
    });
    world.apply(fleet.text()).await.with_code(0);
    let client = world.client().await;
    let builds = async || {
        let mut builds = Vec::new();
        for name in NAMES {
            builds.push(client.call(&format!("{name}/imp/main"), &Build {}).await.unwrap_or_default());
        }
        builds
    };
    let stopped = push(&world, "two", &[]).await;
    assert!(stopped.code != 0 && stopped.err.contains("cam-2"), "{stopped:?}");
    world.eventually("the first has it, and only it", async |_| builds().await == ["two", "one", "one"]).await;
    // Tried again at an operator's word, and refused again; what is live is what runs.
    let one = quilt_station::inspect_plugin(&plugins::imp("one")).unwrap().sha256;
    world.ctl(&["plugin", "reload", "cam-2"]).await.with_code(0);
    world
        .eventually("the one before is live again", async |world| {
            let list = world.ctl(&["plugin", "list", "cam-2", "-o", "json"]).await.json();
            let list = list.as_array().unwrap();
            let is_live = list.iter().any(|plugin| plugin["state"] == "live" && plugin["sha256"] == *one);
            is_live && list.len() == 2 && list.iter().any(|plugin| plugin["code"] == "UPGRADE_FAILED")
        })
        .await;
    assert_eq!(builds().await, ["two", "one", "one"]);
    let back = push(&world, "one", &[]).await;
    world.eventually("all have the one before", async |_| builds().await == ["one", "one", "one"]).await;
    back.with_code(0);
    let list = world.ctl(&["plugin", "list", "cam-2", "-o", "json"]).await.json();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    let rolled_back = push(&world, "two", &["--rollback"]).await;
    assert!(rolled_back.code != 0 && rolled_back.err.contains("rolled back"), "{rolled_back:?}");
    // And at once again, when nobody has seen yet that what was gone back to runs well.
    let rolled_back = push(&world, "two", &["--rollback"]).await;
    assert!(rolled_back.code != 0 && rolled_back.err.contains("rolled back"), "{rolled_back:?}");
    world.eventually("all have the one before again", async |_| builds().await == ["one", "one", "one"]).await;
    for view in world.stations().await {
        assert_eq!(view.desired_digest, view.applied_digest, "{}", view.name);
    }
    for name in NAMES {
        assert_eq!(world.instance(&format!("{name}/imp/main")).await.unwrap().restarts, 0);
    }
}

#[tokio::test]
async fn an_instance_that_is_stopped_stays_so_through_an_upgrade_and_starts_with_the_newer_build() {
    let [_, two] = ["one", "two"].map(plugins::imp);
    let world = world("say = 'x'\n").await;
    world.ctl(&["stop", TARGET]).await.with_code(0);
    world.until_state(TARGET, "stopped").await;
    world.plug(&two, "libimp.so");
    let sha256 = quilt_station::inspect_plugin(&two).unwrap().sha256;
    world
        .eventually("the newer one is live", async |world| {
            let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.json();
            list.as_array().unwrap().iter().any(|plugin| plugin["state"] == "live" && plugin["sha256"] == *sha256)
        })
        .await;
    assert_eq!(world.instance(TARGET).await.unwrap().state.name(), "stopped");
    world.ctl(&["start", TARGET]).await.with_code(0);
    world.until_state(TARGET, "active").await;
    assert_eq!(world.client().await.call(TARGET, &Build {}).await.unwrap(), "two");
}

#[tokio::test]
async fn a_configuration_that_the_newer_build_refuses_leaves_the_one_before() {
    // Build "two" knows the same keys, so a role of another name stands for a schema that does not fit.
    let world = world("say = 'x'\n").await;
    let machine = plugins::machine();
    world.plug(&machine, "libmachine.so");
    world.until_offered("cam-1", "machine").await;
    let client = world.client().await;
    assert_eq!(client.call(TARGET, &Build {}).await.unwrap(), "one");
    let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.with_code(0).json();
    assert_eq!(list.as_array().unwrap().iter().filter(|plugin| plugin["state"] == "live").count(), 2);
}

/// Waits until the station has this plugin, and no other file.
async fn until_only(world: &World, name: &str) {
    world
        .eventually("it alone is offered", async |world| {
            let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.json();
            let list: Vec<_> = list.as_array().unwrap().iter().map(|one| (&one["name"], &one["state"])).collect();
            list == [(&name.into(), &"live".into())]
        })
        .await;
}

#[tokio::test]
async fn two_plugins_with_one_role_are_told_apart_and_the_first_stays() {
    let world = world("say = 'x'\n").await;
    let other = plugins::c_plugin(
        world.folder(),
        "tests/fixtures/hostile.c",
        "twin",
        &["-DVARIANT=good", "-DROLE=\"imp\"", "-DPLUGIN=\"twin\""],
    );
    world.plug(&other, "libtwin.so");
    world
        .eventually("the second is refused", async |world| {
            let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.json();
            list.as_array().unwrap().iter().any(|plugin| plugin["code"] == "DUPLICATE_ROLE")
        })
        .await;
    let client = world.client().await;
    assert_eq!(client.call(TARGET, &Build {}).await.unwrap(), "one");
    // Once the first is gone, the other has the role.
    std::fs::remove_file(world.folder().join("config/plugins/libimp.so")).unwrap();
    until_only(&world, "twin").await;
}

#[tokio::test]
async fn what_is_put_in_the_place_of_a_library_changes_nothing_until_it_is_one() {
    let [_, two] = ["one", "two"].map(plugins::imp);
    let world = world("say = 'x'\n").await;
    let file = world.folder().join("config/plugins/libimp.so");
    let whole = std::fs::read(&file).unwrap();
    let client = world.client().await;
    for (put, code) in [(&whole[..whole.len() / 2], "TRUNCATED"), (b"", "NOT_ELF"), (b"#!/bin/sh\n", "NOT_ELF")] {
        std::fs::write(&file, put).unwrap();
        world
            .eventually(code, async |world| {
                let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.json();
                list.as_array().unwrap().iter().any(|plugin| plugin["code"] == code)
            })
            .await;
        assert_eq!(client.call(TARGET, &Build {}).await.unwrap(), "one");
    }
    assert_eq!(world.instance(TARGET).await.unwrap().restarts, 0);
    world.plug(&two, "libimp.so");
    world.eventually("the newer one", async |_| client.call(TARGET, &Build {}).await.unwrap() == "two").await;
    // A file under the same name that holds another plugin takes the place of the one before.
    let twin = ["-DVARIANT=good", "-DROLE=\"imp\"", "-DPLUGIN=\"twin\""];
    let twin = plugins::c_plugin(world.folder(), "tests/fixtures/hostile.c", "twin", &twin);
    world.plug(&twin, "libimp.so");
    until_only(&world, "twin").await;
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
    // Asked behind them on the same connection, so they are under way when it is answered.
    client.call(TARGET, &Build {}).await.unwrap();
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
            world.instance(TARGET).await.is_some_and(|view| view.state.name() == "active" && view.pid != Some(child))
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
            world.instance(TARGET).await.is_some_and(|view| view.state.name() == "active" && view.pid != Some(child))
        })
        .await;
    assert!(!is_alive(child));
}
