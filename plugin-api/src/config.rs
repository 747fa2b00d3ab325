//! Reads a document and finds every mistake in it, so that an operator corrects a file once.
//!
//! serde stops at the first error. So each wrong value is noted and removed, and the rest is read again. This way the type's own
//! decoder judges, even keys that no schema describes.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use crate::error::Invalid;
use crate::strict::Strict;

/// The most mistakes that are listed of one document. Each costs one more reading of the document.
const WRONG_MAX: usize = 100;

/// A document as far as it could be read.
pub struct Reading<T> {
    /// The value without the wrong parts; `None` if it cannot do without them.
    pub value: Option<T>,
    /// Every mistake, at most 100.
    pub wrong: Vec<Wrong>,
}

/// A mistake in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The keys that lead to it, up to the first list.
    pub keys: Vec<String>,
    /// What is wrong.
    pub invalid: Invalid,
}

/// Reads a document and lists every mistake. Costs one reading for each mistake. The JSON Schema, if there is one, is used for the
/// names of required keys only: serde names just the first that is missing.
pub fn read<T: DeserializeOwned>(document: &Value, schema: Option<&Value>) -> Reading<T> {
    // Most documents have no mistake.
    if let Ok(value) = T::deserialize(Strict(document)) {
        return Reading { value: Some(value), wrong: Vec::new() };
    }
    let mut rest = Node::of(document);
    let (mut wrong, mut taken_out) = (Vec::new(), Vec::<Vec<Step>>::new());
    while wrong.len() < WRONG_MAX {
        let error = match serde_path_to_error::deserialize(Strict(rest.to_value())) {
            Ok(value) => return Reading { value: Some(value), wrong },
            Err(error) => error,
        };
        let message = error.inner().to_string();
        let mut place = rest.original(error.path());
        if let Some(missing) = Invalid::missing(&message) {
            for missing in std::iter::once(missing).chain(absent(document, schema, &place)) {
                let at: Vec<_> = place.iter().cloned().chain([Step::Key(missing.to_owned())]).collect();
                // A value that was removed is wrong, not missing.
                let is_known = taken_out.contains(&at) || wrong.iter().any(|known: &Wrong| known.is_at(&at));
                if !is_known {
                    wrong.push(Wrong::new(&at, Invalid::key(text(&at), "a value", "nothing")));
                }
            }
        } else {
            if let Some(unknown) = Invalid::unknown(&message) {
                let unknown = Step::Key(unknown.to_owned());
                if place.last() != Some(&unknown) {
                    place.push(unknown);
                }
            }
            // With a part removed the whole may be refused as well; that is no further mistake.
            if !taken_out.iter().any(|out| out.starts_with(&place)) {
                wrong.push(Wrong::new(&place, Invalid::from_serde(&text(&place), &message)));
            }
        }
        if place.is_empty() || !rest.take_out(&place) {
            break;
        }
        taken_out.push(place);
    }
    Reading { value: None, wrong }
}

impl Wrong {
    fn new(place: &[Step], invalid: Invalid) -> Self {
        let keys = place.iter().map_while(|step| match step {
            Step::Key(key) => Some(key.clone()),
            Step::Item(_) => None,
        });
        Self { keys: keys.collect(), invalid }
    }

    fn is_at(&self, place: &[Step]) -> bool {
        self.invalid.key.as_deref() == Some(&text(place))
    }
}

/// One step from a table or list into it.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Key(String),
    /// Counted in the original document.
    Item(usize),
}

fn text(place: &[Step]) -> String {
    let mut text = String::new();
    for step in place {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text += &format!(".{key}"),
            Step::Item(item) => text += &format!("[{item}]"),
        }
    }
    text
}

/// A document from which values are removed. Items keep their index in the original document.
enum Node {
    Table(Vec<(String, Node)>),
    List(Vec<(usize, Node)>),
    Leaf(Value),
}

