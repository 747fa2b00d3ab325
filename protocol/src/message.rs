//! Everything that can be said on a connection.
//!
//! A message is a bincode header; bodies follow it in the frame as opaque bytes, so that a relay never decodes them.
//! Wire types are small (64 bytes at most, asserted below), not recursive, and hold no collections of zero-sized items:
//! a hostile frame can then cost no more memory than a small multiple of its own length.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::codec::{BorrowDecode, Encode};
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::names::{FleetId, MessageId, Name, StationId};
use crate::version::Versions;

/// The first bytes of every greeting. A peer that speaks something else is told apart before anything is decoded.
pub const MAGIC: [u8; 8] = *b"\x89QUILT\r\n";

/// The number of a request on one session, given by the side that asks. None is used twice in the life of a session.
pub type RequestNumber = u64;

/// One header. The bodies of `Request`, `Response`, `Item` and `Chunk` follow it in the frame.
#[derive(Clone, PartialEq, Debug, Encode, BorrowDecode)]
pub enum Message {
    /// The side that connected introduces itself.
    Hello(Box<Hello>),
    /// The side that was connected to accepts.
    Welcome(Box<Welcome>),
    /// The side that was connected to declines and closes.
    Refusal(Box<Refusal>),
    /// An ask. `body` is the length of the whole body; what this frame does not hold follows as chunks.
    Request {
        /// The asker's number for it.
        number: RequestNumber,
        /// See [`RequestHead::message_id`].
        message_id: MessageId,
        /// See [`RequestHead::remaining_ms`].
        remaining_ms: u32,
        /// See [`RequestHead::trace`].
        trace: Option<Box<Trace>>,
        /// What is asked, of whom.
        terms: Said,
        /// Length of the whole body in bytes.
        body: u32,
    },
    /// The end of a request.
    Response {
        /// The asker's number.
        number: RequestNumber,
        /// How it ended.
        outcome: Outcome,
        /// How the body is encoded.
        encoding: Encoding,
        /// Length of the whole body in bytes.
        body: u32,
    },
    /// The asker no longer wants an answer.
    Cancel {
        /// The asker's number.
        number: RequestNumber,
    },
    /// One item of a streaming answer; takes one credit.
    Item {
        /// The asker's number.
        number: RequestNumber,
        /// Length of the whole body in bytes.
        body: u32,
    },
    /// The asker takes `items` more items.
    Credit {
        /// The asker's number.
        number: RequestNumber,
        /// How many more.
        items: u32,
    },
    /// The next part of a body that did not fit its frame.
    Chunk {
        /// The asker's number.
        number: RequestNumber,
        /// Whose body.
        of: BodyOf,
    },
    /// Are you there?
    Ping {
        /// Comes back in the pong.
        nonce: u32,
    },
    /// I am.
    Pong {
        /// The ping's.
        nonce: u32,
        /// How long the opener should wait before its next ping, in milliseconds.
        interval_ms: u32,
    },
    /// The sender leaves on purpose and will close; told apart from a crash.
    Goodbye {
        /// Why, for the log.
        reason: String,
    },
}

/// Which of a request's two bodies a chunk belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub enum BodyOf {
    /// The asker's body.
    Request,
    /// An item's or the response's body.
    Answer,
}

/// The extension of [`Hello`] under which a tool says which person uses it, as `user@host`.
pub const PERSON: &str = "quilt.person";

/// Who connects, and what it speaks. The layout of this and of [`Welcome`] and [`Refusal`] never changes: they are what
/// lets versions differ. Growth goes through `features` and `extensions`.
#[derive(Clone, PartialEq, Debug, Encode, BorrowDecode)]
pub struct Hello {
    /// Protocol versions offered.
    pub versions: Versions,
    /// The software's name and version, for people.
    pub software: String,
    /// The fleet the peer belongs to, if it knows.
    pub fleet: Option<FleetId>,
    /// Who it is.
    pub identity: Identity,
    /// Optional abilities it has.
    pub features: Vec<String>,
    /// Named bytes; unknown names pass through.
    pub extensions: Extensions,
}

/// Who a peer is.
#[derive(Clone, PartialEq, Debug, Encode, BorrowDecode)]
pub enum Identity {
    /// A station.
    Station(StationId),
    /// A tool, with the name it would like to have.
    Tool(Name),
}

/// The connection is a session from here on.
#[derive(Clone, PartialEq, Debug, Encode, BorrowDecode)]
pub struct Welcome {
    /// The version both sides speak from the next frame on.
    pub version: u16,
    /// The software's name and version, for people.
    pub software: String,
    /// The manager's fleet.
    pub fleet: FleetId,
    /// The name of a tool, unique among those connected. Stations get theirs when they register.
    pub assigned: Option<Name>,
    /// How often the opener pings, in milliseconds.
    pub heartbeat_ms: u32,
    /// Optional abilities the acceptor has.
    pub features: Vec<String>,
    /// Named bytes; unknown names pass through.
    pub extensions: Extensions,
}

