//! What can be wrong with what a peer sent.

use crate::session::TERMS_KEPT;
use crate::version::Versions;

/// Bytes that do not decode. Answered where a request can be answered; a [`Violation`] where nothing can.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not a value of the type, or claim more than they hold.
    #[error("{what} does not decode: {reason}")]
    Malformed {
        /// What was to be decoded.
        what: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// A value was read and bytes were left over.
    #[error("{left} bytes are left over after {what}; peer and we disagree about its shape")]
    TrailingBytes {
        /// What was decoded.
        what: &'static str,
        /// How many bytes were left.
        left: usize,
    },
    /// The value holds a type that this encoding cannot carry; another encoding can.
    #[error("{what} cannot travel in this encoding; send it as JSON")]
    NotCarried {
        /// What was to be decoded.
        what: &'static str,
    },
}

/// A peer broke a rule of framing or greeting. The connection is closed; nothing less ever closes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame longer than the session allows.
    #[error("a frame of {length} bytes, the limit is {limit}; larger bodies travel in chunks")]
    FrameTooLong {
        /// What the frame's length field says.
        length: usize,
        /// What is allowed now.
        limit: usize,
    },
    /// Not a frame: the peer asks or answers in HTTP.
    #[error(
        "the peer speaks HTTP and not quilt's protocol; use the manager's protocol port (7440 by default), not its HTTP \
         port (7441)"
    )]
    Http,
    /// A frame of no bytes.
    #[error("an empty frame")]
    EmptyFrame,
    /// A frame whose header does not decode.
    #[error("a frame that does not decode: {0}")]
    Undecodable(#[from] DecodeError),
    /// The greeting does not begin with quilt's magic.
    #[error("the peer does not speak quilt's protocol (no magic in its greeting)")]
    NotQuilt,
    /// A message that has no place in the state the session is in.
    #[error("a {got} while {state}")]
    Unexpected {
        /// The session's state.
        state: &'static str,
        /// The message that came.
        got: &'static str,
    },
    /// An answer to something that was never asked.
    #[error("an answer to request {0}, which was never asked")]
    NotAsked(u64),
    /// An item that no credit was given for.
    #[error("an item for request {0} beyond the credit given")]
    NoCredit(u64),
    /// A request under a number that is still being served.
    #[error("request number {0} used again while it is being served")]
    NumberInUse(u64),
    /// A request on terms that were never said.
    #[error("a request on the terms kept as {0}, and there are none")]
    UnknownTerms(u8),
    /// Terms to be kept that are too many or too long.
    #[error("terms to be kept as {0}, and the limits are {TERMS_KEPT} of them, without extensions")]
    TermsNotKept(u8),
    /// A body longer than a session takes, or chunks that do not add up to it.
    #[error("a body of {length} bytes, the limit is {limit}")]
    BodyTooLong {
        /// How long it says it is.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// No protocol version that both peers speak.
    #[error("no common protocol version: the peer speaks {theirs}, this side speaks {ours}; upgrade the older one")]
    NoCommonVersion {
        /// The peer's range.
        theirs: Versions,
        /// Our range.
        ours: Versions,
    },
    /// The peer did not greet in time.
    #[error("no greeting within {0:?}")]
    GreetingTimeout(std::time::Duration),
    /// A frame that drips in.
    #[error("a frame that does not arrive at 64 KiB a second")]
    SlowFrame,
    /// The peer does not read what it is sent.
    #[error("the peer does not read: {queued} bytes wait for it, the limit is {limit}")]
    NotReading {
        /// How much waits.
        queued: usize,
        /// How much may wait.
        limit: usize,
    },
}
