//! What a fleet of light stations costs its manager: coming, being pushed to, beating, and being a nuisance to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use quilt_client::control::{Apply, FleetFile, Wait};
use quilt_client::{CallOptions, Client, Outcome};
use quilt_net::dial;
use quilt_protocol::message::Identity;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Hello, RequestHead, Terms};
use serde_json::json;

use crate::all::All;
use crate::part::Part;
use crate::row::{Bound, Row};
use crate::swarm::Slow;

/// How many stations there are.
const FLEET: usize = 10_000;
pub(crate) const TIME: Duration = Duration::from_secs(120);

fn size(all: &All, of: usize) -> usize {
    if all.quick { of / 50 } else { of }
}

/// A fleet file of about 1 KiB for each of them.
pub(crate) fn fleet(start: usize) -> FleetFile {
    let config = json!({ "start": start, "padding": "x".repeat(900) });
    let fleet = json!({ "group": { "all": { "match": "swarm=yes", "roles": { "counter": { "main": config } } } } });
    serde_json::from_value(fleet).expect("it is a fleet file")
}

pub(crate) async fn apply(client: &Client, fleet: FleetFile, wait: Option<Wait>) -> anyhow::Result<()> {
    let request = Apply { source: "bench".into(), fleet, dry_run: false, force: false, wait, batch: None };
    let reply = client.apply(&request).reply().await?;
    anyhow::ensure!(reply.stored && reply.failures.is_empty() && !reply.timed_out, "{:?}", reply.failures);
    Ok(())
}

/// Until all have taken it.
pub(crate) fn settled() -> Wait {
    Wait { within_ms: TIME.as_millis() as u64, settle_ms: 0, rollback: false }
}

/// A swarm that is there.
pub(crate) async fn swarm(address: &str, count: usize, more: &[&str]) -> anyhow::Result<Part> {
    let count = count.to_string();
    let mut swarm = Part::start(&[&["swarm", address, &count], more].concat())?;
    swarm.until("registered").await?;
    Ok(swarm)
}

/// Coming, all at once and after the manager was killed; accepts a second, and seconds.
pub(crate) async fn storm(all: &All) -> anyhow::Result<Vec<Row>> {
    let count = size(all, FLEET);
    let (mut ours, mut bare, mut back) = (vec![], vec![], vec![]);
    for _ in 0..all.runs().min(3) {
        let mut echo = Part::start(&["echo"])?;
        let address = echo.line().await?;
        let began = Instant::now();
        let mut idle = Part::start(&["idle", &address, &count.to_string()])?;
        idle.line().await?;
        bare.push(count as f64 / began.elapsed().as_secs_f64());
        drop((idle, echo));

        let data = tempfile::tempdir()?;
        let folder = data.path().to_string_lossy().into_owned();
        let mut manager = Part::start(&["manager", "--data-dir", &folder])?;
        let address = manager.line().await?;
        let began = Instant::now();
        let mut stations = swarm(&address, count, &[]).await?;
        ours.push(count as f64 / began.elapsed().as_secs_f64());
        let client = Client::connect(&address, "bench").await?;
        apply(&client, fleet(1), Some(settled())).await?;
        manager.kill().await?;
        let began = Instant::now();
        let mut manager = Part::start(&["manager", "--data-dir", &folder, "--listen", &address])?;
        manager.line().await?;
        stations.until("registered").await?;
        back.push(began.elapsed().as_secs_f64());
        let client = Client::connect(&address, "bench").await?;
        let known = client.stations("swarm=yes").await?;
        let well =
            known.iter().filter(|one| one.state.name() == "connected" && one.applied_digest == one.desired_digest);
        anyhow::ensure!((known.len(), well.count()) == (count, count), "some of {count} are lost");
    }
    let name = format!("registrations of {count} stations with full facts, all at once");
    let base = ("bare connections that say as much", &bare[..]);
    Ok(vec![
        Row::new("storm", name, "1/s", &ours, base, Bound::AtLeast(0.4, 0.8)),
        Row::absolute("storm-back", format!("{count} back after kill -9 of the manager"), "s", &back, 15.0, 5.0),
    ])
}

/// Pushes: what an unchanged one costs the manager, and how long a change takes.
pub(crate) async fn push(all: &All) -> anyhow::Result<Vec<Row>> {
    let count = size(all, FLEET);
    let mut pusher = Part::start(&["pusher", &count.to_string()])?;
    let address = pusher.line().await?;
    let _pushed = Part::start(&["pushed", &address, &count.to_string()])?;
    pusher.until("connected").await?;
    let mut manager = Part::start(&["manager"])?;
    let address = manager.line().await?;
    let files = tempfile::tempdir()?;
    let mut swarm = swarm(&address, count, &["--durable", &files.path().to_string_lossy()]).await?;
    let client = Client::connect_within(&address, "bench", TIME).await?;
    let (mut ours, mut bare, mut applied) = (vec![], vec![], vec![]);
    for run in 0..=all.runs() {
        let before = pusher.cpu()?;
        pusher.tell("push").await?;
        pusher.until("done").await?;
        let pushed = (pusher.cpu()? - before).as_secs_f64() * 1e3;
        let began = Instant::now();
        apply(&client, fleet(run), Some(settled())).await?;
        let took = began.elapsed().as_secs_f64();
        swarm.until("answered").await?;
        // What a change leaves to do, such as noting 2 s later that it runs well, is not the unchanged one's.
        manager.until_calm().await?;
        let before = manager.cpu()?;
        apply(&client, fleet(run), None).await?;
        swarm.until("answered").await?;
        // Answered in its turn: after the answers that wait for it now.
        client.clients().await?;
        let unchanged = (manager.cpu()? - before).as_secs_f64() * 1e3;
        // The first round warms both sides up.
        if run > 0 {
            ours.push(unchanged);
            bare.push(pushed);
            applied.push(took);
        }
    }
    let name = format!("CPU of the manager for 1 KiB to {count}: planned, found unchanged, acknowledged");
    Ok(vec![
        Row::new("push-cpu", name, "ms", &ours, ("a bare push and its answers", &bare), Bound::AtMost(1.3, 1.0)),
        Row::absolute(
            "apply",
            format!("apply that changes {count} stations, each synced to disk and applied"),
            "s",
            &applied,
            5.0,
            3.0,
        ),
    ])
}

