//! What a plugin prints: a log of its own that rotates as those of instances do, and the last lines for the report of a crash.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quilt_core::lines::{Appender, LINE_MAX};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::Library;

/// How many of its last lines a crash is reported with.
const LAST_LINES: usize = 5;
/// How many bytes of each of these lines are kept.
const LAST_LINE_MAX: usize = 8 << 10;

/// How long a plugin that prints waits for the disk at most. Then its lines are queued, and left out if there is no room.
const DISK_PATIENCE: Duration = Duration::from_secs(1);

/// Copies a pipe to the plugin's log until it ends, and keeps the last lines in `last`.
#[allow(clippy::disallowed_methods, reason = "ends with the pipe, which ends with the child")]
pub(super) fn keep(
    stream: &'static str,
    mut pipe: impl AsyncRead + Send + Unpin + 'static,
    library: &Library,
    last: Arc<Mutex<VecDeque<String>>>,
) -> tokio::task::JoinHandle<()> {
    let plugin = library.name.clone();
    let log = library.printed.as_deref().map(Appender::of);
    tokio::spawn(async move {
        let mut buffer = Vec::with_capacity(64 << 10);
        loop {
            let ended = matches!(pipe.read_buf(&mut buffer).await, Ok(0) | Err(_));
            let mut due = buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if ended || buffer.len() - due >= LINE_MAX {
                due = buffer.len();
            }
            let due: Vec<u8> = buffer.drain(..due).collect();
            for line in due.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let text = String::from_utf8_lossy(&line[..line.len().min(LAST_LINE_MAX)]).trim_end().to_owned();
                if log.is_none() {
                    tracing::info!(plugin, "{text}");
                }
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.len() == LAST_LINES {
                    last.pop_front();
                }
                last.push_back(text);
            }
            if let Some(log) = log.as_ref().filter(|_| !due.is_empty()) {
                log.copy(stream, due);
                let _ = tokio::time::timeout(DISK_PATIENCE, log.flush()).await;
            }
            if ended {
                return;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use quilt_core::lines::{FILE_MAX, Reader};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn what_a_plugin_prints_is_bounded_and_its_last_lines_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library {
            path: "lib.so".into(),
            sha256: String::new(),
            name: "chatty".into(),
            aborts: false,
            printed: Some(folder.path().into()),
        };
        let last = Arc::default();
        let (mut mouth, pipe) = tokio::io::duplex(64 << 10);
        let keeping = keep("err", pipe, &library, Arc::clone(&last));
        let lines = "x".repeat(99) + "\n";
        for _ in 0..3 * FILE_MAX / 100_000 {
            mouth.write_all(lines.repeat(1000).as_bytes()).await.unwrap();
        }
        mouth.write_all(b"out of cheese\nno end").await.unwrap();
        drop(mouth);
        keeping.await.unwrap();
        let size: u64 = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(size > FILE_MAX && size < 2 * FILE_MAX + (1 << 20), "{size} bytes");
        let shown = Reader::open(folder.path(), 2).unwrap().more().unwrap();
        assert_eq!(shown.iter().map(|line| line.text()).collect::<Vec<_>>(), ["out of cheese", "no end"]);
        let last = last.lock().unwrap();
        assert_eq!((last.len(), &*last[3], &*last[4]), (LAST_LINES, "out of cheese", "no end"));
    }
}
