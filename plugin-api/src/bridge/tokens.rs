//! Numbers in the place of pointers: the other side may keep one too long, use it twice or make it up.

use super::sync::{Mutex, PoisonError};

/// Values by token. A token is an index and a generation, so that one that is over never means something newer; 0 is none.
pub struct Tokens<T> {
    slots: Mutex<Slots<T>>,
}

/// What is in it.
pub struct Slots<T> {
    all: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    /// Nothing.
    pub const fn new() -> Self {
        Self { all: Vec::new(), free: Vec::new() }
    }
}

impl<T> Tokens<T> {
    /// With what is in a lock, which is made elsewhere: `tests/completion_slot.rs` puts its own kind of lock here.
    pub const fn over(slots: Mutex<Slots<T>>) -> Self {
        Self { slots }
    }

    /// Puts a value in and gives its token.
    pub fn insert(&self, value: T) -> u64 {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match slots.free.pop() {
            Some(index) => index,
            None => {
                slots.all.push(Slot { generation: 0, value: None });
                u32::try_from(slots.all.len() - 1).expect("memory ends before 2^32 values do")
            }
        };
        let slot = &mut slots.all[index as usize];
        slot.value = Some(value);
        token(index, slot.generation)
    }

    /// Takes a value out; its token is over.
    pub fn take(&self, token: u64) -> Option<T> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, generation) = parts(token)?;
        let slot = slots.all.get_mut(index as usize).filter(|slot| slot.generation == generation)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        slots.free.push(index);
        Some(value)
    }

    /// Does something with a value.
    pub fn with<R>(&self, token: u64, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, generation) = parts(token)?;
        let slot = slots.all.get_mut(index as usize).filter(|slot| slot.generation == generation)?;
        slot.value.as_mut().map(work)
    }

    /// How many values are in it.
    pub fn len(&self) -> usize {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.all.len() - slots.free.len()
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Clone> Tokens<T> {
    /// A clone of a value.
    pub fn get(&self, token: u64) -> Option<T> {
        self.with(token, |value| value.clone())
    }
}

fn token(index: u32, generation: u32) -> u64 {
    (u64::from(generation) << 32) | (u64::from(index) + 1)
}

fn parts(token: u64) -> Option<(u32, u32)> {
    Some(((token as u32).checked_sub(1)?, (token >> 32) as u32))
}
