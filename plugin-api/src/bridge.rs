//! What both sides of the C contract need: bytes that change hands, tokens, and answers that are awaited. For stations and
//! for `export_plugin!`; role authors have no use for it.
#![allow(unsafe_code, reason = "the plugin boundary: memory and functions of the other side")]

mod answers;
mod buf;
mod tokens;
mod waiting;

pub use buf::{BadBuf, borrowed, lend, text, to_buf, to_bytes};
pub use tokens::Tokens;
pub use waiting::{Answer, Waiting, complete, ignored_completions};

/// The locks of this module. `tests/completion_slot.rs` compiles `tokens` and `answers` with others, under which it can try every order in
/// which threads may get at them.
mod sync {
    pub(super) use std::sync::{Mutex, PoisonError};
}

impl<T> Tokens<T> {
    /// With nothing in it.
    pub const fn new() -> Self {
        Self::over(sync::Mutex::new(tokens::Slots::new()))
    }
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_over_never_means_something_newer() {
        let tokens = Tokens::new();
        let first = tokens.insert("first");
        assert_eq!(tokens.take(first), Some("first"));
        let second = tokens.insert("second");
        assert_ne!(first, second);
        for over in [first, 0, u64::MAX, second + 1] {
            assert_eq!((tokens.get(over), tokens.take(over)), (None, None));
        }
        assert_eq!((tokens.get(second), tokens.len()), (Some("second"), 1));
    }
}
