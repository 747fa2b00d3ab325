//! `quiltctl plugin`: roles of third parties, as files and on stations.

mod check;
mod new;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use quilt_client::control::{FleetFile, GroupEntry, PLUGIN_SOURCE, PluginView, ProblemCode, Share, Wait};
use quilt_core::words;
use quilt_protocol::Name;
use serde::Serialize;

use crate::exit::Failure;
use crate::output::{self, plain};
use crate::{Session, apply, complete, reference, seconds};

/// What to do with plugins.
#[derive(Subcommand)]
pub(crate) enum Plugin {
    /// Make a folder with a plugin to begin with; it builds, tests and loads as it is
    New(new::New),
    /// Say what a plugin's file is, without running any of it
    Inspect(File),
    /// Run a plugin and see whether it keeps what a station expects, each check in a process of its own
    Check(check::Check),
    /// List the plugins of a station, or of all
    List(List),
    /// Give a plugin to all stations that a selector matches, now and later
    Push(Push),
    /// Take a plugin that was pushed from all stations
    Remove(Remove),
    /// Have a station look at its plugins anew, now; also at those that it did not take
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
    /// What pushes and fleet files give to stations, also where no station matches yet
    #[arg(long, conflicts_with = "station")]
    pushed: bool,
}

/// A station.
#[derive(Args)]
pub(crate) struct One {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: String,
}

/// Arguments of `plugin push`.
#[derive(Args)]
pub(crate) struct Push {
    /// The library, a file that ends in .so
    file: PathBuf,
    /// Which stations, such as "room=a" or "name=*", instead of those that an earlier push of the plugin named
    #[arg(long, value_name = "SELECTOR", value_parser = reference::selector)]
    on: String,
    #[command(flatten)]
    rollout: Rollout,
}

/// Arguments of `plugin remove`.
#[derive(Args)]
pub(crate) struct Remove {
    /// The plugin's name
    plugin: Name,
    #[command(flatten)]
    rollout: Rollout,
}

/// How a change reaches the stations.
#[derive(Args)]
struct Rollout {
    /// How long to follow until it works everywhere; 0 does not follow
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds)]
    wait: Duration,
    /// How long every instance must stay healthy
    #[arg(long, value_name = "S", default_value = "0", value_parser = seconds)]
    settle: Duration,
    /// Go back to what was before if it does not work
    #[arg(long)]
    rollback: bool,
    /// How many stations at a time, as a number or percentage
    #[arg(long, value_name = "N|N%")]
    batch: Option<Share>,
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
            Self::New(new) => new.run(),
            Self::Inspect(File { file }) => inspect(session, &file),
            Self::Check(check) => check.run(session).await,
            Self::Push(push) => push.run(session).await,
            Self::Remove(Remove { plugin, rollout }) => rollout.apply(session, &plugin, None).await,
            Self::List(List { pushed: true, .. }) => list_given(session).await,
            Self::List(List { station, .. }) => list(session, station.as_deref()).await,
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

impl Push {
    async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        // Looked at here first: what cannot be a plugin need not travel.
        let found = quilt_station::inspect_plugin(&self.file).map_err(|error| refused(&self.file, &error))?;
        let content = std::fs::read(&self.file)?;
        let client = session.connect().await?;
        let bar = ProgressBar::new(content.len() as u64);
        bar.set_style(
            ProgressStyle::with_template("storing {bytes}/{total_bytes} {bar:40}").expect("a fixed template"),
        );
        let sha256 = client.store_file(&content, |there| bar.set_position(there)).await?;
        bar.finish_and_clear();
        let name = found.name.parse().map_err(|error| Failure::new(format!("its name: {error}")))?;
        let plugins = BTreeMap::from([(Name::clone(&name), sha256)]);
        let group = GroupEntry { selector: self.on.clone(), plugins, roles: BTreeMap::new() };
        self.rollout.apply(session, &name, Some(group)).await
    }
}

