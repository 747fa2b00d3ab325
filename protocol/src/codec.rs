//! Frames and their encoding. One of the two files in quilt that name bincode.
//!
//! ```text
//! +----------------+------------------------+---------------------+
//! | length, u32 LE | header (bincode)       | body (opaque bytes) |
//! +----------------+------------------------+---------------------+
//!                   <------------ length ------------------------>
//! ```
//!
//! The first frame of each direction carries [`MAGIC`] before the header. The header takes at most [`HEADER_MAX`] bytes
//! whatever the frame's length, which bounds what decoding it can allocate.

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use bincode::error::DecodeError as BincodeError;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{DecodeError, Violation};
use crate::message::{MAGIC, Message};

/// Bytes of a frame's length field.
pub const LENGTH_BYTES: usize = 4;
/// The longest frame before both sides have greeted: a greeting needs a few hundred bytes.
pub const FRAME_MAX_GREETING: usize = 16 * 1024;
/// The longest frame of a session. Larger bodies travel in chunks.
pub const FRAME_MAX: usize = 1024 * 1024;
/// The longest header: names, a command, and a handful of extensions.
pub const HEADER_MAX: usize = 16 * 1024;
/// The longest typed body that [`from_bincode`] reads, in bytes: one whole configuration push.
pub const TYPED_BODY_MAX: usize = 64 * 1024 * 1024;

/// How headers are written and read: without serde, which takes a fifth more instructions for the same bytes and does not count
/// collections against the limit.
pub(crate) use bincode::{BorrowDecode, Encode};
/// For the types that read and write themselves.
pub(crate) mod by_hand {
    pub(crate) use bincode::de::BorrowDecoder;
    pub(crate) use bincode::enc::Encoder;
    pub(crate) use bincode::error::{DecodeError, EncodeError};
}

fn bounded<const N: usize>() -> Configuration<LittleEndian, Varint, Limit<N>> {
    config::standard().with_limit::<N>()
}

/// Appends one frame to `out`.
///
/// # Panics
///
/// If header and body exceed [`FRAME_MAX`]: the session splits bodies before it comes to this.
pub fn put_frame(out: &mut Vec<u8>, message: &Message, body: &[u8]) {
    let magic = matches!(message, Message::Hello(_) | Message::Welcome(_) | Message::Refusal(_));
    frame(out, body.len(), |out| {
        if magic {
            out.put_slice(&MAGIC);
        }
        put_header(out, message);
    });
    out.put_slice(body);
}

/// Appends a frame up to its body, of which `body` bytes must follow; `header` writes what is between.
pub(crate) fn frame(out: &mut Vec<u8>, body: usize, header: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_u32_le(0);
    header(out);
    let length = out.len() - start - LENGTH_BYTES + body;
    assert!(length <= FRAME_MAX, "a frame of {length} bytes");
    let length = u32::try_from(length).expect("FRAME_MAX fits u32");
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
}

/// Appends a header.
pub(crate) fn put_header(out: &mut Vec<u8>, header: &impl Encode) {
    bincode::encode_into_std_write(header, out, config::standard())
        .expect("writing a message into memory does not fail");
}

/// Finds the first frame in `input`: its content, or `None` while it is incomplete. Checks the length before anything
/// is stored.
///
/// # Errors
///
/// [`Violation::EmptyFrame`], [`Violation::FrameTooLong`], [`Violation::Http`].
pub fn find_frame(input: &[u8], limit: usize) -> Result<Option<&[u8]>, Violation> {
    let Some(length) = input.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let is_http = matches!(length, b"HTTP" | b"GET " | b"HEAD" | b"POST" | b"PUT ");
    let length = u32::from_le_bytes(*length) as usize;
    if length == 0 {
        return Err(Violation::EmptyFrame);
    }
    if length > limit {
        if is_http {
            return Err(Violation::Http);
        }
        return Err(Violation::FrameTooLong { length, limit });
    }
    Ok(input.get(LENGTH_BYTES..LENGTH_BYTES + length))
}

