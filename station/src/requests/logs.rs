//! The logs of instances and of plugins' processes, as streams.

use quilt_core::{lines, time};
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
            let of_plugin = key.role == *"plugin" && !log.exists() && printed.exists();
            if of_plugin {
                log = printed;
            }
            let is_there = || of_plugin || board.get(&key).is_some();
            let was_there = is_there();
            if !was_there && !log.exists() {
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
            let mut reader = match after.map(|cursor| cursor.parse::<lines::Position>()).transpose() {
                Ok(Some(cursor)) => lines::Reader::resume(&log, cursor),
                Ok(None) => lines::Reader::open(&log, lines as usize),
                Err(text) => return Err((Outcome::Refused, text)),
            }
            .map_err(failed)?;
            loop {
                let mut lines = reader.more().map_err(failed)?;
                if lines.is_empty() && grows {
                    lines = tokio::select! {
                        lines = reader.next() => lines.map_err(failed)?,
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
                    let cursor = if left == 0 { reader.position().ok().map(|cursor| cursor.to_string()) } else { None };
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
