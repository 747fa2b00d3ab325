//! Which protocol versions are spoken here, and how two peers settle on one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codec::{BorrowDecode, Encode};

/// The versions this build speaks. Until the first release there is only version 0, and its golden bytes may change.
pub const SPOKEN: Versions = Versions { lowest: 0, highest: 0 };

/// An unbroken range of protocol versions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Encode, BorrowDecode)]
pub struct Versions {
    /// The lowest version spoken.
    pub lowest: u16,
    /// The highest version spoken.
    pub highest: u16,
}

impl Versions {
    /// The highest version that both speak.
    pub fn common(self, other: Versions) -> Option<u16> {
        let highest = self.highest.min(other.highest);
        (highest >= self.lowest.max(other.lowest)).then_some(highest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lowest == self.highest {
            write!(f, "{}", self.lowest)
        } else {
            write!(f, "{} to {}", self.lowest, self.highest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_take_the_highest_version_both_speak() {
        let range = |lowest, highest| Versions { lowest, highest };
        assert_eq!(range(0, 3).common(range(2, 9)), Some(3));
        assert_eq!(range(2, 9).common(range(0, 3)), Some(3));
        assert_eq!(range(0, 1).common(range(2, 3)), None);
        assert_eq!(range(1, 1).common(range(1, 1)), Some(1));
    }
}
