//! JSON Schemas travel apart from what they describe, once for each content: a listing refers to them by hash, and whoever
//! has not seen one yet asks for it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::names::{Digest, Name};

/// How many schemas are asked for at a time.
pub const SCHEMAS_MAX: usize = 1024;
/// How long a page of a listing is, in bytes, unless a single entry is longer: an answer has a longest length, a station any number of
/// instances.
pub const PAGE_MAX: usize = 4 << 20;

/// A part of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    /// Entries, in an order that stays the same.
    pub items: Vec<T>,
    /// Where the next page begins, for [`Discover::after`]; none if this is the last.
    pub next: Option<String>,
}

/// Asks a station for its roles or commands.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Discover {
    /// Whether schemas are to be [`reference()`]s.
    #[serde(default)]
    pub by_hash: bool,
    /// What the page before had as its [`Page::next`].
    #[serde(default)]
    pub after: Option<String>,
}

/// Asks the manager for schemas that a station referred to; the answer is their texts, in order: the first of them and as many more
/// as fit into [`PAGE_MAX`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReadSchemas {
    /// The station.
    pub station: Name,
    /// Hashes of their texts; at most [`SCHEMAS_MAX`].
    pub schemas: Vec<Digest>,
}

/// A schema's text, as it is hashed.
pub fn text(schema: &Value) -> String {
    schema.to_string()
}

/// What stands for a schema: `{"$ref": "sha256:<64 digits>"}`, itself a schema that says where to look.
pub fn reference(schema: &Value) -> Value {
    reference_to(Digest::of(text(schema).as_bytes()))
}

/// The same for a schema whose text has this hash.
pub fn reference_to(digest: Digest) -> Value {
    json!({ "$ref": format!("sha256:{digest}") })
}

/// The hash that a [`reference()`] holds; none for any other schema.
pub fn referenced(schema: &Value) -> Option<Digest> {
    let members = schema.as_object().filter(|members| members.len() == 1)?;
    members.get("$ref")?.as_str()?.strip_prefix("sha256:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_holds_the_hash_of_the_schema_and_other_schemas_are_none() {
        let schema = json!({ "type": "integer" });
        assert_eq!(referenced(&reference(&schema)), Some(Digest::of(br#"{"type":"integer"}"#)));
        for other in [json!({ "$ref": "#/$defs/x" }), json!({ "$ref": "sha256:00" }), json!(true), schema] {
            assert_eq!(referenced(&other), None, "{other}");
        }
    }
}
