//! Plugins that do what no plugin should while they run: what calls them hears of it, the instance comes back, and nobody
//! else notices. `tests/fixtures/hostile.c` says what each variant does.

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use quilt_client::{CallOptions, Client};
use quilt_role_counter::api::Increment;
use quilt_tests::{Fleet, World, plugins};

/// A station with variants of the hostile plugin, an instance of each, and a neighbour.
pub(crate) async fn world(variants: &[&str], keys: &str) -> World {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    for variant in variants {
        world.plug(&plugins::hostile(world.folder(), variant), &format!("{variant}.so"));
    }
    for variant in variants {
        world.until_offered("cam-1", variant).await;
    }
    let fleet = Fleet::new().with("cam-1/counter/main", "");
    let fleet = variants.iter().fold(fleet, |fleet, variant| fleet.with(&format!("cam-1/{variant}/main"), keys));
    world.apply(fleet.text()).await.with_code(0);
    world
}

pub(crate) async fn poke(client: &Client, variant: &str) -> (String, String) {
    let target = format!("cam-1/{variant}/main").parse().unwrap();
    let options = CallOptions { timeout: Duration::from_secs(20), idempotent: false, retry: false };
    // Long enough for three missed heartbeats; a call that is never answered need not take as long.
    let options = match variant.starts_with("never") {
        true => CallOptions { timeout: Duration::from_millis(500), ..options },
        false => options,
    };
    let answer = client.call_json(&target, "poke", Bytes::from_static(b"{}"), &options).await;
    (answer.outcome.name().to_owned(), String::from_utf8_lossy(&answer.body).into_owned())
}

