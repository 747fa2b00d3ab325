//! What other roles of a station notice while a plugin's child, under load, is killed again and again, hangs or loops.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quilt_client::{CallOptions, Client, Outcome};
use quilt_role_counter::api::Value;
use serde_json::json;
use tokio::task::JoinSet;

use crate::all::apply;
use crate::part::Part;
use crate::row::{Bound, Row};

const PLUGIN: &str = "bench-0/hello/main";
/// A plugin whose command never ends, and takes a core for it.
const LOOPING: &str = "spin_at_call";
const REQUEST: Bytes = Bytes::from_static(br#"{"name":"x"}"#);
const OTHER: &str = "bench-0/counter/main";
/// How many calls of the plugin are under way.
const LOAD: usize = 8;

/// What becomes of a plugin.
#[derive(Clone, Copy)]
enum Fate {
    Killed,
    Stopped,
    Looping,
}

const FATES: [(Fate, &str, &str); 3] = [
    (Fate::Killed, "kill", "is killed every 100 ms"),
    (Fate::Stopped, "hang", "is stopped by a signal"),
    (Fate::Looping, "loop", "lives and another's loops"),
];

/// Measures calls of a role while the child beside it lives and is called, and while it is killed, hangs or loops.
pub(crate) async fn rows(runs: usize, quick: bool) -> anyhow::Result<Vec<Row>> {
    let plugins = tempfile::tempdir()?;
    build("examples/plugins/c/hello.c", &[], &plugins.path().join("libhello.so"))?;
    let looping = format!("-DVARIANT={LOOPING}");
    build("tests/fixtures/hostile.c", &[&looping], &plugins.path().join("liblooping.so"))?;
    let mut manager = Part::start(&["manager"])?;
    let address = manager.line().await?;
    let folder = plugins.path().to_string_lossy().into_owned();
    let mut station = Part::start(&["station", &address, "--plugin-dir", &folder])?;
    station.line().await?;
    let client = Client::connect(&address, "bench").await?;
    let restart = json!({ "delay": "10ms", "max_delay": "10ms", "intensity": 0 });
    let hello = json!({ "greeting": "Hello", "restart": restart });
    let roles =
        json!({ "counter": { "main": {} }, "hello": { "main": hello }, LOOPING: { "main": { "restart": restart } } });
    apply(&client, json!({ "group": { "all": { "match": "name=*", "roles": roles } } })).await?;
    let plugin = PLUGIN.parse().map_err(anyhow::Error::msg)?;
    let options = CallOptions { timeout: Duration::from_secs(5), idempotent: false, retry: false };
    let answers = async || {
        while client.call_json(&plugin, "greet", REQUEST, &options).await.outcome != Outcome::Reply {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    answers().await;

    let mut load = JoinSet::new();
    for _ in 0..LOAD {
        let (client, plugin, options) = (client.clone(), plugin.clone(), options.clone());
        load.spawn(async move {
            loop {
                if client.call_json(&plugin, "greet", REQUEST, &options).await.outcome != Outcome::Reply {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }
    let time = Duration::from_millis(if quick { 300 } else { 2000 });
    let mut rows = Vec::new();
    for (fate, row, what) in FATES {
        let times_met = Arc::new(AtomicUsize::new(0));
        let (mut ours, mut base) = ([vec![], vec![]], [vec![], vec![]]);
        for _ in 0..runs {
            for (figures, is_met) in [(&mut base, false), (&mut ours, true)] {
                // What met its fate before is back first.
                answers().await;
                let mut meeting = JoinSet::new();
                if is_met {
                    meeting.spawn(meet(fate, client.clone(), times_met.clone()));
                }
                let mut times = calls(&client, time).await?;
                times.sort();
                figures[0].push(times[times.len() / 2].as_secs_f64() * 1e6);
                figures[1].push(times[times.len() * 99 / 100].as_secs_f64() * 1e6);
            }
        }
        let times_met = times_met.load(Ordering::Relaxed);
        anyhow::ensure!(times_met >= 1, "no plugin's child {what}");
        let name = format!("call of another role while a plugin's child under load {what}");
        for (quantile, ours, base) in [("p50", &ours[0], &base[0]), ("p99", &ours[1], &base[1])] {
            rows.push(Row::new(format!("{row}-{quantile}"), &name, "us", ours, ("while all live", base), Bound::None));
        }
    }
    Ok(rows)
}

/// Builds a plugin in C: a role of the Rust one that other rows use is linked into this program too.
fn build(source: &str, flags: &[&str], library: &Path) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("benches has a parent")?;
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-pthread"])
        .args(flags)
        .arg("-I")
        .arg(root.join("plugin-api/abi/include"))
        .arg("-o")
        .arg(library)
        .arg(root.join(source))
        .status()?;
    anyhow::ensure!(built.success(), "{source} does not build");
    Ok(())
}

async fn calls(client: &Client, time: Duration) -> anyhow::Result<Vec<Duration>> {
    let (until, mut times) = (Instant::now() + time, Vec::new());
    while Instant::now() < until {
        let began = Instant::now();
        client.call(OTHER, &Value {}).await?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// Has a plugin meet its fate again and again; counts how often.
async fn meet(fate: Fate, client: Client, times: Arc<AtomicUsize>) -> anyhow::Result<()> {
    let looping = format!("bench-0/{LOOPING}/main").parse().map_err(anyhow::Error::msg)?;
    let options = CallOptions { timeout: Duration::from_secs(5), idempotent: false, retry: false };
    let signal = match fate {
        Fate::Killed => Signal::SIGKILL,
        Fate::Stopped => Signal::SIGSTOP,
        Fate::Looping => loop {
            times.fetch_add(1, Ordering::Relaxed);
            // Until its station misses its signs of life.
            let empty = Bytes::from_static(b"{}");
            client.call_json(&looping, "poke", empty, &options).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        },
    };
    loop {
        let stations = client.stations("").await?;
        let instances = stations.iter().flat_map(|station| &station.instances);
        for pid in instances.filter(|one| one.role.as_str() == "hello").filter_map(|one| one.pid) {
            // The manager may not have heard yet that it is gone.
            if kill(Pid::from_raw(pid.try_into()?), signal).is_ok() {
                times.fetch_add(1, Ordering::Relaxed);
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
