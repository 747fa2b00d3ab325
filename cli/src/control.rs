//! `quiltctl start`, `quiltctl stop`, `quiltctl restart`.

use std::process::ExitCode;

use clap::Args;
use quilt_client::control::Action;
use quilt_core::words::list;

use crate::exit::{Failure, USAGE};
use crate::{Session, complete};

/// Names an instance.
#[derive(Args)]
pub(crate) struct Target {
    /// station/role/instance
    #[arg(value_name = "S/ROLE/INSTANCE", add = complete::instances())]
    target: String,
}

impl Target {
    pub(crate) async fn run(self, session: &Session, action: Action) -> Result<ExitCode, Failure> {
        if self.target.split('/').count() != 3 {
            let text = format!(
                "expected one instance as station/role/instance, such as cam-1/process/clock, got {:?}; `quiltctl station show \
                 STATION` lists instances",
                self.target
            );
            return Err(Failure::with_code(USAGE, text));
        }
        let operated = session.connect().await?.control(&self.target, action).await?;
        if !operated.dependants.is_empty() {
            let (need, run) = if operated.dependants.len() == 1 { ("needs", "runs") } else { ("need", "run") };
            eprintln!("note: {} {need} {} and {run} on", list(&operated.dependants), self.target);
        }
        Ok(ExitCode::SUCCESS)
    }
}
