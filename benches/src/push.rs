//! What an apply to many stations takes.

use std::time::Instant;

use bytes::Bytes;
use quilt_client::Client;
use serde_json::json;

use crate::all::{All, apply};
use crate::baseline;
use crate::part::Part;
use crate::row::{Bound, Row};

/// One apply to 1,000 light stations, planned and accepted by each, against a bare push of as many bytes.
pub(crate) async fn row(all: &All) -> anyhow::Result<Row> {
    let count = if all.quick { 50 } else { 1000 };
    let mut echo = Part::start(&["echo"])?;
    let echo_address = echo.line().await?;
    let mut manager = Part::start(&["manager"])?;
    let address = manager.line().await?;
    let mut swarm = Part::start(&["swarm", &address, &count.to_string()])?;
    swarm.line().await?;
    let client = Client::connect(&address, "bench").await?;
    let body = Bytes::from(vec![7; 1024]);
    let (mut ours, mut base) = (vec![], vec![]);
    for run in 0..=all.runs() {
        let pushed = baseline::push(&echo_address, &body, count).await?.as_secs_f64() * 1e3;
        let mut events = client.events(Some(last_event(&client).await), true);
        let began = Instant::now();
        let padding = "x".repeat(900);
        let config = json!({ "start": run, "padding": padding });
        apply(
            &client,
            json!({ "group": { "all": { "match": "swarm=yes", "roles": { "counter": { "main": config } } } } }),
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
    Ok(Row::new("push", name, "ms", &ours, ("a bare push of 1 KiB to as many, and answers", &base), Bound::None))
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
