//! Lists of any length as the answer to a request.
//!
//! The text of the list is made entry by entry. Whoever asks for a stream gets it in pieces, the last one as the reply: put together
//! they are the JSON list. Whoever asks for a plain reply gets it whole, as long as it fits into one.

use bytes::Bytes;
use quilt_net::{ItemSink, Responder};
use quilt_protocol::session::ITEM_MAX;
use quilt_protocol::{Encoding, Limits, Outcome};
use serde::Serialize;

/// About how long a piece is, in bytes. Making one takes less than a millisecond; then others get their turn.
const PIECE: usize = 64 << 10;

/// A list that is being made.
pub(crate) struct ListReply {
    responder: Responder,
    items: Option<ItemSink>,
    /// What was not sent yet. Empty before the first entry only, and after a piece was sent.
    text: Vec<u8>,
    began: bool,
    /// How long `text` becomes before others get their turn.
    turn_at: usize,
}

impl ListReply {
    /// An empty list; in pieces if the request `is_stream`.
    pub(crate) fn new(responder: Responder, is_stream: bool) -> Self {
        let items = is_stream.then(|| responder.items());
        Self { responder, items, text: Vec::new(), began: false, turn_at: PIECE }
    }

    /// Adds an entry.
    ///
    /// # Errors
    ///
    /// Whoever asked is gone, or the list is too long for a plain reply.
    pub(crate) async fn add(&mut self, entry: &impl Serialize) -> Result<(), (Outcome, String)> {
        self.text.push(if self.began { b',' } else { b'[' });
        self.began = true;
        serde_json::to_writer(&mut self.text, entry).expect("views have text keys");
        self.pass_on().await
    }

    /// Answers with these entries, or says why there are none.
    pub(crate) async fn answer<T: Serialize>(mut self, entries: Result<Vec<T>, (Outcome, String)>) {
        let mut made = Ok(());
        match entries {
            Ok(entries) => {
                for entry in &entries {
                    made = self.add(entry).await;
                    if made.is_err() {
                        break;
                    }
                }
            }
            Err(failure) => made = Err(failure),
        }
        self.end(made);
    }

    async fn pass_on(&mut self) -> Result<(), (Outcome, String)> {
        if self.text.len() < self.turn_at {
            return Ok(());
        }
        let Some(items) = &mut self.items else {
            let limit = Limits::default().body;
            if self.text.len() > limit {
                let text =
                    format!("the list is longer than a reply may be, {} MiB; ask for a stream of it", limit >> 20);
                return Err((Outcome::Refused, text));
            }
            self.turn_at = self.text.len() + PIECE;
            tokio::task::yield_now().await;
            return Ok(());
        };
        let mut text = Bytes::from(std::mem::take(&mut self.text));
        while !text.is_empty() {
            let piece = text.split_to(text.len().min(ITEM_MAX));
            let sent = items.send(piece).await;
            sent.map_err(|_| (Outcome::Cancelled, "the caller is gone".to_owned()))?;
        }
        tokio::task::yield_now().await;
        Ok(())
    }

    /// Ends the list, or says why there is none.
    pub(crate) fn end(mut self, made: Result<(), (Outcome, String)>) {
        if let Err((outcome, text)) = made {
            return self.responder.fail(outcome, &text);
        }
        self.text.extend_from_slice(if self.began { b"]" } else { b"[]" });
        self.responder.respond(Outcome::Reply, Encoding::Json, self.text.into());
    }
}
