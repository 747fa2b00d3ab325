//! Small tables of texts, as stations say them of themselves.

use std::fmt;
use std::ops::Index;
use std::sync::Arc;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smol_str::SmolStr;

/// A table from text to text that is made once and read often. Thousands of stations say the same of themselves: a clone shares
/// the table, and it takes the memory of its texts, where a map takes half a KiB for its first one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Arc<[(SmolStr, SmolStr)]>);

impl Labels {
    /// What is under `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(other, _)| other.as_str().cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    /// All of it, by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same with others over it.
    #[must_use]
    pub fn with<'a>(&'a self, others: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.iter().chain(others).collect()
    }
}

/// Names that selectors give another meaning, and their operators: no selector could refer to a label of such a name.
const RESERVED: [&str; 11] = ["name", "id", "hostname", "mac", "ip", "role", "instance", "state", "and", "or", "not"];

/// Checks that a selector can refer to a label of this name.
///
/// # Errors
///
/// The name is reserved or malformed; the error says what is expected.
pub fn check_key(key: &str) -> Result<(), String> {
    if RESERVED.contains(&key) {
        return Err(format!(
            "{key:?} is no name for a label: selectors mean something else by it; use another, such as my-{key}"
        ));
    }
    if key.is_empty() || key.contains(|c: char| c.is_whitespace() || c.is_control() || "=!()\"'".contains(c)) {
        return Err(format!("{key:?} is no name for a label; use one without spaces, quotes and any of = ! ( )"));
    }
    Ok(())
}

/// How many entries a table has that a station says of itself: its labels, or further facts about its machine.
pub const ENTRIES_MAX: usize = 64;
/// The longest name in such a table, in bytes.
pub const KEY_MAX: usize = 256;
/// The longest value in such a table, in bytes.
pub const VALUE_MAX: usize = 1024;
/// How many bytes all names and values of such a table come to.
pub const TABLE_MAX: usize = 16 << 10;

/// Checks the size of a table of labels or facts. `noun` says what one entry is, such as `label`.
///
/// # Errors
///
/// Names what is too much, how much it is and how much there may be.
pub fn check_table<'a>(noun: &str, table: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(), String> {
    let (mut entries, mut bytes) = (0, 0);
    for (key, value) in table {
        entries += 1;
        bytes += key.len() + value.len();
        if key.len() > KEY_MAX {
            return Err(format!("a {noun} has a name of {} bytes; at most {KEY_MAX} are taken", key.len()));
        }
        if value.len() > VALUE_MAX {
            return Err(format!("{noun} `{key}` has a value of {} bytes; at most {VALUE_MAX} are taken", value.len()));
        }
    }
    if entries > ENTRIES_MAX {
        return Err(format!("{entries} {noun}s; at most {ENTRIES_MAX} are taken"));
    }
    if bytes > TABLE_MAX {
        return Err(format!("{noun}s of {bytes} bytes; at most {TABLE_MAX} are taken"));
    }
    Ok(())
}

impl Index<&str> for Labels {
    type Output = SmolStr;

    /// # Panics
    ///
    /// If there is nothing under `key`.
    fn index(&self, key: &str) -> &SmolStr {
        let at = self.0.binary_search_by(|(other, _)| other.as_str().cmp(key));
        &self.0[at.unwrap_or_else(|_| panic!("no label {key}"))].1
    }
}

impl Default for Labels {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Of two texts under one key the later counts.
impl<K: Into<SmolStr>, V: Into<SmolStr>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut pairs: Vec<(SmolStr, SmolStr)> =
            pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        pairs.reverse();
        // Stable: of equal keys the later one comes first, and stays.
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs.dedup_by(|later, first| later.0 == first.0);
        Self(pairs.into())
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table;
        impl<'de> Visitor<'de> for Table {
            type Value = Labels;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry::<SmolStr, SmolStr>()? {
                    pairs.push(pair);
                }
                Ok(pairs.into_iter().collect())
            }
        }
        deserializer.deserialize_map(Table)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::codec::{from_bincode, to_bincode};

    #[test]
    fn a_label_that_no_selector_could_ask_for_is_refused() {
        for key in ["room", "kubernetes.io/os", "größe", "a-b", "Role"] {
            assert_eq!(check_key(key), Ok(()));
        }
        for key in ["role", "state", "not", "", "a b", "a=b", "a!", "(a", "a\n"] {
            assert!(check_key(key).is_err(), "{key:?}");
        }
    }

    #[test]
    fn a_table_is_found_by_key_overlaid_and_travels_as_a_map() {
        let own: Labels = [("room", "b"), ("floor", "1"), ("room", "a")].into_iter().collect();
        assert_eq!((own.get("room"), own.get("floor"), own.get("x")), (Some("a"), Some("1"), None));
        let over = own.with([("floor", "2"), ("zone", "z")]);
        let expected = BTreeMap::from([("floor", "2"), ("room", "a"), ("zone", "z")]);
        assert_eq!(over.iter().collect::<BTreeMap<_, _>>(), expected);
        let bytes = to_bincode("labels", &over).unwrap();
        assert_eq!(bytes, to_bincode("a map", &expected).unwrap());
        assert_eq!(from_bincode::<Labels>("labels", &bytes).unwrap(), over);
        assert_eq!(serde_json::from_str::<Labels>(r#"{"room":"a","floor":"1"}"#).unwrap(), own);
    }
}
