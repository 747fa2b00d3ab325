//! What is measured, and how it is shown.

use std::time::Instant;

use bytes::Bytes;
use clap::Args;
use comfy_table::{Table, presets};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use quilt_client::Client;
use quilt_client::control::{Apply, FleetFile};
use quilt_role_counter::api::Value;
use serde::Serialize;
use serde_json::json;

use crate::baseline;
use crate::part::{self, Part};
use crate::plugins;

/// Arguments of `all`.
#[derive(Args)]
pub(crate) struct All {
    /// One JSON line a row
    #[arg(long)]
    json: bool,
    /// Only this row (call, in-flight, push, memory) or `plugins`, which is several
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Fewer repetitions: a smoke test, not a measurement
    #[arg(long)]
    quick: bool,
}

/// One figure and what it is compared with.
#[derive(Serialize)]
pub(crate) struct Row {
    row: &'static str,
    name: &'static str,
    value: f64,
    unit: &'static str,
    baseline: f64,
    /// `value / baseline`.
    ratio: f64,
}

impl All {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let runs = if self.quick { 1 } else { 5 };
        let mut rows = Vec::new();
        let wanted = |name: &str| self.only.as_deref().is_none_or(|only| only == name);
        if wanted("call") || wanted("in-flight") {
            rows.extend(self.relay(runs).await?.into_iter().filter(|row| wanted(row.row)));
        }
        if wanted("hop") || wanted("hop-64") {
            rows.extend(self.hop(runs).await?.into_iter().filter(|row| wanted(row.row)));
        }
        if wanted("push") {
            rows.push(self.push(runs).await?);
        }
        if wanted("memory") {
            rows.push(self.memory(runs).await?);
        }
        if wanted("plugins") {
            rows.extend(plugins::rows(runs, self.quick).await?);
        }
        if self.json {
            for row in rows {
                println!("{}", serde_json::to_string(&row)?);
            }
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["ROW", "WHAT", "QUILT", "BASELINE", "UNIT", "RATIO"]);
        for Row { row, name, value, unit, baseline, ratio } in rows {
            let cells = [format!("{value:.1}"), format!("{baseline:.1}"), unit.to_owned(), format!("{ratio:.2}x")];
            table.add_row([row.to_owned(), name.to_owned()].into_iter().chain(cells));
        }
        println!("{table}");
        Ok(())
    }

    /// A typed call of the program that hosts the manager to a role on a station: one hop, as the baseline.
    async fn hop(&self, runs: usize) -> anyhow::Result<Vec<Row>> {
        let (manager, _folder) = part::host().await?;
        let address = manager.protocol_addr().to_string();
        let (_station, _) = counting(&address).await?;
        let client = manager.station(&"bench".parse()?).map_err(anyhow::Error::msg)?;
        let name = "one call at a time, manager's library > station > role, p50";
        self.calls(&client, [("hop", name), ("hop-64", "the same, 64 in flight on one connection")], runs).await
    }

    /// A typed call of a tool through the manager to a role on a station: two hops, against one hop of the baseline.
    async fn relay(&self, runs: usize) -> anyhow::Result<Vec<Row>> {
        let mut manager = Part::start(&["manager"])?;
        let address = manager.line().await?;
        let (_station, client) = counting(&address).await?;
        let name = "one call at a time, tool > manager > station > role, p50";
        self.calls(&client, [("call", name), ("in-flight", "the same, 64 in flight on one connection")], runs).await
    }

    async fn calls(
        &self,
        client: &Client,
        rows: [(&'static str, &'static str); 2],
        runs: usize,
    ) -> anyhow::Result<Vec<Row>> {
        let count = if self.quick { 500 } else { 20_000 };
        let mut echo = Part::start(&["echo"])?;
        let echo_address = echo.line().await?;
        // A head and a reply of about the size that a quilt call has on the wire.
        let body = Bytes::from(vec![7; 84]);
        let (mut single, mut single_base, mut many, mut many_base) = (vec![], vec![], vec![], vec![]);
        for _ in 0..runs {
            single_base.push(median(baseline::calls(&echo_address, &body, count).await?).as_secs_f64() * 1e6);
            let mut times = Vec::with_capacity(count);
            for _ in 0..count {
                let began = Instant::now();
                client.call(TARGET, &Value {}).await?;
                times.push(began.elapsed());
            }
            single.push(median(times).as_secs_f64() * 1e6);
            many_base.push(baseline::in_flight(&echo_address, &body, 64, count * 20).await?);
            many.push(in_flight(client, TARGET, 64, count * 5).await?);
        }
        let [(single_row, single_name), (many_row, many_name)] = rows;
        Ok(vec![
            row(single_row, single_name, "us", single, single_base),
            row(many_row, many_name, "calls/s", many, many_base),
        ])
    }

    /// One apply to 1,000 light stations, planned and accepted by each, against a bare push of as many bytes.
    async fn push(&self, runs: usize) -> anyhow::Result<Row> {
        let count = if self.quick { 50 } else { 1000 };
        let mut echo = Part::start(&["echo"])?;
        let echo_address = echo.line().await?;
        let mut manager = Part::start(&["manager"])?;
        let address = manager.line().await?;
        let mut swarm = Part::start(&["swarm", &address, &count.to_string()])?;
        swarm.line().await?;
        let client = Client::connect(&address, "bench").await?;
        let body = Bytes::from(vec![7; 1024]);
        let (mut ours, mut base) = (vec![], vec![]);
        for run in 0..=runs {
            let pushed = baseline::push(&echo_address, &body, count).await?.as_secs_f64() * 1e3;
            let mut events = client.events(Some(last_event(&client).await), true);
            let began = Instant::now();
            let padding = "x".repeat(900);
            let config = serde_json::json!({ "start": run, "padding": padding });
            apply(
                &client,
                serde_json::json!({
                    "group": { "all": { "match": "swarm=yes", "roles": { "counter": { "main": config } } } }
                }),
            )
            .await?;
            // Events say when to look; the stations themselves say whether all are there.
            let mut accepted = 0;
            loop {
                let Some(event) = events.next().await else { anyhow::bail!("the event stream ended") };
                accepted += usize::from(event.kind == "push.accepted");
                if accepted >= count {
                    let stations = client.stations("swarm=yes").await?;
                    if stations.iter().all(|station| station.applied_digest == station.desired_digest) {
                        break;
                    }
                }
            }
            // The first round warms both sides up.
            if run > 0 {
                ours.push(began.elapsed().as_secs_f64() * 1e3);
                base.push(pushed);
            }
        }
        let name = "apply to 1,000 stations: planned, stored, pushed, accepted by all";
        Ok(row("push", name, "ms", ours, base))
    }

    /// The manager's memory for each idle registered station, against the baseline's for each idle connection.
    async fn memory(&self, runs: usize) -> anyhow::Result<Row> {
        let count = if self.quick { 100 } else { 2000 };
        let (mut ours, mut base) = (vec![], vec![]);
        for _ in 0..runs.min(3) {
            let mut echo = Part::start(&["echo"])?;
            let address = echo.line().await?;
            let before = echo.memory_kib()?;
            let mut idle = Part::start(&["idle", &address, &count.to_string()])?;
            idle.line().await?;
            base.push((echo.memory_kib()? - before) / count as f64);
            let mut manager = Part::start(&["manager"])?;
            let address = manager.line().await?;
            let before = manager.memory_kib()?;
            let mut swarm = Part::start(&["swarm", &address, &count.to_string()])?;
            swarm.line().await?;
            ours.push((manager.memory_kib()? - before) / count as f64);
        }
        Ok(row("memory", "manager memory per idle registered station", "KiB", ours, base))
    }
}

