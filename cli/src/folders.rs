//! `quiltctl station folders`, `quiltctl station purge`.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Args;
use indicatif::HumanBytes;
use quilt_client::control::InstanceFolder;
use quilt_core::words::{count, list};

use crate::apply::is_confirmed;
use crate::exit::{Failure, USAGE};
use crate::{Session, complete, output, reference};

/// Arguments of `station folders`.
#[derive(Args)]
pub(crate) struct Folders {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: String,
}

/// Arguments of `station purge`.
#[derive(Args)]
pub(crate) struct Purge {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: String,
    /// Whose folders to delete: what a removed instance left, its state and its log
    #[arg(value_name = "ROLE/INSTANCE", required_unless_present = "all")]
    instances: Vec<String>,
    /// Delete those of all instances that were removed
    #[arg(long, conflicts_with = "instances")]
    all: bool,
    /// Do not ask on a terminal
    #[arg(long, short)]
    yes: bool,
}

impl Folders {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let client = session.connect().await?;
        let folders = client.folders(&reference::name(&client, &self.station).await?).await?;
        output::list(session.format, &folders, &["INSTANCE", "USED", "SIZE", "CHANGED"], |folder| {
            let used = if folder.used { "yes" } else { "no" };
            let changed = output::age(&quilt_core::time::ms_text(folder.changed_ms));
            vec![name_of(folder), used.into(), HumanBytes(folder.bytes).to_string(), changed]
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Purge {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let client = session.connect().await?;
        let station = reference::name(&client, &self.station).await?;
        let folders = client.folders(&station).await?;
        let mut chosen = Vec::new();
        for wanted in &self.instances {
            let found = folders.iter().find(|folder| name_of(folder) == *wanted);
            chosen.push(found.ok_or_else(|| {
                let text =
                    format!("{station} has no folder of {wanted:?}; `quiltctl station folders {station}` lists them");
                Failure::with_code(USAGE, text)
            })?);
        }
        if self.all {
            chosen.extend(folders.iter().filter(|folder| !folder.used));
        }
        if chosen.is_empty() {
            eprintln!("nothing to delete: {station} has no folders of removed instances");
            return Ok(ExitCode::SUCCESS);
        }
        let names: Vec<_> = chosen.iter().map(|folder| name_of(folder)).collect();
        let bytes = chosen.iter().map(|folder| folder.bytes).sum();
        let all = format!("{} of {} ({})", count(chosen.len(), "folder"), list(&names), HumanBytes(bytes));
        if !self.yes && std::io::stdin().is_terminal() {
            eprint!("delete {all} with all that is in them? [y/N] ");
            if !is_confirmed()? {
                return Err(Failure::new("nothing was deleted"));
            }
        }
        let instances = chosen.into_iter().map(|folder| (folder.role.clone(), folder.instance.clone())).collect();
        client.purge_folders(&station, instances).await?;
        eprintln!("deleted {all}");
        Ok(ExitCode::SUCCESS)
    }
}

fn name_of(folder: &InstanceFolder) -> String {
    format!("{}/{}", folder.role, folder.instance)
}
