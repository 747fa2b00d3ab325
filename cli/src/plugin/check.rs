//! `quiltctl plugin check`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use quilt_station::{Finding, Verdict, check_plugin};

use crate::Session;
use crate::exit::{Failure, REFUSED};
use crate::output::{self, plain};

/// Arguments of `plugin check`.
#[derive(Args)]
pub(crate) struct Check {
    /// The library, a file that ends in .so
    file: PathBuf,
    /// The configuration of the instances that are started, in JSON
    #[arg(long, value_name = "JSON", default_value = "{}")]
    config: String,
}

impl Check {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let config = serde_json::from_str(&self.config)
            .map_err(|error| Failure::with_code(2, format!("--config {:?}: expected JSON: {error}", self.config)))?;
        let folder = tempfile::tempdir()?;
        let mut findings = Vec::new();
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(200));
        check_plugin(&self.file, &config, folder.path(), |finding: Finding| {
            bar.set_message(format!("{} {}", finding.check, finding.result.name()));
            findings.push(finding);
        })
        .await;
        bar.finish_and_clear();
        output::list(session.format, &findings, &["CHECK", "RESULT", "DETAIL"], |finding| {
            vec![plain(&finding.check), finding.result.name().into(), plain(&finding.detail)]
        })?;
        let failed = findings.iter().any(|finding| finding.result == Verdict::Failed);
        Ok(if failed { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS })
    }
}