const TARGET: &str = "bench/counter/main";

/// A station whose counter answers at [`TARGET`], and a tool that has called it.
async fn counting(manager: &str) -> anyhow::Result<(Part, Client)> {
    let mut station = Part::start(&["station", manager])?;
    station.line().await?;
    let client = Client::connect(manager, "bench").await?;
    apply(&client, json!({ "group": { "all": { "match": "name=*", "roles": { "counter": { "main": {} } } } } }))
        .await?;
    // Until it is there.
    while client.call(TARGET, &Value {}).await.is_err() {
        tokio::task::yield_now().await;
    }
    Ok((station, client))
}

pub(crate) async fn apply(client: &Client, fleet: serde_json::Value) -> anyhow::Result<()> {
    let fleet: FleetFile = serde_json::from_value(fleet)?;
    let source = "bench".to_owned();
    let request = Apply { source, fleet, dry_run: false, force: false, wait: None, batch: None };
    let reply = client.apply(&request).reply().await?;
    anyhow::ensure!(reply.stored, "{reply:?}");
    Ok(())
}

/// The number of the newest event.
async fn last_event(client: &Client) -> u64 {
    let mut events = client.events(None, false);
    let mut last = 0;
    while let Some(event) = events.next().await {
        last = event.number;
    }
    last
}

async fn in_flight(client: &Client, target: &str, window: usize, count: usize) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut calls: FuturesUnordered<_> = (0..window).map(|_| client.call(target, &Value {})).collect();
    let mut done = 0;
    while done < count {
        if let Some(result) = calls.next().await {
            result?;
        }
        done += 1;
        calls.push(client.call(target, &Value {}));
    }
    Ok(done as f64 / began.elapsed().as_secs_f64())
}

pub(crate) fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort();
    values[values.len() / 2]
}

pub(crate) fn row(row: &'static str, name: &'static str, unit: &'static str, ours: Vec<f64>, base: Vec<f64>) -> Row {
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (value, baseline) = (middle(ours), middle(base));
    Row { row, name, value, unit, baseline, ratio: value / baseline }
}