/// Splits a frame's content into its message and the body behind it. `greeting` frames begin with the magic.
///
/// # Errors
///
/// [`Violation::NotQuilt`], [`Violation::Undecodable`].
pub fn read_frame(mut frame: &[u8], greeting: bool) -> Result<(Message, &[u8]), Violation> {
    if greeting {
        frame = frame.strip_prefix(&MAGIC).ok_or(Violation::NotQuilt)?;
    }
    let header = &frame[..frame.len().min(HEADER_MAX)];
    let (message, used): (Message, usize) = bincode::borrow_decode_from_slice(header, bounded::<HEADER_MAX>())
        .map_err(|error| malformed("a frame header", &error))?;
    let body = &frame[used..];
    if !body.is_empty() && message.body_of().is_none() {
        return Err(DecodeError::TrailingBytes { what: message.name(), left: body.len() }.into());
    }
    Ok((message, body))
}

/// Encodes a typed body.
///
/// # Errors
///
/// [`DecodeError::NotCarried`] if the type holds something bincode cannot write, such as a map of unknown length.
pub fn to_bincode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, DecodeError> {
    bincode::serde::encode_to_vec(value, config::standard()).map_err(|_| DecodeError::NotCarried { what })
}

/// The encoding of a structure up to the bytes of the text that is its last field; `before` is what is in front of that. Followed by
/// the bytes of the text, it decodes as the whole: so a long text can be sent to many from one place.
///
/// # Errors
///
/// As [`to_bincode`].
pub fn bincode_before_text<T: Serialize>(what: &'static str, before: &T, text: &str) -> Result<Vec<u8>, DecodeError> {
    to_bincode(what, &(before, text.len() as u64))
}

/// Decodes a typed body whole. The decoder's limit is the smallest class that the input's own length fits, so that a
/// short body cannot claim a large text. (Through serde, bincode does not count the announced length of sequences; there
/// serde's own caution holds: it reserves at most 1 MiB for elements that have not arrived.)
///
/// # Errors
///
/// All of [`DecodeError`].
pub fn from_bincode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    let decoded = match bytes.len() {
        ..=0x1000 => bincode::serde::decode_from_slice(bytes, bounded::<0x1_0000>()),
        0x1001..=0x1_0000 => bincode::serde::decode_from_slice(bytes, bounded::<0x10_0000>()),
        0x1_0001..=0x10_0000 => bincode::serde::decode_from_slice(bytes, bounded::<0x100_0000>()),
        0x10_0001..=TYPED_BODY_MAX => bincode::serde::decode_from_slice(bytes, bounded::<{ 4 * TYPED_BODY_MAX }>()),
        length => {
            let reason = format!("{length} bytes, the limit is {TYPED_BODY_MAX}");
            return Err(DecodeError::Malformed { what, reason });
        }
    };
    let (value, used) = decoded.map_err(|error| malformed(what, &error))?;
    match bytes.len() - used {
        0 => Ok(value),
        left => Err(DecodeError::TrailingBytes { what, left }),
    }
}

fn malformed(what: &'static str, error: &BincodeError) -> DecodeError {
    match error {
        BincodeError::Serde(bincode::serde::DecodeError::AnyNotSupported) => DecodeError::NotCarried { what },
        other => DecodeError::Malformed { what, reason: other.to_string() },
    }
}

/// A frame with its body, for programs that use tokio-util's `Framed` instead of quilt's own driver.
#[derive(Clone, PartialEq, Debug)]
pub struct Frame {
    /// The header.
    pub message: Message,
    /// The bytes behind it.
    pub body: Bytes,
}

/// [`Frame`]s as a tokio-util codec. It frames; it does not know the session's rules.
#[derive(Debug, Default)]
pub struct FrameCodec {
    greeted: bool,
}

/// Why a [`FrameCodec`] stopped.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The peer broke the framing.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The transport failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl tokio_util::codec::Decoder for FrameCodec {
    type Item = Frame;
    type Error = CodecError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        let limit = if self.greeted { FRAME_MAX } else { FRAME_MAX_GREETING };
        let Some(content) = find_frame(input, limit)? else { return Ok(None) };
        let length = content.len();
        let (message, body) = read_frame(content, !self.greeted)?;
        let body_at = LENGTH_BYTES + length - body.len();
        self.greeted = true;
        let mut whole = input.split_to(LENGTH_BYTES + length);
        whole.advance(body_at);
        Ok(Some(Frame { message, body: whole.freeze() }))
    }
}

impl tokio_util::codec::Encoder<Frame> for FrameCodec {
    type Error = CodecError;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), CodecError> {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, &frame.message, &frame.body);
        out.put_slice(&bytes);
        Ok(())
    }
}
