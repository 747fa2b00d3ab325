//! Calls: one hop from the program that hosts the manager, and through the manager, beside bare frames, tarpc and NATS.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use anyhow::Context as _;
use futures_util::future::try_join_all;
use quilt_client::Client;
use serde_json::json;

use crate::all::{All, apply};
use crate::awake::Awake;
use crate::baseline;
use crate::echo::Payload;
use crate::part::{self, Part, Peers};
use crate::row::{Bound, Row};

/// On how many connections calls are made in the row of several.
const CONNECTIONS: usize = 8;

/// Somebody who makes calls, one way or another.
enum Caller {
    Bare(String),
    /// Each over a connection of its own to the same role.
    Quilt(Vec<(Client, String)>),
    Peer(Box<Part>),
}

impl Caller {
    /// What is cheap is measured for as long as what is dear.
    fn scaled(&self, window: usize, count: usize) -> usize {
        if matches!(self, Self::Bare(_)) && window > 1 { 8 * count } else { count }
    }

    /// The median time of a call in microseconds, and calls a second.
    async fn run(&mut self, window: usize, count: usize) -> anyhow::Result<(f64, f64)> {
        let scaled = self.scaled(window, count);
        match self {
            Self::Bare(address) => baseline::calls(address, connections(window), window, scaled).await,
            Self::Quilt(clients) => calls(&clients[..connections(window)], window, count).await,
            Self::Peer(part) => {
                part.tell(&format!("{window} {count}")).await?;
                let line = part.line().await?;
                let (median, rate) = line.split_once(' ').context("a median and a rate")?;
                Ok((median.parse()?, rate.parse()?))
            }
        }
    }
}

/// More in flight than one connection is measured with go over several.
fn connections(window: usize) -> usize {
    if window > 64 { CONNECTIONS } else { 1 }
}

async fn calls(clients: &[(Client, String)], window: usize, count: usize) -> anyhow::Result<(f64, f64)> {
    let (request, began) = (Payload::usual(), Instant::now());
    let (left, times) = (Cell::new(count), RefCell::new(Vec::with_capacity(count)));
    let caller = |number: usize| {
        let ((client, target), request, left, times) = (&clients[number % clients.len()], &request, &left, &times);
        async move {
            while let Some(fewer) = left.get().checked_sub(1) {
                left.set(fewer);
                let began = Instant::now();
                client.call(target, request).await?;
                times.borrow_mut().push(began.elapsed());
            }
            anyhow::Ok(())
        }
    };
    try_join_all((0..window).map(caller)).await?;
    let (rate, mut times) = (count as f64 / began.elapsed().as_secs_f64(), times.into_inner());
    times.sort();
    Ok((times[count / 2].as_secs_f64() * 1e6, rate))
}

/// What a contender's runs came to.
#[derive(Default)]
struct Figures {
    idle: Vec<f64>,
    awake: Vec<f64>,
    many: Vec<f64>,
    several: Vec<f64>,
    /// CPU of the server for each call with 64 in flight, in microseconds.
    cpu: Vec<f64>,
}

/// Has every contender make its calls, in turns.
async fn measure(contenders: &mut [(Caller, &Part)], runs: usize, quick: bool) -> anyhow::Result<Vec<Figures>> {
    let scale = if quick { 20 } else { 1 };
    let mut figures: Vec<_> = contenders.iter().map(|_| Figures::default()).collect();
    for run in 0..=runs {
        for ((caller, server), figures) in contenders.iter_mut().zip(&mut figures) {
            let idle = caller.run(1, 5000 / scale).await?.0;
            let awake = Awake::start()?;
            let single = caller.run(1, 20_000 / scale).await?.0;
            drop(awake);
            let (count, before) = (200_000 / scale, server.cpu()?);
            let many = caller.run(64, count).await?.1;
            let cpu = (server.cpu()? - before).as_secs_f64() * 1e6 / caller.scaled(64, count) as f64;
            let several = caller.run(CONNECTIONS * 32, count).await?.1;
            // The first warms everything up.
            if run > 0 {
                figures.idle.push(idle);
                figures.awake.push(single);
                figures.many.push(many);
                figures.several.push(several);
                figures.cpu.push(cpu);
            }
        }
    }
    Ok(figures)
}

