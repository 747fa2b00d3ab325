//! What other roles of a station notice while a plugin's child, under load, is killed again and again.

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
const REQUEST: Bytes = Bytes::from_static(br#"{"name":"x"}"#);
const OTHER: &str = "bench-0/counter/main";
/// How many calls of the plugin are under way.
const LOAD: usize = 8;

/// Measures calls of a role while the child beside it lives and is called, and while it is killed.
pub(crate) async fn rows(runs: usize, quick: bool) -> anyhow::Result<Vec<Row>> {
    let plugins = tempfile::tempdir()?;
    build(&plugins.path().join("libhello.so"))?;
    let mut manager = Part::start(&["manager"])?;
    let address = manager.line().await?;
    let folder = plugins.path().to_string_lossy().into_owned();
    let mut station = Part::start(&["station", &address, "--plugin-dir", &folder])?;
    station.line().await?;
    let client = Client::connect(&address, "bench").await?;
    let restart = json!({ "delay": "10ms", "max_delay": "10ms", "intensity": 0 });
    let roles = json!({ "counter": { "main": {} }, "hello": { "main": { "greeting": "Hello", "restart": restart } } });
    apply(&client, json!({ "group": { "all": { "match": "name=*", "roles": roles } } })).await?;
    let plugin = PLUGIN.parse().map_err(anyhow::Error::msg)?;
    let options = CallOptions { timeout: Duration::from_secs(5), idempotent: false, retry: false };
    while client.call_json(&plugin, "greet", REQUEST, &options).await.outcome != Outcome::Reply {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

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
    let kills = Arc::new(AtomicUsize::new(0));
    let (mut ours, mut base) = ([vec![], vec![]], [vec![], vec![]]);
    for _ in 0..runs {
        for (figures, kill) in [(&mut base, false), (&mut ours, true)] {
            let mut killing = JoinSet::new();
            if kill {
                killing.spawn(kill_again_and_again(client.clone(), kills.clone()));
            }
            let mut times = calls(&client, time).await?;
            times.sort();
            figures[0].push(times[times.len() / 2].as_secs_f64() * 1e6);
            figures[1].push(times[times.len() * 99 / 100].as_secs_f64() * 1e6);
        }
    }
    let kills = kills.load(Ordering::Relaxed);
    anyhow::ensure!(kills >= runs, "only {kills} children were killed: the plugin does not come back");
    let [p50, p99] = ours;
    let [base_p50, base_p99] = base;
    let name = "call of another role while a plugin's child under load is killed every 100 ms";
    let beside = "while it lives";
    Ok(vec![
        Row::new("kill-p50", name, "us", &p50, (beside, &base_p50), Bound::None),
        Row::new("kill-p99", name, "us", &p99, (beside, &base_p99), Bound::None),
    ])
}

/// Builds the example in C: a role of the Rust one that other rows use is linked into this program too.
fn build(library: &Path) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("benches has a parent")?;
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-I"])
        .arg(root.join("plugin-api/abi/include"))
        .arg("-o")
        .arg(library)
        .arg(root.join("examples/plugins/c/hello.c"))
        .status()?;
    anyhow::ensure!(built.success(), "the example in C does not build");
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

async fn kill_again_and_again(client: Client, kills: Arc<AtomicUsize>) -> anyhow::Result<()> {
    loop {
        let stations = client.stations("").await?;
        let instances = stations.iter().flat_map(|station| &station.instances);
        for pid in instances.filter(|one| one.role.as_str() == "hello").filter_map(|one| one.pid) {
            kill(Pid::from_raw(pid.try_into()?), Signal::SIGKILL)?;
            kills.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
