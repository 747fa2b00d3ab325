//! The state of the recording deserializer: what types have asked for so far, and what it answers next.

use std::any::type_name;
use std::collections::BTreeSet;

use serde::de::{self, DeserializeOwned};

use super::source::Source;
use super::type_table::{Content, Definition, Record, Search, TypeEntry, TypeTable, Variant};

/// How deep values may nest.
const DEPTH_MAX: usize = 100;
/// How many parts a value may have.
const PARTS_MAX: usize = 20_000;

/// A decision with several alternatives.
struct Choice {
    /// The alternatives, best first.
    order: Vec<usize>,
    at: usize,
    /// It is about a mere value, so another alternative leads to no new part of the type.
    of_value: bool,
}

/// Which choices [`Recorder::choose_otherwise`] may change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Choices {
    All,
    /// All but those about mere values.
    Ways,
}

/// What has been recorded so far.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) known: TypeTable,
    choices: Vec<Choice>,
    /// How many choices this run has used.
    used: usize,
    /// Prefers small values: no optional parts, short sequences.
    lean: bool,
    pub(super) runs: usize,
    parts: usize,
    pub(super) depth: usize,
    /// The named types that are being deserialized.
    open: Vec<usize>,
    /// The type asked the data what comes next, which bincode cannot say.
    pub(super) asks: bool,
    /// The type contains an enum without variants.
    pub(super) is_without_values: bool,
}

/// The error of a run: the type refused a value, or the value became too deep or too large.
#[derive(Debug)]
pub(super) struct Refusal;

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for Refusal {}

impl de::Error for Refusal {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self
    }
}

impl Recorder {
    /// Begins a pass.
    pub(super) fn begin(&mut self, lean: bool) {
        self.lean = lean;
        for variant in self.variants() {
            variant.visited = false;
        }
    }

    fn variants(&mut self) -> impl Iterator<Item = &mut Variant> {
        self.known
            .named
            .iter_mut()
            .filter_map(|named| if let Definition::Enum(all) = &mut named.definition { Some(all) } else { None })
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

    /// Counts that grow whenever a run has learned something.
    pub(super) fn progress(&mut self) -> (usize, usize, usize) {
        let named = self.known.named.len();
        let complete = (0..named).filter(|id| self.known.is_whole(*id)).count();
        let visited = self.variants().filter(|variant| variant.visited || variant.absent).count();
        (named, complete, visited)
    }

    pub(super) fn forget_choices(&mut self) {
        self.choices.clear();
    }

    /// Changes the last choice that has an alternative left; returns false if there is none.
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

    /// Returns the alternative that this run takes; `order` lists the alternatives of a new choice.
    fn choose(&mut self, of_value: bool, order: impl FnOnce(&mut Self) -> Vec<usize>) -> Result<usize, Refusal> {
        if self.used == self.choices.len() {
            let order = order(self);
            self.choices.push(Choice { order, at: 0, of_value });
        }
        let choice = &self.choices[self.used];
        self.used += 1;
        choice.order.get(choice.at).copied().ok_or(Refusal)
    }

    /// Chooses one of several values. The first is the smallest.
    pub(super) fn one_of<V: Copy>(&mut self, values: &[V]) -> Result<V, Refusal> {
        let way = self.choose(true, |recorder| {
            let mut order: Vec<usize> = (0..values.len()).collect();
            if !recorder.lean && order.len() > 1 {
                order.swap(0, 1);
            }
            order
        })?;
        Ok(values[way])
    }

    /// Chooses a number of items from 0 to `most`.
    pub(super) fn count(&mut self, most: usize) -> Result<usize, Refusal> {
        self.choose(false, |recorder| {
            let mut order: Vec<usize> = (0..=most).collect();
            // A recursive type has to end.
            let recurs = recorder.open.iter().collect::<BTreeSet<_>>().len() < recorder.open.len();
            if !recorder.lean && !recurs {
                order.swap(0, 1);
            }
            order
        })
    }

    /// Counts a part of the value.
    pub(super) fn part(&mut self) -> Result<(), Refusal> {
        self.parts += 1;
        if self.parts > PARTS_MAX || self.depth > DEPTH_MAX { Err(Refusal) } else { Ok(()) }
    }

    /// Begins a struct or enum; returns its number.
    pub(super) fn enter<V>(&mut self, kind: &'static str, names: &'static [&'static str]) -> usize {
        let key = (type_name::<V>(), kind, names);
        let known = self.known.named.iter().position(|named| named.key == key);
        let id = known.unwrap_or_else(|| {
            let definition = match kind {
                "enum" => Definition::Enum(names.iter().map(|_| Variant::default()).collect()),
                "new" => Definition::New(Record::Unknown),
                _ => Definition::Struct(Record::Unknown),
            };
            self.is_without_values |= kind == "enum" && names.is_empty();
            self.known.named.push(TypeEntry { key, definition });
            self.known.named.len() - 1
        });
        self.open.push(id);
        id
    }

    /// Ends a struct or enum. `record` is what the run saw of a struct.
    pub(super) fn leave(&mut self, id: usize, record: Record) {
        self.open.pop();
        let definition = std::mem::replace(&mut self.known.named[id].definition, Definition::New(Record::Unknown));
        self.known.named[id].definition = match definition {
            Definition::New(mut known) => {
                self.known.merge(&mut known, record);
                Definition::New(known)
            }
            Definition::Struct(mut known) => {
                self.known.merge(&mut known, record);
                Definition::Struct(known)
            }
            all @ Definition::Enum(_) => all,
        };
    }

    /// Chooses the next variant of an enum.
    pub(super) fn variant(&mut self, id: usize) -> Result<usize, Refusal> {
        let variant = self.choose(false, |recorder| recorder.variants_by_worth(id))?;
        self.change_variant(id, variant, |variant| variant.open += 1);
        Ok(variant)
    }

    fn variants_by_worth(&self, id: usize) -> Vec<usize> {
        let Definition::Enum(variants) = &self.known.named[id].definition else { return Vec::new() };
        let recurs = self.open.iter().filter(|open| **open == id).count() > 1;
        let sought = if self.lean { Search::UnvisitedInAll } else { Search::Unvisited };
        let worth = |variant: &Variant| {
            let parts = variant.content.iter().flat_map(Content::records);
            let is_known = variant.visited && variant.content.as_ref().is_some_and(Content::is_known);
            if variant.open > 0 {
                return (3, 0);
            }
            if !is_known {
                return (0, 0);
            }
            if !recurs && parts.clone().any(|record| self.known.contains(&mut BTreeSet::new(), record, sought)) {
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
        if let Definition::Enum(variants) = &mut self.known.named[id].definition {
            change(&mut variants[variant]);
        }
    }

    /// Notes that no variant has this index.
    pub(super) fn absent(&mut self, id: usize, variant: usize) {
        self.change_variant(id, variant, |variant| variant.absent = true);
    }

    /// Notes what the run saw of a variant.
    pub(super) fn saw(&mut self, id: usize, variant: usize, content: Content) {
        let mut known = None;
        self.change_variant(id, variant, |variant| {
            variant.visited = true;
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