impl Node {
    fn of(value: &Value) -> Self {
        match value {
            Value::Object(table) => {
                Self::Table(table.iter().map(|(key, value)| (key.clone(), Self::of(value))).collect())
            }
            Value::Array(list) => Self::List(list.iter().map(Self::of).enumerate().collect()),
            leaf => Self::Leaf(leaf.clone()),
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Self::Table(table) => {
                Value::Object(table.iter().map(|(key, node)| (key.clone(), node.to_value())).collect())
            }
            Self::List(list) => Value::Array(list.iter().map(|(_, node)| node.to_value()).collect()),
            Self::Leaf(leaf) => leaf.clone(),
        }
    }

    /// Translates a path in the rest into one in the original document, as far as the path exists.
    fn original(&self, path: &Path) -> Vec<Step> {
        let (mut node, mut place) = (self, Vec::new());
        for segment in path.iter() {
            let next = match (segment, node) {
                (Segment::Map { key } | Segment::Enum { variant: key }, Self::Table(table)) => {
                    let found = table.iter().find(|(name, _)| name == key);
                    found.map(|(_, node)| (Step::Key(key.clone()), node))
                }
                (Segment::Seq { index }, Self::List(list)) => {
                    list.get(*index).map(|(item, node)| (Step::Item(*item), node))
                }
                _ => None,
            };
            let Some((step, below)) = next else { break };
            place.push(step);
            node = below;
        }
        place
    }

    /// Removes the value at a place; returns false if there is none.
    fn take_out(&mut self, place: &[Step]) -> bool {
        let Some((step, below)) = place.split_first() else { return false };
        match (step, self) {
            (Step::Key(key), Self::Table(table)) => {
                let at = table.iter().position(|(name, _)| name == key);
                at.is_some_and(|at| match below.is_empty() {
                    true => {
                        table.remove(at);
                        true
                    }
                    false => table[at].1.take_out(below),
                })
            }
            (Step::Item(item), Self::List(list)) => {
                let at = list.iter().position(|(number, _)| number == item);
                at.is_some_and(|at| match below.is_empty() {
                    true => {
                        list.remove(at);
                        true
                    }
                    false => list[at].1.take_out(below),
                })
            }
            _ => false,
        }
    }
}

/// The keys that a schema requires at a place and the document lacks.
fn absent<'s>(document: &Value, schema: Option<&'s Value>, place: &[Step]) -> Vec<&'s str> {
    let there = place.iter().try_fold(document, |value, step| match step {
        Step::Key(key) => value.get(key),
        Step::Item(item) => value.get(item),
    });
    let described = schema.and_then(|root| described(root, root, place, SCHEMA_STEPS_MAX));
    let required = described.and_then(|table| table.get("required")?.as_array());
    let required = required.into_iter().flatten().filter_map(Value::as_str);
    required.filter(|key| there.is_some_and(|table| table.get(key).is_none())).collect()
}

/// How deep a schema is looked into: its references may lead in a circle.
const SCHEMA_STEPS_MAX: usize = 64;

