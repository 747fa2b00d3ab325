//! What the recorder has learned about a type and the types in it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::TEXT_MAX;

/// A type as far as it is known.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) enum Record {
    /// Not known yet.
    #[default]
    Unknown,
    /// A type without parts, by its name.
    Leaf(&'static str),
    /// An `Option` of a type.
    Option(Box<Record>),
    /// Any number of one type.
    Seq(Box<Record>),
    /// Keys and values.
    Map(Box<Record>, Box<Record>),
    /// Parts in order.
    Parts(Parts),
    /// A type with a name, by its number.
    Named(usize),
}

/// Parts in order.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Parts {
    pub(super) parts: Vec<Record>,
    /// Whether all parts have been seen.
    pub(super) all: bool,
}

/// A struct or enum; a recursive type refers back to its entry.
#[derive(Debug)]
pub(super) struct TypeEntry {
    /// The type's name, its kind and the names of its parts. `type_name` alone need not be unique.
    pub(super) key: (&'static str, &'static str, &'static [&'static str]),
    pub(super) definition: Definition,
}

#[derive(Debug)]
pub(super) enum Definition {
    New(Record),
    Struct(Record),
    Enum(Vec<Variant>),
}

/// A variant, by its index.
#[derive(Debug, Default)]
pub(super) struct Variant {
    /// No variant has this index: an alias takes a place among the names.
    pub(super) absent: bool,
    pub(super) content: Option<Content>,
    /// It has been deserialized in this pass.
    pub(super) visited: bool,
    /// How many times it is being deserialized now.
    pub(super) open: usize,
}

/// The content of a variant.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Content {
    Unit,
    New(Record),
    Tuple(Record),
    Struct(&'static [&'static str], Record),
}

/// What [`TypeTable::contains`] looks for in a type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Search {
    /// Parts that are not known.
    Unknown,
    /// Those, and variants that were not visited in this pass.
    Unvisited,
    /// The same, but only where they occur in every value: not in options, sequences and maps.
    UnvisitedInAll,
}

/// The structs and enums, by number.
#[derive(Default)]
pub(super) struct TypeTable {
    pub(super) named: Vec<TypeEntry>,
    /// One place was of two different types, so there is no fixed shape.
    pub(super) has_conflict: bool,
}

impl TypeTable {
    /// Merges what a run has seen into what is known.
    pub(super) fn merge(&mut self, known: &mut Record, new: Record) {
        match (known, new) {
            (_, Record::Unknown) => {}
            (known @ Record::Unknown, new) => *known = new,
            (Record::Option(known), Record::Option(new)) | (Record::Seq(known), Record::Seq(new)) => {
                self.merge(known, *new);
            }
            (Record::Map(key, value), Record::Map(new_key, new_value)) => {
                self.merge(key, *new_key);
                self.merge(value, *new_value);
            }
            (Record::Parts(known), Record::Parts(new)) => {
                let (longer, shorter) =
                    if known.parts.len() < new.parts.len() { (&new, &*known) } else { (&*known, &new) };
                self.has_conflict |= shorter.all && shorter.parts.len() < longer.parts.len();
                known.all |= new.all;
                known.parts.resize_with(known.parts.len().max(new.parts.len()), Record::default);
                for (known, new) in known.parts.iter_mut().zip(new.parts) {
                    self.merge(known, new);
                }
            }
            // One place of two types: the type depends on the values before it.
            (known, new) => self.has_conflict |= *known != new,
        }
    }

    /// Whether all of a type is known, down to its leaves.
    pub(super) fn is_complete(&self, record: &Record) -> bool {
        is_known(record) && !self.contains(&mut BTreeSet::new(), record, Search::Unknown)
    }

    /// Whether a struct or enum is known, not counting the structs and enums in it.
    pub(super) fn is_whole(&self, id: usize) -> bool {
        match &self.named[id].definition {
            Definition::New(record) | Definition::Struct(record) => is_known(record),
            Definition::Enum(variants) => {
                variants.iter().all(|variant| variant.absent || variant.content.as_ref().is_some_and(Content::is_known))
            }
        }
    }

