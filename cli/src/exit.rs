//! Exit codes that scripts depend on.

use std::fmt;
use std::process::ExitCode;

use quilt_client::{AskError, ConnectFailure, Outcome};

/// Something went wrong.
pub(crate) const GENERAL: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// Changes are pending (`diff`, `--dry-run`).
pub(crate) const PENDING: u8 = 3;
/// Refused, or failed there.
pub(crate) const REFUSED: u8 = 4;
/// No answer.
pub(crate) const NO_ANSWER: u8 = 5;
/// Some targets did, some did not.
pub(crate) const PARTLY: u8 = 6;

/// Why a verb failed, and with which code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// A general error.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { code: GENERAL, text: text.into() }
    }

    pub(crate) fn with_code(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The code for how a request ended.
pub(crate) fn code_of(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Reply => 0,
        Outcome::TimedOut | Outcome::PeerLost(_) => NO_ANSWER,
        Outcome::Cancelled => GENERAL,
        _ => REFUSED,
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        let code = code_of(error.outcome());
        let text = match error {
            // The text says it; the outcome's name adds nothing for people.
            AskError::Ended { text, .. } if !text.is_empty() => text,
            AskError::Ended { outcome: Outcome::TimedOut, .. } => {
                "timed_out: no answer in time (see --timeout); it may have been carried out".into()
            }
            other => other.to_string(),
        };
        Self { code, text }
    }
}

impl From<ConnectFailure> for Failure {
    fn from(error: ConnectFailure) -> Self {
        Self { code: NO_ANSWER, text: error.to_string() }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}