/// Why a connection does not become a session.
#[derive(Clone, PartialEq, Debug, Encode, BorrowDecode)]
pub struct Refusal {
    /// Stable, for programs: `version`, `quarantined`, `overloaded`, `shutting_down`.
    pub code: String,
    /// For people; says what to do.
    pub text: String,
    /// The versions the refusing side speaks.
    pub versions: Versions,
    /// Named bytes; unknown names pass through.
    pub extensions: Extensions,
}

/// Named bytes that ride along: the way a header grows, since bincode cannot add fields.
pub type Extensions = BTreeMap<String, Vec<u8>>;

/// One ask: its terms, and what is its own.
#[derive(Clone, PartialEq, Debug)]
pub struct RequestHead {
    /// The same on every retry, so that it is carried out once.
    pub message_id: MessageId,
    /// Time left in milliseconds. [`NO_DEADLINE`] is allowed for streams only.
    pub remaining_ms: u32,
    /// W3C trace context.
    pub trace: Option<Box<Trace>>,
    /// What is asked, of whom.
    pub terms: Arc<Terms>,
}

/// For [`RequestHead::remaining_ms`]: the stream runs until one side ends it.
pub const NO_DEADLINE: u32 = u32::MAX;

impl RequestHead {
    /// One ask on these terms, with the default deadline.
    pub fn new(terms: impl Into<Arc<Terms>>) -> Self {
        let terms = terms.into();
        Self { message_id: MessageId::random(), remaining_ms: DEFAULT_DEADLINE_MS, trace: None, terms }
    }
}

/// What is asked, of whom: what many requests have in common. Shared, and by a busy session said once ([`Said`]).
#[derive(Clone, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Terms {
    /// Who is asked.
    pub to: Address,
    /// The command: `name`, or `group:name`.
    #[bincode(with_serde)]
    pub command: SmolStr,
    /// How the body is encoded.
    pub encoding: Encoding,
    /// Fingerprint of the types on both ends of a bincode body; all zero for JSON.
    pub fingerprint: [u8; 16],
    /// Whether asking twice does no more than asking once.
    pub idempotent: bool,
    /// How many items the asker takes to begin with; 0 asks for a plain answer.
    pub credit: u32,
    /// On whose behalf. Stamped by the side that was connected to, which never believes it of the side that connected.
    #[bincode(with_serde)]
    pub principal: Option<SmolStr>,
    /// Named bytes; unknown names pass through.
    pub extensions: Extensions,
}

impl Terms {
    /// For a plain answer to a JSON body.
    pub fn new(to: Address, command: impl Into<SmolStr>) -> Self {
        Self {
            to,
            command: command.into(),
            encoding: Encoding::Json,
            fingerprint: [0; 16],
            idempotent: false,
            credit: 0,
            principal: None,
            extensions: Extensions::new(),
        }
    }

    /// Whether the parts keep to their limits: 256 bytes each for command and principal, 32 extensions of 4 KiB
    /// together. That leaves room in a header, so that a relay can stamp a request without making it too long.
    pub fn is_small(&self) -> bool {
        let extensions: usize = self.extensions.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.command.len() <= 256
            && self.principal.as_ref().is_none_or(|principal| principal.len() <= 256)
            && self.extensions.len() <= 32
            && extensions <= 4096
    }
}

/// Terms as a frame has them: who asks for the same again and again says them once.
#[derive(Clone, PartialEq, Debug, Encode, BorrowDecode)]
pub enum Said {
    /// In full.
    Whole(Arc<Terms>),
    /// In full, to be kept under this number in the place of what was kept there before.
    Kept(u8, Arc<Terms>),
    /// Those that are kept under this number.
    Again(u8),
}

/// How long a request may take unless the caller says otherwise.
pub const DEFAULT_DEADLINE_MS: u32 = 15_000;

/// The parts of a W3C `traceparent` header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Trace {
    /// Trace id.
    pub trace_id: [u8; 16],
    /// Parent span id.
    pub parent_id: [u8; 8],
    /// Trace flags.
    pub flags: u8,
}

/// How a body is encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, Encode, BorrowDecode)]
pub enum Encoding {
    /// JSON: understood by every peer, tolerant of added fields.
    #[default]
    Json,
    /// bincode: only between equal types, see [`Terms::fingerprint`].
    Bincode,
}

