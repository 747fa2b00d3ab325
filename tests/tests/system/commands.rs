//! Typed commands, from a tool to a role instance and back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use quilt_client::{CallError, CallOptions, Outcome};
use quilt_role_counter::api::{Count, CounterError, Divide, Increment, Value};
use quilt_tests::{Fleet, World};

async fn counting_world() -> World {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/main", "limit = 1000000\n").text()).await.with_code(0);
    world
}

#[tokio::test]
async fn replies_errors_and_streams_are_typed() {
    let world = counting_world().await;
    let fleet = world.client().await;
    let target = "cam-1/counter/main";
    assert_eq!(fleet.call(target, &Increment { by: 2 }).await.unwrap(), 2);
    match fleet.call(target, &Divide { by: 0 }).await {
        Err(CallError::Command(error)) => assert_eq!(error, CounterError::NotDivisible(2, 0)),
        other => panic!("{other:?}"),
    }
    let mut items = fleet.stream(target, &Count { items: 500, every_ms: 0 }).unwrap();
    for expected in 2..502 {
        assert_eq!(items.next().await.unwrap().unwrap(), expected);
    }
    assert!(items.next().await.is_none());
    items.end().await.unwrap();
}

#[tokio::test]
async fn each_outcome_is_told_apart_also_by_quiltctl() {
    let mut world = counting_world().await;
    let call = async |world: &World, arguments: &[&str]| {
        let mut all = vec!["-o", "json", "call"];
        all.extend(arguments);
        let output = world.ctl(&all).await;
        (output.json()[0]["outcome"].as_str().unwrap().to_owned(), output.code)
    };
    let is = |outcome: &str, code: i32| (outcome.to_owned(), code);
    let target = "cam-1/counter/main";
    assert_eq!(call(&world, &[target, "increment", "{\"by\":1}"]).await, is("reply", 0));
    assert_eq!(call(&world, &[target, "Counting:increment", "{\"by\":1}"]).await, is("reply", 0));
    assert_eq!(call(&world, &[target, "divide", "{\"by\":0}"]).await, is("error", 4));
    // The command's own error is a document for programs, and what its type says for people.
    let own = world.ctl(&["-o", "json", "call", target, "divide", "{\"by\":0}"]).await.json();
    assert_eq!(own[0]["error"], serde_json::json!({ "not_divisible": [2, 0] }));
    assert_eq!(own[0]["text"], "2 cannot be divided by 0");
    let own = world.ctl(&["call", target, "divide", "{\"by\":0}"]).await.with_code(4);
    assert_eq!(own.err, "error: 2 cannot be divided by 0\n");
    // Fields in their order are no object.
    assert_eq!(call(&world, &[target, "increment", "[1]"]).await, is("schema_mismatch", 4));
    assert_eq!(call(&world, &[target, "explode"]).await, is("no_command", 4));
    assert_eq!(call(&world, &["cam-1/counter/other", "value"]).await, is("no_target", 4));
    assert_eq!(call(&world, &["cam-9/counter/main", "value"]).await, is("no_target", 4));
    assert_eq!(call(&world, &[target, "increment", "{\"by\":\"many\"}"]).await, is("schema_mismatch", 4));
    assert_eq!(call(&world, &["manager", "nonsense"]).await, is("no_command", 4));
    assert_eq!(call(&world, &["manager", "stations"]).await, is("reply", 0));

    world.end_station("cam-1", Signal::SIGKILL).await;
    world.eventually("it is away", async |world| world.show("cam-1").await.state.name() == "unknown").await;
    let lost = world.ctl(&["-o", "json", "call", target, "value"]).await.with_code(5).json();
    assert_eq!((lost[0]["outcome"].as_str(), lost[0]["delivered"].as_str()), (Some("peer_lost"), Some("no")));
    assert!(lost[0]["elapsed_ms"].is_number());
    world.ctl(&["call", target, "increment", "{not json"]).await.with_code(2);
}

#[tokio::test]
async fn a_frozen_station_times_out_and_is_answered_again_afterwards() {
    let world = counting_world().await;
    let pid = nix::unistd::Pid::from_raw(world.station_pid("cam-1") as i32);
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    let target = "cam-1/counter/main";
    let frozen = world.ctl(&["-o", "json", "--timeout", "0.3", "call", target, "increment", "{\"by\":1}"]).await;
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!((frozen.json()[0]["outcome"].as_str(), frozen.code), (Some("timed_out"), 5));
    world.ctl(&["call", target, "value"]).await.with_code(0);
}

