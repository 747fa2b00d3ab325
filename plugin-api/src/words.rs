//! Translates serde's messages for authors of configurations, who know tables, lists and text but not Rust's types.

/// Splits a message into what was expected and what was found. Leaves the value itself out, because it may be a misplaced secret.
pub(crate) fn translate(message: &str) -> (String, String) {
    let pair = |expected: &str, got: &str| (expected.to_owned(), got.to_owned());
    // Split from the right: the value is the operator's and may contain anything.
    let kinds = ["invalid type: ", "invalid value: ", "invalid length "];
    for (at, kind) in kinds.iter().enumerate() {
        let sentence = message.strip_prefix(kind).and_then(|rest| rest.rsplit_once(", expected "));
        if let Some((found, wanted)) = sentence {
            let found = match at {
                0 => kind_of(found).to_owned(),
                1 => another(found).to_owned(),
                _ => format!("one of {found}"),
            };
            return (expected(wanted), found);
        }
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let got = rest.split('`').nth(1).unwrap_or(rest);
        let wanted = rest.split_once(", expected ").map_or("nothing", |(_, wanted)| wanted);
        return (wanted.to_owned(), format!("`{got}`"));
    }
    if message.starts_with("data did not match any variant") {
        return pair("one of the forms that the role's documentation shows", "another");
    }
    if let Some(rest) = message.strip_prefix("duplicate field ") {
        return (format!("the key {rest} once"), "it twice".into());
    }
    if let Some((got, wanted)) = message.split_once(" is not ") {
        return (wanted.replacen("; use ", ", ", 1), got.to_owned());
    }
    match (message.split_once(", expected "), message.strip_prefix("expected ")) {
        (Some((got, wanted)), _) => pair(wanted, got),
        (None, Some(wanted)) => pair(wanted, "something else"),
        (None, None) => pair("a valid value", message),
    }
}

fn expected(wanted: &str) -> String {
    if let Some(number) = number(wanted) {
        return number;
    }
    let last = wanted.rsplit(' ').next().unwrap_or_default();
    let text = match wanted {
        "a map" => "a table",
        "a sequence" => "a list",
        "a string" | "string" | "str" | "a borrowed string" => "text",
        "path string" => "a path",
        "a boolean" => "true or false",
        "a character" => "one character",
        "a duration" => "a time such as \"10s\" or \"1m 30s\"",
        "a timestamp" => "a date and time such as \"2026-01-31T08:00:00Z\"",
        "string or map" => "text or a table",
        "unit" | "null" => "nothing",
        _ if wanted.ends_with("elements") || wanted.ends_with("element") => {
            let count = wanted.rsplit(' ').nth(1).unwrap_or_default();
            return format!("a list of {count}");
        }
        _ if wanted.starts_with("an array of length ") || wanted.starts_with("a tuple of size ") => {
            return format!("a list of {last}");
        }
        _ if wanted.starts_with("struct ") => "a table",
        _ if wanted.contains("struct ") || wanted.contains("enum ") || wanted.contains("variant ") => {
            "one of the forms that the role's documentation shows"
        }
        own => own,
    };
    text.to_owned()
}

/// The range of one of Rust's number types.
fn number(wanted: &str) -> Option<String> {
    let (wanted, least) = match wanted.strip_prefix("a nonzero ") {
        Some(wanted) => (wanted, 1),
        None => (wanted, 0),
    };
    let range = |least: i64, most: i64| Some(format!("a whole number from {least} to {most}"));
    match wanted {
        "u8" => range(least, u8::MAX.into()),
        "u16" => range(least, u16::MAX.into()),
        "u32" => range(least, u32::MAX.into()),
        "u64" | "u128" | "usize" => Some(format!("a whole number of at least {least}")),
        "i8" => range(i8::MIN.into(), i8::MAX.into()),
        "i16" => range(i16::MIN.into(), i16::MAX.into()),
        "i32" => range(i32::MIN.into(), i32::MAX.into()),
        "i64" | "i128" | "isize" => Some("a whole number".into()),
        "f32" | "f64" => Some("a number".into()),
        _ => None,
    }
}

/// What kind of value was found.
fn kind_of(found: &str) -> &'static str {
    match found.split([' ', '`', '"', ',']).next().unwrap_or_default() {
        "boolean" => "true or false",
        "integer" => "a whole number",
        "floating" => "a number",
        "string" | "character" => "text",
        "sequence" => "a list",
        "map" => "a table",
        "unit" | "null" => "nothing",
        _ => "something else",
    }
}

/// What was found, if its kind is right and only its value is wrong.
fn another(found: &str) -> &'static str {
    match kind_of(found) {
        "a whole number" | "a number" => "another number",
        "text" => "other text",
        "a list" => "another list",
        "a table" => "another table",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serdes_sentences_are_in_an_operators_words_and_show_no_value() {
        for (message, wanted, got) in [
            ("invalid type: map, expected i64", "a whole number", "a table"),
            ("invalid type: integer `424242`, expected a string", "text", "a whole number"),
            ("invalid type: sequence, expected struct Raw", "a table", "a list"),
            ("invalid type: string \"s3cret, expected x\", expected a map", "a table", "text"),
            (
                "invalid value: string \"soon\", expected a duration",
                "a time such as \"10s\" or \"1m 30s\"",
                "other text",
            ),
            ("invalid value: integer `300`, expected u8", "a whole number from 0 to 255", "another number"),
            ("invalid value: integer `0`, expected a nonzero u16", "a whole number from 1 to 65535", "another number"),
            ("invalid length 1, expected tuple struct Pair with 2 elements", "a list of 2", "one of 1"),
            ("unknown variant `often`, expected `always` or `never`", "`always` or `never`", "`often`"),
            (
                "data did not match any variant of untagged enum X",
                "one of the forms that the role's documentation shows",
                "another",
            ),
            ("expected exactly one of `a`, `b`", "exactly one of `a`, `b`", "something else"),
            ("\"a b\" is not a name; use letters", "a name, letters", "\"a b\""),
            ("port 7, expected an even one", "an even one", "port 7"),
        ] {
            assert_eq!(translate(message), (wanted.to_owned(), got.to_owned()), "{message}");
        }
    }
}
