//! `quiltctl logs`.

use std::process::ExitCode;

use clap::Args;

use crate::exit::{Failure, USAGE};
use crate::output::{self, Format, plain};
use crate::{Session, complete, reference};

/// Arguments of `logs`.
#[derive(Args)]
pub(crate) struct Logs {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: String,
    /// role/instance
    #[arg(value_name = "ROLE/INSTANCE", add = complete::role_instances())]
    instance: String,
    /// Go on with lines as they come
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines
    #[arg(short = 'n', long, default_value_t = 100)]
    lines: u32,
}

impl Logs {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let wrong = |text: String| Failure::with_code(USAGE, text);
        let Some((role, instance)) = self.instance.split_once('/') else {
            return Err(wrong(format!("{:?} is not role/instance", self.instance)));
        };
        let name = |text: &str| text.parse().map_err(|error| wrong(format!("{error}")));
        let request = quilt_client::control::Logs {
            role: name(role)?,
            instance: name(instance)?,
            lines: self.lines,
            follow: self.follow,
        };
        let client = session.connect().await?;
        let mut lines = client.logs(reference::name(&client, &self.station).await?, &request);
        while let Some(line) = lines.next_within(session.patience(self.follow)).await? {
            match session.format {
                Format::Table => output::line(&plain(&line.text))?,
                Format::Wide => output::line(&format!("{} {:>5} {}", line.at, line.stream, plain(&line.text)))?,
                format => output::item(format, &line)?,
            }
        }
        lines.end().await?;
        Ok(ExitCode::SUCCESS)
    }
}
