//! Bodies as they arrive: short ones are not copied until somebody wants to keep them.

use std::ops::Deref;

use bytes::Bytes;

use super::UNCHARGED_MAX;

/// A body as it arrived.
///
/// One of up to [`UNCHARGED_MAX`] bytes may lie where it was read, beside whatever was read with it, and holds all of that
/// block: whoever passes it on at once copies nothing, and whoever wants it for longer takes it with [`Arrived::keep`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrived(Bytes);

impl Arrived {
    /// `part` of `block`, if it is whole and short; a copy if it is long.
    pub(super) fn within(block: &Bytes, part: &[u8]) -> Self {
        match part.len() <= UNCHARGED_MAX {
            true => Self(block.slice_ref(part)),
            false => Self(Bytes::copy_from_slice(part)),
        }
    }

    /// In memory of its own, for as long as one likes.
    pub fn keep(self) -> Bytes {
        match self.0.len() <= UNCHARGED_MAX {
            true => Bytes::copy_from_slice(&self.0),
            false => self.0,
        }
    }

    /// As it lies, for what is done with it before anything else is read: it goes into another session, or is decoded.
    pub fn pass_on(self) -> Bytes {
        self.0
    }
}

impl From<Bytes> for Arrived {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl Deref for Arrived {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
