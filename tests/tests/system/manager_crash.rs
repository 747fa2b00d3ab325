//! The manager dies, loses its memory, or finds an old one: stations do not care.

use nix::sys::signal::Signal;
use quilt_tests::{Fleet, World, clock};

#[tokio::test]
async fn a_manager_killed_in_the_middle_of_pushes_comes_back_and_the_fleet_converges() {
    let mut world = World::new().await;
    let names = ["cam-1", "cam-2", "cam-3"];
    for name in names {
        world.station(name, &[]).await;
    }
    world.apply(clock(&names).text()).await.with_code(0);
    let mut pids = Vec::new();
    for name in names {
        pids.push(world.pid(&format!("{name}/process/clock")).await);
    }
    for turn in 0..5 {
        let fleet = names.iter().fold(clock(&names), |fleet, name| {
            fleet.with(&format!("{name}/counter/turn-{turn}"), &format!("start = {turn}\n"))
        });
        let file = world.fleet_file("f.toml", fleet.text());
        // Acknowledged when this returns; the pushes are still on their way.
        world.ctl(&["apply", "-f", &file]).await.with_code(0);
        world.end_manager(Signal::SIGKILL).await;
        world.start_manager().await;
        for name in names {
            world.until_state(&format!("{name}/counter/turn-{turn}"), "active").await;
        }
        let events = world.ctl(&["history", "cam-1", "-o", "json"]).await.with_code(0).json();
        assert_eq!(events.as_array().unwrap().len(), turn + 2, "an acknowledged apply is missing");
    }
    for (name, pid) in names.iter().zip(pids) {
        assert_eq!(world.pid(&format!("{name}/process/clock")).await, pid, "{name} restarted its program");
    }
}

#[tokio::test]
async fn a_manager_without_memory_lists_stations_as_unadopted_and_touches_nothing() {
    let mut world = World::new().await;
    for name in ["cam-1", "cam-2"] {
        world.station(name, &[]).await;
    }
    world.apply(clock(&["cam-1", "cam-2"]).text()).await.with_code(0);
    let pid = world.pid("cam-1/process/clock").await;
    world.end_manager(Signal::SIGKILL).await;
    world.forget_manager_data();
    world.start_manager().await;
    world
        .eventually("both are unadopted", async |world| {
            let stations = world.stations().await;
            stations.len() == 2 && stations.iter().all(|station| station.state.name() == "unadopted")
        })
        .await;
    assert_eq!(world.pid("cam-1/process/clock").await, pid, "what it runs is shown, and runs");
    let flags = world.show("cam-1").await.flags;
    assert!(flags.iter().any(|flag| flag.contains("no record of it")), "{flags:?}");

    // What it runs becomes desired ...
    world.ctl(&["adopt", "cam-1"]).await.with_code(0);
    world
        .eventually("cam-1 is connected", async |world| {
            let view = world.show("cam-1").await;
            view.state.name() == "connected" && view.applied_digest == view.desired_digest
        })
        .await;
    assert_eq!(world.pid("cam-1/process/clock").await, pid);
    // ... or is replaced by what this manager wants.
    let text = Fleet::new().with("cam-2/counter/new", "").text().to_owned();
    let file = world.fleet_file("new.toml", &text);
    let applied = world.ctl(&["apply", "-f", &file]).await.with_code(0);
    assert!(applied.err.contains("not adopted"), "{}", applied.err);
    world.ctl(&["adopt", "cam-2", "--replace"]).await.with_code(0);
    world.until_state("cam-2/counter/new", "active").await;
    world.eventually("the old is gone", async |world| world.instance("cam-2/process/clock").await.is_none()).await;
}