    /// Whether a type contains something that is searched for.
    pub(super) fn contains(&self, seen: &mut BTreeSet<usize>, record: &Record, sought: Search) -> bool {
        match record {
            Record::Unknown => true,
            Record::Leaf(_) => false,
            // The lean pass leaves these empty.
            Record::Option(_) | Record::Seq(_) | Record::Map(..) if sought == Search::UnvisitedInAll => false,
            Record::Option(inner) | Record::Seq(inner) => self.contains(seen, inner, sought),
            Record::Map(key, value) => self.contains(seen, key, sought) || self.contains(seen, value, sought),
            Record::Parts(parts) => parts.parts.iter().any(|part| self.contains(seen, part, sought)),
            Record::Named(id) => {
                if !seen.insert(*id) {
                    return false;
                }
                let is_new = |variant: &Variant| {
                    sought != Search::Unknown && !variant.visited && !variant.absent && variant.open == 0
                };
                let has_new =
                    matches!(&self.named[*id].definition, Definition::Enum(variants) if variants.iter().any(is_new));
                let mut below = self.records_of(*id).into_iter();
                !self.is_whole(*id) || has_new || below.any(|record| self.contains(seen, record, sought))
            }
        }
    }

    /// How deep structs and enums nest in the smallest value of a type; `ENDLESS` if no finite value is known.
    pub(super) fn height(&self, open: &mut Vec<usize>, record: &Record) -> usize {
        const ENDLESS: usize = 1 << 20;
        match record {
            Record::Unknown => ENDLESS,
            Record::Leaf(_) | Record::Option(_) | Record::Seq(_) | Record::Map(..) => 0,
            Record::Parts(parts) => parts.parts.iter().map(|part| self.height(open, part)).max().unwrap_or(0),
            Record::Named(id) if open.contains(id) => ENDLESS,
            Record::Named(id) => {
                open.push(*id);
                let height = match &self.named[*id].definition {
                    Definition::New(record) | Definition::Struct(record) => self.height(open, record),
                    Definition::Enum(variants) => {
                        let of =
                            |content: &Content| content.records().map(|record| self.height(open, record)).unwrap_or(0);
                        variants.iter().filter_map(|variant| variant.content.as_ref()).map(of).min().unwrap_or(ENDLESS)
                    }
                };
                open.pop();
                height.saturating_add(1).min(ENDLESS)
            }
        }
    }

    /// Whether a type contains itself.
    fn is_recursive(&self, id: usize) -> bool {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&Record> = self.records_of(id);
        while let Some(record) = next.pop() {
            match record {
                Record::Unknown | Record::Leaf(_) => {}
                Record::Option(inner) | Record::Seq(inner) => next.push(inner),
                Record::Map(key, value) => next.extend([&**key, &**value]),
                Record::Parts(parts) => next.extend(&parts.parts),
                Record::Named(other) if *other == id => return true,
                Record::Named(other) => {
                    if seen.insert(*other) {
                        next.extend(self.records_of(*other));
                    }
                }
            }
        }
        false
    }

    fn records_of(&self, id: usize) -> Vec<&Record> {
        match &self.named[id].definition {
            Definition::New(record) | Definition::Struct(record) => vec![record],
            Definition::Enum(variants) => {
                variants.iter().filter_map(|variant| variant.content.as_ref()).flat_map(Content::records).collect()
            }
        }
    }

    /// Whether bincode writes nothing for the values of a type.
    fn takes_no_bytes(&self, record: &Record, open: &mut Vec<usize>) -> bool {
        match record {
            Record::Leaf(name) => *name == "unit",
            Record::Parts(parts) => parts.parts.iter().all(|part| self.takes_no_bytes(part, open)),
            Record::Named(id) if !open.contains(id) => {
                open.push(*id);
                let takes_none = match &self.named[*id].definition {
                    Definition::New(record) | Definition::Struct(record) => self.takes_no_bytes(record, open),
                    Definition::Enum(_) => false,
                };
                open.pop();
                takes_none
            }
            Record::Unknown | Record::Named(_) | Record::Option(_) | Record::Seq(_) | Record::Map(..) => false,
        }
    }

