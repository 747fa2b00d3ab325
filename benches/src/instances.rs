//! Many instances of a role at once, on real stations.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quilt_client::Client;
use quilt_client::control::{Apply, FleetFile, Wait};
use serde_json::{Map, Value, json};

use crate::all::All;
use crate::part::Part;
use crate::row::{Bound, Row};

/// On how many stations, and how many on each.
const STATIONS: usize = 1000;
const EACH: usize = 10;
/// How many stations take turns with the single one: each reports at most five times a second.
const SINGLE: usize = 20;
/// How many processes they share: a station waits for its disk, and its neighbours in a process with it.
const PROCESSES: usize = 10;
/// How many a second must become active, and how many are aimed for.
const RATE: (f64, f64) = (4000.0, 10_000.0);

/// All started by one apply; and meanwhile a single one, again and again, on a station of its own.
pub(crate) async fn rows(all: &All) -> anyhow::Result<Vec<Row>> {
    let stations = if all.quick { 20 } else { STATIONS };
    let (mut rates, singles) = (vec![], Arc::new(Mutex::new(vec![])));
    for _ in 0..all.runs().min(3) {
        let mut manager = Part::start(&["manager"])?;
        let address = manager.line().await?;
        let mut parts = Vec::new();
        for process in 0..PROCESSES {
            let (first, count) = (process * stations / PROCESSES, stations / PROCESSES);
            let (first, count) = (first.to_string(), count.to_string());
            parts.push(Part::start(&["station", &address, "--first", &first, "--count", &count])?);
        }
        let (first, count) = (stations.to_string(), SINGLE.to_string());
        parts.push(Part::start(&["station", &address, "--first", &first, "--count", &count])?);
        for part in &mut parts {
            part.line().await?;
        }
        let client = Client::connect(&address, "bench").await?;
        while client.stations("").await?.len() < stations + SINGLE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let client_of_single = Client::connect(&address, "single").await?;
        let single = tokio::spawn(single(client_of_single, stations, singles.clone()));
        let many: Map<_, _> = (0..EACH).map(|number| (format!("many-{number}"), json!({}))).collect();
        let others: Vec<_> = (0..SINGLE).map(|number| format!("name!=bench-{}", stations + number)).collect();
        let group = json!({ "match": others.join(" and "), "roles": { "counter": many } });
        let began = Instant::now();
        apply(&client, "many", json!({ "group": { "many": group } })).await?;
        rates.push((stations * EACH) as f64 / began.elapsed().as_secs_f64());
        single.abort();
        if let Ok(Err(error)) = single.await {
            return Err(error);
        }
    }
    let mut singles = std::mem::take(&mut *singles.lock().unwrap_or_else(PoisonError::into_inner));
    singles.sort_by(f64::total_cmp);
    let p99 = singles.get(singles.len() * 99 / 100).copied().unwrap_or(f64::NAN);
    let (must, aim) = RATE;
    let name = format!("instances of a role on {stations} stations by one apply, to active");
    let rate = Row::new("instances", name, "1/s", &rates, ("what must hold", &[must]), Bound::AtLeast(1.0, aim / must));
    let single = "apply to active of a single one under that load, p99";
    Ok(vec![rate, Row::absolute("instances-single", single, "ms", &[p99], 500.0, 250.0)])
}

/// Starts a single one again and again, and notes how long each took, in milliseconds.
async fn single(client: Client, first: usize, times: Arc<Mutex<Vec<f64>>>) -> anyhow::Result<()> {
    for run in 0.. {
        let (began, station) = (Instant::now(), first + run % SINGLE);
        let roles = json!({ "counter": { "single": { "start": run } } });
        apply(&client, "single", json!({ "station": { format!("bench-{station}"): { "roles": roles } } })).await?;
        times.lock().unwrap_or_else(PoisonError::into_inner).push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

async fn apply(client: &Client, source: &str, fleet: Value) -> anyhow::Result<()> {
    let fleet: FleetFile = serde_json::from_value(fleet)?;
    let wait = Some(Wait { within_ms: 60_000, settle_ms: 0, rollback: false });
    let request = Apply { source: source.into(), fleet, dry_run: false, force: false, wait, batch: None };
    let reply = client.apply(&request).reply().await?;
    anyhow::ensure!(
        reply.stored && reply.targets > 0 && reply.failures.is_empty() && !reply.timed_out,
        "{:?} {:?} {:?}",
        reply.mistakes,
        reply.warnings,
        reply.failures
    );
    Ok(())
}