/// Who is meant. Resolved by the manager to a session, never to a socket.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, Encode, BorrowDecode)]
pub enum Address {
    /// The manager.
    Manager,
    /// A station's own agent, by the station's name.
    Station(Name),
    /// A role instance.
    Instance {
        /// The station's name.
        station: Name,
        /// The role.
        role: Name,
        /// The instance.
        instance: Name,
    },
    /// A connected tool, by its assigned name.
    Client(Name),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manager => f.write_str("manager"),
            Self::Station(station) => write!(f, "{station}"),
            Self::Instance { station, role, instance } => write!(f, "{station}/{role}/{instance}"),
            Self::Client(name) => write!(f, "client:{name}"),
        }
    }
}

impl FromStr for Address {
    type Err = crate::names::NameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "manager" {
            return Ok(Self::Manager);
        }
        if let Some(name) = text.strip_prefix("client:") {
            return Ok(Self::Client(name.parse()?));
        }
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(station), Some(role), Some(instance), None) => {
                Ok(Self::Instance { station: station.parse()?, role: role.parse()?, instance: instance.parse()? })
            }
            _ => Ok(Self::Station(text.parse()?)),
        }
    }
}

/// How a request ended. The caller can always tell these apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, Encode, BorrowDecode)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done; the body is the reply.
    Reply,
    /// The command's own typed error; the body is that error.
    Error,
    /// The target understood and declined.
    Refused,
    /// Nobody by that address, now.
    NoTarget,
    /// The target has no such command.
    NoCommand,
    /// The body is not what the command takes.
    SchemaMismatch,
    /// The deadline passed first.
    TimedOut,
    /// The caller, or an update or stop of the target, ended it.
    Cancelled,
    /// The connection to the target broke.
    PeerLost(Delivered),
    /// A limit was reached; try again later.
    Overloaded,
    /// Not allowed.
    Denied,
    /// The handler panicked; the body is the message.
    Panicked,
}

/// Whether a request that lost its peer may have been carried out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, Encode, BorrowDecode)]
#[serde(rename_all = "snake_case")]
pub enum Delivered {
    /// Certainly not.
    No,
    /// Perhaps: it was sent and no answer came.
    Unknown,
}

impl Outcome {
    /// The name used in JSON output and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reply => "reply",
            Self::Error => "error",
            Self::Refused => "refused",
            Self::NoTarget => "no_target",
            Self::NoCommand => "no_command",
            Self::SchemaMismatch => "schema_mismatch",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::PeerLost(_) => "peer_lost",
            Self::Overloaded => "overloaded",
            Self::Denied => "denied",
            Self::Panicked => "panicked",
        }
    }
}

impl Message {
    /// A request, with its terms in full.
    pub fn request(number: RequestNumber, head: &RequestHead, body: u32) -> Self {
        Self::request_saying(Said::Whole(head.terms.clone()), number, head, body)
    }

    pub(crate) fn request_saying(terms: Said, number: RequestNumber, head: &RequestHead, body: u32) -> Self {
        let RequestHead { message_id, remaining_ms, ref trace, .. } = *head;
        Self::Request { number, message_id, remaining_ms, trace: trace.clone(), terms, body }
    }

    /// Which body the bytes behind the message belong to, if it may have any.
    pub(crate) fn body_of(&self) -> Option<(RequestNumber, BodyOf)> {
        match self {
            Self::Request { number, .. } => Some((*number, BodyOf::Request)),
            Self::Response { number, .. } | Self::Item { number, .. } => Some((*number, BodyOf::Answer)),
            Self::Chunk { number, of } => Some((*number, *of)),
            _ => None,
        }
    }

    /// The message's name, for errors and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome(_) => "Welcome",
            Self::Refusal(_) => "Refusal",
            Self::Request { .. } => "Request",
            Self::Response { .. } => "Response",
            Self::Cancel { .. } => "Cancel",
            Self::Item { .. } => "Item",
            Self::Credit { .. } => "Credit",
            Self::Chunk { .. } => "Chunk",
            Self::Ping { .. } => "Ping",
            Self::Pong { .. } => "Pong",
            Self::Goodbye { .. } => "Goodbye",
        }
    }
}

// A vector of large inline enum variants lets a 1 MiB frame claim 57 times its size; small variants do not.
const _: () = assert!(size_of::<Message>() <= 64);
const _: () = assert!(size_of::<Identity>() <= 64);
const _: () = assert!(size_of::<Outcome>() <= 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_their_text_form() {
        for text in ["manager", "cam-1", "cam-1/process/clock", "client:quiltctl~2"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert!("a/b".parse::<Address>().is_err());
        assert!("a/../b".parse::<Address>().is_err());
    }
}
