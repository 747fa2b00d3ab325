//! What waits to be written.
//!
//! Small messages are encoded at once into one buffer and leave in a single write. Larger bodies wait as they are, one
//! queue per request, and take turns a chunk at a time, so that a 16 MiB body never holds up a heartbeat. A chunk is
//! written from where the body lies.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};

use super::UNCHARGED_MAX;
use crate::codec::{self, Encode};
use crate::message::{BodyOf, Message, RequestNumber};

/// Bodies up to here are copied into the write buffer; a copy of this size costs less than keeping track of it.
const INLINE_BODY: usize = 4 * 1024;
const _: () = assert!(INLINE_BODY >= UNCHARGED_MAX, "what is passed on as it lies is copied here");
/// The size of one chunk: what a small message may have to wait for.
pub(super) const CHUNK: usize = 64 * 1024;
/// How many bytes of small messages may go before a waiting chunk gets its turn.
const SMALL_BEFORE_CHUNK: usize = 4 * CHUNK;
/// How much the write buffer may hold for a peer that does not read, in bytes.
pub(super) const BUFFERED_MAX: usize = 8 * 1024 * 1024;

/// How large a buffer may be to be kept for others, in bytes, and how many of them a thread keeps.
const SPARE_CAPACITY: usize = 8 * 1024;
const SPARE_MAX: usize = 64;

thread_local! {
    /// Buffers that sessions have no use for at the moment. Thousands of idle ones own none, and one that has something to write
    /// gets one that is in the processor's cache.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

type Key = (RequestNumber, BodyOf);

#[derive(Default, Debug)]
pub(super) struct Outbox {
    buffer: Vec<u8>,
    /// How much of `buffer` has been written.
    written: usize,
    /// What is left of the part of a large body whose header ends `buffer`.
    chunk: Bytes,
    /// What goes after it.
    after: Vec<u8>,
    /// Bytes ever written, to tell whether a given message has left.
    total_written: u64,
    bulk: VecDeque<(Key, VecDeque<Bulk>)>,
    bulk_bytes: usize,
    /// Bytes of small messages since the last chunk.
    since_chunk: usize,
}

#[derive(Debug)]
struct Bulk {
    header: Option<Vec<u8>>,
    body: Bytes,
    /// What of the body comes after that.
    rest: Bytes,
}

impl Bulk {
    fn len(&self) -> usize {
        self.body.len() + self.rest.len()
    }
}

/// Where a message went, to be able to tell later whether it left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Placed {
    /// Its last byte is this many bytes into the output.
    Until(u64),
    /// It waits with the large bodies.
    InBulk,
}

impl Outbox {
    /// Bytes waiting in the write buffer.
    pub(super) fn buffered(&self) -> usize {
        self.buffer.len() - self.written + self.chunk.len() + self.after.len()
    }

    /// Bytes of large bodies waiting for their turn.
    pub(super) fn bulk_bytes(&self) -> usize {
        self.bulk_bytes
    }

    /// Takes a message without a body.
    pub(super) fn push(&mut self, message: &Message) -> Placed {
        self.put(|out| codec::put_frame(out, message, &[]))
    }

    /// Whether a body goes right behind its header, so that the message leaves in its turn.
    pub(super) fn is_inline(body: &Bytes) -> bool {
        body.len() <= INLINE_BODY
    }

