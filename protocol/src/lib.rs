//! quilt's wire: what two peers say to each other, and the rules they say it by.
//!
//! Absent on purpose: sockets, tasks, clocks, plugins. A [`Session`] takes bytes and the time as arguments and gives
//! bytes and events back, so that every rule here is tested without a network and without waiting.
//!
//! Read first: [`Message`] (all that can be said), [`Session`] (when it may be said), [`Outcome`] (how a request ends).
//!
//! Modules in reading order: [`names`], [`message`], [`control`], [`codec`], [`version`], [`session`], [`dedupe`],
//! [`error`].

pub mod codec;
pub mod control;
pub mod dedupe;
pub mod error;
pub mod labels;
pub mod message;
pub mod names;
pub mod session;
pub mod version;

pub use error::{DecodeError, Violation};
pub use labels::Labels;
pub use message::{Address, Encoding, Hello, Message, Outcome, RequestHead, Terms, Welcome};
pub use names::{Digest, FleetId, MessageId, Name, Revision, StationId};
pub use session::{Event, Limits, Session};
