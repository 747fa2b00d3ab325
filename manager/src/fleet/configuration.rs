//! The configuration of one instance as a manager keeps it: its text.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::sync::Arc;

use quilt_protocol::Digest;
use quilt_protocol::control::{ApplyOf, DocumentOf, FleetFileOf, GroupEntryOf, RolesOf, StationEntryOf};
use quilt_protocol::names::Hasher;
use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

pub(crate) type Apply = ApplyOf<Configuration>;
pub(crate) type Document = DocumentOf<Configuration>;
pub(crate) type FleetFile = FleetFileOf<Configuration>;
pub(crate) type GroupEntry = GroupEntryOf<Configuration>;
pub(crate) type Roles = RolesOf<Configuration>;
pub(crate) type StationEntry = StationEntryOf<Configuration>;

/// How many levels of tables and lists a configuration has. Stations read 127, of which a document's own are some.
const DEPTH_MAX: usize = 120;

/// A JSON object that passes through the manager as it came. In memory a value tree takes ten times as much as its text. A clone shares
/// the text.
#[derive(Clone)]
pub(crate) struct Configuration(Arc<Inner>);

struct Inner {
    json: Box<RawValue>,
    digest: Digest,
}

impl Configuration {
    /// The digest that stations know the instance's configuration by: two that mean the same have the same.
    pub(crate) fn digest(&self) -> Digest {
        self.0.digest
    }

    /// The length of its text, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.json.get().len()
    }

    /// The digest of the value of each of its keys.
    pub(crate) fn members(&self) -> BTreeMap<String, Digest> {
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(self.0.json.get()).unwrap_or_default();
        let digest = |json: &RawValue| {
            let mut hasher = Hasher::default();
            // It was read before, when the whole was.
            let _ = put(&mut hasher, json.get(), DEPTH_MAX);
            hasher.digest()
        };
        members.into_iter().map(|(key, json)| (key, digest(json))).collect()
    }
}

/// The same as `instance_digest` in quilt-protocol makes of a value tree.
fn digest_of(json: &RawValue) -> Result<Digest, String> {
    if !json.get().starts_with('{') {
        return Err("the configuration of an instance is a table".into());
    }
    let mut hasher = Hasher::default();
    put(&mut hasher, json.get(), DEPTH_MAX)?;
    Ok(hasher.digest())
}

/// Writes a text of JSON in the one form that digests are made of: without spaces, keys in order, each member and item followed by a
/// comma.
fn put(out: &mut Hasher, json: &str, depth: usize) -> Result<(), String> {
    let text = |error: serde_json::Error| error.to_string();
    let deeper =
        || depth.checked_sub(1).ok_or_else(|| format!("a configuration nests at most {DEPTH_MAX} levels deep"));
    match json.as_bytes().first() {
        Some(b'{') => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(json).map_err(text)?;
            let depth = deeper()?;
            write(out, b"{");
            for (key, value) in members {
                serde_json::to_writer(&mut *out, &key).map_err(text)?;
                write(out, b":");
                put(out, value.get(), depth)?;
                write(out, b",");
            }
            write(out, b"}");
        }
        Some(b'[') => {
            write(out, b"[");
            let mut items = serde_json::Deserializer::from_str(json);
            Items { out, depth: deeper()? }.deserialize(&mut items).map_err(text)?;
            write(out, b"]");
        }
        _ => {
            let value: Value = serde_json::from_str(json).map_err(text)?;
            serde_json::to_writer(&mut *out, &value).map_err(text)?;
        }
    }
    Ok(())
}

fn write(out: &mut Hasher, bytes: &[u8]) {
    out.write_all(bytes).expect("a hash takes everything");
}

/// Writes the items of an array one after the other: a list of them all would be longer than the text.
struct Items<'o> {
    out: &'o mut Hasher,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element::<&RawValue>()? {
            put(self.out, item.get(), self.depth).map_err(A::Error::custom)?;
            write(self.out, b",");
        }
        Ok(())
    }
}

impl PartialEq for Configuration {
    fn eq(&self, other: &Self) -> bool {
        self.0.digest == other.0.digest
    }
}

/// Shows no content, which may be secret.
impl fmt::Debug for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Configuration({})", self.0.digest)
    }
}

impl Serialize for Configuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Configuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let digest = digest_of(&json).map_err(D::Error::custom)?;
        Ok(Self(Arc::new(Inner { json, digest })))
    }
}

#[cfg(test)]
mod tests {
    use quilt_protocol::control::instance_digest;

    use super::*;

    fn read(json: &str) -> Result<Configuration, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn its_digest_is_the_one_that_stations_make_however_it_is_spelled() {
        let texts = [
            "{}",
            r#"{"b":1,"a":[1,2.50,-0,1e2,18446744073709551615,1e300]}"#,
            r#" { "x" : { "z" : [ ] , "y" : [ { } , [ null , true ] ] } } "#,
            r#"{"umlaut":"\u00e4ß","quote":"\"\\\/\n\u0001","":{"":""}}"#,
            r#"{"twice":1,"twice":{"b":2,"a":1}}"#,
        ];
        for text in texts {
            let tree: serde_json::Map<String, Value> = serde_json::from_str(text).unwrap();
            assert_eq!(read(text).unwrap().digest(), instance_digest(&tree), "{text}");
        }
        assert_eq!(read(r#"{"a":1.0,"b":[]}"#).unwrap(), read(r#"{ "b": [], "a": 1.00 }"#).unwrap());
        assert_ne!(read(r#"{"a":1}"#).unwrap(), read(r#"{"a":1.0}"#).unwrap());
    }

    #[test]
    fn its_text_passes_as_it_came_and_shows_nothing_in_a_log() {
        let text = r#"{ "b": 1.50, "a": "\u00e4 secret" }"#;
        let configuration = read(text).unwrap();
        assert_eq!(serde_json::to_string(&configuration).unwrap(), text);
        assert!(!format!("{configuration:?}").contains("secret"));
        let members = configuration.members();
        let other = read(r#"{"a":"\u00e4 secret","b":1.5,"c":0}"#).unwrap().members();
        assert_eq!((members["a"] == other["a"], members["b"] == other["b"], members.len()), (true, true, 2));
    }

    #[test]
    fn what_no_station_could_read_is_refused() {
        let deep = |levels: usize| format!("{{\"x\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(read(&deep(119)).is_ok());
        assert!(read(&deep(120)).unwrap_err().contains("at most 120 levels"));
        assert!(read(&deep(100_000)).unwrap_err().contains("at most 120 levels"));
        for bad in ["[]", "1", "null", r#"{"a":1e999}"#, "{\"a\":}"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
