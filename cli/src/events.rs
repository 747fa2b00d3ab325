//! `quiltctl events`.

use std::process::ExitCode;

use clap::Args;
use quilt_client::control::FleetEvent;

use crate::Session;
use crate::exit::Failure;
use crate::output::{self, Format, plain};

/// Arguments of `events`.
#[derive(Args)]
pub(crate) struct Events {
    /// Go on with events as they come
    #[arg(short, long)]
    follow: bool,
    /// Only events after this number; `-o jsonl` shows the numbers
    #[arg(long, value_name = "NUMBER", value_parser = number)]
    after: Option<u64>,
}

fn number(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("expected an event's number such as 7, got {text:?}; `-o jsonl` shows the numbers"))
}

impl Events {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let client = session.connect().await?;
        let mut events = client.events(self.after, self.follow);
        while let Some(event) = events.next_within(session.patience(self.follow)).await? {
            match session.format {
                Format::Table | Format::Wide => output::line(&text(&event))?,
                format => output::item(format, &event)?,
            }
        }
        events.end().await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// An event on one line.
pub(crate) fn text(event: &FleetEvent) -> String {
    let place = match (&event.station, &event.instance) {
        (Some(station), Some(instance)) => format!("{station}/{instance}"),
        (Some(station), None) => station.clone(),
        _ => "-".into(),
    };
    plain(format!("{}  {:<24} {place:<28} {}", event.at, event.kind, event.text).trim_end())
}
