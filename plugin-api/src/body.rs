//! Request, reply and error bodies. One of the two files in quilt that name bincode.
//!
//! Between Rust programs whose types agree, bodies are bincode; otherwise JSON, where added fields are tolerated.
//! A [`Fingerprint`] of their shapes says whether types agree: bincode given the bytes of another type may
//! decode to nonsense without an error, so the check is not optional.

use std::any::TypeId;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bincode::config;
use bytes::Bytes;
use schemars::{JsonSchema, schema_for};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::command::{Command, CommandError};
use crate::shape::shape_of;
use crate::strict::Strict;

/// How a body is encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// JSON.
    Json,
    /// bincode 2, standard configuration.
    Bincode,
}

/// The first half of a SHA-256 over the shapes of request, reply and error; or [`JSON_ONLY`].
pub type Fingerprint = [u8; 16];

/// The fingerprint of a command that bincode cannot carry. Such a command is called in JSON; it agrees with nothing, itself
/// included.
pub const JSON_ONLY: Fingerprint = [0; 16];

/// The largest body that is decoded from bincode, in bytes; the protocol's own limit for bodies.
const BODY_MAX: usize = 64 << 20;

/// Decodes a body whole.
///
/// # Errors
///
/// What the decoder says, for people.
pub fn decode<T: DeserializeOwned>(encoding: Encoding, body: &[u8]) -> Result<T, String> {
    match encoding {
        Encoding::Json => {
            let body = if body.is_empty() { b"{}" } else { body };
            let mut json = serde_json::Deserializer::from_slice(body);
            let value = serde_path_to_error::deserialize(Strict(&mut json)).map_err(|error| match error.inner() {
                inner if inner.is_data() => {
                    crate::Invalid::from_serde(&error.path().to_string(), &inner.to_string()).to_string()
                }
                inner => {
                    format!("expected JSON, got something else at line {}, column {}", inner.line(), inner.column())
                }
            })?;
            json.end().map_err(|error| error.to_string())?;
            Ok(value)
        }
        Encoding::Bincode => {
            // The smallest class that fits, so that a short body cannot claim a large allocation.
            let standard = config::standard();
            let (value, used) = match body.len() {
                ..=0x1000 => bincode::serde::decode_from_slice(body, standard.with_limit::<0x1_0000>()),
                0x1001..=0x1_0000 => bincode::serde::decode_from_slice(body, standard.with_limit::<0x10_0000>()),
                _ => bincode::serde::decode_from_slice(body, standard.with_limit::<{ 4 * BODY_MAX }>()),
            }
            .map_err(|error| error.to_string())?;
            if used == body.len() { Ok(value) } else { Err(format!("{} bytes left over", body.len() - used)) }
        }
    }
}

/// Encodes a body.
///
/// # Errors
///
/// The type holds something that the encoding cannot carry, such as a map with keys that are not text in JSON.
pub fn encode<T: Serialize>(encoding: Encoding, value: &T) -> Result<Bytes, String> {
    /// What is longer is not copied once more.
    const SHORT: usize = 4096;
    thread_local! {
        /// Where short bodies grow, so that each takes memory once, of its own length.
        static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }
    let mut bytes = SCRATCH.take();
    match encoding {
        Encoding::Json => serde_json::to_writer(&mut bytes, value).map_err(|error| error.to_string()),
        Encoding::Bincode => bincode::serde::encode_into_std_write(value, &mut bytes, config::standard())
            .map(drop)
            .map_err(|error| error.to_string()),
    }?;
    if bytes.len() > SHORT {
        return Ok(bytes.into());
    }
    let body = Bytes::copy_from_slice(&bytes);
    bytes.clear();
    SCRATCH.set(bytes);
    Ok(body)
}

/// Encodes a command's own error. In JSON the error's text for people follows as a second document, because a caller in JSON does
/// not have the type that would format it.
pub(crate) fn encode_error<E: CommandError>(encoding: Encoding, error: &E) -> Result<Bytes, String> {
    let body = encode(encoding, error)?;
    match encoding {
        Encoding::Bincode => Ok(body),
        Encoding::Json => {
            let text = serde_json::Value::from(error.to_string()).to_string();
            Ok([&body, &b"\n"[..], text.as_bytes()].concat().into())
        }
    }
}

/// Splits the JSON body of a command's own error into the error and its text for people. The text is `None` if a plugin in another
/// language left it out.
pub fn split_error(body: &[u8]) -> (&[u8], Option<String>) {
    let mut documents = serde_json::Deserializer::from_slice(body).into_iter::<IgnoredAny>();
    match documents.next() {
        Some(Ok(_)) => {
            let (error, text) = body.split_at(documents.byte_offset());
            (error, serde_json::from_slice(text).ok())
        }
        _ => (body, None),
    }
}

/// Decodes a command's own error.
///
/// # Errors
///
/// What the decoder says, for people.
pub fn decode_error<E: DeserializeOwned>(encoding: Encoding, body: &[u8]) -> Result<E, String> {
    match encoding {
        Encoding::Json => decode(encoding, split_error(body).0),
        Encoding::Bincode => decode(encoding, body),
    }
}

/// The JSON Schema of `T`, made once: every instance of a role says those of its commands.
pub(crate) fn schema_of<T: JsonSchema + 'static>() -> Arc<Value> {
    static MADE: LazyLock<Mutex<HashMap<TypeId, Arc<Value>>>> = LazyLock::new(Mutex::default);
    let made = || MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(schema) = made().get(&TypeId::of::<T>()) {
        return schema.clone();
    }
    // Not under the lock: an author's own schemas may ask for others, or panic.
    let schema = Arc::new(schema_for!(T).to_value());
    made().entry(TypeId::of::<T>()).or_insert(schema).clone()
}

