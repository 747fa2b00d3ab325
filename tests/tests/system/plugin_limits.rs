//! Plugins that take more than there is: memory, descriptors, the station's attention.

use std::process::Command;
use std::time::Duration;

use quilt_client::{CallError, Outcome};
use quilt_role_counter::api::Increment;
use quilt_tests::{Fleet, World, plugins};

use crate::imp::{Build, Descriptors, OpenAll, Shout, Swallow};
use crate::plugin_faults::{self, poke};
use crate::plugins::{TARGET, world};

const QUICK: &str = "say = 'x'\nrestart = { delay = '20ms' }\n";

fn limit(pid: u32, limit: &str) {
    let status = Command::new("prlimit").args(["--pid", &pid.to_string(), limit]).status().unwrap();
    assert!(status.success(), "{limit}");
}

fn memory_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

#[tokio::test]
async fn a_child_at_its_limit_of_memory_dies_alone_and_comes_back_without_it() {
    let world = world(QUICK).await;
    let fleet = Fleet::new().with(TARGET, QUICK).with("cam-1/counter/main", "");
    world.apply(fleet.text()).await.with_code(0);
    let client = world.client().await;
    let child = world.pid(TARGET).await;
    limit(child, &format!("--as={}", 4_u64 << 30));
    match client.call(TARGET, &Swallow { bytes: 8 << 30 }).await {
        Err(CallError::Ended { outcome: Outcome::PeerLost(_), text }) => {
            assert!(text.contains("SIGABRT"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    world
        .eventually("it is back", async |world| {
            world
                .instance(TARGET)
                .await
                .is_some_and(|view| view.state.name() == "active" && view.pid.is_some_and(|pid| pid != child))
        })
        .await;
    assert_eq!(client.call(TARGET, &Build {}).await.unwrap(), "one");
    assert_eq!(client.call("cam-1/counter/main", &Increment { by: 1 }).await.unwrap(), 1);
    assert_eq!(world.instance("cam-1/counter/main").await.unwrap().restarts, 0);
}

#[tokio::test]
async fn a_child_that_waits_for_memory_there_is_none_of_is_replaced() {
    let world = plugin_faults::world(&["eat_at_call"], "restart = { delay = '20ms' }\n").await;
    let child = world.pid("cam-1/eat_at_call/main").await;
    limit(child, &format!("--as={}", 1_u64 << 30));
    let (outcome, text) = poke(&world.client().await, "eat_at_call").await;
    assert_eq!(outcome, "peer_lost", "{text}");
    world
        .eventually("it is back", async |world| {
            let view = world.instance("cam-1/eat_at_call/main").await.unwrap();
            view.state.name() == "active" && view.pid.is_some_and(|pid| pid != child)
        })
        .await;
}

#[tokio::test]
async fn a_child_without_a_free_descriptor_goes_on_and_nobody_else_lacks_one() {
    let world = world(QUICK).await;
    let client = world.client().await;
    let child = world.pid(TARGET).await;
    limit(child, "--nofile=64:64");
    assert!(client.call(TARGET, &OpenAll {}).await.unwrap() > 20);
    assert_eq!(client.call(TARGET, &Build {}).await.unwrap(), "one");
    // Counting them takes one, and there is none.
    assert_eq!(client.call(TARGET, &Descriptors {}).await.unwrap(), 0);
    world.ctl(&["restart", TARGET]).await.with_code(0);
    world.until_state(TARGET, "active").await;
    let fleet = Fleet::new().with(TARGET, QUICK).with("cam-1/counter/main", "");
    world.apply(fleet.with("cam-1/imp/other", "say = 'y'\n").text()).await.with_code(0);
    assert_eq!(client.call("cam-1/imp/other", &Build {}).await.unwrap(), "one");
    assert_eq!(world.pid(TARGET).await, child);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_says_far_too_much_is_heard_as_far_as_there_is_room_and_its_neighbours_go_on() {
    const VARIANTS: [&str; 6] =
        ["log_storm_at_call", "print_storm_at_call", "calls_at_call", "events_at_start", "attributes_at_start", "good"];
    let world = plugin_faults::world(&VARIANTS[5..], "").await;
    let station = world.station_pid("cam-1");
    let client = world.client().await;
    for variant in &VARIANTS[..5] {
        world.plug(&plugins::hostile(world.folder(), variant), &format!("{variant}.so"));
        world.until_offered("cam-1", variant).await;
    }
    let fleet = Fleet::new().with("cam-1/counter/main", "").with("cam-1/good/main", "");
    let keys = "restart = { delay = '20ms', intensity = 1 }\n";
    let fleet = VARIANTS[..5].iter().fold(fleet, |fleet, variant| fleet.with(&format!("cam-1/{variant}/main"), keys));
    let path = world.fleet_file("fleet.toml", fleet.text());
    world.ctl(&["apply", "-f", &path]).await.with_code(0);
    let poked: Vec<_> = VARIANTS[..3]
        .iter()
        .map(|variant| {
            let client = client.clone();
            tokio::spawn(async move { poke(&client, variant).await })
        })
        .collect();
    let mut most = 0;
    for number in 1..=200 {
        assert_eq!(client.call("cam-1/counter/main", &Increment { by: 1 }).await.unwrap(), number);
        assert_eq!(poke(&client, "good").await.0, "reply");
        most = most.max(memory_mib(station));
    }
    for (poked, variant) in poked.into_iter().zip(VARIANTS) {
        let (outcome, text) = poked.await.unwrap();
        assert!(["reply", "peer_lost", "timed_out", "no_target"].contains(&&*outcome), "{variant}: {outcome} {text}");
    }
    most = most.max(memory_mib(station));
    assert!(most < 300, "the station took {most} MiB");
    assert_eq!(world.station_pid("cam-1"), station);
    for neighbour in ["cam-1/counter/main", "cam-1/good/main"] {
        assert_eq!(world.instance(neighbour).await.unwrap().restarts, 0, "{neighbour}");
    }
}

#[tokio::test]
async fn commands_described_at_too_great_length_are_not_offered_and_the_rest_is_listed() {
    const VARIANT: &str = "long_commands_at_start";
    let world = plugin_faults::world(&[VARIANT], "").await;
    let inside = format!("cam-1/{VARIANT}/inside");
    let fleet = Fleet::new().with(&format!("cam-1/{VARIANT}/main"), "").with(&inside, "isolation = 'inproc'\n");
    world.apply(fleet.text()).await.with_code(0);
    world.until_state(&inside, "active").await;
    for instance in ["main", "inside"] {
        world
            .eventually("those that fit are listed", async |world| {
                let commands = world.client().await.commands(&"cam-1".parse().unwrap()).await.unwrap();
                let of =
                    commands.iter().filter(|one| one.instance.as_ref().is_some_and(|name| name.as_str() == instance));
                let (long, rest): (Vec<_>, Vec<_>) = of.partition(|one| one.command.starts_with("long"));
                long.len() == 4 && rest.iter().any(|one| one.command == "poke")
            })
            .await;
        let log = world.ctl(&["logs", &format!("cam-1/{VARIANT}/{instance}"), "-n", "100"]).await.with_code(0).out;
        let why = "the names, docs and schemas of its plugin's commands may come to at most 4 MiB";
        let told = format!("command `Hostile:long_4`, and what may follow, is not offered: {why}");
        assert!(log.contains(&told), "{instance}: {log}");
    }
}

#[tokio::test]
async fn ten_thousand_events_of_a_plugin_are_in_the_log_and_those_that_nobody_wants_are_never_made_text() {
    const EVENTS: u32 = 10_000;
    for isolation in ["process", "inproc"] {
        let mut world = World::new().await;
        let log = world.folder().join("station.log");
        std::fs::write(world.folder().join("config/quilt.toml"), "[station]\nlog_level = \"info\"\n").unwrap();
        world.station("cam-1", &["--log-file", log.to_str().unwrap()]).await;
        world.plug(&plugins::imp("one"), "libimp.so");
        world.until_offered("cam-1", "imp").await;
        let keys = format!("say = 'x'\nisolation = '{isolation}'\n");
        world.apply(Fleet::new().with(TARGET, &keys).text()).await.with_code(0);
        let client = world.client().await;
        // Once for each at level info.
        assert_eq!(client.call(TARGET, &Shout { events: EVENTS }).await.unwrap(), EVENTS, "{isolation}");
        world
            .eventually("all are in the log, in order", async |_| {
                let text = std::fs::read_to_string(&log).unwrap();
                let loud: Vec<_> = text.lines().filter(|line| line.contains("loud plugin=\"imp\"")).collect();
                let last = format!("\"number\":{}", EVENTS - 1);
                loud.len() == EVENTS as usize && loud[loud.len() - 1].replace('\\', "").contains(&last)
            })
            .await;
        assert!(!std::fs::read_to_string(&log).unwrap().contains("soft"));
        world
            .eventually("the last is in the instance's own log", async |world| {
                let log = world.ctl(&["logs", TARGET, "-n", "1"]).await.with_code(0).out;
                log.contains(&format!("loud number={} text=\"counted\"", EVENTS - 1))
            })
            .await;
        tokio::time::timeout(Duration::from_secs(5), client.call(TARGET, &Build {})).await.unwrap().unwrap();
    }
}
