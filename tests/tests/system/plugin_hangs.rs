//! Plugins that never come back: an update, a stop, a call, a thread without end. Each has its time, and nobody waits longer.

use std::time::Duration;

use nix::sys::signal::Signal;
use quilt_client::control::Action;
use quilt_client::{CallOptions, Outcome};
use quilt_role_counter::api::Increment;
use quilt_tests::{Fleet, World, is_alive, plugins};

use crate::imp::{Build, Echo, Leak};
use crate::plugin_faults;
use crate::plugins::{TARGET, world};

const QUICK: &str = "restart = { delay = '20ms' }\nstop_timeout = '100ms'\n";

/// Instances of C variants and of `imp`, each with keys of its own: the path, and what is to come of it.
async fn of_variants(world: &mut World, variants: &[&str]) {
    world.station("cam-1", &[]).await;
    world.plug(&plugins::imp("one"), "libimp.so");
    for variant in variants {
        world.plug(&plugins::hostile(world.folder(), variant), &format!("{variant}.so"));
    }
    for role in variants.iter().chain(&["imp"]) {
        world.until_offered("cam-1", role).await;
    }
}

#[tokio::test]
async fn an_update_that_never_ends_or_ends_its_process_is_followed_by_a_restart_with_the_new_configuration() {
    const CHILD: [&str; 3] = ["abort_at_update", "hang_at_update", "never_at_update"];
    let mut world = World::new().await;
    of_variants(&mut world, &CHILD).await;
    let fleet = |note: u32| {
        let keys = format!("note = {note}\n{QUICK}");
        let say = format!("say = '{note}'\nupdate = 'spins'\n{QUICK}");
        let fleet = Fleet::new().with("cam-1/counter/main", "").with(TARGET, &say);
        let fleet = fleet.with("cam-1/never_at_update/inside", &format!("{keys}isolation = 'inproc'\n"));
        CHILD.iter().fold(fleet, |fleet, variant| fleet.with(&format!("cam-1/{variant}/main"), &keys))
    };
    world.apply(fleet(1).text()).await.with_code(0);
    let client = world.client().await;
    assert_eq!(client.call("cam-1/counter/main", &Increment { by: 1 }).await.unwrap(), 1);
    let path = world.fleet_file("fleet.toml", fleet(2).text());
    // Longer than an update in place may take, which is 30 s.
    world.ctl(&["apply", "-f", &path, "--wait", "50", "--settle", "0"]).await.with_code(0);
    assert_eq!(client.call(TARGET, &Echo { text: "x".into() }).await.unwrap(), "2 x");
    for target in CHILD.iter().map(|variant| format!("cam-1/{variant}/main")) {
        world.until_state(&target, "active").await;
    }
    let log = world.ctl(&["logs", "cam-1/never_at_update/inside"]).await.with_code(0).out;
    assert!(log.contains("the update in place took longer than 30s, restarting"), "{log}");
    assert_eq!(client.call("cam-1/counter/main", &Increment { by: 1 }).await.unwrap(), 2);
    assert_eq!(world.instance("cam-1/counter/main").await.unwrap().restarts, 0);
}

#[tokio::test]
async fn a_start_that_is_given_up_is_stopped_when_it_comes_up_and_costs_no_other_instance_anything() {
    for isolation in ["process", "inproc"] {
        let keys = format!("say = 'x'\nisolation = '{isolation}'\n{QUICK}");
        let world = world(&keys).await;
        let gate = world.folder().join("gate");
        let slow = format!("{keys}wait_for = {gate:?}\n");
        let fleet = Fleet::new().with(TARGET, &keys).with("cam-1/imp/slow", &slow);
        let file = world.fleet_file("f.toml", fleet.text());
        world.ctl(&["apply", "-f", &file]).await.with_code(0);
        let started = async |world: &World| world.ctl(&["logs", "cam-1/imp/slow"]).await.out.contains("starting x");
        world.eventually("the slow one is in the midst of its start", started).await;
        world.ctl(&["stop", "cam-1/imp/slow"]).await.with_code(0);
        world.until_state("cam-1/imp/slow", "stopped").await;
        std::fs::write(&gate, "").unwrap();
        world.ctl(&["start", "cam-1/imp/slow"]).await.with_code(0);
        world.until_state("cam-1/imp/slow", "active").await;
        assert_eq!(world.instance(TARGET).await.unwrap().restarts, 0, "{isolation}");
    }
}

