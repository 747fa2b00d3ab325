//! What is large: how long others wait for it, and what memory it takes and leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use quilt_client::control::{Apply, FleetFile};
use quilt_client::{CallOptions, Client, Outcome};
use quilt_protocol::Address;
use serde_json::{Map, Value, json};
use tokio::runtime::Builder;

use crate::all::All;
use crate::fleet::{TIME, apply, settled, swarm};
use crate::part::Part;
use crate::row::{Bound, Row};

/// How long others may wait, in milliseconds: 99 of 100 calls.
const WAIT: (f64, f64) = (20.0, 5.0);
/// How long the text of the large fleet file is.
const BODY: usize = 50 << 20;
/// How often a caller calls.
const CALL_INTERVAL: Duration = Duration::from_millis(1);
/// When memory that was given back is looked for.
const REST: Duration = Duration::from_secs(5);

/// All rows.
pub(crate) async fn rows(all: &All) -> anyhow::Result<Vec<Row>> {
    let mut rows = dry_run(all).await?;
    for (stations, each) in [(10_000, 3), (1_000, 50)] {
        rows.extend(instances(all, stations, each).await?);
    }
    rows.extend(slow_stations(all).await?);
    Ok(rows)
}

/// Calls a command of an instance again and again until it is told to stop. It has a thread of its own, because long texts are read and
/// written on the others meanwhile.
struct Caller {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<anyhow::Result<Vec<f64>>>,
}

impl Caller {
    fn start(address: &str, station: usize) -> anyhow::Result<Self> {
        let target: Address = format!("swarm-{station}/counter/main").parse().map_err(anyhow::Error::msg)?;
        let (address, stop) = (address.to_owned(), Arc::new(AtomicBool::new(false)));
        let told = stop.clone();
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(call(&address, &target, &told))
        });
        Ok(Self { stop, thread })
    }

    /// The time that 99 of 100 calls took at most, and the longest, in milliseconds.
    fn end(self) -> anyhow::Result<(f64, f64)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut times = self.thread.join().map_err(|_| anyhow::anyhow!("the caller panicked"))??;
        times.sort_by(f64::total_cmp);
        let p99 = times.get(times.len() * 99 / 100).context("calls were made")?;
        Ok((*p99, times[times.len() - 1]))
    }
}

async fn call(address: &str, target: &Address, stop: &AtomicBool) -> anyhow::Result<Vec<f64>> {
    let client = Client::connect(address, "caller").await?;
    let options = CallOptions { timeout: TIME, idempotent: false, retry: false };
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answer = client.call_json(target, "echo", Bytes::from_static(b"{}"), &options).await;
        anyhow::ensure!(answer.outcome == Outcome::Reply, "{:?}", answer.outcome);
        times.push(began.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(CALL_INTERVAL).await;
    }
    Ok(times)
}

/// A dry run of a long fleet file for one station, while another tool calls another station.
async fn dry_run(all: &All) -> anyhow::Result<Vec<Row>> {
    let length = if all.quick { BODY / 50 } else { BODY };
    let (mut waits, mut longest, mut peaks, mut left) = (vec![], vec![], vec![], vec![]);
    for _ in 0..all.runs().min(3) {
        let mut manager = Part::start(&["manager"])?;
        let address = manager.line().await?;
        let _target = swarm(&address, 1, &[]).await?;
        let _called = swarm(&address, 1, &["--first", "1"]).await?;
        let instance = |number: usize| (format!("i{number}"), json!({ "start": 0, "padding": "x".repeat(500) }));
        let one = serde_json::to_string(&instance(10_000))?.len();
        let roles: Map<String, Value> = (0..length / one).map(instance).collect();
        let fleet = json!({ "station": { "swarm-0": { "roles": { "counter": roles } } } });
        let fleet: FleetFile = serde_json::from_value(fleet)?;
        let request = Apply { source: "bench".into(), fleet, dry_run: true, force: false, wait: None, batch: None };
        let body_kib = serde_json::to_string(&request)?.len() as f64 / 1024.0;
        let client = Client::connect_within(&address, "bench", TIME).await?;
        let before = manager.memory_kib()?;
        let caller = Caller::start(&address, 1)?;
        let reply = client.apply(&request).reply().await?;
        anyhow::ensure!(!reply.stored && reply.changes.len() == 1, "{:?} {:?}", reply.notes, reply.mistakes);
        let (p99, most) = caller.end()?;
        waits.push(p99);
        longest.push(most);
        peaks.push((manager.peak_memory_kib()? - before) / body_kib);
        tokio::time::sleep(REST).await;
        left.push((manager.memory_kib()? - before) / body_kib);
    }
    let what = format!("a dry run of {} MiB", length >> 20);
    Ok(vec![
        waiting("large-wait", format!("p99 of calls of others during {what}"), &waits),
        Row::new(
            "large-wait-max",
            format!("the longest of them during {what}"),
            "ms",
            &longest,
            ("p99", &waits),
            Bound::None,
        ),
        Row::absolute("large-memory", format!("most memory of the manager for {what}"), "x its body", &peaks, 4.0, 3.0),
        Row::absolute("large-left", format!("memory of the manager 5 s after {what}"), "x its body", &left, 0.5, 0.1),
    ])
}