/// What only being there costs the manager.
pub(crate) async fn beat(all: &All) -> anyhow::Result<Vec<Row>> {
    let count = size(all, 15_000);
    let mut manager = Part::start(&["manager"])?;
    let _swarm = swarm(&manager.line().await?, count, &[]).await?;
    // Heartbeats are paced anew every 10 s.
    tokio::time::sleep(Duration::from_secs(if all.quick { 1 } else { 25 })).await;
    let mut shares = Vec::new();
    for _ in 0..all.runs() {
        let (before, began) = (manager.cpu()?, Instant::now());
        tokio::time::sleep(Duration::from_secs(if all.quick { 1 } else { 10 })).await;
        shares.push((manager.cpu()? - before).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0);
    }
    let name = format!("share of a core for the heartbeats of {count} stations");
    Ok(vec![Row::absolute("beat", name, "%", &shares, 3.0, 1.0)])
}

/// What others notice of peers that hardly read, of large answers, and of stations that come and go.
pub(crate) async fn nuisance(all: &All) -> anyhow::Result<Vec<Row>> {
    let count = size(all, FLEET).max(1100);
    let mut manager = Part::start(&["manager"])?;
    let address = manager.line().await?;
    let mut stations = swarm(&address, count, &[]).await?;
    let client = Client::connect(&address, "bench").await?;
    let time = Duration::from_secs(if all.quick { 1 } else { 5 });
    let (mut ours, mut base) = (vec![], vec![]);
    for run in 0..=all.runs().min(3) {
        let undisturbed = p99(&client, time).await?;
        let slow = count.to_string();
        let nuisances = swarm(&address, 10, &["--slow", "10", "--first", &slow]).await?;
        stations.tell(&format!("churn {}", count / 100)).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let large = tokio::spawn(large_answers(address.clone(), stop.clone()));
        let disturbed = p99(&client, time).await?;
        stop.store(true, Ordering::Relaxed);
        anyhow::ensure!(large.await?? > 0, "there were no large answers");
        stations.tell("churn 0").await?;
        drop(nuisances);
        tokio::time::sleep(Duration::from_secs(2)).await;
        if run > 0 {
            ours.push(disturbed);
            base.push(undisturbed);
        }
    }
    let name = "p99 of calls beside slow readers, 8 MiB answers and 1 % of 10,000 stations coming and going a second";
    Ok(vec![Row::new("nuisance", name, "us", &ours, ("undisturbed", &base), Bound::AtMost(2.0, 1.3))])
}

/// The time in microseconds that all but one call in a hundred take.
async fn p99(client: &Client, time: Duration) -> anyhow::Result<f64> {
    let options = CallOptions { timeout: Duration::from_secs(10), idempotent: false, retry: false };
    let (until, mut times, mut number) = (Instant::now() + time, Vec::new(), 0);
    while Instant::now() < until {
        number = (number + 1) % 1000;
        let target = format!("swarm-{number}/counter/main").parse().map_err(anyhow::Error::msg)?;
        let began = Instant::now();
        let answer = client.call_json(&target, "echo", Bytes::from_static(b"{}"), &options).await;
        anyhow::ensure!(answer.outcome == Outcome::Reply, "{:?}", answer.outcome);
        times.push(began.elapsed());
    }
    times.sort();
    let p99 = times.get(times.len() * 99 / 100).context("calls were made")?;
    Ok(p99.as_secs_f64() * 1e6)
}

/// Asks for large answers, and on another connection does not take them; answers how many came.
async fn large_answers(address: String, stop: Arc<AtomicBool>) -> anyhow::Result<usize> {
    let hello = Hello {
        versions: SPOKEN,
        software: "quilt-bench".into(),
        fleet: None,
        identity: Identity::Tool("slow".parse()?),
        features: Vec::new(),
        extensions: Default::default(),
    };
    let stream = Slow::new(dial(&address, Duration::from_secs(5)).await?);
    let (slow, _) = quilt_net::connect(stream, hello, Arc::new(quilt_net::NoService)).await?;
    let mut head = RequestHead::new(Terms::new("swarm-0/counter/main".parse()?, "big"));
    head.remaining_ms = 60_000;
    let _pending: Vec<_> = (0..4).map(|_| slow.request(&head, Bytes::new())).collect();
    let client = Client::connect(&address, "large").await?;
    let options = CallOptions { timeout: Duration::from_secs(10), idempotent: false, retry: false };
    let target = "swarm-1/counter/main".parse().map_err(anyhow::Error::msg)?;
    let mut came = 0;
    while !stop.load(Ordering::Relaxed) {
        let answer = client.call_json(&target, "big", Bytes::new(), &options).await;
        came += usize::from(answer.outcome == Outcome::Reply);
        // A large answer now and then, not all there is room for.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(came)
}