#[tokio::test]
async fn a_stop_that_never_ends_is_over_after_its_time_and_the_instance_can_be_started_again() {
    const CHILD: [&str; 5] = ["hang_at_stop", "never_at_stop", "abort_at_stop", "twice_at_stop", "late_at_stop"];
    const INSIDE: [&str; 3] = ["never_at_stop", "twice_at_stop", "late_at_stop"];
    let mut world = World::new().await;
    of_variants(&mut world, &CHILD).await;
    let with = |fleet: Fleet, target: &str, keys: &str| fleet.with(target, &format!("{keys}{QUICK}"));
    let mut fleet = Fleet::new().with("cam-1/counter/main", "");
    let mut targets = vec![];
    let mut add = |target: String, keys: &str| {
        fleet = with(std::mem::take(&mut fleet), &target, keys);
        targets.push(target);
    };
    for variant in CHILD {
        add(format!("cam-1/{variant}/main"), "");
    }
    for variant in INSIDE {
        add(format!("cam-1/{variant}/inside"), "isolation = 'inproc'\n");
    }
    add("cam-1/imp/spins".into(), "stop = 'spins'\n");
    add("cam-1/imp/hangs".into(), "stop = 'hangs'\n");
    add("cam-1/imp/inside".into(), "stop = 'hangs'\nisolation = 'inproc'\n");
    world.apply(fleet.text()).await.with_code(0);
    let hung = world.pid("cam-1/hang_at_stop/main").await;
    let client = world.client().await;
    for target in &targets {
        client.control(target, Action::Stop).await.unwrap();
    }
    for target in &targets {
        world.until_state(target, "stopped").await;
    }
    world.eventually("what hung is gone", async |_| !is_alive(hung)).await;
    for target in &targets {
        client.control(target, Action::Start).await.unwrap();
    }
    for target in &targets {
        world.until_state(target, "active").await;
    }
    for variant in INSIDE {
        assert_eq!(plugin_faults::poke(&client, variant).await.0, "reply", "{variant}");
    }
    assert_eq!(client.call("cam-1/counter/main", &Increment { by: 1 }).await.unwrap(), 1);
    assert_eq!(world.instance("cam-1/counter/main").await.unwrap().restarts, 0);
}

#[tokio::test]
async fn an_answer_that_comes_after_its_instance_is_ignored_with_all_that_comes_with_it() {
    const VARIANT: &str = "late_at_call";
    for isolation in ["process", "inproc"] {
        let world = plugin_faults::world(&[VARIANT], &format!("isolation = '{isolation}'\n{QUICK}")).await;
        let (client, target) = (world.client().await, format!("cam-1/{VARIANT}/main"));
        let poking = tokio::spawn(async move { plugin_faults::poke(&client, VARIANT).await });
        world
            .eventually("the call ended with its instance", async |world| {
                world.ctl(&["stop", &target]).await;
                poking.is_finished()
            })
            .await;
        assert_ne!(poking.await.unwrap().0, "reply");
        world.ctl(&["start", &target]).await.with_code(0);
        // Its thread speaks 3 s after the call, if it lives that long.
        let station = world.station_pid("cam-1");
        let is_late = |task: std::io::Result<std::fs::DirEntry>| {
            let name = task.and_then(|task| std::fs::read_to_string(task.path().join("comm")));
            name.is_ok_and(|name| name.trim() == "late")
        };
        let speaks = || std::fs::read_dir(format!("/proc/{station}/task")).unwrap().any(is_late);
        assert_eq!(speaks(), isolation == "inproc");
        world.eventually("it has spoken", async |_| !speaks()).await;
        let view = world.until_state(&target, "active").await;
        assert!(view.attributes.is_empty(), "{:?}", view.attributes);
        let (events, log) = (
            world.ctl(&["events", "--after", "0", "-o", "jsonl"]).await.with_code(0).out,
            world.ctl(&["logs", &target]).await.out,
        );
        let commands = world.ctl(&["commands", "cam-1", "-o", "json"]).await.with_code(0).out;
        for place in [events, log, commands] {
            assert!(!place.contains("beyond"), "{isolation}: {place}");
        }
    }
}