impl Rollout {
    /// What is pushed is a group of its own in the fleet, under a source of its own.
    async fn apply(self, session: &Session, plugin: &Name, group: Option<GroupEntry>) -> Result<ExitCode, Failure> {
        let client = session.connect().await?;
        let name = format!("plugin-{plugin}").parse().map_err(|error| Failure::new(format!("{error}")))?;
        let request = quilt_client::control::Apply {
            source: format!("{PLUGIN_SOURCE}{plugin}"),
            fleet: FleetFile {
                group: group.into_iter().map(|group| (Name::clone(&name), group)).collect(),
                ..Default::default()
            },
            dry_run: false,
            force: false,
            wait: (!self.wait.is_zero()).then_some(Wait {
                within_ms: self.wait.as_millis() as u64,
                settle_ms: self.settle.as_millis() as u64,
                rollback: self.rollback,
            }),
            batch: self.batch,
        };
        let waited = request.wait.is_some();
        let is_removal = request.fleet.group.is_empty();
        let on = request.fleet.group.get(&name).map(|group| group.selector.clone()).unwrap_or_default();
        let reply = apply::follow(session, &client, &request).await?;
        if is_removal && reply.entries.is_empty() && reply.rejection.is_none() && reply.mistakes.is_empty() {
            return Err(Failure::new(format!(
                "{plugin} was not pushed; one that is in a station's folder goes with its file (`quiltctl plugin list`)"
            )));
        }
        apply::report(session.format, None, &reply, false, &[])?;
        if let Some(rejection) = &reply.rejection {
            let is_missing = rejection.problems.iter().all(|problem| problem.code == ProblemCode::MissingRoleFactory);
            if is_removal && is_missing {
                eprintln!(
                    "a fleet file asks for a role that would be gone; take it out there and apply that first (`quiltctl \
                     history STATION` names the file)"
                );
            }
        } else if !is_removal && reply.targets == 0 && reply.mistakes.is_empty() {
            eprintln!(
                "{plugin} is stored for stations that match {on:?}, and none is known yet; `quiltctl plugin list --pushed` \
                 shows it, `quiltctl plugin remove {plugin}` takes it back"
            );
        }
        Ok(apply::code(&reply, false, waited))
    }
}

fn refused(file: &std::path::Path, error: &quilt_station::RefusedPlugin) -> Failure {
    let text = format!("{}: {}: it {}", file.display(), error.code, error.text);
    Failure::with_code(crate::exit::REFUSED, text)
}

fn inspect(session: &Session, file: &std::path::Path) -> Result<ExitCode, Failure> {
    let found = quilt_station::inspect_plugin(file).map_err(|error| refused(file, &error))?;
    output::one(session.format, &found, |found| {
        let (major, lowest, highest) = found.abi;
        let list = |words: &[String]| if words.is_empty() { "none".into() } else { quilt_core::words::list(words) };
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
            let all = client.stations("").await?.into_iter();
            let (here, away): (Vec<_>, Vec<_>) = all.partition(|view| view.state.is_here());
            if !away.is_empty() {
                let away: Vec<_> = away.iter().map(|view| view.name.as_str()).collect();
                eprintln!("not there: {}", away.join(", "));
            }
            here.into_iter().map(|view| view.name).collect()
        }
    };
    let mut all = Vec::new();
    for name in stations {
        all.extend(rows(name.as_str(), client.plugins(&name).await?));
    }
    if station.is_none() {
        let given = client.given_plugins().await?;
        let waiting = given.iter().filter(|given| given.stations.is_empty());
        let waiting: Vec<_> = waiting.map(|given| format!("{} (on {})", given.plugin, plain(&given.on))).collect();
        if !waiting.is_empty() {
            eprintln!("pushed, and no station matches: {}", words::list(&waiting));
        }
    }
    print(session, all)
}

async fn list_given(session: &Session) -> Result<ExitCode, Failure> {
    let given = session.connect().await?.given_plugins().await?;
    let columns = ["PLUGIN", "SHA256", "ON", "FROM", "STATIONS"];
    output::list(session.format, &given, &columns, |given| {
        vec![
            given.plugin.to_string(),
            given.sha256.to_string()[..12].to_owned(),
            plain(&given.on),
            plain(&given.source),
            words::list(&given.stations),
        ]
    })?;
    Ok(ExitCode::SUCCESS)
}

fn rows(station: &str, plugins: Vec<PluginView>) -> Vec<Row> {
    plugins.into_iter().map(|plugin| Row { station: station.into(), plugin }).collect()
}

fn print(session: &Session, rows: Vec<Row>) -> Result<ExitCode, Failure> {
    let columns = ["STATION", "PLUGIN", "VERSION", "STATE", "CODE", "ROLES", "SHA256", "DETAIL"];
    output::list(session.format, &rows, &columns, |Row { station, plugin }| {
        let file = plugin.file.rsplit('/').next().unwrap_or_default();
        let name = if plugin.name.is_empty() { file } else { &plugin.name };
        let detail = match plugin.detail.as_str() {
            "" => plugin.file.clone(),
            detail => format!("{}: it {detail}", plugin.file),
        };
        vec![
            station.clone(),
            plain(name),
            plain(&plugin.version),
            plugin.state.name().into(),
            plugin.code.clone().unwrap_or_default(),
            plain(&plugin.roles.join(", ")),
            plugin.sha256.chars().take(12).collect(),
            plain(&detail),
        ]
    })?;
    Ok(ExitCode::SUCCESS)
}
