//! `quiltctl stations`, `quiltctl station ..`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use quilt_client::control::{StationState, StationView};
use quilt_core::words::count;

use crate::exit::Failure;
use crate::folders::{Folders, Purge};
use crate::output::{self, Format, plain};
use crate::{Session, complete, reference};

/// Arguments of `stations`.
#[derive(Args)]
pub(crate) struct Stations {
    /// Only those that match, such as room=a, name=cam-* or role=process (those that can run it)
    #[arg(value_name = "SELECTOR", value_parser = reference::selector)]
    selector: Option<String>,
}

impl Stations {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let client = session.connect().await?;
        let stations = client.stations(self.selector.as_deref().unwrap_or_default()).await?;
        if let Some(selector) = &self.selector {
            reference::note_unknown_labels(&client, selector).await;
        }
        let wide = session.format == Format::Wide;
        let columns: &[&str] = match wide {
            false => &["NAME", "STATE", "INSTANCES", "REVISION", "NOTES"],
            true => &[
                "NAME",
                "STATE",
                "INSTANCES",
                "DESIRED",
                "APPLIED",
                "HOSTNAME",
                "MAC",
                "IP",
                "ID",
                "LABELS",
                "LAST SEEN",
                "NOTES",
            ],
        };
        output::list(session.format, &stations, columns, |station| row(station, wide))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn row(station: &StationView, wide: bool) -> Vec<String> {
    let revision = |revision: Option<_>| revision.map_or_else(|| "-".into(), |revision| format!("{revision}"));
    let (desired, applied) = (revision(station.desired_revision), revision(station.applied_revision));
    let mut notes = station.flags.clone();
    if let Some(rejected) = &station.rejected {
        notes.insert(0, format!("rejected {}: {}", rejected.revision, rejected.rejection.message));
    }
    let notes = plain(&notes.join("; "));
    let start = [station.name.to_string(), station.state.name().to_owned(), summary(station)];
    if !wide {
        let shown = if desired == applied { desired } else { format!("{applied} of {desired}") };
        return start.into_iter().chain([shown, notes]).collect();
    }
    let labels: Vec<_> = station.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let or_dash = |text: &Option<String>| plain(text.as_deref().unwrap_or("-"));
    let rest = [
        desired,
        applied,
        plain(&station.hostname),
        or_dash(&station.mac),
        or_dash(&station.ip),
        station.id.to_string(),
        plain(&labels.join(",")),
        station.last_seen.as_deref().map_or_else(|| "-".into(), output::age),
        notes,
    ];
    start.into_iter().chain(rest).collect()
}

/// `3 active, 1 failed`: what is wrong comes first.
fn summary(station: &StationView) -> String {
    if !matches!(station.state, StationState::Connected | StationState::Unadopted) {
        return "-".into();
    }
    let mut counts = std::collections::BTreeMap::new();
    for instance in &station.instances {
        *counts.entry((instance.state.is_healthy(), instance.state.name())).or_insert(0) += 1;
    }
    let counts: Vec<_> = counts.into_iter().map(|((_, state), count)| format!("{count} {state}")).collect();
    if counts.is_empty() { "none".into() } else { counts.join(", ") }
}

/// `station ..`.
#[derive(Subcommand)]
pub(crate) enum Station {
    /// Show one station with its instances
    Show(One),
    /// Forget a station that is away, with its configuration
    Forget(One),
    /// Let a quarantined newcomer take the place of the older session of its identity
    Replace(One),
    /// Give a quarantined newcomer an identity of its own
    Renew(One),
    /// List the folders of a station's instances, also of those that were removed
    Folders(Folders),
    /// Delete the folders of removed instances, with their state and logs
    Purge(Purge),
}

/// Names a station.
#[derive(Args)]
pub(crate) struct One {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: String,
}

impl Station {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        match self {
            Self::Folders(folders) => return folders.run(session).await,
            Self::Purge(purge) => return purge.run(session).await,
            Self::Show(One { station }) => {
                let client = session.connect().await?;
                // Several machines may claim the identity; programs get the one that has it, people see all.
                let views = reference::views(&client, &station).await?;
                let all = || views.iter().map(show).collect::<Vec<_>>().join("\n\n");
                output::one(session.format, &views[0], |_| all())?;
            }
            Self::Forget(One { station }) => session.connect().await?.forget(&station).await?,
            Self::Replace(One { station }) => session.connect().await?.replace(&station).await?,
            Self::Renew(One { station }) => session.connect().await?.renew(&station).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One station in full.
fn show(station: &StationView) -> String {
    let mut lines = Vec::new();
    let mut add = |name: &str, value: String| lines.push(format!("{name:<12} {}", plain(&value)));
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    add("name", station.name.to_string());
    add("state", station.state.name().into());
    add("id", station.id.to_string());
    add("hostname", station.hostname.clone());
    add("mac", or_dash(&station.mac));
    add("ip", or_dash(&station.ip));
    let with_age = |time: &String| format!("{} ({time})", output::age(time));
    add("last seen", station.last_seen.as_ref().map_or_else(|| "-".into(), with_age));
    let labels: Vec<_> = station.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    add("labels", labels.join(", "));
    add("roles", station.roles.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    for (name, revision, digest) in [
        ("desired", station.desired_revision, station.desired_digest),
        ("applied", station.applied_revision, station.applied_digest),
    ] {
        let text = revision.zip(digest).map(|(revision, digest)| format!("revision {revision}, {digest}"));
        add(name, or_dash(&text));
    }
    if let Some(rejected) = &station.rejected {
        add("rejected", format!("revision {}: {}", rejected.revision, rejected.rejection.message));
        rejected.rejection.problems.iter().for_each(|problem| add("", problem.to_string()));
    }
    station.flags.iter().for_each(|flag| add("note", flag.clone()));
    station.facts.more.iter().for_each(|(name, value)| add(name, value.to_owned()));
    for instance in &station.instances {
        let mut text = format!("{} since {}", instance.state, with_age(&instance.since));
        if let Some(pid) = instance.pid {
            text += &format!(", pid {pid}");
        }
        if instance.restarts > 0 {
            text += &format!(", {}", count(instance.restarts as usize, "restart"));
        }
        if !instance.detail.is_empty() {
            text += &format!(": {}", instance.detail);
        }
        lines.push(format!("\n{}/{} ({:?})\n  {}", instance.role, instance.instance, instance.owner, plain(&text)));
        let attributes = instance.attributes.iter();
        lines.extend(attributes.map(|(name, value)| format!("  {} = {value}", plain(name))));
    }
    lines.join("\n")
}
