//! A newcomer's first minutes, and a crew's first fleet.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quilt_tests::{Fleet, World, clock, is_alive};
use tokio::io::{AsyncBufReadExt as _, BufReader};

const HELLO: &str = include_str!("../../../examples/hello.toml");

#[tokio::test]
async fn up_shows_the_example_running_answers_a_call_and_ends_without_a_trace() {
    let mut world = World::empty();
    let file = world.fleet_file("hello.toml", HELLO);
    let mut command = world.command("quiltctl");
    command.args(["up", &file, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"]);
    let mut up = command.arg(world.folder().join("data")).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let mut shown = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some(address) = line.strip_prefix("listening protocol ") {
            world.address = address.to_owned();
        }
        shown.push(line.clone());
        if line.starts_with("Ctrl-C") {
            break;
        }
    }
    let shown = shown.join("\n");
    for instance in ["local/process/clock  active", "local/process/web  active", "local/counter/main  active"] {
        assert!(shown.contains(instance), "{shown}");
    }
    assert!(shown.contains("call local/counter/main increment"), "{shown}");

    let answer = world.ctl(&["call", "local/counter/main", "increment", r#"{"by":2}"#]).await.with_code(0);
    assert_eq!(answer.out.trim(), "42");

    let pids = [world.pid("local/process/clock").await, world.pid("local/process/web").await];
    let interrupted = Instant::now();
    kill(Pid::from_raw(up.id().unwrap() as i32), Signal::SIGINT).unwrap();
    let status = tokio::time::timeout(Duration::from_secs(5), up.wait()).await.expect("it ends within 5 s").unwrap();
    assert!(status.success(), "{status}");
    assert!(!pids.into_iter().any(is_alive), "programs were left after {:?}", interrupted.elapsed());
}

#[tokio::test]
async fn up_does_not_call_a_crash_loop_settled() {
    let world = World::empty();
    let keys = "command = ['sh', '-c', 'sleep 0.05; exit 3']\nrestart = { delay = '10ms', intensity = 3 }\n";
    let file = world.fleet_file("f.toml", Fleet::new().with("local/process/crashes", keys).text());
    let mut command = world.command("quiltctl");
    command.args(["up", &file, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"]);
    let mut up = command.arg(world.folder().join("data")).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(up.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        said.push(line);
        if said.last().is_some_and(|line| line.starts_with("local: process/crashes: exit code 3")) {
            break;
        }
    }
    assert!(!said.iter().any(|line| line.contains("settled")), "{said:?}");
    kill(Pid::from_raw(up.id().unwrap() as i32), Signal::SIGINT).unwrap();
    up.wait().await.unwrap();
}

#[tokio::test]
async fn a_station_may_be_meant_by_its_id_everywhere() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(clock(&["cam-1"]).with("cam-1/counter/main", "").text()).await.with_code(0);
    let id = format!("id:{}", world.show("cam-1").await.id);
    let counter = format!("{id}/counter/main");
    let clock_log = format!("{id}/process/clock");
    for (verb, expected) in [
        (&["station", "show", &id][..], "cam-1"),
        (&["roles", &id], "counter"),
        (&["commands", &id], "increment"),
        (&["logs", &clock_log, "-n", "1"], ""),
        (&["logs", &id, "-n", "1"], "cam-1/process/clock  "),
        (&["call", &counter, "increment", r#"{"by":3}"#], "3"),
        (&["stop", &counter], ""),
        (&["start", &counter], ""),
        (&["restart", &counter], ""),
        (&["history", &id], "1"),
    ] {
        let done = world.ctl(verb).await.with_code(0);
        assert!(done.out.contains(expected), "{verb:?}: {done:?}");
    }
    let other = "id:01890000-0000-7000-8000-000000000000";
    for verb in [&["roles", other][..], &["call", &format!("{other}/counter/main"), "get"]] {
        let refused = world.ctl(verb).await.with_code(4);
        assert!(refused.err.contains("there is no station id:"), "{refused:?}");
    }
    // No share at all is a slip, not "one".
    world.ctl(&["call", "role=counter", "get", "--limit", "0"]).await.with_code(2);
    // Items of a stream are documents of their own.
    let events = world.ctl(&["events", "-o", "yaml"]).await.with_code(0).out;
    assert!(events.starts_with("---\nnumber: "), "{events}");
}

#[tokio::test]
async fn three_stations_register_and_converge_on_a_fleet_file() {
    let mut world = World::new().await;
    for name in ["cam-1", "cam-2", "cam-3"] {
        world.start_station(name, &["--label", "room=a"]).await;
    }
    world
        .eventually("three stations are connected", async |world| {
            world.stations().await.iter().filter(|station| station.state.name() == "connected").count() == 3
        })
        .await;
    let seen = world.show("cam-1").await.last_seen;
    let later = async |world: &World| world.show("cam-1").await.last_seen > seen;
    world.eventually("a station that is connected goes on to be seen", later).await;
    for station in world.stations().await {
        assert!(!station.hostname.is_empty());
        assert_eq!(station.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>(), ["counter", "process"]);
        assert_eq!(station.labels["room"], "a");
        assert_eq!(station.id.0.get_version_num(), 7);
        assert!(station.mac.as_deref().is_none_or(|mac| mac.len() == 17 && mac != "00:00:00:00:00:00"));
    }

    let applied = world.apply(clock(&["cam-1", "cam-2", "cam-3"]).text()).await.with_code(0);
    for name in ["cam-1", "cam-2", "cam-3"] {
        assert!(applied.err.contains(&format!("{name}: settled")), "{applied:?}");
        let view = world.show(name).await;
        assert_eq!(view.desired_digest, view.applied_digest);
        let saved = world.accepted(name).unwrap();
        let document = saved["document"].as_str().unwrap();
        let digest = quilt_protocol::Digest::of(document.as_bytes());
        assert_eq!(Some(digest), view.desired_digest, "the digest on disk is the manager's");
        assert_eq!(world.until_state(&format!("{name}/process/clock"), "active").await.restarts, 0);
    }
}

#[tokio::test]
async fn the_json_of_stations_has_the_fields_that_scripts_depend_on() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(clock(&["cam-1"]).text()).await.with_code(0);
    let stations = world.ctl(&["stations", "-o", "json"]).await.with_code(0).json();
    let station = &stations[0];
    for field in [
        "id",
        "name",
        "hostname",
        "mac",
        "ip",
        "state",
        "labels",
        "desired_revision",
        "applied_revision",
        "rejected",
        "instances",
    ] {
        assert!(station.get(field).is_some(), "{field} is missing in {station}");
    }
    assert_eq!(station["state"], "connected");
    assert!(station["rejected"].is_null());
    let instance = &station["instances"][0];
    for field in ["role", "instance", "owner", "state", "detail", "pid", "restarts", "since", "attributes"] {
        assert!(instance.get(field).is_some(), "{field} is missing in {instance}");
    }
    assert_eq!((instance["owner"].as_str(), instance["state"].as_str()), (Some("fleet"), Some("active")));
    for format in ["table", "wide", "jsonl", "yaml"] {
        assert!(world.ctl(&["stations", "-o", format]).await.with_code(0).out.contains("cam-1"));
    }
}

#[tokio::test]
async fn exit_codes_tell_usage_from_refusal_from_silence() {
    let mut world = World::new().await;
    world.ctl(&["stations", "--nonsense"]).await.with_code(2);
    world.ctl(&["stations", "--timeout", "0"]).await.with_code(2);
    let other_port = world.command("quiltctl").args(["--manager", &world.http, "stations"]).output().await.unwrap();
    let told = String::from_utf8(other_port.stderr).unwrap();
    assert!(other_port.status.code() == Some(5) && told.contains("speaks HTTP") && told.contains("7440"), "{told}");
    let settings = world.folder().join("config/quilt.toml");
    std::fs::write(&settings, "[client]\ntimeout = '0s'\n").unwrap();
    let wrong = world.ctl(&["stations"]).await.with_code(1).err;
    assert!(wrong.contains("quilt.toml:2:11: [client] timeout: expected a time"), "{wrong}");
    std::fs::remove_file(settings).unwrap();
    world.ctl(&["station", "show", "nobody"]).await.with_code(4);
    let error = world.ctl(&["apply", "-f", "/no/such/file"]).await.with_code(1).err;
    assert!(error.contains("/no/such/file"), "{error}");
    world.station("cam-1", &[]).await;
    let file = world.fleet_file("f.toml", clock(&["cam-1"]).text());
    world.ctl(&["diff", "-f", &file]).await.with_code(3);
    world.ctl(&["apply", "-f", &file, "--dry-run"]).await.with_code(3);
    assert_eq!(world.show("cam-1").await.desired_revision, None, "a dry run stored something");
    world.ctl(&["apply", "-f", &file, "--wait"]).await.with_code(0);
    world.ctl(&["diff", "-f", &file]).await.with_code(0);
    world.end_manager(Signal::SIGTERM).await;
    let error = world.ctl(&["stations"]).await.with_code(5).err;
    assert!(error.contains("no manager at") && error.contains("--manager"), "{error}");
}