fn waiting(row: impl Into<String>, name: String, times: &[f64]) -> Row {
    Row::absolute(row, name, "ms", times, WAIT.0, WAIT.1)
}

/// Many instances: they are applied, and listed, while another tool calls.
async fn instances(all: &All, stations: usize, each: usize) -> anyhow::Result<Vec<Row>> {
    let stations = if all.quick { stations / 50 } else { stations };
    let (mut applying, mut listing) = (vec![], vec![]);
    for _ in 0..all.runs().min(3) {
        let mut manager = Part::start(&["manager"])?;
        let address = manager.line().await?;
        let _swarm = swarm(&address, stations, &[]).await?;
        let first = stations.to_string();
        let _called = swarm(&address, 1, &["--first", &first]).await?;
        let roles: Map<_, _> = (0..each).map(|number| (format!("i{number}"), json!({ "start": number }))).collect();
        let group = json!({ "match": "swarm=yes", "roles": { "counter": roles } });
        let fleet: FleetFile = serde_json::from_value(json!({ "group": { "all": group } }))?;
        let client = Client::connect_within(&address, "bench", TIME).await?;
        let caller = Caller::start(&address, stations)?;
        apply(&client, fleet, Some(settled())).await?;
        applying.push(caller.end()?.0);
        let caller = Caller::start(&address, stations)?;
        for _ in 0..5 {
            anyhow::ensure!(client.stations("").await?.len() == stations + 1, "some stations are not listed");
        }
        listing.push(caller.end()?.0);
    }
    let what = format!("{stations} stations with {each} instances each");
    Ok(vec![
        waiting(format!("large-apply-{each}"), format!("p99 of calls of others while {what} are applied"), &applying),
        waiting(format!("large-list-{each}"), format!("p99 of calls of others while {what} are listed"), &listing),
    ])
}

/// A document of 1 MiB for many stations that hardly read: it lies in memory once.
async fn slow_stations(all: &All) -> anyhow::Result<Vec<Row>> {
    const DOCUMENT: usize = 1 << 20;
    let stations = if all.quick { 10 } else { 300 };
    let mut grown = vec![];
    for _ in 0..all.runs().min(3) {
        let mut manager = Part::start(&["manager"])?;
        let address = manager.line().await?;
        let count = stations.to_string();
        let _swarm = swarm(&address, stations, &["--slow", &count]).await?;
        let config = json!({ "start": 0, "padding": "x".repeat(DOCUMENT) });
        let group = json!({ "match": "swarm=yes", "roles": { "counter": { "main": config } } });
        let fleet: FleetFile = serde_json::from_value(json!({ "group": { "all": group } }))?;
        let client = Client::connect_within(&address, "bench", TIME).await?;
        let before = manager.memory_kib()?;
        apply(&client, fleet, None).await?;
        grown.push((manager.peak_memory_kib()? - before) / 1024.0);
    }
    let name =
        format!("memory of the manager for a document of 1 MiB on its way to {stations} stations that hardly read");
    Ok(vec![Row::absolute("large-slow", name, "MiB", &grown, 16.0, 8.0)])
}
