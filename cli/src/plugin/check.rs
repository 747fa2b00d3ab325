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
    /// The configuration of the instances that are started, a JSON object; {} unless given
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
}

impl Check {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let text = self.config.as_deref().unwrap_or("{}");
        let config: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)
            .map_err(|error| Failure::with_code(2, format!("--config {text:?}: expected a JSON object: {error}")))?;
        let config = config.into();
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
        // A configuration that was given was meant to be taken.
        let is_bad = |result| result == Verdict::Failed || (result == Verdict::Skipped && self.config.is_some());
        let failed = findings.iter().any(|finding| is_bad(finding.result));
        Ok(if failed { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS })
    }
}