    /// Writes a shape as text. Names of types are left out; a reference of a recursive type to itself becomes `^N`, N levels up.
    /// Returns false if part of the shape is unknown, the text is too long, or bincode must not carry the type.
    pub(super) fn write(&self, record: &Record, open: &mut Vec<usize>, text: &mut String) -> bool {
        if text.len() > TEXT_MAX {
            return false;
        }
        let mut whole = true;
        match record {
            Record::Unknown => return false,
            Record::Leaf(name) => text.push_str(name),
            Record::Option(inner) | Record::Seq(inner) => {
                let is_seq = matches!(record, Record::Seq(_));
                text.push_str(if is_seq { "seq<" } else { "option<" });
                // A few bytes could announce so many of these that reading them never ends.
                whole = self.write(inner, open, text) && !(is_seq && self.takes_no_bytes(inner, &mut Vec::new()));
                text.push('>');
            }
            Record::Map(key, value) => {
                text.push_str("map<");
                whole = self.write(key, open, text);
                text.push(':');
                whole &= self.write(value, open, text);
                text.push('>');
            }
            Record::Parts(parts) => whole = self.write_parts(&parts.parts, open, text),
            Record::Named(id) => {
                if let Some(at) = open.iter().rposition(|open| open == id) {
                    let _ = write!(text, "^{}", open.len() - at);
                    return true;
                }
                let is_recursive = self.is_recursive(*id);
                if is_recursive {
                    open.push(*id);
                }
                match &self.named[*id].definition {
                    // bincode and JSON encode a newtype as its content.
                    Definition::New(inner) if !is_recursive => whole = self.write(inner, open, text),
                    Definition::New(inner) => {
                        text.push_str("new ");
                        whole = self.write(inner, open, text);
                    }
                    Definition::Struct(parts) => {
                        let _ = write!(text, "struct{:?}", self.named[*id].key.2);
                        whole = self.write(parts, open, text);
                    }
                    Definition::Enum(variants) => {
                        let _ = write!(text, "enum{:?}{{", self.named[*id].key.2);
                        for variant in variants {
                            whole &= match &variant.content {
                                _ if variant.absent => true,
                                None => false,
                                Some(Content::Unit) => true,
                                Some(Content::New(inner)) => {
                                    text.push(' ');
                                    self.write(inner, open, text)
                                }
                                Some(Content::Tuple(inner)) => self.write(inner, open, text),
                                Some(Content::Struct(names, inner)) => {
                                    let _ = write!(text, "{names:?}");
                                    self.write(inner, open, text)
                                }
                            };
                            text.push_str(if variant.absent { "-;" } else { ";" });
                        }
                        text.push('}');
                    }
                }
                if is_recursive {
                    open.pop();
                }
            }
        }
        whole
    }

    fn write_parts(&self, parts: &[Record], open: &mut Vec<usize>, text: &mut String) -> bool {
        let mut texts = Vec::new();
        for part in parts {
            let mut part_text = String::new();
            if !self.write(part, open, &mut part_text) {
                return false;
            }
            texts.push(part_text);
        }
        text.push('(');
        for equal in texts.chunk_by(|a, b| a == b) {
            let _ = write!(text, "{}*{},", equal[0], equal.len());
        }
        text.push(')');
        text.len() <= TEXT_MAX
    }
}

impl Content {
    pub(super) fn records(&self) -> Option<&Record> {
        match self {
            Self::Unit => None,
            Self::New(record) | Self::Tuple(record) | Self::Struct(_, record) => Some(record),
        }
    }

    pub(super) fn is_known(&self) -> bool {
        self.records().is_none_or(is_known)
    }
}

/// Whether a record is known, not counting the structs and enums in it.
fn is_known(record: &Record) -> bool {
    match record {
        Record::Unknown => false,
        Record::Leaf(_) | Record::Named(_) => true,
        Record::Option(inner) | Record::Seq(inner) => is_known(inner),
        Record::Map(key, value) => is_known(key) && is_known(value),
        Record::Parts(parts) => parts.all && parts.parts.iter().all(is_known),
    }
}