#[tokio::test]
async fn a_store_older_than_what_a_station_applied_is_noticed() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/one", "").text()).await.with_code(0);
    world.end_manager(Signal::SIGTERM).await;
    let backup = world.back_up_manager();
    world.start_manager().await;
    world
        .eventually("cam-1 is back", async |world| world.stations().await.iter().any(|s| s.state.name() == "connected"))
        .await;
    world.apply(Fleet::new().with("cam-1/counter/two", "").text()).await.with_code(0);
    world.end_manager(Signal::SIGTERM).await;
    world.restore_manager(&backup);
    world.start_manager().await;
    world
        .eventually("cam-1 is unadopted", async |world| {
            world.stations().await.iter().any(|station| station.state.name() == "unadopted")
        })
        .await;
    assert!(world.instance("cam-1/counter/two").await.is_some(), "an old store undid what was applied later");
    world.ctl(&["adopt", "cam-1"]).await.with_code(0);
    world.apply(Fleet::new().with("cam-1/counter/three", "").text()).await.with_code(0);
}

#[tokio::test]
async fn health_version_and_metrics_are_served() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    assert!(world.get("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(world.get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(world.get("/version").await.contains("\"version\""));
    let metrics = world.get("/metrics").await;
    assert!(metrics.contains("quilt_manager_stations{state=\"connected\"} 1"), "{metrics}");
    assert!(metrics.contains("quilt_manager_registrations_total 1"), "{metrics}");
    assert!(world.get("/nothing").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn events_tell_the_story_and_can_be_resumed() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/main", "").text()).await.with_code(0);
    let events = world.ctl(&["events", "-o", "jsonl"]).await.with_code(0).out;
    let events: Vec<serde_json::Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    for kind in ["manager.started", "station.registered", "fleet.applied", "push.accepted", "instance.active"] {
        assert!(kinds.contains(&kind), "{kind} is not among {kinds:?}");
    }
    let numbers: Vec<_> = events.iter().map(|event| event["number"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    let after = numbers[2].to_string();
    let rest = world.ctl(&["events", "-o", "jsonl", "--after", &after]).await.with_code(0).out;
    assert_eq!(rest.lines().count(), events.len() - 3);
}

#[tokio::test]
async fn an_old_store_that_has_overtaken_the_lost_ones_numbers_is_noticed_all_the_same() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/one", "").text()).await.with_code(0);
    world.end_manager(Signal::SIGTERM).await;
    let backup = world.back_up_manager();
    world.start_manager().await;
    let connected =
        async |world: &World| world.stations().await.iter().any(|station| station.state.name() == "connected");
    world.eventually("it is back", connected).await;
    world.apply(Fleet::new().with("cam-1/counter/lost", "").text()).await.with_code(0);
    world.end_station("cam-1", Signal::SIGTERM).await;
    world.end_manager(Signal::SIGTERM).await;
    world.restore_manager(&backup);
    // The copy goes on for a while, restarts included, before the station comes.
    for number in 0..4 {
        world.start_manager().await;
        let file = world.fleet_file("f.toml", Fleet::new().with(&format!("cam-1/counter/n{number}"), "").text());
        world.ctl(&["apply", "-f", &file]).await.with_code(0);
        world.end_manager(Signal::SIGTERM).await;
    }
    world.start_manager().await;
    world.station("cam-1", &[]).await;
    assert_eq!(world.show("cam-1").await.state.name(), "unadopted");
    assert!(world.instance("cam-1/counter/lost").await.is_some(), "what it runs was replaced");
}

#[tokio::test]
async fn a_rollout_in_batches_that_loses_its_manager_halts_where_it_was() {
    let mut world = World::new().await;
    let names = ["cam-1", "cam-2", "cam-3"];
    for name in names {
        world.station(name, &[]).await;
    }
    let fleet = |start: u32| {
        names.iter().fold(Fleet::new(), |fleet, name| {
            fleet.with(&format!("{name}/counter/main"), &format!("start = {start}\n"))
        })
    };
    world.apply(fleet(1).text()).await.with_code(0);
    let file = world.fleet_file("f.toml", fleet(2).text());
    let mut apply = world.command("quiltctl");
    apply.args(["--manager", &world.address, "apply", "-f", &file, "--batch", "1", "--wait", "60", "--settle", "50"]);
    let mut apply = apply.stderr(std::process::Stdio::null()).spawn().unwrap();
    world
        .eventually("the first has it", async |world| {
            let view = world.show("cam-1").await;
            view.applied_revision == view.desired_revision && view.desired_revision > Some(quilt_protocol::Revision(3))
        })
        .await;
    world.end_manager(Signal::SIGKILL).await;
    apply.wait().await.unwrap();
    world.start_manager().await;
    for name in names {
        world
            .eventually("it is back and has what it should", async |world| {
                let stations = world.stations().await;
                stations.iter().any(|view| {
                    view.name == *name && view.applied_digest.is_some() && view.applied_digest == view.desired_digest
                })
            })
            .await;
    }
    let (one, two, three) = (world.show("cam-1").await, world.show("cam-2").await, world.show("cam-3").await);
    assert_ne!(one.desired_digest, two.desired_digest, "the rest got it although nobody watched");
    assert_eq!(two.desired_digest, three.desired_digest);
    let history = world.ctl(&["history", "cam-3", "-o", "json"]).await.with_code(0).json();
    assert!(history[0]["source"].as_str().unwrap().contains("was halted"), "{history}");
    // The next apply reaches all.
    world.apply(fleet(2).text()).await.with_code(0);
    assert_eq!(world.show("cam-3").await.desired_digest, world.show("cam-1").await.desired_digest);
}

#[tokio::test]
async fn what_apply_rollback_promised_is_carried_out_by_the_manager_that_starts_next() {
    let mut world = World::new().await;
    for name in ["cam-1", "cam-2"] {
        world.station(name, &[]).await;
    }
    let earlier = Fleet::new().with("cam-1/counter/main", "start = 1\n").with("cam-2/counter/main", "start = 1\n");
    let file = world.fleet_file("fleet.toml", earlier.text());
    // One that has settled is not on trial any more.
    world.ctl(&["apply", "-f", &file, "--wait", "20", "--settle", "0", "--rollback"]).await.with_code(0);
    world.end_manager(Signal::SIGKILL).await;
    world.start_manager().await;
    let resumed = async |world: &World| {
        let events = world.ctl(&["events", "-o", "jsonl"]).await.with_code(0).out;
        events.lines().filter(|event| event.contains("fleet.resumed")).count()
    };
    assert_eq!(resumed(&world).await, 0);
    world
        .eventually("both are back", async |world| {
            world.stations().await.iter().filter(|station| station.state.name() == "connected").count() == 2
        })
        .await;

    // Starting until it fails, which is after the manager's end.
    let fails = world.folder().join("fails");
    let script = format!("until [ -e {} ]; do sleep 0.05; done; exit 1", fails.display());
    let keys = format!(
        "command = [\"sh\", \"-c\", {script:?}]\nrestart = {{ policy = \"temporary\" }}\nready = {{ log = \"never\", within = \"60s\" }}"
    );
    let later = Fleet::new().with("cam-1/process/new", &keys).with("cam-2/counter/other", "");
    let file = world.fleet_file("fleet.toml", later.text());
    let mut apply = world.command("quiltctl");
    apply.args(["--manager", &world.address, "apply", "-f", &file, "--wait", "60", "--rollback"]);
    let mut apply = apply.stderr(std::process::Stdio::null()).spawn().unwrap();
    world.until_state("cam-1/process/new", "starting").await;
    world.until_state("cam-2/counter/other", "active").await;
    world.end_manager(Signal::SIGKILL).await;
    apply.wait().await.unwrap();
    world.start_manager().await;
    world.until_state("cam-1/process/new", "starting").await;
    assert_eq!(resumed(&world).await, 1);
    std::fs::write(&fails, "").unwrap();
    for name in ["cam-1", "cam-2"] {
        world.until_state(&format!("{name}/counter/main"), "active").await;
    }
    world.eventually("the new is gone", async |world| world.instance("cam-1/process/new").await.is_none()).await;
    world.eventually("the new is gone", async |world| world.instance("cam-2/counter/other").await.is_none()).await;
    let history = world.ctl(&["history", "cam-2", "-o", "json"]).await.with_code(0).json();
    assert!(history[0]["source"].as_str().unwrap().contains("rollback of a failed apply"), "{history}");
    // What the file said is taken back too.
    let file = world.fleet_file("fleet.toml", earlier.text());
    world.ctl(&["diff", "-f", &file]).await.with_code(0);
}
