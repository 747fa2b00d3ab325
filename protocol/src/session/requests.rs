//! The two tables of a session: what this side asked, and what it is serving.

use std::time::Instant;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::outbox::Placed;
use crate::message::{Encoding, Outcome, RequestHead, RequestNumber};

/// How many requests may be in flight in one direction.
pub const IN_FLIGHT_MAX: usize = 1024;
const SLOT_BITS: u32 = 10;
const _: () = assert!(1 << SLOT_BITS == IN_FLIGHT_MAX);

/// A body arriving in parts.
#[derive(Debug)]
pub(super) struct Arriving {
    whole: usize,
    bytes: Vec<u8>,
}

impl Arriving {
    /// Memory grows with what has arrived, not with what was announced.
    pub(super) fn new(whole: usize, first: &[u8]) -> Self {
        Self { whole, bytes: first.to_vec() }
    }

    /// Adds a part; `Err` with the length reached if it is more than was announced.
    pub(super) fn add(&mut self, part: &[u8]) -> Result<(), usize> {
        let reached = self.bytes.len() + part.len();
        if reached > self.whole || part.is_empty() {
            return Err(reached);
        }
        if self.bytes.capacity() < reached {
            self.bytes.reserve_exact((self.whole - self.bytes.len()).min(part.len().max(self.bytes.len())));
        }
        self.bytes.extend_from_slice(part);
        Ok(())
    }

    pub(super) fn is_whole(&self) -> bool {
        self.bytes.len() == self.whole
    }

    /// The length announced: what it may come to, and what limits count.
    pub(super) fn whole(&self) -> usize {
        self.whole
    }

    pub(super) fn into_bytes(self) -> Bytes {
        self.bytes.into()
    }
}

/// Something this side asked and has no answer to yet.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) deadline: Option<Instant>,
    pub(super) placed: Placed,
    pub(super) arriving: Option<(Answer, Arriving)>,
    /// Items the peer may still send.
    pub(super) credit: u32,
}

/// What an arriving body will be once it is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Item,
    Response(Outcome, Encoding),
}

/// What was asked, in slots that are used again: a number is a slot and the slot's generation, so that an answer to an
/// earlier use of the slot is known to be late.
#[derive(Default, Debug)]
pub(super) struct AskedTable {
    slots: Vec<(u64, Option<Asked>)>,
    free: Vec<u32>,
    live: usize,
}

/// What a number in an answer means to us.
pub(super) enum Known<'a> {
    Waiting(&'a mut Asked),
    Late,
    Never,
}

impl AskedTable {
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// The number that the next [`AskedTable::insert`] will give, or `None` when the table is full.
    pub(super) fn next_number(&self) -> Option<RequestNumber> {
        match self.free.last() {
            Some(&slot) => Some(number(slot as usize, self.slots[slot as usize].0)),
            None if self.slots.len() < IN_FLIGHT_MAX => Some(number(self.slots.len(), 0)),
            None => None,
        }
    }

    pub(super) fn insert(&mut self, asked: Asked) -> RequestNumber {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        self.live += 1;
        let entry = &mut self.slots[slot as usize];
        entry.1 = Some(asked);
        number(slot as usize, entry.0)
    }

    pub(super) fn find(&mut self, asked: RequestNumber) -> Known<'_> {
        let Some((generation, entry)) = self.slots.get_mut(slot_of(asked)) else {
            return Known::Never;
        };
        match (asked >> SLOT_BITS, entry) {
            (theirs, Some(entry)) if theirs == *generation => Known::Waiting(entry),
            (theirs, _) if theirs < *generation => Known::Late,
            _ => Known::Never,
        }
    }

    pub(super) fn remove(&mut self, asked: RequestNumber) -> Option<Asked> {
        let slot = slot_of(asked);
        let (generation, entry) = self.slots.get_mut(slot)?;
        if *generation != asked >> SLOT_BITS {
            return None;
        }
        let removed = entry.take()?;
        *generation += 1;
        self.free.push(slot as u32);
        self.live -= 1;
        Some(removed)
    }

    /// Gives back memory that nothing is in. Slots that were used stay known: late answers are told by them.
    pub(super) fn trim(&mut self) {
        if self.live == 0 {
            self.free.shrink_to_fit();
            self.slots.shrink_to_fit();
        }
    }

    /// Numbers of the entries for which `wanted` holds.
    pub(super) fn numbers(&self, wanted: impl Fn(&Asked) -> bool) -> Vec<RequestNumber> {
        let slots = self.slots.iter().enumerate();
        let wanted = slots.filter(|(_, (_, entry))| entry.as_ref().is_some_and(&wanted));
        wanted.map(|(slot, (generation, _))| number(slot, *generation)).collect()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.slots.iter().filter_map(|(_, entry)| entry.as_ref()?.deadline).min()
    }
}

fn slot_of(number: RequestNumber) -> usize {
    (number % IN_FLIGHT_MAX as u64) as usize
}

fn number(slot: usize, generation: u64) -> RequestNumber {
    generation << SLOT_BITS | slot as u64
}

/// Something the peer asked and this side has not answered.
#[derive(Debug)]
pub(super) struct Serving {
    /// When it ends at the latest; while its body arrives, when that must have.
    pub(super) deadline: Option<Instant>,
    /// The same once its body has arrived.
    pub(super) answer_by: Option<Instant>,
    /// The request, while its body is still arriving.
    pub(super) arriving: Option<(RequestHead, Arriving)>,
    /// Bytes of its body that count against the limits until it is answered.
    pub(super) charged: usize,
    /// Items the peer will still take; meaningless unless `streaming`.
    pub(super) credit: u32,
    pub(super) streaming: bool,
}

pub(super) type ServingTable = FxHashMap<RequestNumber, Serving>;

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked {
        Asked { deadline: None, placed: Placed::InBulk, arriving: None, credit: 0 }
    }

    #[test]
    fn a_number_used_again_is_told_apart_from_its_earlier_use() {
        let mut table = AskedTable::default();
        let first = table.insert(asked());
        assert!(matches!(table.find(first), Known::Waiting(_)));
        table.remove(first).unwrap();
        assert!(matches!(table.find(first), Known::Late));
        let second = table.insert(asked());
        assert_ne!(first, second);
        assert!(matches!(table.find(first), Known::Late));
        assert!(matches!(table.find(second + (1 << SLOT_BITS)), Known::Never));
        assert!(matches!(table.find(7), Known::Never));
    }

    #[test]
    fn the_table_is_full_at_its_limit_and_usable_again_afterwards() {
        let mut table = AskedTable::default();
        let numbers: Vec<_> = (0..IN_FLIGHT_MAX).map(|_| table.insert(asked())).collect();
        assert_eq!(table.next_number(), None);
        table.remove(numbers[5]).unwrap();
        let next = table.next_number().unwrap();
        assert_eq!(table.insert(asked()), next);
    }
}