/// What pokes may end in, by variant.
type Expected = [(&'static str, &'static [&'static str])];

async fn all_are_poked(expected: &Expected, isolation: &str) -> World {
    let variants: Vec<_> = expected.iter().map(|(variant, _)| *variant).collect();
    let keys = format!("restart = {{ delay = \"20ms\" }}\n{isolation}");
    let world = world(&variants, &keys).await;
    let station = world.station_pid("cam-1");
    let client = world.client().await;
    let poked = expected.iter().map(|(variant, _)| {
        let (client, variant) = (client.clone(), *variant);
        tokio::spawn(async move { poke(&client, variant).await })
    });
    let poked: Vec<_> = poked.collect();
    for (task, (variant, outcomes)) in poked.into_iter().zip(expected) {
        let (outcome, text) = task.await.unwrap();
        assert!(outcomes.contains(&&*outcome), "{variant}: expected {outcomes:?}, got {outcome}: {text}");
    }
    for variant in variants {
        world.until_state(&format!("cam-1/{variant}/main"), "active").await;
    }
    // The neighbour went on all the time, in the same station.
    assert_eq!(client.call("cam-1/counter/main", &Increment { by: 1 }).await.unwrap(), 1);
    assert_eq!(world.instance("cam-1/counter/main").await.unwrap().restarts, 0);
    assert_eq!(world.station_pid("cam-1"), station);
    world
}

const LOST: &[&str] = &["peer_lost"];
const TOLD: &[&str] = &["refused", "error", "schema_mismatch"];

/// Answers that are wrong, also in the station itself.
const ANSWERS: &Expected = &[
    ("good", &["reply"]),
    ("twice_at_call", &["reply"]),
    ("never_at_call", &["timed_out"]),
    ("nowhere_at_call", TOLD),
    ("endless_at_call", TOLD),
    ("huge_at_call", TOLD),
    ("no_text_at_call", TOLD),
    ("no_json_at_call", TOLD),
    ("status_77_at_call", &["error"]),
    ("twice_at_start", &["reply"]),
    ("never_releases", &["reply"]),
    ("log_no_text_at_start", &["reply"]),
    ("log_endless_at_start", &["reply"]),
    ("bad_commands_at_start", &["reply"]),
    ("commands_at_start", &["reply"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_answers_from_a_child_end_their_call_and_nothing_else() {
    let world = all_are_poked(ANSWERS, "").await;
    // What a child prints is in a log of its own.
    let printed = world.ctl(&["logs", "cam-1/plugin/bad_commands_at_start", "-o", "wide"]).await.with_code(0).out;
    assert!(printed.contains("err record 7: status "), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_answers_from_inside_the_station_end_their_call_and_nothing_else() {
    all_are_poked(ANSWERS, "isolation = 'inproc'\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_dies_or_hangs_in_a_call_takes_its_own_instance_with_it_and_comes_back() {
    let deadly: &Expected = &[
        ("abort_at_call", LOST),
        ("segv_at_call", LOST),
        ("exit_at_call", LOST),
        ("close_at_call", LOST),
        ("garbage_at_call", LOST),
        ("half_at_call", LOST),
        ("fork_at_call", LOST),
        ("abort_at_drip", &["reply"]),
        ("freeze_at_call", LOST),
        ("hang_at_call", LOST),
        ("spin_at_call", LOST),
        ("release_aborts", &["reply", "peer_lost"]),
        ("strangers_at_call", &["reply", "refused", "error", "peer_lost"]),
    ];
    all_are_poked(deadly, "").await;
}

#[tokio::test]
async fn an_instance_that_takes_its_process_with_it_when_it_starts_fails_with_the_signal_and_holds_nobody_up() {
    let world = world(&["good"], "").await;
    for variant in ["abort_at_start", "exit_at_start", "null_functions", "no_text_at_start", "nowhere_at_start"] {
        world.plug(&plugins::hostile(world.folder(), variant), &format!("{variant}.so"));
        world.until_offered("cam-1", variant).await;
        let target = format!("cam-1/{variant}/main");
        let keys = "restart = { delay = \"10ms\", intensity = 2, max_delay = \"20ms\" }\n";
        let fleet = Fleet::new().with("cam-1/good/main", "").with(&target, keys);
        let applied = world.apply(fleet.text()).await.with_code(4);
        assert!(applied.err.contains(variant), "{}", applied.err);
        let detail = world.until_state(&target, "failed").await.detail;
        let expected = match variant {
            "abort_at_start" => "SIGABRT",
            "exit_at_start" => "0",
            _ => "",
        };
        assert!(!detail.is_empty() && detail.contains(expected), "{variant}: {detail}");
    }
    assert_eq!(world.instance("cam-1/good/main").await.unwrap().restarts, 0);
}

#[tokio::test]
async fn a_plugin_that_crashes_or_hangs_while_it_validates_has_its_push_refused_without_a_verdict_and_nothing_else() {
    let world = world(&["good"], "").await;
    for (variant, text) in [("abort_at_validate", "SIGABRT"), ("hang_at_validate", ""), ("never_at_validate", "")] {
        world.plug(&plugins::hostile(world.folder(), variant), &format!("{variant}.so"));
        world.until_offered("cam-1", variant).await;
        let target = format!("cam-1/{variant}/main");
        let fleet = Fleet::new().with("cam-1/good/main", "").with(&target, "");
        let refused = world.apply(fleet.text()).await.with_code(4);
        assert!(refused.err.contains(variant) && refused.err.contains(text), "{variant}: {}", refused.err);
        let again = "station cam-1 has trouble of its own and could not judge all of this; apply it again";
        assert!(refused.err.contains(again) && refused.err.contains("STATION_FAULT"), "{variant}: {}", refused.err);
        assert!(world.instance(&target).await.is_none());
    }
    assert_eq!(world.instance("cam-1/good/main").await.unwrap().restarts, 0);
}

#[tokio::test]
async fn a_plugin_that_ends_the_station_it_runs_in_is_quarantined_by_the_next_one_which_registers() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.plug(&plugins::hostile(world.folder(), "abort_at_start"), "abort_at_start.so");
    world.until_offered("cam-1", "abort_at_start").await;
    let fleet = Fleet::new().with("cam-1/counter/main", "").with("cam-1/abort_at_start/main", "isolation = 'inproc'\n");
    let path = world.fleet_file("fleet.toml", fleet.text());
    world.ctl(&["apply", "-f", &path]).await;
    world.eventually("the station is dead", async |world| world.show("cam-1").await.state.name() == "unknown").await;
    world.end_station("cam-1", Signal::SIGKILL).await;
    world.station("cam-1", &[]).await;
    world.until_state("cam-1/counter/main", "active").await;
    let view = world.until_state("cam-1/abort_at_start/main", "failed").await;
    assert!(!view.detail.is_empty());
    let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.with_code(0).json();
    assert_eq!((&list[0]["code"], &list[0]["state"]), (&"QUARANTINED".into(), &"quarantined".into()));
}

#[tokio::test]
async fn a_plugin_that_worked_and_crashes_when_it_is_loaded_again_is_quarantined_and_allowed_by_an_operator() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let ill = world.folder().join("ill");
    let flags = ["-DVARIANT=abort_if_at_load".to_owned(), format!("-DILL_IF=\"{}\"", ill.display())];
    let flags = flags.each_ref().map(String::as_str);
    let library = plugins::c_plugin(world.folder(), "tests/fixtures/hostile.c", "abort_if_at_load", &flags);
    world.plug(&library, "abort_if_at_load.so");
    world.until_offered("cam-1", "abort_if_at_load").await;
    let target = "cam-1/abort_if_at_load/main";
    let keys = "restart = { delay = '20ms', intensity = 2 }\n";
    world.apply(Fleet::new().with(target, keys).text()).await.with_code(0);
    fs::write(&ill, b"").unwrap();
    let child = world.pid(target).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child as i32), Signal::SIGKILL).unwrap();
    let detail = world.until_state(target, "failed").await.detail;
    assert!(detail.contains("plugin allow"), "{detail}");
    let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.with_code(0).json();
    assert_eq!((&list[0]["code"], &list[0]["state"]), (&"QUARANTINED".into(), &"quarantined".into()));
    fs::remove_file(&ill).unwrap();
    world.ctl(&["plugin", "allow", "cam-1", "abort_if_at_load"]).await.with_code(0);
    world.ctl(&["restart", target]).await;
    world.until_state(target, "active").await;
}

#[tokio::test]
async fn a_build_that_aborts_when_it_panics_runs_in_a_child_only() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let flags = ["-DVARIANT=good", "-DPLUGIN=\"brittle\"", "-DROLE=\"brittle\"", "-DNOTE_PANIC=\"abort\""];
    let brittle = plugins::c_plugin(world.folder(), "tests/fixtures/hostile.c", "brittle", &flags);
    world.plug(&brittle, "brittle.so");
    world.until_offered("cam-1", "brittle").await;
    let inside = Fleet::new().with("cam-1/brittle/main", "isolation = 'inproc'\n");
    let refused = world.apply(inside.text()).await.with_code(4);
    assert!(refused.err.contains("isolation") && refused.err.contains("abort"), "{}", refused.err);
    world.apply(Fleet::new().with("cam-1/brittle/main", "").text()).await.with_code(0);
}

#[tokio::test]
async fn a_library_too_many_inside_the_station_is_refused_with_what_to_do() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let good = fs::read(plugins::hostile(world.folder(), "good")).unwrap();
    let build = world.folder().join("build.so");
    let plug = |number: u32| {
        // Bytes behind the end are no part of the library and make it another file.
        let bytes = [good.clone(), number.to_string().into_bytes()].concat();
        fs::write(&build, bytes).unwrap();
        world.plug(&build, "good.so");
    };
    plug(0);
    world.until_offered("cam-1", "good").await;
    world.apply(Fleet::new().with("cam-1/good/main", "isolation = 'inproc'\n").text()).await.with_code(0);
    let client = world.client().await;
    let name = "cam-1".parse().unwrap();
    let mut refusal = None;
    for number in 1..=64 {
        plug(number);
        let all = client.reload_plugins(&name).await.unwrap();
        world
            .eventually("it is taken or refused", async |_| {
                let sha256 = |file: &std::path::Path| quilt_station::inspect_plugin(file).unwrap().sha256;
                let now = client.plugins(&name).await.unwrap();
                let ours = now.iter().find(|plugin| plugin.sha256 == sha256(&build));
                ours.is_some_and(|plugin| plugin.state.name() == "live" || plugin.code.is_some())
            })
            .await;
        drop(all);
        let now = client.plugins(&name).await.unwrap();
        if let Some(refused) = now.iter().find(|plugin| plugin.code.is_some()) {
            refusal = Some((number, refused.detail.clone()));
            break;
        }
    }
    let (number, text) = refusal.expect("one is too many");
    assert_eq!(number, 64, "{text}");
    assert!(text.contains("isolation = \"inproc\"") && text.contains("64"), "{text}");
    // What ran goes on.
    let (outcome, _) = poke(&client, "good").await;
    assert_eq!(outcome, "reply");
}