/// Stations in one process, and the echo role on each.
async fn echoing(manager: &str) -> anyhow::Result<(Part, Client, Vec<String>)> {
    let mut stations = Part::start(&["station", manager, "--count", &CONNECTIONS.to_string()])?;
    stations.line().await?;
    let client = Client::connect(manager, "bench").await?;
    apply(&client, json!({ "group": { "all": { "match": "name=*", "roles": { "echo": { "main": {} } } } } })).await?;
    let targets: Vec<_> = (0..CONNECTIONS).map(|number| format!("bench-{number}/echo/main")).collect();
    for target in &targets {
        // Until it is there.
        while client.call(target, &Payload::usual()).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
    Ok((stations, client, targets))
}

/// One hop: the manager's library to a role's command on a station.
pub(crate) async fn hop(all: &All, peers: Option<&Peers>) -> anyhow::Result<Vec<Row>> {
    let mut echo = Part::start(&["echo"])?;
    let bare = Caller::Bare(echo.line().await?);
    let (manager, _folder) = part::host().await?;
    let (stations, _tool, targets) = echoing(&manager.protocol_addr().to_string()).await?;
    let station = |target: String| {
        let name = target.split('/').next().unwrap_or_default().parse()?;
        Ok((manager.station(&name).map_err(anyhow::Error::msg)?, target))
    };
    let ours = Caller::Quilt(targets.into_iter().map(station).collect::<anyhow::Result<_>>()?);
    let tarpc = match peers {
        Some(peers) => {
            let mut server = peers.start(&["tarpc-serve"])?;
            let address = server.line().await?;
            let mut caller = peers.start(&["tarpc-call", &address])?;
            caller.line().await?;
            Some((server, Caller::Peer(Box::new(caller))))
        }
        None => None,
    };
    let mut contenders = vec![(bare, &echo), (ours, &stations)];
    let server;
    if let Some((tarpc, caller)) = tarpc {
        server = tarpc;
        contenders.push((caller, &server));
    }
    let figures = measure(&mut contenders, all.runs(), all.quick).await?;
    let (bare, ours) = (&figures[0], &figures[1]);
    let base = "bare frames";
    let mut rows = vec![
        Row::new(
            "hop",
            "one call at a time, cores awake, p50",
            "us",
            &ours.awake,
            (base, &bare.awake),
            Bound::AtMost(1.3, 1.15),
        ),
        Row::new("hop-idle", "the same, cores may sleep", "us", &ours.idle, (base, &bare.idle), Bound::None),
        Row::new(
            "hop-64",
            "64 in flight on one connection",
            "calls/s",
            &ours.many,
            (base, &bare.many),
            Bound::AtLeast(0.35, 0.5),
        ),
        Row::new(
            "hop-8x32",
            "32 in flight on each of 8",
            "calls/s",
            &ours.several,
            (base, &bare.several),
            Bound::AtLeast(0.3, 0.4),
        ),
        Row::new(
            "hop-cpu",
            "CPU of the station a call, 64 in flight",
            "us",
            &ours.cpu,
            (base, &bare.cpu),
            Bound::AtMost(3.0, 2.0),
        ),
    ];
    if let Some(tarpc) = figures.get(2) {
        rows.extend([
            Row::new(
                "hop/tarpc",
                "one call at a time, cores awake, p50",
                "us",
                &ours.awake,
                ("tarpc", &tarpc.awake),
                Bound::AtMost(1.0, 1.0),
            ),
            Row::new(
                "hop-64/tarpc",
                "64 in flight on one connection",
                "calls/s",
                &ours.many,
                ("tarpc", &tarpc.many),
                Bound::AtLeast(2.5, 4.0),
            ),
            Row::new(
                "hop-cpu/tarpc",
                "CPU of the station a call, 64 in flight",
                "us",
                &ours.cpu,
                ("tarpc", &tarpc.cpu),
                Bound::AtMost(1.0 / 3.0, 0.2),
            ),
        ]);
    }
    Ok(rows)
}

/// Two hops: a tool through the manager to a role's command on a station.
pub(crate) async fn relay(all: &All, peers: Option<&Peers>) -> anyhow::Result<Vec<Row>> {
    let mut echo = Part::start(&["echo"])?;
    let bare = Caller::Bare(echo.line().await?);
    let mut manager = Part::start(&["manager"])?;
    let address = manager.line().await?;
    let (_stations, _, targets) = echoing(&address).await?;
    let mut tools = Vec::new();
    for target in targets {
        tools.push((Client::connect(&address, "bench").await?, target));
    }
    let mut contenders = vec![(bare, &echo), (Caller::Quilt(tools), &manager)];
    let nats = match peers {
        Some(peers) => Some(peers.nats().await?),
        None => None,
    };
    let server;
    let _responder;
    if let Some((broker, responder, caller)) = nats {
        (server, _responder) = (broker, responder);
        contenders.push((Caller::Peer(Box::new(caller)), &server));
    }
    let figures = measure(&mut contenders, all.runs(), all.quick).await?;
    let (bare, ours) = (&figures[0], &figures[1]);
    let base = "bare frames, one hop";
    let mut rows = vec![
        Row::new(
            "relay",
            "tool > manager > station > role, cores awake, p50",
            "us",
            &ours.awake,
            (base, &bare.awake),
            Bound::None,
        ),
        Row::new("relay-idle", "the same, cores may sleep", "us", &ours.idle, (base, &bare.idle), Bound::None),
        Row::new(
            "relay-64",
            "the same, 64 in flight on one connection",
            "calls/s",
            &ours.many,
            (base, &bare.many),
            Bound::None,
        ),
        Row::new(
            "relay-cpu",
            "CPU of the manager a call, 64 in flight",
            "us",
            &ours.cpu,
            (base, &bare.cpu),
            Bound::None,
        ),
    ];
    if let Some(nats) = figures.get(2) {
        let name = "NATS request-reply";
        rows.extend([
            Row::new(
                "relay/nats",
                "tool > manager > station > role, cores awake, p50",
                "us",
                &ours.awake,
                (name, &nats.awake),
                Bound::AtMost(1.0, 0.85),
            ),
            Row::new(
                "relay-idle/nats",
                "the same, cores may sleep",
                "us",
                &ours.idle,
                (name, &nats.idle),
                Bound::AtMost(0.75, 0.75),
            ),
            Row::new(
                "relay-64/nats",
                "64 in flight on one connection",
                "calls/s",
                &ours.many,
                (name, &nats.many),
                Bound::AtLeast(2.5, 4.0),
            ),
        ]);
    }
    Ok(rows)
}
