//! The logs of instances and of plugins' processes, as streams.

use std::path::Path;

use quilt_core::{disk, lines, time};
use quilt_net::{BoxFuture, Inbound};
use quilt_protocol::Outcome;
use quilt_protocol::control::{LogLine, Logs};

use super::Requests;
use crate::instance;
use crate::spec::Key;

impl Requests {
    /// Streams the log of an instance, or as `plugin/NAME` what a plugin's process prints. A follower gets a last line when the
    /// instance is removed.
    pub(super) fn logs(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        let (folder, board, plugins) = (self.folder.clone(), self.board.clone(), self.plugins.clone());
        let mut items = inbound.responder.items();
        let streaming = inbound.head.terms.credit > 0;
        let place = self.log_streams.begin(inbound.head.terms.principal.clone().unwrap_or_default());
        inbound.answer(move |Logs { role, instance, lines, follow, after }: Logs| async move {
            let key = Key { role, instance };
            let mut log = instance::log_dir(&folder, &key);
            let mut changes = board.subscribe();
            let printed = plugins.printed_by(key.instance.as_str());
            let (log_exists, printed_exists) = {
                let (log, printed) = (log.clone(), printed.clone());
                disk::run(move || (log.exists(), printed.exists())).await
            };
            let of_plugin = key.role == *"plugin" && !log_exists && printed_exists;
            if of_plugin {
                log = printed;
            }
            let is_there = || of_plugin || board.get(&key).is_some();
            let was_there = is_there();
            if !was_there && !of_plugin && !log_exists {
                return Err((Outcome::NoTarget, format!("this station has no instance {key}")));
            }
            if !streaming {
                return Err((Outcome::Refused, "logs are a stream; ask for one".into()));
            }
            let _place = place.map_err(|limit| (Outcome::Overloaded, limit))?;
            let failed = |error: std::io::Error| (Outcome::Refused, error.to_string());
            let removed = async { while changes.changed().await.is_ok() && is_there() {} };
            let mut removed = std::pin::pin!(removed);
            // The log of an instance that is gone already does not grow.
            let mut grows = follow && was_there;
            let after = after.map(|cursor| cursor.parse::<lines::Position>()).transpose();
            let after = after.map_err(|text| (Outcome::Refused, text))?;
            let open = move |log: &Path| match after {
                Some(cursor) => lines::Reader::resume(log, cursor),
                None => lines::Reader::open(log, lines as usize),
            };
            lines::flush(&log).await;
            let mut follower = lines::Follower::open(&log, open).await.map_err(failed)?;
            loop {
                let mut lines = follower.more().await.map_err(failed)?;
                if lines.is_empty() && grows {
                    lines = tokio::select! {
                        lines = follower.next() => lines.map_err(failed)?,
                        () = &mut removed => {
                            grows = false;
                            continue;
                        }
                    };
                }
                if lines.is_empty() && follow {
                    let text = format!("{key} is removed from this station; its log ends here");
                    let (at, stream) = (time::now_text(), "quilt".to_owned());
                    let _ = items
                        .send_json(&LogLine { at, stream, text, continues: false, bytes: None, cursor: None })
                        .await;
                }
                if lines.is_empty() {
                    return Ok(());
                }
                let mut left = lines.len();
                for line in lines {
                    left -= 1;
                    let cursor = follower.position().filter(|_| left == 0).map(|cursor| cursor.to_string());
                    let (text, bytes) = (line.text().into_owned(), line.raw().map(<[u8]>::to_vec));
                    let lines::Line { at, stream, continues, .. } = line;
                    if items.send_json(&LogLine { at, stream, text, continues, bytes, cursor }).await.is_err() {
                        return Ok(());
                    }
                }
            }
        })
    }
}
