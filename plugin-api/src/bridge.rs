//! What both sides of the C contract need: bytes that change hands, tokens, and answers that are awaited. For stations and
//! for `export_plugin!`; role authors have no use for it.
#![allow(unsafe_code, reason = "the plugin boundary: memory and functions of the other side")]

mod buf;
mod tokens;
mod waiting;

pub use buf::{BadBuf, borrowed, lend, text, to_buf, to_bytes};
pub use tokens::Tokens;
pub use waiting::{Answer, Waiting, complete, ignored_completions};
