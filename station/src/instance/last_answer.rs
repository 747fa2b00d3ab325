//! The last answer of an instance's ready check: shown while the instance starts, and told if it ends before it is ready.

use std::sync::{Arc, Mutex, PoisonError};

use quilt_protocol::control::State;

use crate::board::Board;
use crate::spec::Key;

/// The last answer of the ready check of one start.
pub(super) struct LastAnswer {
    board: Arc<Board>,
    key: Key,
    last: Mutex<String>,
}

impl LastAnswer {
    pub(super) fn new(board: &Arc<Board>, key: &Key) -> Self {
        Self { board: board.clone(), key: key.clone(), last: Mutex::default() }
    }

    /// Shows an answer beside `starting`.
    pub(super) fn show(&self, answer: &str) {
        self.board.update(&self.key, |report| {
            if report.state == State::Starting {
                report.detail = format!("not ready yet: {answer}");
            }
        });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = answer.to_owned();
    }

    /// Why an instance ended, and what the check had answered by then.
    pub(super) fn after(&self, why: &str) -> String {
        let answer = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{why} before it was ready: {answer}")
    }
}
