//! What it costs to call a role of a plugin, beside the same role linked in, and beside a bare ping-pong with a process.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use quilt_plugin_api::testing::{Harness, Outcome};
use quilt_plugin_api::{Command as _, RoleFactory};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::imp::{Echo, Imp, Quick};
use crate::kills;
use crate::row::{Bound, Row};

/// Bodies of these sizes are sent and sent back: name of the row in the station, of the one in a child, bytes, calls.
const BODIES: [(&str, &str, usize, usize); 3] = [
    ("plugin-64b", "child-64b", 64, 20_000),
    ("plugin-64k", "child-64k", 64 << 10, 1000),
    ("plugin-16m", "child-16m", 16 << 20, 6),
];
const INSIDE: &str = "inline command in the station, bincode both ways, p50";
const LINKED: &str = "the role linked in";
const OUTSIDE: &str = "command in a child, p50";
const BYTES: &str = "as many bytes to a process and back";

/// Measures all of it.
pub(crate) async fn rows(runs: usize, quick: bool) -> anyhow::Result<Vec<Row>> {
    let library = build()?;
    let folder = tempfile::tempdir()?;
    let linked = Harness::start::<Imp>(json!({}), folder.path()).await?;
    let inside = start(&library, true, folder.path()).await?;
    let child = start(&library, false, folder.path()).await?;
    let mut pong = Pong::start()?;
    let mut rows = Vec::new();
    for (name, name_of_child, size, count) in BODIES {
        let count = if quick { count.div_ceil(20) } else { count };
        let (mut ours, mut base, mut theirs, mut bare) = (vec![], vec![], vec![], vec![]);
        for _ in 0..runs {
            base.push(calls(&linked, size, count).await?);
            ours.push(calls(&inside, size, count).await?);
            bare.push(pong.calls(size, count).await?);
            theirs.push(calls(&child, size, count).await?);
        }
        let inside = if size == 64 { Bound::AtMost(2.0, 2.0) } else { Bound::None };
        rows.push(Row::new(name, INSIDE, "us", &ours, (LINKED, &base), inside));
        let outside = if size == 64 { Bound::AtMost(1.6, 1.6) } else { Bound::None };
        rows.push(Row::new(name_of_child, OUTSIDE, "us", &theirs, (BYTES, &bare), outside));
    }
    let (mut ours, mut base) = (vec![], vec![]);
    for _ in 0..runs {
        let count = if quick { 1000 } else { 20_000 };
        base.push(spawned(&linked, count).await?);
        ours.push(spawned(&inside, count).await?);
    }
    let name = "spawned command in the station: on the plugin's own runtime and back, p50";
    rows.push(Row::new("plugin-spawned", name, "us", &ours, (LINKED, &base), Bound::None));
    let (mut ours, mut base) = (vec![], vec![]);
    for _ in 0..runs.max(3) {
        let began = Instant::now();
        Pong::start()?.calls(64, 1).await?;
        base.push(began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        load(&library, false).await?;
        ours.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let name = "start of a child to its first reply";
    rows.push(Row::new("child-start", name, "ms", &ours, ("the same of a bare process", &base), Bound::None));
    rows.extend(kills::rows(runs, quick).await?);
    Ok(rows)
}

/// Builds the test plugin as an author would.
fn build() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("benches has a parent")?;
    let target = root.join("target/plugins/imp");
    let built = std::process::Command::new("cargo")
        .args(["build", "--release", "--locked", "--quiet", "--manifest-path"])
        .arg(root.join("tests/fixtures/imp/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()?;
    anyhow::ensure!(built.success(), "the plugin does not build");
    Ok(target.join("release/libimp.so"))
}

async fn load(library: &Path, in_station: bool) -> anyhow::Result<std::sync::Arc<dyn RoleFactory>> {
    let roles = quilt_station::load_plugin(library, in_station).await;
    let roles = roles.map_err(|error| anyhow::anyhow!("{}: it {}", error.code, error.text))?;
    roles.into_iter().next().context("it has a role")
}

async fn start(library: &Path, in_station: bool, folder: &Path) -> anyhow::Result<Harness> {
    Ok(Harness::start_one_of(&*load(library, in_station).await?, json!({}), folder).await?)
}

/// How long a call takes that sends a text and gets it back, in microseconds.
async fn calls(harness: &Harness, size: usize, count: usize) -> anyhow::Result<f64> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let request = Quick { text: "x".repeat(size) };
        let began = Instant::now();
        let outcome = harness.call(request).await;
        times.push(began.elapsed());
        anyhow::ensure!(matches!(&outcome, Outcome::Reply(text) if text.len() >= size), "{} failed", Quick::NAME);
    }
    Ok(median(times).as_secs_f64() * 1e6)
}

/// How long a call takes that is carried out on the role's own runtime, in microseconds.
async fn spawned(harness: &Harness, count: usize) -> anyhow::Result<f64> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        let outcome = harness.call(Echo { text: "x".repeat(64) }).await;
        times.push(began.elapsed());
        anyhow::ensure!(matches!(outcome, Outcome::Reply(_)), "{} failed", Echo::NAME);
    }
    Ok(median(times).as_secs_f64() * 1e6)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

type Frames = Framed<UnixStream, LengthDelimitedCodec>;

/// A process that sends back what comes, over a socket pair like that of a plugin's child.
struct Pong {
    frames: Frames,
    _process: Child,
}

impl Pong {
    fn start() -> anyhow::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs.into_std()?);
        let mut command = Command::new(std::env::current_exe()?);
        let process = command.arg("pong").stdin(Stdio::from(theirs)).kill_on_drop(true).spawn()?;
        Ok(Self { frames: framed(ours), _process: process })
    }

    async fn calls(&mut self, size: usize, count: usize) -> anyhow::Result<f64> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let body = Bytes::from(vec![7; size]);
            let began = Instant::now();
            self.frames.send(body).await?;
            self.frames.next().await.context("it ended")??;
            times.push(began.elapsed());
        }
        Ok(median(times).as_secs_f64() * 1e6)
    }
}

fn framed(stream: UnixStream) -> Frames {
    LengthDelimitedCodec::builder().max_frame_length(32 << 20).new_framed(stream)
}

/// Be the process that sends back what comes.
pub(crate) async fn pong() -> anyhow::Result<()> {
    let socket = std::os::unix::net::UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let mut frames = framed(UnixStream::from_std(socket)?);
    while let Some(frame) = frames.next().await {
        frames.send(frame?.freeze()).await?;
    }
    Ok(())
}
