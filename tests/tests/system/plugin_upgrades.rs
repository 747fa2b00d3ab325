//! Builds of a plugin that follow one another while its instances run.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use quilt_tests::{Fleet, World, plugins};

use crate::imp::{Build, Echo, Slow};
use crate::plugins::{TARGET, world};

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
        // Its copy goes, however many builds follow one another.
        let copies = || {
            let files = std::fs::read_dir(world.station_folder("cam-1").join("station/plugins")).unwrap();
            files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|kind| kind == "so")).count()
        };
        world.eventually("the copy of the one before is gone", async |_| copies() == 1).await;
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

/// The private copy of a build that was replaced is removed some time later, and may be asked for again just then.
#[tokio::test]
async fn builds_that_take_turns_are_there_whenever_they_are_asked_for() {
    let builds = ["one", "two"].map(|build| (build, plugins::imp(build)));
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let push = async |world: &World, file: &std::path::Path| {
        world.ctl(&["plugin", "push", file.to_str().unwrap(), "--on", "name=cam-1"]).await.with_code(0)
    };
    push(&world, &builds[0].1).await;
    world.apply(Fleet::new().with(TARGET, "say = 'x'\n").text()).await.with_code(0);
    let client = world.client().await;
    for (build, file) in builds.iter().rev().cycle().take(12) {
        push(&world, file).await;
        world
            .eventually("the build that was pushed answers", async |_| {
                client.call(TARGET, &Build {}).await.is_ok_and(|answers| answers == *build)
            })
            .await;
    }
    assert_eq!(world.instance(TARGET).await.unwrap().restarts, 0);
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
async fn a_newer_build_that_does_not_know_a_key_in_use_is_refused_and_taken_once_the_key_is_gone() {
    let [one, narrow] = ["one", "narrow"].map(plugins::imp);
    for isolation in ["process", "inproc"] {
        let isolation = format!("isolation = '{isolation}'\n");
        let world = world(&format!("say = 'x'\nwhisper = true\n{isolation}")).await;
        let client = world.client().await;
        let [before, newer] = [&one, &narrow].map(|file| quilt_station::inspect_plugin(file).unwrap().sha256);
        let list =
            async |world: &World| world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.with_code(0).json();
        let state = async |world: &World, sha256: &str| {
            let list = list(world).await;
            let plugin = list.as_array().unwrap().iter().find(|plugin| plugin["sha256"] == *sha256).cloned();
            plugin.unwrap_or_default()
        };
        world.plug(&narrow, "libimp.so");
        world
            .eventually("the newer one is refused", async |world| {
                state(world, &newer).await["code"] == "UPGRADE_FAILED"
            })
            .await;
        let why = state(&world, &newer).await["detail"].to_string();
        assert!(why.contains("whisper") && why.contains(TARGET.trim_start_matches("cam-1/")), "{why}");
        assert_eq!(state(&world, &before).await["state"], "live");
        assert_eq!(client.call(TARGET, &Build {}).await.unwrap(), "one");
        let view = world.instance(TARGET).await.unwrap();
        assert_eq!((view.state.name(), view.restarts), ("active", 0));
        // What it asks of configurations from now on is what the build that runs asks.
        let still = format!("say = 'y'\nwhisper = false\n{isolation}");
        world.apply(Fleet::new().with(TARGET, &still).text()).await.with_code(0);
        assert_eq!(client.call(TARGET, &Echo { text: "z".into() }).await.unwrap(), "y z");
        // Without the key it may be tried again, and fits.
        world.apply(Fleet::new().with(TARGET, &format!("say = 'y'\n{isolation}")).text()).await.with_code(0);
        world.ctl(&["plugin", "reload", "cam-1"]).await.with_code(0);
        world
            .eventually("it takes over", async |_| {
                client.call(TARGET, &Build {}).await.is_ok_and(|one| one == "narrow")
            })
            .await;
        let refused = format!("say = 'y'\nwhisper = true\n{isolation}");
        let refused = world.apply(Fleet::new().with(TARGET, &refused).text()).await.with_code(4);
        assert!(refused.err.contains("whisper"), "{}", refused.err);
        assert_eq!(world.instance(TARGET).await.unwrap().restarts, 0);
    }
}

#[tokio::test]
async fn a_file_that_comes_while_another_plugin_is_upgraded_does_not_disturb_that() {
    let [one, two] = ["one", "two"].map(plugins::imp);
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.plug(&one, "libimp.so");
    world.until_offered("cam-1", "imp").await;
    let go = world.folder().join("go");
    let slow = |say: &str| format!("say = '{say}'\nonly_build = 'two'\nwait_for = '{}'\n", go.display());
    world.apply(Fleet::new().with(TARGET, &slow("x")).text()).await.with_code(0);
    world.plug(&two, "libimp.so");
    let newer = quilt_station::inspect_plugin(&two).unwrap().sha256;
    let is_live = async |world: &World, sha256: &str| {
        let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.json();
        list.as_array().unwrap().iter().any(|plugin| plugin["state"] == "live" && plugin["sha256"] == *sha256)
    };
    world.eventually("it is tried", async |world| is_live(world, &newer).await).await;
    let other = plugins::hostile(world.folder(), "good");
    let other_sha256 = quilt_station::inspect_plugin(&other).unwrap().sha256;
    world.plug(&other, "good.so");
    world.eventually("the other is offered", async |world| is_live(world, &other_sha256).await).await;
    assert!(is_live(&world, &newer).await);
    std::fs::write(&go, "").unwrap();
    // What waits for the end of the upgrade comes before this.
    world.apply(Fleet::new().with(TARGET, &slow("y")).text()).await.with_code(0);
    let client = world.client().await;
    assert_eq!(client.call(TARGET, &Build {}).await.unwrap(), "two");
    assert_eq!(client.call(TARGET, &Echo { text: "z".into() }).await.unwrap(), "y z");
}

#[tokio::test]
async fn a_build_that_was_replaced_inside_the_station_stays_mapped_and_threads_that_called_it_end_as_ever() {
    let two = plugins::imp("two");
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let station = world.station_pid("cam-1");
    let threads = || std::fs::read_dir(format!("/proc/{station}/task")).unwrap().count();
    let mapped = || {
        let maps = std::fs::read_to_string(format!("/proc/{station}/maps")).unwrap();
        let files = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|file| file.ends_with(".so"));
        files.filter(|file| file.contains("/plugins/")).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let before = threads();
    world.plug(&plugins::imp("one"), "libimp.so");
    world.until_offered("cam-1", "imp").await;
    let keys = "say = 'x'\nisolation = 'inproc'\n";
    world.apply(Fleet::new().with(TARGET, keys).text()).await.with_code(0);
    assert_eq!(mapped().len(), 1);
    world.plug(&two, "libimp.so");
    let client = world.client().await;
    world
        .eventually("it takes over", async |_| client.call(TARGET, &Build {}).await.is_ok_and(|one| one == "two"))
        .await;
    assert_eq!(mapped().len(), 2, "{:?}", mapped());
    // The threads that opened it were borrowed from tokio, which ends those that nobody needs. Each library has one of its own.
    world.eventually("borrowed threads have ended", async |_| threads() <= before + 2).await;
    assert_eq!(client.call(TARGET, &Build {}).await.unwrap(), "two");
    world.apply(Fleet::new().empty_station("cam-1").text()).await.with_code(0);
    assert_eq!(mapped().len(), 2, "{:?}", mapped());
    world.end_station("cam-1", Signal::SIGTERM).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_calls_that_are_given_up_leaves_the_others_answered_and_the_process_as_it_was() {
    for isolation in ["process", "inproc"] {
        let world = world(&format!("say = 'x'\nisolation = '{isolation}'\n")).await;
        let client = world.client().await;
        let child = world.instance(TARGET).await.unwrap().pid;
        for round in 0..20_u64 {
            let calls: Vec<_> = (0..200_u64)
                .map(|number| {
                    let client = client.clone();
                    let ms = number * 7 % 20;
                    tokio::spawn(async move { client.call(TARGET, &Slow { ms }).await })
                })
                .collect();
            for (number, call) in calls.iter().enumerate() {
                if number as u64 % 3 == round % 3 {
                    call.abort();
                    tokio::task::yield_now().await;
                }
            }
            for (number, call) in calls.into_iter().enumerate() {
                match call.await {
                    Ok(answer) => assert_eq!(answer.unwrap(), "one"),
                    Err(given_up) => assert!(given_up.is_cancelled() && number as u64 % 3 == round % 3),
                }
            }
        }
        // Nothing waits any more for what was given up.
        world
            .eventually("no call is under way", async |world| {
                world.ctl(&["restart", TARGET]).await.code == 0 && client.call(TARGET, &Build {}).await.is_ok()
            })
            .await;
        assert_eq!(world.until_state(TARGET, "active").await.pid, child, "{isolation}");
    }
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
