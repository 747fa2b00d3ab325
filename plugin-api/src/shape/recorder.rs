//! What was asked of the recording deserializer so far, and what it is to answer next.

use std::any::type_name;
use std::collections::BTreeSet;

use serde::de::{self, DeserializeOwned};

use super::known::{Content, Known, Named, Record, Sought, Variant, What};
use super::source::Source;

/// How deep values may nest.
const DEPTH_MAX: usize = 100;
/// How many parts a value may have.
const PARTS_MAX: usize = 20_000;

/// A question that was answered in one of several ways.
struct Choice {
    /// The ways, best first.
    order: Vec<usize>,
    at: usize,
    /// Of a value, which leads nowhere else.
    of_value: bool,
}

/// Which choices are made otherwise.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Choices {
    All,
    /// Not those of mere values.
    Ways,
}

/// What was asked so far.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) known: Known,
    choices: Vec<Choice>,
    /// How many of them this run has used.
    used: usize,
    /// Prefers little over much.
    lean: bool,
    pub(super) runs: usize,
    parts: usize,
    pub(super) depth: usize,
    /// The named types that are being deserialized.
    open: Vec<usize>,
    /// The type asks the data what comes, which bincode does not say.
    pub(super) asks: bool,
    /// There is an enum without variants in it.
    pub(super) is_without_values: bool,
}

/// A value that a type refused; or one too deep.
#[derive(Debug)]
pub(super) struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for Refused {}

impl de::Error for Refused {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self
    }
}

impl Recorder {
    /// Begins a pass.
    pub(super) fn begin(&mut self, lean: bool) {
        self.lean = lean;
        for variant in self.variants() {
            variant.walked = false;
        }
    }

    fn variants(&mut self) -> impl Iterator<Item = &mut Variant> {
        self.known
            .named
            .iter_mut()
            .filter_map(|named| if let What::Enum(all) = &mut named.what { Some(all) } else { None })
            .flatten()
    }

    /// Deserializes once.
    pub(super) fn run<T: DeserializeOwned>(&mut self, whole: &mut Record) -> Option<T> {
        (self.used, self.parts, self.depth) = (0, 0, 0);
        self.runs += 1;
        self.open.clear();
        self.variants().for_each(|variant| variant.open = 0);
        let mut record = Record::Unknown;
        let value = T::deserialize(Source { recorder: self, record: &mut record });
        self.known.merge(whole, record);
        value.ok()
    }

    /// A number that grows whenever something new was learned.
    pub(super) fn progress(&mut self) -> (usize, usize, usize) {
        let named = self.known.named.len();
        let complete = (0..named).filter(|id| self.known.is_whole(*id)).count();
        let walked = self.variants().filter(|variant| variant.walked || variant.absent).count();
        (named, complete, walked)
    }

    pub(super) fn forget_choices(&mut self) {
        self.choices.clear();
    }

    /// Turns to the next way of answering; false if there is none.
    pub(super) fn choose_otherwise(&mut self, which: Choices) -> bool {
        self.choices.truncate(self.used);
        while let Some(last) = self.choices.last_mut() {
            last.at += 1;
            if last.at < last.order.len() && (which == Choices::All || !last.of_value) {
                return true;
            }
            self.choices.pop();
        }
        false
    }

    /// Answers a question with one of the ways of `order`.
    fn choose(&mut self, of_value: bool, order: impl FnOnce(&mut Self) -> Vec<usize>) -> Result<usize, Refused> {
        if self.used == self.choices.len() {
            let order = order(self);
            self.choices.push(Choice { order, at: 0, of_value });
        }
        let choice = &self.choices[self.used];
        self.used += 1;
        choice.order.get(choice.at).copied().ok_or(Refused)
    }

    /// One of several values, the leanest of which is the first.
    pub(super) fn one_of<V: Copy>(&mut self, values: &[V]) -> Result<V, Refused> {
        let way = self.choose(true, |recorder| {
            let mut order: Vec<usize> = (0..values.len()).collect();
            if !recorder.lean && order.len() > 1 {
                order.swap(0, 1);
            }
            order
        })?;
        Ok(values[way])
    }

    /// How many of something there are to be.
    pub(super) fn count(&mut self, most: usize) -> Result<usize, Refused> {
        self.choose(false, |recorder| {
            let mut order: Vec<usize> = (0..=most).collect();
            // A type in itself has to end.
            let recurs = recorder.open.iter().collect::<BTreeSet<_>>().len() < recorder.open.len();
            if !recorder.lean && !recurs {
                order.swap(0, 1);
            }
            order
        })
    }

