//! What is known of a type and of those in it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::TEXT_MAX;

/// What is known of a type.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) enum Record {
    /// Nothing yet.
    #[default]
    Unknown,
    /// Something without parts.
    Leaf(&'static str),
    /// What may be there or not.
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
    /// All of them were seen.
    pub(super) all: bool,
}

/// A struct or enum. What recursion leads back to.
#[derive(Debug)]
pub(super) struct Named {
    /// Which type it is. Names of types in Rust are not unique beyond doubt; what they have in them must fit as well.
    pub(super) key: (&'static str, &'static str, &'static [&'static str]),
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    New(Record),
    Struct(Record),
    Enum(Vec<Variant>),
}

/// A variant, by its index.
#[derive(Debug, Default)]
pub(super) struct Variant {
    /// There is none of this index: an alias takes a place among the names.
    pub(super) absent: bool,
    pub(super) content: Option<Content>,
    /// It was there in this pass.
    pub(super) walked: bool,
    /// How many times it is being deserialized now.
    pub(super) open: usize,
}

/// What a variant has in it.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Content {
    Unit,
    New(Record),
    Tuple(Record),
    Struct(&'static [&'static str], Record),
}

/// What is looked for in a type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sought {
    /// What is not known.
    Unknown,
    /// That, and variants that were not there in this pass.
    Unwalked,
    /// The same where it is in every value.
    UnwalkedInAll,
}

/// The types with names.
#[derive(Default)]
pub(super) struct Known {
    pub(super) named: Vec<Named>,
    /// One place has been of two types.
    pub(super) has_conflict: bool,
}

impl Known {
    /// Adds what was seen to what is known.
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
            // One place, two types: what comes depends on what came before.
            (known, new) => self.has_conflict |= *known != new,
        }
    }

    /// Whether all of a type is known, down to its leaves.
    pub(super) fn is_complete(&self, record: &Record) -> bool {
        is_known(record) && !self.leads_on(&mut BTreeSet::new(), record, Sought::Unknown)
    }

    /// Whether all of a type with a name is known, apart from others in it.
    pub(super) fn is_whole(&self, id: usize) -> bool {
        match &self.named[id].what {
            What::New(record) | What::Struct(record) => is_known(record),
            What::Enum(variants) => {
                variants.iter().all(|variant| variant.absent || variant.content.as_ref().is_some_and(Content::is_known))
            }
        }
    }

    /// Whether there is something of what is sought in a type.
    pub(super) fn leads_on(&self, seen: &mut BTreeSet<usize>, record: &Record, sought: Sought) -> bool {
        match record {
            Record::Unknown => true,
            Record::Leaf(_) => false,
            // With as little as possible there is nothing in them.
            Record::Option(_) | Record::Seq(_) | Record::Map(..) if sought == Sought::UnwalkedInAll => false,
            Record::Option(inner) | Record::Seq(inner) => self.leads_on(seen, inner, sought),
            Record::Map(key, value) => self.leads_on(seen, key, sought) || self.leads_on(seen, value, sought),
            Record::Parts(parts) => parts.parts.iter().any(|part| self.leads_on(seen, part, sought)),
            Record::Named(id) => {
                if !seen.insert(*id) {
                    return false;
                }
                let is_new = |variant: &Variant| {
                    sought != Sought::Unknown && !variant.walked && !variant.absent && variant.open == 0
                };
                let has_new = matches!(&self.named[*id].what, What::Enum(variants) if variants.iter().any(is_new));
                let mut below = self.records_of(*id).into_iter();
                !self.is_whole(*id) || has_new || below.any(|record| self.leads_on(seen, record, sought))
            }
        }
    }

    /// How many types with names the smallest value has one in the other; many if none is known that ends.
    pub(super) fn height(&self, open: &mut Vec<usize>, record: &Record) -> usize {
        const ENDLESS: usize = 1 << 20;
        match record {
            Record::Unknown => ENDLESS,
            Record::Leaf(_) | Record::Option(_) | Record::Seq(_) | Record::Map(..) => 0,
            Record::Parts(parts) => parts.parts.iter().map(|part| self.height(open, part)).max().unwrap_or(0),
            Record::Named(id) if open.contains(id) => ENDLESS,
            Record::Named(id) => {
                open.push(*id);
                let height = match &self.named[*id].what {
                    What::New(record) | What::Struct(record) => self.height(open, record),
                    What::Enum(variants) => {
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

    /// Whether a type has itself in it.
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
        match &self.named[id].what {
            What::New(record) | What::Struct(record) => vec![record],
            What::Enum(variants) => {
                variants.iter().filter_map(|variant| variant.content.as_ref()).flat_map(Content::records).collect()
            }
        }
    }

    /// Writes a shape down: names of types are left out, and a type in itself is told by how far out it began. False if that
    /// is too long.
    pub(super) fn write(&self, record: &Record, open: &mut Vec<usize>, text: &mut String) -> bool {
        if text.len() > TEXT_MAX {
            return false;
        }
        let mut whole = true;
        match record {
            Record::Unknown => return false,
            Record::Leaf(name) => text.push_str(name),
            Record::Option(inner) | Record::Seq(inner) => {
                text.push_str(if matches!(record, Record::Option(_)) { "option<" } else { "seq<" });
                whole = self.write(inner, open, text);
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
                match &self.named[*id].what {
                    // As bincode and JSON have it, a new type is what it is made of.
                    What::New(inner) if !is_recursive => whole = self.write(inner, open, text),
                    What::New(inner) => {
                        text.push_str("new ");
                        whole = self.write(inner, open, text);
                    }
                    What::Struct(parts) => {
                        let _ = write!(text, "struct{:?}", self.named[*id].key.2);
                        whole = self.write(parts, open, text);
                    }
                    What::Enum(variants) => {
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

/// Whether a record is known, apart from the types with names in it.
fn is_known(record: &Record) -> bool {
    match record {
        Record::Unknown => false,
        Record::Leaf(_) | Record::Named(_) => true,
        Record::Option(inner) | Record::Seq(inner) => is_known(inner),
        Record::Map(key, value) => is_known(key) && is_known(value),
        Record::Parts(parts) => parts.all && parts.parts.iter().all(is_known),
    }
}
