//! `quiltctl adopt`.

use std::process::ExitCode;

use clap::Args;
use quilt_core::words;

use crate::exit::Failure;
use crate::{Session, complete};

/// Arguments of `adopt`.
#[derive(Args)]
pub(crate) struct Adopt {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: String,
    /// Push this manager's configuration over what it runs, instead of taking that as desired
    #[arg(long)]
    replace: bool,
}

impl Adopt {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let adopted = session.connect().await?.adopt(&self.station, self.replace).await?;
        let what = if self.replace { "its configuration is replaced" } else { "what it runs is desired now" };
        eprintln!("adopted {}; {what}", self.station);
        if !adopted.undone_by.is_empty() {
            let files = words::list(&adopted.undone_by);
            eprintln!("note: the next apply that concerns it undoes this unless it is changed in {files}");
        }
        Ok(ExitCode::SUCCESS)
    }
}
