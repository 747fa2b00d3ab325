//! The shape of a type as bincode carries it: names and order of fields and variants, and every type down to its leaves.
//!
//! A JSON Schema does not tell: it leaves out the order of variants, and `Option<Option<u8>>` looks like `Option<u8>`. So the
//! type is deserialized from made-up values by a deserializer that records what is asked of it, again and again until every variant
//! of every enum has been there. A value that a type refuses (`NonZeroU8`) is tried anew with another.

mod known;
mod recorder;
mod source;

use serde::de::DeserializeOwned;

use self::known::Record;
use self::recorder::{Choices, Recorder};

/// How often a type may be deserialized until its shape is known, and how often it may refuse what it is given.
const RUNS_MAX: usize = 5000;
const REFUSED_MAX: usize = 1000;
/// The longest text of a shape, in bytes.
const TEXT_MAX: usize = 256 << 10;

/// The shape of `T` as text, equal for types that bincode reads as one another under the same names. `None` if it has no
/// fixed shape, refuses all made-up values, or one of its values does not survive: `survives` says whether one does.
pub(crate) fn shape_of<T: DeserializeOwned>(survives: impl Fn(&T) -> bool) -> Option<String> {
    let mut recorder = Recorder::default();
    let (mut whole, mut refused, mut has_values) = (Record::Unknown, 0, false);
    // First with all that can be there, to learn the shape; then with as little as possible, which is what serde leaves out.
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
