//! `quiltctl plugin`: roles of third parties, as files and on stations.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use quilt_client::control::PluginView;
use serde::Serialize;

use crate::exit::Failure;
use crate::output::{self, plain};
use crate::{Session, complete, reference};

/// What to do with plugins.
#[derive(Subcommand)]
pub(crate) enum Plugin {
    /// Say what a plugin's file is, without running any of it
    Inspect(File),
    /// List the plugins of a station, or of all
    List(List),
    /// Have a station look at its plugin folders anew, now
    Reload(One),
    /// Lift the quarantine of a plugin that crashed
    Allow(Allow),
}

/// A file.
#[derive(Args)]
pub(crate) struct File {
    /// The library, a file that ends in .so
    file: PathBuf,
}

/// Arguments of `plugin list`.
#[derive(Args)]
pub(crate) struct List {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: Option<String>,
}

/// A station.
#[derive(Args)]
pub(crate) struct One {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: String,
}

/// Arguments of `plugin allow`.
#[derive(Args)]
pub(crate) struct Allow {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: String,
    /// The plugin's name or sha256
    plugin: String,
}

/// A plugin with the station that has it.
#[derive(Serialize)]
struct Row {
    station: String,
    #[serde(flatten)]
    plugin: PluginView,
}

impl Plugin {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        match self {
            Self::Inspect(File { file }) => inspect(session, &file),
            Self::List(List { station }) => list(session, station.as_deref()).await,
            Self::Reload(One { station }) => {
                let client = session.connect().await?;
                let name = reference::name(&client, &station).await?;
                let plugins = client.reload_plugins(&name).await?;
                print(session, rows(name.as_str(), plugins))
            }
            Self::Allow(Allow { station, plugin }) => {
                let client = session.connect().await?;
                let name = reference::name(&client, &station).await?;
                let plugins = client.allow_plugin(&name, &plugin).await?;
                print(session, rows(name.as_str(), plugins))
            }
        }
    }
}

fn inspect(session: &Session, file: &std::path::Path) -> Result<ExitCode, Failure> {
    let found = quilt_station::inspect_plugin(file).map_err(|error| {
        Failure::with_code(crate::exit::REFUSED, format!("{}: {}: it {}", file.display(), error.code, error.text))
    })?;
    output::one(session.format, &found, |found| {
        let (major, lowest, highest) = found.abi;
        let list = |words: &[String]| if words.is_empty() { "none".into() } else { words.join(", ") };
        let lines = [
            ("plugin", format!("{} {}", found.name, found.version)),
            ("sha256", found.sha256.clone()),
            ("size", format!("{} bytes", found.size)),
            ("contract", format!("{major}.{lowest} to {major}.{highest}")),
            (
                "made with",
                if found.sdk.is_empty() { "the C header".into() } else { format!("quilt-plugin-api {}", found.sdk) },
            ),
            ("roles", list(&found.roles)),
            ("a panic", if found.aborts { "ends its process".into() } else { "ends its instance".into() }),
            ("needs", list(&found.needed)),
            ("glibc", found.glibc.clone().unwrap_or_else(|| "any".into())),
            ("exports", list(&found.exports)),
            ("remarks", list(&found.remarks)),
        ];
        let lines: Vec<_> = lines.iter().map(|(key, value)| plain(&format!("{key:<10} {value}"))).collect();
        lines.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn list(session: &Session, station: Option<&str>) -> Result<ExitCode, Failure> {
    let client = session.connect().await?;
    let stations = match station {
        Some(station) => vec![reference::name(&client, station).await?],
        None => {
            let all = client.stations("").await?;
            all.into_iter().filter(|view| view.state.is_here()).map(|view| view.name).collect()
        }
    };
    let mut all = Vec::new();
    for name in stations {
        all.extend(rows(name.as_str(), client.plugins(&name).await?));
    }
    print(session, all)
}

fn rows(station: &str, plugins: Vec<PluginView>) -> Vec<Row> {
    plugins.into_iter().map(|plugin| Row { station: station.into(), plugin }).collect()
}

fn print(session: &Session, rows: Vec<Row>) -> Result<ExitCode, Failure> {
    let columns = ["STATION", "PLUGIN", "VERSION", "STATE", "ROLES", "SHA256", "DETAIL"];
    output::list(session.format, &rows, &columns, |Row { station, plugin }| {
        let name = if plugin.name.is_empty() { &plugin.file } else { &plugin.name };
        let detail = match plugin.detail.as_str() {
            "" => plugin.file.clone(),
            detail => format!("{}: it {detail}", plugin.file),
        };
        vec![
            station.clone(),
            plain(name),
            plain(&plugin.version),
            plugin.state.name().into(),
            plain(&plugin.roles.join(", ")),
            plugin.sha256.chars().take(12).collect(),
            plain(&detail),
        ]
    })?;
    Ok(ExitCode::SUCCESS)
}