    fn put(&mut self, frame: impl FnOnce(&mut Vec<u8>)) -> Placed {
        let buffer = if self.chunk.is_empty() { &mut self.buffer } else { &mut self.after };
        if buffer.capacity() == 0 {
            *buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        let before = buffer.len();
        frame(buffer);
        self.since_chunk += buffer.len() - before;
        Placed::Until(self.total_written + self.buffered() as u64)
    }

    /// Takes a message of request `key`, of which this is the header. It never overtakes an earlier one of the same key.
    pub(super) fn push_with_body(&mut self, key: Key, header: &impl Encode, body: Bytes) -> Placed {
        if Self::is_inline(&body) && !self.holds(key) {
            return self.put(|out| {
                codec::frame(out, body.len(), |out| codec::put_header(out, header));
                out.extend_from_slice(&body);
            });
        }
        // It may have to wait for long, and holds what it was read with until it is copied.
        let body = if Self::is_inline(&body) { Bytes::copy_from_slice(&body) } else { body };
        self.push_bulk(key, header, body, Bytes::new())
    }

    /// Takes a message whose body is `body` and then `rest`, which waits with the large ones.
    pub(super) fn push_bulk(&mut self, key: Key, header: &impl Encode, body: Bytes, rest: Bytes) -> Placed {
        let mut bytes = Vec::new();
        codec::put_header(&mut bytes, header);
        let bulk = Bulk { header: Some(bytes), body, rest };
        self.bulk_bytes += bulk.len();
        match self.bulk.iter_mut().find(|(waiting, _)| *waiting == key) {
            Some((_, queue)) => queue.push_back(bulk),
            None => self.bulk.push_back((key, VecDeque::from([bulk]))),
        }
        Placed::InBulk
    }

    /// Forgets what waits under `key`. Answers whether any of it had not been begun.
    pub(super) fn forget(&mut self, key: Key) -> bool {
        let Some(at) = self.bulk.iter().position(|(waiting, _)| *waiting == key) else { return false };
        let (_, queue) = self.bulk.remove(at).expect("position is in range");
        self.bulk_bytes -= queue.iter().map(Bulk::len).sum::<usize>();
        queue.front().is_some_and(|bulk| bulk.header.is_some())
    }

    /// Whether something waits under `key`.
    pub(super) fn holds(&self, key: Key) -> bool {
        self.bulk.iter().any(|(waiting, _)| *waiting == key)
    }

    pub(super) fn has_left(&self, placed: Placed) -> bool {
        matches!(placed, Placed::Until(end) if end <= self.total_written)
    }

    /// Whether part of what waits under `key` has been begun.
    pub(super) fn begun(&self, key: Key) -> bool {
        let queue = self.bulk.iter().find(|(waiting, _)| *waiting == key);
        queue.and_then(|(_, queue)| queue.front()).is_none_or(|bulk| bulk.header.is_none())
    }

    /// Whether there are bytes to write.
    pub(super) fn is_empty(&self) -> bool {
        self.buffered() == 0 && self.bulk.is_empty()
    }

    /// The bytes to write next, if any, in two parts.
    pub(super) fn unwritten(&mut self) -> [&[u8]; 2] {
        // One chunk at a time: what arrives while it is being written goes before the next chunk. Small messages without
        // end must not hold up a large body for ever either.
        if self.buffered() == 0 || (self.chunk.is_empty() && self.since_chunk >= SMALL_BEFORE_CHUNK) {
            self.stage_chunk();
        }
        [&self.buffer[self.written..], &self.chunk]
    }

    /// Records that the first `count` of the unwritten bytes were written.
    pub(super) fn advance(&mut self, count: usize) {
        let of_buffer = count.min(self.buffer.len() - self.written);
        self.written += of_buffer;
        if count > of_buffer {
            self.chunk.advance(count - of_buffer);
            if self.chunk.is_empty() {
                // Also an empty part keeps its body in memory.
                self.chunk = Bytes::new();
            }
        }
        self.total_written += count as u64;
        if self.written == self.buffer.len() && self.chunk.is_empty() {
            self.buffer.clear();
            self.written = 0;
            if !self.after.is_empty() {
                std::mem::swap(&mut self.buffer, &mut self.after);
            }
        } else if self.written >= CHUNK && self.written * 2 >= self.buffer.len() {
            // A peer that reads, but never catches up, must not make the written part grow.
            self.buffer.drain(..self.written);
            self.written = 0;
        }
    }

    /// Whether its buffer is one for the next session that has something to write.
    pub(super) fn is_small(&self) -> bool {
        self.buffer.capacity() <= SPARE_CAPACITY
    }

    /// An idle session owns no buffer.
    pub(super) fn trim(&mut self) {
        if self.is_empty() {
            if self.buffer.capacity() > 0 && self.is_small() {
                SPARE.with_borrow_mut(|spare| {
                    if spare.len() < SPARE_MAX {
                        spare.push(std::mem::take(&mut self.buffer));
                    }
                });
            }
            (self.buffer, self.after, self.bulk) = Default::default();
        }
    }

    /// Forgets all large bodies.
    pub(super) fn clear_bulk(&mut self) {
        self.bulk.clear();
        self.bulk_bytes = 0;
    }

    /// Forgets everything that was not written.
    pub(super) fn clear(&mut self) {
        *self = Self { total_written: self.total_written, ..Self::default() };
    }

    fn stage_chunk(&mut self) {
        self.since_chunk = 0;
        let Some((key, mut queue)) = self.bulk.pop_front() else { return };
        let mut bulk = queue.pop_front().expect("a queue is removed with its last body");
        // A short rest goes along: it is not worth a wake-up of the peer.
        let part = if bulk.body.len() <= CHUNK + CHUNK / 2 { bulk.body.len() } else { CHUNK };
        let part = bulk.body.split_to(part);
        self.bulk_bytes -= part.len();
        codec::frame(&mut self.buffer, part.len(), |out| match bulk.header.take() {
            Some(header) => out.extend_from_slice(&header),
            None => codec::put_header(out, &Message::Chunk { number: key.0, of: key.1 }),
        });
        self.chunk = part;
        if bulk.body.is_empty() {
            bulk.body = std::mem::take(&mut bulk.rest);
        }
        if !bulk.body.is_empty() {
            queue.push_front(bulk);
        }
        if !queue.is_empty() {
            self.bulk.push_back((key, queue));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_of_an_idle_session_goes_to_the_next_that_writes() {
        let (mut one, mut other) = (Outbox::default(), Outbox::default());
        for _ in 0..3 {
            one.push(&Message::Ping { nonce: 1 });
            let written = one.unwritten()[0].len();
            one.advance(written);
        }
        let buffer = one.buffer.as_ptr();
        one.trim();
        assert_eq!(one.buffer.capacity(), 0);
        other.push(&Message::Ping { nonce: 2 });
        assert_eq!(other.buffer.as_ptr(), buffer);
    }
    #[test]
    fn a_large_body_is_let_go_of_when_it_was_written() {
        let (mut outbox, body) = (Outbox::default(), Bytes::from(vec![7; 3 * CHUNK]));
        let (key, header) = ((1, BodyOf::Request), Message::Ping { nonce: 1 });
        outbox.push_with_body(key, &header, body.clone());
        while !outbox.is_empty() {
            let [bytes, part] = outbox.unwritten();
            let count = bytes.len() + part.len();
            outbox.advance(count);
        }
        assert!(body.is_unique(), "the session keeps it");
    }
}