#[tokio::test]
async fn a_role_that_spins_inside_the_station_keeps_nobody_else_waiting() {
    let mut world = world(&format!("say = 'x'\nisolation = 'inproc'\n{QUICK}")).await;
    let fleet = Fleet::new().with(TARGET, &format!("say = 'x'\nisolation = 'inproc'\n{QUICK}"));
    world.apply(fleet.with("cam-1/counter/main", "").text()).await.with_code(0);
    let client = world.client().await;
    client.call(TARGET, &Leak {}).await.unwrap();
    world.ctl(&["restart", TARGET]).await.with_code(0);
    world.until_state(TARGET, "active").await;
    assert_eq!(client.call(TARGET, &Build {}).await.unwrap(), "one");
    let options = CallOptions { timeout: Duration::from_secs(1), idempotent: false, retry: false };
    let spun = client.call_json(&TARGET.parse().unwrap(), "spin", bytes::Bytes::from_static(b"{}"), &options).await;
    assert_eq!(spun.outcome, Outcome::TimedOut);
    for number in 1..=100 {
        assert_eq!(client.call("cam-1/counter/main", &Increment { by: 1 }).await.unwrap(), number);
    }
    // Its own thread is lost to it, so it is not started again; that it has stopped is true for the station.
    world.ctl(&["stop", TARGET]).await;
    world.until_state(TARGET, "stopped").await;
    assert_eq!(client.call("cam-1/counter/main", &Increment { by: 1 }).await.unwrap(), 101);
    world.end_station("cam-1", Signal::SIGTERM).await;
}

#[tokio::test]
async fn a_plugin_that_hangs_while_it_describes_itself_holds_up_no_other_and_no_instance_of_another() {
    const HANGS: &str = "hang_at_describe";
    let mut world = World::new().await;
    let folder = world.folder().join("config/roles.d");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("10-mine.toml"), format!("[{HANGS}.mine]\n")).unwrap();
    for variant in [HANGS, "good"] {
        world.plug(&plugins::hostile(world.folder(), variant), &format!("{variant}.so"));
    }
    world.station("cam-1", &[]).await;
    world.until_offered("cam-1", "good").await;
    let waits = world.until_state(&format!("cam-1/{HANGS}/mine"), "waiting").await;
    assert_eq!(waits.detail, format!("plugin {HANGS} is being loaded"));
    let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.json();
    let hangs = list.as_array().unwrap().iter().find(|plugin| plugin["name"] == HANGS).unwrap().clone();
    assert_eq!((&hangs["state"], &hangs["code"]), (&"loading".into(), &"LOADING".into()));
    world.apply(Fleet::new().with("cam-1/good/main", "").text()).await.with_code(0);
    world.until_state("cam-1/good/main", "active").await;
    world.end_station("cam-1", Signal::SIGKILL).await;
    world.station("cam-1", &[]).await;
    world.until_state("cam-1/good/main", "active").await;
    let events = world.ctl(&["events", "--after", "0", "-o", "jsonl"]).await.with_code(0).out;
    assert!(!events.contains("MISSING_ROLE_FACTORY"), "{events}");
}
