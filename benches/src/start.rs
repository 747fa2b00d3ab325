//! How long the programs take to be there, and how large they are.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::Context as _;
use quilt_client::Client;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::all::All;
use crate::row::Row;

/// The three programs as they are shipped.
const PROGRAMS: [&str; 3] = ["quilt-manager", "quilt-station", "quiltctl"];

/// Starts of the real programs with an empty store, and their sizes.
pub(crate) async fn rows(all: &All) -> anyhow::Result<Vec<Row>> {
    let folder = build()?;
    let (mut manager, mut station) = (vec![], vec![]);
    for _ in 0..all.runs() {
        let data = tempfile::tempdir()?;
        let began = Instant::now();
        let (_manager, address) = start(&folder, data.path(), "quilt-manager", &["--listen", "127.0.0.1:0"]).await?;
        manager.push(began.elapsed().as_secs_f64() * 1e3);
        let client = Client::connect(&address, "bench").await?;
        let began = Instant::now();
        let _station =
            start(&folder, data.path(), "quilt-station", &["--manager", &address, "--name", "bench"]).await?;
        while client.stations("state=connected").await?.is_empty() {
            tokio::task::yield_now().await;
        }
        station.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let mut rows = vec![
        Row::absolute("start-manager", "the manager, from exec to listening", "ms", &manager, 50.0, 20.0),
        Row::absolute("start-station", "a station, from exec to registered", "ms", &station, 100.0, 50.0),
    ];
    for program in PROGRAMS {
        let size = std::fs::metadata(folder.join(program))?.len() as f64 / 1e6;
        rows.push(Row::absolute(format!("size-{program}"), "the program, stripped", "MB", &[size], 20.0, 12.0));
    }
    Ok(rows)
}

/// Builds the programs, into the folder that this one is in.
fn build() -> anyhow::Result<PathBuf> {
    let built = std::process::Command::new("cargo")
        .args(["build", "--release", "--locked", "--quiet", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"))
        .args(PROGRAMS.iter().flat_map(|program| ["--bin", program]))
        .status()?;
    anyhow::ensure!(built.success(), "the programs do not build");
    Ok(std::env::current_exe()?.parent().context("a program is in a folder")?.to_owned())
}

/// Starts a program; gives it with the address in the first line it prints.
async fn start(folder: &Path, data: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<(Child, String)> {
    let mut command = Command::new(folder.join(program));
    command.args(arguments).arg("--data-dir").arg(data.join(program)).env("QUILT_CFG_DIR", data);
    if program == "quilt-manager" {
        command.args(["--http", "127.0.0.1:0"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("it was piped")?).lines();
    let line = lines.next_line().await?.with_context(|| format!("{program} ended early"))?;
    Ok((child, line.rsplit(' ').next().unwrap_or_default().to_owned()))
}
