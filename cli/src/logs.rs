//! `quiltctl logs`.

mod show;

use std::process::ExitCode;

use clap::Args;
use quilt_client::control::{InstanceRef, LogLine};
use quilt_client::{AskError, Client, Outcome};
use tokio::sync::mpsc;

use self::show::Show;
use crate::exit::{Failure, PARTLY, REFUSED};
use crate::output::Format;
use crate::{Session, complete, reference};

/// Arguments of `logs`.
#[derive(Args)]
pub(crate) struct Logs {
    /// station/role/instance, station/role, a station, or a selector such as "room=a and role=process"
    #[arg(value_name = "TARGET", required = true, add = complete::instances(), value_parser = reference::log_target)]
    targets: Vec<String>,
    /// Go on with lines as they come
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines of each instance
    #[arg(short = 'n', long, default_value_t = 100)]
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
        let failures = if self.follow && instances.len() > 1 {
            self.follow_all(&client, &instances, &mut show).await?
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
        quilt_client::control::Logs { role, instance, lines: self.lines, follow: self.follow }
    }

    async fn one(
        &self,
        session: &Session,
        client: &Client,
        instance: &InstanceRef,
        show: &mut Show,
    ) -> Result<(), AskError> {
        let mut lines = client.logs(instance.station.clone(), &self.request(instance));
        while let Some(line) = lines.next_within(session.patience(self.follow)).await? {
            show.line(instance, &line);
        }
        lines.end().await
    }

    /// Shows the lines of several instances as they come.
    async fn follow_all<'a>(
        &self,
        client: &Client,
        instances: &'a [InstanceRef],
        show: &mut Show,
    ) -> Result<Vec<(&'a InstanceRef, AskError)>, Failure> {
        let (sender, mut receiver) = mpsc::channel::<(usize, Result<LogLine, AskError>)>(256);
        for (number, instance) in instances.iter().enumerate() {
            let mut lines = client.logs(instance.station.clone(), &self.request(instance));
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Some(line) = lines.next().await {
                    if sender.send((number, Ok(line))).await.is_err() {
                        return;
                    }
                }
                if let Err(error) = lines.end().await {
                    let _ = sender.send((number, Err(error))).await;
                }
            });
        }
        drop(sender);
        let mut failures = Vec::new();
        while let Some((number, line)) = receiver.recv().await {
            match line {
                Ok(line) => show.line(&instances[number], &line),
                Err(error) => failures.push((&instances[number], error)),
            }
        }
        Ok(failures)
    }
}

/// The instances that a target means. The log of one that is named in full can be read after it was removed.
async fn find(client: &Client, target: &str) -> Result<Vec<InstanceRef>, Failure> {
    let selector = match target.split_once(':') {
        _ if target.contains(['/', '=']) => target.to_owned(),
        Some((key @ ("id" | "mac"), value)) => format!("{key}={}", value.to_ascii_lowercase()),
        _ => format!("name={target}"),
    };
    let found = client.resolve(&selector, None).await?;
    if found.is_empty() {
        let text = format!("{target:?} means no instance of a connected station");
        return Err(AskError::Ended { outcome: Outcome::NoTarget, text }.into());
    }
    Ok(found)
}
