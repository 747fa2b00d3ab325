//! More stations than one process has descriptors for: over memory instead of sockets, all in one process with their manager.

use std::time::{Duration, Instant};

use quilt_client::Client;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Light;
use crate::all::{All, apply};
use crate::part::{self, Part};
use crate::row::{Bound, Row};

/// How many bytes one direction of a connection holds.
const PIPE: usize = 16 << 10;
/// How many register at a time.
const AT_ONCE: usize = 512;

/// What each station costs by number of stations, everything on both sides included.
pub(crate) async fn rows(all: &All) -> anyhow::Result<Vec<Row>> {
    let (few, many) = if all.quick { (1000, 3000) } else { (10_000, 1_000_000) };
    let (few, many) = (measure(few).await?, measure(many).await?);
    let what = [
        ("million-register", "registration of one of a million stations", "us"),
        ("million-push", "push to one of a million, planned, stored and accepted", "us"),
        ("million-list", "share of one of a million in a list by selector", "us"),
        ("million-memory", "memory of one of a million, both sides", "KiB"),
    ];
    let rows = what.iter().zip(few.iter().zip(many)).map(|((row, name, unit), (few, many))| {
        Row::new(*row, *name, unit, &[many], ("one of 10,000", &[*few]), Bound::AtMost(2.0, 1.3))
    });
    Ok(rows.collect())
}

async fn measure(count: usize) -> anyhow::Result<Vec<f64>> {
    let mut part = Part::start(&["million", &count.to_string()])?;
    part.line().await?.split(' ').map(|figure| Ok(figure.parse()?)).collect()
}

/// Be a manager and so many stations; prints what each of them costs.
pub(crate) async fn run(count: usize) -> anyhow::Result<()> {
    let (manager, _folder) = part::host().await?;
    let (answered, mut answers) = watch::channel(0);
    let each = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
    let before = part::memory_kib(std::process::id())?;
    let began = Instant::now();
    let (mut registering, mut sessions) = (JoinSet::new(), Vec::with_capacity(count));
    for number in 0..count {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        manager.take(theirs);
        let light = Light::new(number, None, answered.clone());
        registering.spawn(async move { light.register(ours).await });
        if registering.len() >= AT_ONCE
            && let Some(registered) = registering.join_next().await
        {
            sessions.push(registered??);
        }
    }
    while let Some(registered) = registering.join_next().await {
        sessions.push(registered??);
    }
    let registered = each(began.elapsed());
    let memory = (part::memory_kib(std::process::id())? - before) / count as f64;
    let client = Client::connect(&manager.protocol_addr().to_string(), "bench").await?;
    let began = Instant::now();
    apply(&client, json!({ "group": { "all": { "match": "swarm=yes", "roles": { "counter": { "main": {} } } } } }))
        .await?;
    answers.wait_for(|answers| *answers >= count).await?;
    let pushed = each(began.elapsed());
    let began = Instant::now();
    let listed = client.stations("swarm=yes and name=swarm-77").await?;
    anyhow::ensure!(listed.len() == 1, "{} stations are listed", listed.len());
    println!("{registered} {pushed} {} {memory}", each(began.elapsed()));
    part::until_told().await
}
