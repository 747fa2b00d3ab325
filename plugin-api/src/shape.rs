//! The shape of a type as bincode carries it: names and order of fields and variants, and every type down to its leaves.
//!
//! A JSON Schema does not have it: it leaves out the order of variants, and `Option<Option<u8>>` looks like `Option<u8>`. So a
//! recording deserializer feeds the type made-up values and notes what the type asks for. It runs until every variant of every enum
//! has been visited. If a type refuses a value (as `NonZeroU8` refuses 0), the next run tries another one.

mod recorder;
mod source;
mod type_table;

use serde::de::DeserializeOwned;

use self::recorder::{Choices, Recorder};
use self::type_table::Record;

/// How often a type is deserialized at most until its shape is known, and how many of these runs it may refuse.
const RUNS_MAX: usize = 5000;
const REFUSED_MAX: usize = 1000;
/// The longest text of a shape, in bytes.
const TEXT_MAX: usize = 256 << 10;

/// The shape of `T` as text. Two types have the same text if bincode reads the values of each as the other's, with the same
/// names. `None` if `T` has no fixed shape, refuses all made-up values, or `survives` is false for one of its values.
pub(crate) fn shape_of<T: DeserializeOwned>(survives: impl Fn(&T) -> bool) -> Option<String> {
    let mut recorder = Recorder::default();
    let (mut whole, mut refused, mut has_values) = (Record::Unknown, 0, false);
    // The first pass fills every optional part, to learn the shape. The second leaves all of them empty, because those are the
    // values in which `skip_serializing_if` leaves fields out.
    for lean in [false, true] {
        recorder.begin(lean);
        let mut known = recorder.progress();
        while recorder.runs < RUNS_MAX && refused < REFUSED_MAX {
            let value = recorder.run::<T>(&mut whole);
            if recorder.asks || recorder.known.has_conflict || value.as_ref().is_some_and(|value| !survives(value)) {
                return None;
            }
            let goes_on = if value.is_none() {
                refused += 1;
                recorder.choose_otherwise(Choices::All)
            } else {
                has_values = true;
                let is_over = lean || recorder.known.is_complete(&whole);
                recorder.progress() == known && !is_over && recorder.choose_otherwise(Choices::Ways)
            };
            if !goes_on {
                recorder.forget_choices();
                if recorder.progress() == known {
                    break;
                }
                known = recorder.progress();
            }
        }
        recorder.forget_choices();
    }
    if !recorder.known.is_complete(&whole) || !(has_values || recorder.is_without_values) {
        return None;
    }
    let mut text = String::new();
    recorder.known.write(&whole, &mut Vec::new(), &mut text).then_some(text)
}

#[cfg(test)]
mod tests;
