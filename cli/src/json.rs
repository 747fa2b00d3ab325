//! JSON documents from the fleet, kept as text. A `serde_json::Value` would lose the order of keys and the digits of large numbers,
//! and cannot hold deeply nested documents.

use serde_json::value::RawValue;

/// A document that nests deeper is shown on one line: its indentation would be longer than its text.
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
    visit(json, |kind, _| match kind {
        JsonChar::Text(c) => push_plain(&mut line, c),
        JsonChar::Space => {}
        JsonChar::Mark(c) => line.push(c),
    });
    line
}

/// A document with a line for each part, indented.
pub(crate) fn indented(json: &str) -> String {
    let mut deepest = 0;
    visit(json, |_, depth| deepest = deepest.max(depth));
    if deepest > INDENTED_DEPTH_MAX {
        return line(json);
    }
    let mut text = String::with_capacity(2 * json.len());
    let mut is_empty = false;
    visit(json, |kind, depth| match kind {
        JsonChar::Space => {}
        JsonChar::Text(c) => {
            begin(&mut text, &mut is_empty, depth);
            push_plain(&mut text, c);
        }
        JsonChar::Mark(c @ ('{' | '[')) => {
            begin(&mut text, &mut is_empty, depth - 1);
            text.push(c);
            is_empty = true;
        }
        JsonChar::Mark(c @ ('}' | ']')) => {
            if !std::mem::take(&mut is_empty) {
                new_line(&mut text, depth);
            }
            text.push(c);
        }
        JsonChar::Mark(':') => text.push_str(": "),
        JsonChar::Mark(comma) => {
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

/// Escapes control characters, which JSON permits in strings but a terminal would obey.
fn push_plain(text: &mut String, c: char) {
    if c.is_control() { text.push_str(&format!("\\u{:04x}", u32::from(c))) } else { text.push(c) }
}

/// A character of a document with its role.
enum JsonChar {
    /// Part of a string, number or word.
    Text(char),
    /// White space between the parts.
    Space,
    /// One of `{}[],:`.
    Mark(char),
}

/// Calls `put` for each character of a valid document, with the number of open objects and arrays. An opening bracket counts
/// itself, a closing one does not.
fn visit(json: &str, mut put: impl FnMut(JsonChar, usize)) {
    let (mut depth, mut in_string, mut is_escaped) = (0usize, false, false);
    for c in json.chars() {
        if in_string {
            in_string = is_escaped || c != '"';
            is_escaped = !is_escaped && c == '\\';
            put(JsonChar::Text(c), depth);
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
                '{' | '}' | '[' | ']' | ',' | ':' => JsonChar::Mark(c),
                ' ' | '\t' | '\n' | '\r' => JsonChar::Space,
                _ => JsonChar::Text(c),
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
