//! `quiltctl logs`.

mod follow;
mod show;

use std::process::ExitCode;

use clap::Args;
use quilt_client::control::InstanceRef;
use quilt_client::{AskError, Client, Delivered, Outcome};
use quilt_manager::selector::is_selector;

use self::show::Show;
use crate::exit::{Failure, PARTLY, REFUSED};
use crate::output::Format;
use crate::{Session, complete, reference};

/// Arguments of `logs`.
#[derive(Args)]
pub(crate) struct Logs {
    /// station/role/instance, station/role, a station, or a selector of instances such as "room=a and role=process"
    #[arg(value_name = "TARGET", required = true, add = complete::instances(), value_parser = reference::log_target)]
    targets: Vec<String>,
    /// Go on with lines as they come, also after a station was away
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines of each instance, or all
    #[arg(short = 'n', long, value_name = "N|all", default_value = "100", allow_negative_numbers = true, value_parser = lines)]
    lines: u32,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
}

impl Logs {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let client = session.connect().await?;
        let mut instances = Vec::new();
        for target in &self.targets {
            for instance in find(&client, target).await? {
                if !instances.contains(&instance) {
                    instances.push(instance);
                }
            }
        }
        let times = self.timestamps || session.format == Format::Wide;
        let mut show = Show::new(session.format, times, instances.len() > 1);
        let failures = if self.follow {
            follow::follow(&client, &instances, |instance| self.request(instance), &mut show).await
        } else {
            let mut failures = Vec::new();
            for instance in &instances {
                let shown = self.one(session, &client, instance, &mut show).await;
                failures.extend(shown.err().map(|error| (instance, error)));
            }
            failures
        };
        show.end();
        let count = failures.len();
        let mut code = PARTLY;
        for (InstanceRef { station, role, instance }, error) in failures {
            let failure = Failure::from(error);
            if instances.len() == 1 {
                return Err(failure);
            }
            eprintln!("{station}/{role}/{instance}: {failure}");
            if count == instances.len() {
                code = REFUSED;
            }
        }
        Ok(if count == 0 { ExitCode::SUCCESS } else { ExitCode::from(code) })
    }

    fn request(&self, instance: &InstanceRef) -> quilt_client::control::Logs {
        let InstanceRef { role, instance, .. } = instance.clone();
        quilt_client::control::Logs { role, instance, lines: self.lines, follow: self.follow, after: None }
    }

    async fn one(
        &self,
        session: &Session,
        client: &Client,
        instance: &InstanceRef,
        show: &mut Show,
    ) -> Result<(), AskError> {
        let mut lines = client.logs(instance.station.clone(), &self.request(instance));
        while let Some(mut line) = lines.next_within(session.patience(false)).await? {
            line.cursor = None;
            show.line(instance, &line);
        }
        lines.end().await
    }
}

fn lines(text: &str) -> Result<u32, String> {
    match text {
        "all" => Ok(u32::MAX),
        number => number.parse().map_err(|_| format!("expected how many lines, such as 100, or all, got {text:?}")),
    }
}

/// The instances that a target means. The log of one that is named in full can be read after it was removed.
async fn find(client: &Client, target: &str) -> Result<Vec<InstanceRef>, Failure> {
    if is_selector(target) || target.split('/').count() == 3 {
        return Ok(reference::instances(client, target).await?);
    }
    let (station, role) = target.split_once('/').map_or((target, None), |(station, role)| (station, Some(role)));
    let of_station = match station.split_once(':') {
        Some((key @ ("id" | "mac"), value)) => format!("{key}={}", value.to_ascii_lowercase()),
        _ => format!("name={station}"),
    };
    let selector = role.map_or_else(|| of_station.clone(), |role| format!("{of_station} and role={role}"));
    let found = client.resolve(&selector, None).await?;
    if found.is_empty() {
        // There is no such station, it is away, or it has none.
        let view = reference::views(client, station).await?.swap_remove(0);
        let (outcome, text) = match view.state.is_here() {
            true => {
                let what = role.map_or_else(|| "instances".into(), |role| format!("instance of {role}"));
                (
                    Outcome::NoTarget,
                    format!("{} has no {what}; `quiltctl station show {0}` lists what it has", view.name),
                )
            }
            false => (Outcome::PeerLost(Delivered::No), format!("station {} is away", view.name)),
        };
        return Err(AskError::Ended { outcome, text }.into());
    }
    Ok(found)
}