#[tokio::test]
async fn selectors_reach_every_instance_that_offers_the_command_and_their_mistakes_are_usage() {
    let mut world = counting_world().await;
    world.station("cam-2", &["--label", "room=a"]).await;
    let fleet = Fleet::new()
        .with("cam-1/counter/main", "")
        .with("cam-2/counter/main", "limit = 0\n")
        .with("cam-2/process/x", "command = [\"sleep\", \"1000\"]\n");
    world.apply(fleet.text()).await.with_code(0);
    let partly = world.ctl(&["-o", "json", "call", "name=cam-*", "increment", "{\"by\":1}"]).await.with_code(6).json();
    let outcomes: Vec<_> = partly.as_array().unwrap().iter().map(|one| one["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["reply", "error"], "the program offers no such command and is not listed");
    let one = world.ctl(&["-o", "json", "call", "role=counter", "value", "--limit", "50%"]).await.with_code(0).json();
    assert_eq!(one.as_array().unwrap().len(), 1);
    // The limit counts instances that offer the command; cam-1 has no program.
    let one = world.ctl(&["-o", "json", "call", "name=cam-*", "status", "--limit", "1"]).await.with_code(0).json();
    assert_eq!((one[0]["station"].as_str(), one.as_array().unwrap().len()), (Some("cam-2"), 1));
    // Nor does one that does not run: it is passed over, and named.
    world.ctl(&["stop", "cam-2/counter/main"]).await.with_code(0);
    let others = world.ctl(&["-o", "json", "call", "name=\"cam-*\"", "value"]).await.with_code(0);
    assert_eq!((others.json()[0]["station"].as_str(), others.json().as_array().unwrap().len()), (Some("cam-1"), 1));
    let told = "quiltctl: passed over, because they take no commands now: cam-2/counter/main\n";
    assert_eq!(others.err, told);
    world.ctl(&["call", "name=cam-2 and role=counter", "value"]).await.with_code(4);
    // `role` and `instance` are those of each instance, also where they are excluded.
    let called = async |world: &World, selector: &str, command: &str| {
        let called = world.ctl(&["-o", "json", "call", selector, command]).await.with_code(0).json();
        let name = |one: &serde_json::Value| {
            ["station", "role", "instance"].map(|key| one[key].as_str().unwrap().to_owned()).join("/")
        };
        called.as_array().unwrap().iter().map(name).collect::<Vec<_>>()
    };
    for selector in ["role!=counter", "not role=counter", "instance in (x, y)", "*"] {
        assert_eq!(called(&world, selector, "status").await, ["cam-2/process/x"], "{selector}");
    }
    assert_eq!(called(&world, "instance=main", "value").await, ["cam-1/counter/main"]);
    // A label that no station has is told, also where everything matches.
    for verb in [&["stations", "rom!=a"][..], &["logs", "rom!=a", "-n", "1"]] {
        let told = world.ctl(verb).await.with_code(0);
        assert!(told.err.starts_with("quiltctl: no station has a label `rom`"), "{told:?}");
    }
    world.ctl(&["start", "cam-2/counter/main"]).await.with_code(0);
    for mistake in [
        &["call", "room=a and", "value"][..],
        &["stations", "room"],
        &["call", "cam-2", "value"],
        &["logs", "name=\"cam"],
        &["logs", "("],
        &["stations", "instance=main"],
        &["stations", ""],
        &["call", "", "value"],
        &["call", "cam-*/counter/main", "value"],
    ] {
        let refused = world.ctl(mistake).await.with_code(2);
        let told = refused.err.contains("expected ") || refused.err.contains("stations are chosen here");
        assert!(told, "{refused:?}");
    }
    world.ctl(&["call", "cam-2/counter", "value"]).await.with_code(0);
    let unknown = world.ctl(&["call", "cam-2/counter/main", "incr"]).await.with_code(4);
    let told = "offers count, divide, increment, value; for example\n  quiltctl call cam-2/counter/main count '{\"items\":1}'\n";
    assert!(unknown.err.contains(told), "{}", unknown.err);
    world.ctl(&["call", "room=nowhere", "value"]).await.with_code(4);
    let commands = world.ctl(&["commands", "cam-1", "-o", "json"]).await.with_code(0).json();
    let increment = commands.as_array().unwrap().iter().find(|one| one["command"] == "increment").unwrap();
    for field in
        ["role", "instance", "group", "doc", "read", "streaming", "request_schema", "reply_schema", "error_schema"]
    {
        assert!(increment.get(field).is_some(), "{field} is missing");
    }
    assert_eq!(increment["request_schema"]["properties"]["by"]["type"], "integer");
    assert_eq!(increment["doc"], "Adds to the counter and replies the new value.");
    // Stations that are away are left out, and named.
    world.end_station("cam-2", Signal::SIGINT).await;
    for selector in ["role=counter", "name=cam-*", "not instance=x"] {
        let left_out = world.ctl(&["call", selector, "value"]).await.with_code(0);
        assert_eq!(left_out.err, "quiltctl: left out, because 1 station is away: cam-2\n", "{selector}");
    }
    let silent = world.ctl(&["call", "name=cam-1 or instance=none", "value"]).await.with_code(0);
    assert_eq!(silent.err, "");
    for verb in [&["call", "name=cam-2", "value"][..], &["logs", "cam-2"], &["logs", "cam-2/counter"]] {
        let away = world.ctl(verb).await.with_code(5);
        assert!(away.err.contains("away"), "{away:?}");
    }
}

#[tokio::test]
async fn schemas_are_asked_of_one_station_for_all_that_have_the_same() {
    let mut world = World::new().await;
    for station in ["a-1", "a-2"] {
        world.station(station, &[]).await;
    }
    let fetched = async |world: &World| {
        let metrics = world.get("/metrics").await;
        let line = metrics.lines().find(|line| line.starts_with("quilt_manager_schemas_fetched_total ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let first = world.ctl(&["commands", "a-1", "-o", "json"]).await.with_code(0).json();
    let asked = fetched(&world).await;
    assert!(asked > 0);
    let second = world.ctl(&["commands", "a-2", "-o", "json"]).await.with_code(0).json();
    assert_eq!((second, fetched(&world).await), (first, asked));
    // Roles are listed so too.
    let roles = world.ctl(&["roles", "a-2", "-o", "json"]).await.with_code(0).json();
    assert!(roles.as_array().unwrap().iter().all(|role| role["config_schema"]["type"] == "object"), "{roles}");
    let wrong = world.ctl(&["call", "manager", "schemas", r#"{"station":"a-2","schemas":["00"]}"#]).await.with_code(4);
    assert!(wrong.err.contains("64 hexadecimal digits"), "{}", wrong.err);
    let unknown = format!(r#"{{"station":"a-2","schemas":["{}"]}}"#, "0".repeat(64));
    let unknown = world.ctl(&["call", "manager", "schemas", &unknown]).await.with_code(4);
    assert!(unknown.err.contains("a-2 has no schema 000"), "{}", unknown.err);
}

#[tokio::test]
async fn a_thousand_calls_in_flight_all_end_as_they_should() {
    let world = counting_world().await;
    let fleet = world.client().await;
    let (replies, others) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let calls = (0..1000).map(|number| {
        let (fleet, replies, others) = (&fleet, &replies, &others);
        async move {
            let target = "cam-1/counter/main";
            match number % 4 {
                0 => match fleet.call(target, &Divide { by: 0 }).await {
                    Err(CallError::Command(_)) => others.fetch_add(1, Ordering::Relaxed),
                    other => panic!("{other:?}"),
                },
                1 => match fleet.call("cam-1/counter/nobody", &Value {}).await {
                    Err(CallError::Ended { outcome: Outcome::NoTarget, .. }) => others.fetch_add(1, Ordering::Relaxed),
                    other => panic!("{other:?}"),
                },
                _ => {
                    fleet.call(target, &Increment { by: 1 }).await.unwrap();
                    replies.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
    });
    let mut all: Vec<_> = calls.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        all.retain_mut(|call| call.as_mut().poll(cx).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert_eq!((replies.load(Ordering::Relaxed), others.load(Ordering::Relaxed)), (500, 500));
    assert_eq!(fleet.call("cam-1/counter/main", &Value {}).await.unwrap(), 500);
}

#[tokio::test]
async fn a_retry_after_the_managers_crash_is_not_carried_out_twice() {
    let mut world = counting_world().await;
    let fleet = world.client().await;
    let options = CallOptions { timeout: Duration::from_secs(30), idempotent: false, retry: true };
    for turn in 1..=5 {
        let call = fleet.call_with("cam-1/counter/main", &Increment { by: 1 }, &options);
        let crash = async {
            world.end_manager(Signal::SIGKILL).await;
            world.start_manager().await;
            world
                .eventually("the station is back", async |world| {
                    world.stations().await.iter().any(|station| station.state.name() == "connected")
                })
                .await;
        };
        let (value, ()) = tokio::join!(call, crash);
        assert_eq!(value.unwrap(), turn);
    }
}

#[tokio::test]
async fn a_selector_means_any_number_of_instances() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let count = 1500;
    let fleet = (0..count).fold(Fleet::new(), |fleet, number| {
        fleet.with(&format!("cam-1/counter/c{number}"), &format!("start = {number}\n"))
    });
    world.apply(fleet.text()).await.with_code(0);
    let answers = world.ctl(&["call", "role=counter", "value", "-o", "json"]).await.with_code(0).json();
    let values: std::collections::BTreeSet<_> =
        answers.as_array().unwrap().iter().map(|answer| answer["reply"].as_u64().unwrap()).collect();
    assert_eq!(values.len(), count);
    // Those that do not offer the command are passed over; with none left it is said.
    let none = world.ctl(&["call", "role=counter", "status"]).await.with_code(4);
    assert!(none.err.contains("offers \"status\""), "{}", none.err);
}

#[tokio::test]
async fn a_command_is_callable_from_start_to_stop_and_a_restart_never_leads_to_an_old_instance() {
    let world = counting_world().await;
    let fleet = world.client().await;
    let target = "cam-1/counter/main";
    for _ in 0..100 {
        fleet.call(target, &Increment { by: 5 }).await.unwrap();
        fleet.control(target, quilt_client::control::Action::Restart).await.unwrap();
        loop {
            match fleet.call(target, &Value {}).await {
                Ok(value) => {
                    assert_eq!(value, 0, "an old instance answered");
                    break;
                }
                Err(CallError::Ended { outcome: Outcome::NoTarget, .. }) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        }
    }
    fleet.control(target, quilt_client::control::Action::Stop).await.unwrap();
    match fleet.call(target, &Value {}).await {
        Err(CallError::Ended { outcome: Outcome::NoTarget, text }) => assert!(text.contains("stopped"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn completion_knows_names_from_the_running_manager() {
    let world = counting_world().await;
    let fleet = Fleet::new().with("cam-1/counter/main", "").with("cam-1/process/x", "command = ['sleep', '1000']\n");
    world.apply(fleet.text()).await.with_code(0);
    let complete = async |words: &[&str]| {
        let mut command = world.command("quiltctl");
        let index = (words.len() - 1).to_string();
        command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", index).env("_CLAP_IFS", "\n");
        command.env("_CLAP_COMPLETE_COMP_TYPE", "9").env("QUILT_MANAGER", &world.address);
        let output = command.arg("--").args(words).output().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(complete(&["quiltctl", "sta"]).await.contains("stations"));
    assert!(complete(&["quiltctl", "roles", "cam"]).await.contains("cam-1"));
    assert!(complete(&["quiltctl", "call", "cam"]).await.contains("cam-1/counter/main"));
    assert!(complete(&["quiltctl", "call", "cam-1/counter/main", "inc"]).await.contains("increment"));
    // Only what the target offers.
    let of_manager = complete(&["quiltctl", "call", "manager", ""]).await;
    assert!(of_manager.contains("stations") && !of_manager.contains("increment"), "{of_manager}");
    let of_program = complete(&["quiltctl", "call", "cam-1/process/x", ""]).await;
    assert!(of_program.contains("status") && !of_program.contains("increment"), "{of_program}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.ctl(&["completions", shell]).await.with_code(0).out.contains("quiltctl"));
    }
    // In a real bash, which takes words apart at `:` and `=`; with no other manager than that of the line.
    let binary = world.binary("quiltctl");
    let folder = binary.parent().unwrap().to_str().unwrap();
    let in_bash = async |line: &str, words: &str| {
        let number = words.split_whitespace().count() - 1;
        let script = format!(
            "PATH={folder}:$PATH; source <(quiltctl completions bash); COMP_LINE={line:?}; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9; \
             COMP_WORDS=({words}); COMP_CWORD={number}; \
             _clap_complete_quiltctl quiltctl \"${{COMP_WORDS[COMP_CWORD]}}\" x 2>/dev/null; echo \"${{COMPREPLY[@]}}\""
        );
        let mut bash = tokio::process::Command::new("bash");
        bash.args(["--norc", "-c", &script]).env("QUILT_CFG_DIR", world.folder().join("config"));
        String::from_utf8(bash.output().await.unwrap().stdout).unwrap().trim().to_owned()
    };
    let (host, port) = world.address.rsplit_once(':').unwrap();
    let (line, words) =
        (format!("quiltctl --manager {}", world.address), format!("quiltctl --manager {host} : {port}"));
    assert_eq!(in_bash(&format!("{line} roles ca"), &format!("{words} roles ca")).await, "cam-1");
    let (line, words) = (line.replace("r 1", "r=1"), words.replace("r 1", "r = 1"));
    let call = "call cam-1/counter/main inc";
    assert_eq!(in_bash(&format!("{line} {call}"), &format!("{words} {call}")).await, "increment");
}
