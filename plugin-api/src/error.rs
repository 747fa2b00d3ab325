//! What a role can answer to its supervisor.

use crate::words;

/// Why a role refuses or fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// The configuration will not do; nothing was changed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Rejected(Vec<Invalid>),
    /// The change cannot be taken in place.
    #[error("the change needs a restart of the instance")]
    NeedsRestart,
    /// Something went wrong.
    #[error("{0}")]
    Failed(String),
}

impl RoleError {
    /// The configuration will not do; `text` says which key, what was expected and found, and what to do.
    pub fn rejected(text: impl Into<String>) -> Self {
        Self::Rejected(vec![Invalid::whole(text)])
    }

    /// The configuration's `key` will not do.
    pub fn invalid(key: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Rejected(vec![Invalid::key(key, expected, got)])
    }

    /// The configuration will not do, for all of these reasons; fine if there are none. An operator would rather hear them
    /// at once than one after the other.
    ///
    /// # Errors
    ///
    /// [`RoleError::Rejected`] unless `wrong` is empty.
    pub fn unless_empty(wrong: Vec<Invalid>) -> Result<(), Self> {
        if wrong.is_empty() { Ok(()) } else { Err(Self::Rejected(wrong)) }
    }

    /// Something went wrong.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }
}

impl From<std::io::Error> for RoleError {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What is said to be found where a key is unknown.
const UNKNOWN_KEY: &str = "an unknown key";

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Invalid {
    /// Path of the key, such as `ready.tcp`; none if it is about the whole.
    pub key: Option<String>,
    /// What was expected.
    pub expected: String,
    /// What was found.
    pub got: String,
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(key) = &self.key {
            write!(f, "key `{key}`: ")?;
        }
        write!(f, "expected {}, got {}", self.expected, self.got)
    }
}

impl Invalid {
    /// A key is wrong.
    pub fn key(key: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self { key: Some(key.into()), expected: expected.into(), got: got.into() }
    }

    /// The configuration as a whole is; `text` says why.
    pub fn whole(text: impl Into<String>) -> Self {
        Self { key: None, expected: "a configuration the role accepts".into(), got: text.into() }
    }

    /// Whether it is about a key that nobody knows. A host that has keys of its own can name them beside those that were
    /// expected.
    pub fn is_unknown_key(&self) -> bool {
        self.got == UNKNOWN_KEY
    }

    /// The missing key, if serde's message is about one.
    pub(crate) fn missing(message: &str) -> Option<&str> {
        quoted(message.strip_prefix("missing field ")?)
    }

    /// The unknown key, if serde's message is about one.
    pub(crate) fn unknown(message: &str) -> Option<&str> {
        quoted(message.strip_prefix("unknown field ")?)
    }

    /// Translates serde's message about a document into the words of its author.
    pub(crate) fn from_serde(path: &str, message: &str) -> Self {
        let at = |key: &str| match path {
            "" | "." => key.to_owned(),
            path => format!("{path}.{key}"),
        };
        let whole = (!matches!(path, "" | ".")).then(|| path.to_owned());
        // serde's own sentences; anything else is shown as it is.
        let message = message.split(" at line ").next().unwrap_or(message);
        if let Some(key) = Self::missing(message) {
            return Self::key(at(key), "a value", "nothing");
        }
        if let Some(key) = Self::unknown(message) {
            let expected = message.split_once("expected ").map_or("no keys", |(_, expected)| expected);
            let is_at_it = path == key || path.rsplit_once('.').is_some_and(|(_, last)| last == key);
            return Self::key(if is_at_it { path.to_owned() } else { at(key) }, expected, UNKNOWN_KEY);
        }
        let (expected, got) = words::translate(message);
        Self { key: whole, expected, got }
    }
}

/// The first thing in backquotes.
fn quoted(text: &str) -> Option<&str> {
    text.split('`').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serdes_sentences_become_key_expected_and_got() {
        let read = |path, message| {
            let Invalid { key, expected, got } = Invalid::from_serde(path, message);
            (key.unwrap_or_default(), expected, got)
        };
        let is = |key: &str, expected: &str, got: &str| (key.to_owned(), expected.to_owned(), got.to_owned());
        assert_eq!(read(".", "missing field `command` at line 1 column 2"), is("command", "a value", "nothing"));
        assert_eq!(
            read("comand", "unknown field `comand`, expected `command` or `env`"),
            is("comand", "`command` or `env`", "an unknown key")
        );
        assert_eq!(
            read("ready.tcpp", "unknown field `tcpp`, expected `tcp`"),
            is("ready.tcpp", "`tcp`", "an unknown key")
        );
        assert_eq!(
            read("by", "invalid type: string \"x\", expected i64 at line 1 column 9"),
            is("by", "a whole number", "text")
        );
        assert_eq!(read("a", "unknown field `b`, there are no fields"), is("a.b", "no keys", "an unknown key"));
    }
}