    /// Counts a part of the value.
    pub(super) fn part(&mut self) -> Result<(), Refused> {
        self.parts += 1;
        if self.parts > PARTS_MAX || self.depth > DEPTH_MAX { Err(Refused) } else { Ok(()) }
    }

    /// Enters a type with a name.
    pub(super) fn enter<V>(&mut self, kind: &'static str, names: &'static [&'static str]) -> usize {
        let key = (type_name::<V>(), kind, names);
        let known = self.known.named.iter().position(|named| named.key == key);
        let id = known.unwrap_or_else(|| {
            let what = match kind {
                "enum" => What::Enum(names.iter().map(|_| Variant::default()).collect()),
                "new" => What::New(Record::Unknown),
                _ => What::Struct(Record::Unknown),
            };
            self.is_without_values |= kind == "enum" && names.is_empty();
            self.known.named.push(Named { key, what });
            self.known.named.len() - 1
        });
        self.open.push(id);
        id
    }

    /// Leaves it; `record` is what was seen of a type that is no enum.
    pub(super) fn leave(&mut self, id: usize, record: Record) {
        self.open.pop();
        let what = std::mem::replace(&mut self.known.named[id].what, What::New(Record::Unknown));
        self.known.named[id].what = match what {
            What::New(mut known) => {
                self.known.merge(&mut known, record);
                What::New(known)
            }
            What::Struct(mut known) => {
                self.known.merge(&mut known, record);
                What::Struct(known)
            }
            all @ What::Enum(_) => all,
        };
    }

    /// Which variant of an enum comes next.
    pub(super) fn variant(&mut self, id: usize) -> Result<usize, Refused> {
        let variant = self.choose(false, |recorder| recorder.variants_by_worth(id))?;
        self.change_variant(id, variant, |variant| variant.open += 1);
        Ok(variant)
    }

    fn variants_by_worth(&self, id: usize) -> Vec<usize> {
        let What::Enum(variants) = &self.known.named[id].what else { return Vec::new() };
        let recurs = self.open.iter().filter(|open| **open == id).count() > 1;
        let sought = if self.lean { Sought::UnwalkedInAll } else { Sought::Unwalked };
        let worth = |variant: &Variant| {
            let parts = variant.content.iter().flat_map(Content::records);
            let is_known = variant.walked && variant.content.as_ref().is_some_and(Content::is_known);
            if variant.open > 0 {
                return (3, 0);
            }
            if !is_known {
                return (0, 0);
            }
            if !recurs && parts.clone().any(|record| self.known.leads_on(&mut BTreeSet::new(), record, sought)) {
                return (1, 0);
            }
            let height = parts.map(|record| self.known.height(&mut Vec::new(), record)).max().unwrap_or(0);
            (2, height)
        };
        let mut order: Vec<_> = variants.iter().enumerate().filter(|(_, variant)| !variant.absent).collect();
        order.sort_by_key(|(_, variant)| worth(variant));
        order.into_iter().map(|(index, _)| index).collect()
    }

    fn change_variant(&mut self, id: usize, variant: usize, change: impl FnOnce(&mut Variant)) {
        if let What::Enum(variants) = &mut self.known.named[id].what {
            change(&mut variants[variant]);
        }
    }

    /// There is no variant of this index.
    pub(super) fn absent(&mut self, id: usize, variant: usize) {
        self.change_variant(id, variant, |variant| variant.absent = true);
    }

    /// What was seen of a variant.
    pub(super) fn saw(&mut self, id: usize, variant: usize, content: Content) {
        let mut known = None;
        self.change_variant(id, variant, |variant| {
            variant.walked = true;
            variant.open -= 1;
            known = variant.content.take();
        });
        let merged = match (known, content) {
            (None, content) => content,
            (Some(Content::New(mut known)), Content::New(new)) => {
                self.known.merge(&mut known, new);
                Content::New(known)
            }
            (Some(Content::Tuple(mut known)), Content::Tuple(new)) => {
                self.known.merge(&mut known, new);
                Content::Tuple(known)
            }
            (Some(Content::Struct(names, mut known)), Content::Struct(same, new)) if names == same => {
                self.known.merge(&mut known, new);
                Content::Struct(names, known)
            }
            (Some(known), content) => {
                self.known.has_conflict |= known != content;
                known
            }
        };
        self.change_variant(id, variant, |variant| variant.content = Some(merged));
    }
}
