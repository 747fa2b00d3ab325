//! JSON documents from the fleet as text. They are shown as they came: a value of our own would lose the order of keys, the
//! digits of large numbers, and whatever nests deeper than a reader in memory can bear.

use serde_json::value::RawValue;

/// From this depth on a document is shown on one line: every level's indentation would be longer than the text.
const INDENTED_DEPTH_MAX: usize = 127;

/// Reads one document.
///
/// # Errors
///
/// It is not JSON in UTF-8.
pub(crate) fn read(bytes: &[u8]) -> Result<Box<RawValue>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let value: Box<RawValue> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    RawValue::from_string(line(value.get())).map_err(|error| error.to_string())
}

/// A document on one line.
fn line(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    write(json, |sign, _| match sign {
        Sign::Text(c) => push_plain(&mut line, c),
        Sign::Space => {}
        Sign::Mark(c) => line.push(c),
    });
    line
}

/// A document with a line for each part, indented.
pub(crate) fn indented(json: &str) -> String {
    let mut deepest = 0;
    write(json, |_, depth| deepest = deepest.max(depth));
    if deepest > INDENTED_DEPTH_MAX {
        return line(json);
    }
    let mut text = String::with_capacity(2 * json.len());
    let mut is_empty = false;
    write(json, |sign, depth| match sign {
        Sign::Space => {}
        Sign::Text(c) => {
            begin(&mut text, &mut is_empty, depth);
            push_plain(&mut text, c);
        }
        Sign::Mark(c @ ('{' | '[')) => {
            begin(&mut text, &mut is_empty, depth - 1);
            text.push(c);
            is_empty = true;
        }
        Sign::Mark(c @ ('}' | ']')) => {
            if !std::mem::take(&mut is_empty) {
                new_line(&mut text, depth);
            }
            text.push(c);
        }
        Sign::Mark(':') => text.push_str(": "),
        Sign::Mark(comma) => {
            text.push(comma);
            new_line(&mut text, depth);
        }
    });
    text
}

/// Begins the first part of an object or array on a line of its own.
fn begin(text: &mut String, is_empty: &mut bool, depth: usize) {
    if std::mem::take(is_empty) {
        new_line(text, depth);
    }
}

fn new_line(text: &mut String, depth: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n("  ", depth));
}

/// Control characters that JSON lets stand in a string are written as it may write them too: a terminal would obey them.
fn push_plain(text: &mut String, c: char) {
    if c.is_control() { text.push_str(&format!("\\u{:04x}", u32::from(c))) } else { text.push(c) }
}

/// A character of a document, by what it does there.
enum Sign {
    /// Of a string, number or word.
    Text(char),
    /// Between the parts.
    Space,
    /// One of `{}[],:`.
    Mark(char),
}

/// Goes through a valid document, with how many objects and arrays are open: the one that begins counts, the one that ends does
/// not.
fn write(json: &str, mut put: impl FnMut(Sign, usize)) {
    let (mut depth, mut in_string, mut is_escaped) = (0usize, false, false);
    for c in json.chars() {
        if in_string {
            in_string = is_escaped || c != '"';
            is_escaped = !is_escaped && c == '\\';
            put(Sign::Text(c), depth);
            continue;
        }
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            '"' => in_string = true,
            _ => {}
        }
        put(
            match c {
                '{' | '}' | '[' | ']' | ',' | ':' => Sign::Mark(c),
                ' ' | '\t' | '\n' | '\r' => Sign::Space,
                _ => Sign::Text(c),
            },
            depth,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_laid_out_as_serde_does_and_nothing_in_it_changes() {
        let json = r#"{"b": [1, {}, [], {"x": [[]]}], "a":"\\\"{[,:]}\\", "n" : null}"#;
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        let laid_out = indented(json);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&laid_out).unwrap(), value);
        assert_eq!(read(json.as_bytes()).unwrap().get(), r#"{"b":[1,{},[],{"x":[[]]}],"a":"\\\"{[,:]}\\","n":null}"#);
        let sorted = value.to_string();
        assert_eq!(indented(&sorted), serde_json::to_string_pretty(&value).unwrap());
        assert_eq!(indented("7"), "7");
    }

    #[test]
    fn what_a_value_in_memory_cannot_bear_is_shown_whole_and_what_is_no_text_is_refused() {
        let deep = format!("{}\"\u{9b}1m\"{}", "[".repeat(100_000), "]".repeat(100_000));
        let shown = format!("{}\"\\u009b1m\"{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read(deep.as_bytes()).unwrap().get(), shown);
        assert_eq!(indented(&deep), shown);
        assert_eq!(read(b"340282366920938463463374607431768211455").unwrap().get().len(), 39);
        for bad in [&b"\"\xff\""[..], b"", b"{} {}", b"nul"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
