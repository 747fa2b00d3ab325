//! `quiltctl history`, `quiltctl rollback`.

use std::process::ExitCode;

use clap::Args;
use quilt_client::control::RolledBack;
use quilt_core::words;
use quilt_protocol::Revision;
use serde_json::json;

use crate::exit::Failure;
use crate::output::{self, plain};
use crate::{Session, complete};

/// Arguments of `history`.
#[derive(Args)]
pub(crate) struct History {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: String,
}

impl History {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let history = session.connect().await?.history(&self.station).await?;
        let columns = ["REVISION", "WHEN", "WHO", "FROM", "RAN WELL", "INSTANCES", "DIGEST"];
        output::list(session.format, &history, &columns, |entry| {
            let digest = entry.digest.to_string()[..12].to_owned();
            let good = if entry.good { "yes" } else { "" };
            vec![
                entry.revision.to_string(),
                entry.at.clone(),
                plain(&entry.who),
                plain(&entry.source),
                good.into(),
                entry.instances.join(", "),
                digest,
            ]
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn revision(text: &str) -> Result<Revision, String> {
    let number = text.parse().map_err(|_| {
        format!("expected a revision's number such as 7, got {text:?}; `quiltctl history STATION` lists them")
    });
    number.map(Revision)
}

/// Arguments of `rollback`.
#[derive(Args)]
pub(crate) struct Rollback {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: String,
    /// The revision to go back to; the last one that ran well unless given
    #[arg(long, value_name = "REVISION", value_parser = revision)]
    to: Option<Revision>,
}

impl Rollback {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let done = session.connect().await?.rollback(&self.station, self.to).await?;
        let RolledBack { revision, to, undone_by } = &done;
        let shown = json!({ "station": self.station, "revision": revision, "to": to, "undone_by": undone_by });
        output::one(session.format, &shown, |_| {
            let done = format!("rolled back {} to revision {to}, as revision {revision}", self.station);
            match undone_by.is_empty() {
                true => format!("{done}; it stays so until an apply that concerns the station"),
                false => {
                    format!("{done}; the next apply undoes this unless it is changed in {}", words::list(undone_by))
                }
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