/// The part of a schema that describes the table at a place.
fn described<'s>(root: &'s Value, schema: &'s Value, place: &[Step], left: usize) -> Option<&'s Value> {
    let left = left.checked_sub(1)?;
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        return described(root, root.pointer(reference.strip_prefix('#')?)?, place, left);
    }
    let direct = match place.split_first() {
        None => schema.get("properties").map(|_| schema),
        Some((Step::Key(key), below)) => {
            let named = schema.get("properties").and_then(|properties| properties.get(key));
            let inner = named.or_else(|| schema.get("additionalProperties"));
            inner.and_then(|inner| described(root, inner, below, left))
        }
        Some((Step::Item(item), below)) => {
            let numbered = schema.get("prefixItems").and_then(|items| items.get(item));
            let inner = numbered.or_else(|| schema.get("items"));
            inner.and_then(|inner| described(root, inner, below, left))
        }
    };
    let forms = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|form| schema.get(form)?.as_array()).flatten();
    direct.or_else(|| forms.into_iter().find_map(|form| described(root, form, place, left)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use schemars::JsonSchema;
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Deserialize, JsonSchema, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only the reading counts")]
    struct Config {
        from: String,
        to: String,
        #[serde(default)]
        env: BTreeMap<String, String>,
        #[serde(default)]
        codes: Vec<u8>,
        #[serde(default)]
        checks: Vec<Check>,
        #[serde(default)]
        ready: Option<Check>,
    }

    #[derive(Deserialize, JsonSchema, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only the reading counts")]
    struct Check {
        host: String,
        port: u16,
    }

    fn wrong(document: Value) -> Vec<String> {
        let schema = schemars::schema_for!(Config).to_value();
        let reading = read::<Config>(&document, Some(&schema));
        let mut wrong: Vec<_> = reading.wrong.iter().map(|wrong| wrong.invalid.to_string()).collect();
        wrong.sort();
        wrong
    }

    #[test]
    fn every_wrong_key_is_found_at_every_depth_and_by_its_own_place() {
        let found = wrong(json!({
            "from": "x", "to": 5, "env": ["A=1"], "codes": [1, "2", 3, 400], "tpyo": 1,
            "checks": [{ "host": 1, "port": "http" }, "no", { "host": "h", "prot": 1, "port": 1 }],
            "ready": { "host": "h", "port": 70000 },
        }));
        assert_eq!(
            found,
            [
                "key `checks[0].host`: expected text, got a whole number",
                "key `checks[0].port`: expected a whole number from 0 to 65535, got text",
                "key `checks[1]`: expected a table, got text",
                "key `checks[2].prot`: expected `host` or `port`, got an unknown key",
                "key `codes[1]`: expected a whole number from 0 to 255, got text",
                "key `codes[3]`: expected a whole number from 0 to 255, got another number",
                "key `env`: expected a table, got a list",
                "key `ready.port`: expected a whole number from 0 to 65535, got another number",
                "key `to`: expected text, got a whole number",
                "key `tpyo`: expected one of `from`, `to`, `env`, `codes`, `checks`, `ready`, got an unknown key",
            ]
        );
    }

    #[test]
    fn every_missing_key_is_named_and_one_that_was_wrong_is_not_called_missing() {
        let missing = |key: &str| format!("key `{key}`: expected a value, got nothing");
        assert_eq!(wrong(json!({})), ["from", "to"].map(missing));
        assert_eq!(wrong(json!({ "from": [], "to": "x" })), ["key `from`: expected text, got a list"]);
        let in_tables = wrong(json!({ "from": "x", "to": "y", "ready": {}, "checks": [{ "port": 1 }] }));
        assert_eq!(in_tables, ["checks[0].host", "ready.host", "ready.port"].map(missing));
        // Without a schema, as far as serde names them.
        assert_eq!(read::<Config>(&json!({}), None).wrong.len(), 1);
    }

    #[test]
    fn what_is_left_is_a_value_if_it_can_do_without_what_is_wrong() {
        let reading = read::<Config>(&json!({ "from": "x", "to": "y", "codes": 7, "no": 1 }), None);
        assert_eq!((reading.value.unwrap().codes, reading.wrong.len()), (Vec::new(), 2));
        let good = read::<Config>(&json!({ "from": "x", "to": "y" }), None);
        assert!(good.value.is_some() && good.wrong.is_empty());
    }

    #[test]
    fn a_document_of_nothing_but_mistakes_costs_a_bounded_number_of_readings() {
        let many: serde_json::Map<_, _> = (0..10_000).map(|number| (format!("x{number}"), json!(1))).collect();
        assert_eq!(read::<Config>(&Value::Object(many), None).wrong.len(), WRONG_MAX);
    }
}