/// The fingerprint of a command's types: names and order of fields and variants, and every type down to its leaves. Costs up to
/// milliseconds, so compute it once.
///
/// [`JSON_ONLY`] if bincode cannot carry one of them: its shape depends on its content (`serde_json::Value`, `untagged`), it leaves
/// fields out (`skip_serializing_if`), or it refuses all values that it is tried with.
pub fn fingerprint_of<C: Command>() -> Fingerprint {
    let shapes = [carried_shape::<C>(), carried_shape::<C::Reply>(), carried_shape::<C::Error>()];
    let mut hash = Sha256::new();
    for shape in shapes {
        let Some(shape) = shape else { return JSON_ONLY };
        hash.update((shape.len() as u64).to_le_bytes());
        hash.update(shape);
    }
    let whole: [u8; 32] = hash.finalize().into();
    *whole.first_chunk().expect("32 is more than 16")
}

/// The shape of a type, if bincode carries its values there and back. A type whose code panics has none: what a call then does is the
/// call's.
pub(crate) fn carried_shape<T: Serialize + DeserializeOwned>() -> Option<String> {
    let survives = |value: &T| {
        let Ok(bytes) = encode(Encoding::Bincode, value) else { return false };
        let again = decode::<T>(Encoding::Bincode, &bytes).and_then(|value| encode(Encoding::Bincode, &value));
        again.is_ok_and(|again| again == bytes)
    };
    crate::export::caught(|| shape_of::<T>(survives)).ok().flatten()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    macro_rules! message {
        ($name:ident { $($field:ident: $type:ty),* }) => {
            #[derive(Serialize, Deserialize, JsonSchema, crate::Command)]
            #[command(group = "test")]
            struct $name { $($field: $type),* }
        };
    }
    message!(One { a: u32, b: String });
    message!(Same { a: u32, b: String });
    message!(Swapped { b: String, a: u32 });
    message!(Wider { a: u64, b: String });
    message!(Maybe { a: Option<u8> });
    message!(MaybeMaybe { a: Option<Option<u8>> });
    message!(MuteThird { key: third::Key });
    message!(MuteSecond { key: second::Key });

    mod third {
        #[derive(super::Serialize, super::Deserialize, super::JsonSchema)]
        pub(super) enum Key {
            Idle,
            Gain(u8),
            Mute,
            Solo,
        }
    }
    mod second {
        #[derive(super::Serialize, super::Deserialize, super::JsonSchema)]
        pub(super) enum Key {
            Idle,
            Mute,
            Solo,
            Gain(u8),
        }
    }

    #[test]
    fn fingerprints_agree_exactly_when_bincode_does() {
        assert_eq!(fingerprint_of::<One>(), fingerprint_of::<Same>());
        assert_ne!(fingerprint_of::<One>(), fingerprint_of::<Swapped>());
        assert_ne!(fingerprint_of::<One>(), fingerprint_of::<Wider>());
        assert_ne!(fingerprint_of::<Maybe>(), fingerprint_of::<MaybeMaybe>());
        // Mute arrived as Solo.
        assert_ne!(fingerprint_of::<MuteThird>(), fingerprint_of::<MuteSecond>());
    }

    #[test]
    fn case_19_a_list_of_what_takes_no_bytes_is_not_carried_by_bincode() {
        #[derive(Serialize, Deserialize)]
        struct Nothing;
        #[derive(Serialize, Deserialize)]
        struct Wrapped {
            nothing: (Nothing, [u8; 0]),
        }
        // Nine bytes would announce 2^63 of them; in JSON each takes some.
        assert_eq!(carried_shape::<Vec<()>>(), None);
        assert_eq!(carried_shape::<Option<Vec<Wrapped>>>(), None);
        assert!(carried_shape::<Vec<Option<()>>>().is_some());
        assert!(carried_shape::<(Wrapped, Vec<u8>)>().is_some());
    }

    #[test]
    fn an_error_in_json_has_its_text_behind_it_and_is_decoded_without() {
        #[derive(Serialize, Deserialize, JsonSchema, PartialEq, Debug, thiserror::Error)]
        enum Wrong {
            #[error("{0} is \"wrong\"")]
            Value(u8),
        }
        let body = encode_error(Encoding::Json, &Wrong::Value(7)).unwrap();
        assert_eq!(split_error(&body), (&br#"{"Value":7}"#[..], Some("7 is \"wrong\"".into())));
        assert_eq!(decode_error(Encoding::Json, &body), Ok(Wrong::Value(7)));
        assert_eq!(decode_error(Encoding::Json, br#"{"Value":7}"#), Ok(Wrong::Value(7)), "without a text");
        let body = encode_error(Encoding::Bincode, &Wrong::Value(7)).unwrap();
        assert_eq!(decode_error(Encoding::Bincode, &body), Ok(Wrong::Value(7)));
        assert_eq!(split_error(b"\xff"), (&b"\xff"[..], None));
    }

    #[test]
    fn a_short_body_cannot_claim_a_large_allocation() {
        let claims_4_gib = [253, 0, 0, 0, 0, 1, 0, 0, 0];
        assert!(decode::<Vec<u64>>(Encoding::Bincode, &claims_4_gib).is_err());
        assert!(decode::<String>(Encoding::Bincode, &claims_4_gib).is_err());
    }
}
