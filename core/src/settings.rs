//! Settings from files: `quilt.toml`, then `quilt.local.toml`, then `conf.d/*.toml` in name order, each over the one
//! before. Environment variables and flags go over them; that is clap's part.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

/// Why settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A named file, or one that exists, cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// A file is not TOML, or keys are unknown or have wrong values.
    #[error("{place}: {text}")]
    Invalid {
        /// The file with line and column.
        place: String,
        /// What the parser says.
        text: String,
    },
}

impl SettingsError {
    fn invalid(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map(|span| line_and_column(text, span.start));
        let at = at.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"));
        let found = error.span().and_then(|span| text.get(span));
        Self::Invalid { place: format!("{}{at}", path.display()), text: in_own_words(error.message(), found) }
    }
}

/// Translates the parser's message about a value, which speaks of Rust's types, for whoever wrote the file. `found` is the text at the
/// place. Other messages are as those who check values wrote them.
fn in_own_words(message: &str, found: Option<&str>) -> String {
    if let Some((key, expected)) = message.strip_prefix("unknown field ").and_then(|rest| rest.split_once(", ")) {
        return format!("{expected}, got the unknown key {key}");
    }
    let rest = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    let Some((kind, wanted)) = rest.and_then(|rest| rest.rsplit_once(", expected ")) else { return message.to_owned() };
    let expected = match wanted {
        "a string" | "string" | "a borrowed string" => "text in quotes",
        "path string" => "a path in quotes",
        "a sequence" => "a list",
        "a map" => "a table",
        "a boolean" => "true or false",
        "u8" | "u16" | "u32" | "u64" | "usize" | "i64" => "a whole number in range",
        own => own,
    };
    let got = match found.filter(|found| found.lines().count() == 1 && found.chars().count() <= FOUND_MAX) {
        Some(found) => found,
        None if kind.starts_with("map") => "a table",
        None if kind.starts_with("sequence") => "a list",
        None => "something else",
    };
    format!("expected {expected}, got {got}")
}

/// How much of a value is shown, in characters.
const FOUND_MAX: usize = 60;

/// The line and column of a byte of a text, both from 1 on.
pub fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// Parses the text of the TOML file at `path`. Dates, `nan` and `inf` are refused, because configurations travel as JSON.
///
/// # Errors
///
/// [`SettingsError::Invalid`], with line and column.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, SettingsError> {
    let invalid = |error: toml::de::Error| SettingsError::invalid(path, text, &error);
    let table = DeTable::parse(text).map_err(invalid)?;
    if let Some((at, expected)) = table.get_ref().iter().find_map(|(_, value)| not_in_json(value)) {
        let (line, column) = line_and_column(text, at.start);
        let got = &text[at];
        let text = format!("expected {expected}, got {got}");
        return Err(SettingsError::Invalid { place: format!("{}:{line}:{column}", path.display()), text });
    }
    T::deserialize(toml::Deserializer::from(table)).map_err(invalid)
}

/// Finds the first value that JSON cannot represent, with what is expected there. As JSON a date would become a table, and `nan`
/// null.
fn not_in_json(value: &Spanned<DeValue<'_>>) -> Option<(Range<usize>, &'static str)> {
    match value.get_ref() {
        DeValue::Datetime(_) => Some((value.span(), "a date or time in quotes")),
        DeValue::Float(number) if number.as_str().parse().is_ok_and(|number: f64| !number.is_finite()) => {
            Some((value.span(), "a finite number"))
        }
        DeValue::Array(items) => items.iter().find_map(not_in_json),
        DeValue::Table(table) => table.iter().find_map(|(_, value)| not_in_json(value)),
        _ => None,
    }
}

/// The folder of configuration files: `$QUILT_CFG_DIR`, or `/etc/quilt`.
pub fn config_dir() -> PathBuf {
    let set = std::env::var_os("QUILT_CFG_DIR").filter(|folder| !folder.is_empty());
    set.map_or_else(|| "/etc/quilt".into(), PathBuf::from)
}

/// The plugin folder of a station that names none.
pub fn default_plugin_dir() -> PathBuf {
    config_dir().join("plugins")
}

/// Reads section `section` of the settings, a `T` in which every key has a default. `file` replaces `quilt.toml` and must exist; the
/// default files need not. `examples` has a line of TOML for each key, which is shown when its value is wrong.
///
/// # Errors
///
/// [`SettingsError`]; of the first file with mistakes it tells all of them.
pub fn read<T: DeserializeOwned>(file: Option<&Path>, section: &str, examples: &[&str]) -> Result<T, SettingsError> {
    let folder = config_dir();
    let mut files = Vec::new();
    match file {
        Some(file) => files.push((file.to_owned(), true)),
        None => files.push((folder.join("quilt.toml"), false)),
    }
    files.push((folder.join("quilt.local.toml"), false));
    files.extend(drop_ins(&folder.join("conf.d"))?.into_iter().map(|path| (path, true)));
    let mut merged = Table::new();
    let mut last = folder;
    for (path, required) in files {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => continue,
            Err(error) => return Err(SettingsError::Io { path, error }),
        };
        // Each file is checked alone, so that an error names the place it is in.
        check::<T>(&path, &text, section, examples)?;
        merge(&mut merged, parse(&path, &text)?);
        last = path;
    }
    let section = merged.remove(section).unwrap_or_else(|| Value::Table(Table::new()));
    section.try_into().map_err(|error| SettingsError::invalid(&last, "", &error))
}

/// The sections of a settings file.
const SECTIONS: [&str; 3] = ["manager", "station", "client"];

/// Checks that a file has known sections only and that each key of `section` in it is one of a `T`. The keys are read one by one, so
/// that every mistake is found.
fn check<T: DeserializeOwned>(path: &Path, text: &str, section: &str, examples: &[&str]) -> Result<(), SettingsError> {
    let file = DeTable::parse(text).map_err(|error| SettingsError::invalid(path, text, &error))?;
    let mut wrong = Vec::new();
    for (name, content) in file.get_ref() {
        let known = SECTIONS.iter().find(|known| *known == name.get_ref());
        let Some(known) = known else {
            let text = format!("expected one of [{}], got [{}]", SECTIONS.join("], ["), name.get_ref());
            wrong.push((name.span().start, text));
            continue;
        };
        let DeValue::Table(keys) = content.get_ref() else {
            let got = text.get(content.span()).unwrap_or("something else");
            wrong.push((content.span().start, format!("expected a section [{known}], got {got}")));
            continue;
        };
        for (key, value) in keys.iter().filter(|_| *known == section) {
            let mut alone = DeTable::new();
            alone.insert(key.clone(), value.clone());
            let alone = Spanned::new(content.span(), alone);
            let Err(error) = T::deserialize(toml::Deserializer::from(alone)) else { continue };
            let at = error.span().map_or(value.span().start, |span| span.start);
            let found = error.span().and_then(|span| text.get(span));
            let key = key.get_ref();
            let is_of_key = |line: &&&str| line.split_once(" = ").is_some_and(|(name, _)| name == key);
            let example = examples.iter().find(is_of_key).map(|example| format!("; for example {example}"));
            let text = in_own_words(error.message(), found);
            wrong.push((at, format!("[{section}] {key}: {text}{}", example.unwrap_or_default())));
        }
    }
    wrong.sort();
    let place = |at| {
        let (line, column) = line_and_column(text, at);
        format!("{}:{line}:{column}", path.display())
    };
    let mut wrong = wrong.into_iter();
    let Some((at, first)) = wrong.next() else { return Ok(()) };
    let text = wrong.fold(first, |text, (at, wrong)| format!("{text}\n{}: {wrong}", place(at)));
    Err(SettingsError::Invalid { place: place(at), text })
}

/// The `*.toml` files of a folder in name order; none if there is no such folder.
///
/// # Errors
///
/// [`SettingsError::Io`].
pub fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(SettingsError::Io { path: folder.to_owned(), error }),
    };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml") && !is_hidden(path))
        .collect();
    paths.sort();
    Ok(paths)
}

/// Hidden files belong to editors and file systems: Emacs locks `x.toml` with a dangling link `.#x.toml`.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn merge(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => drop(below.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Default, Debug)]
    #[serde(default, deny_unknown_fields)]
    struct Station {
        name: String,
        manager: String,
        lanes: u16,
        #[serde(deserialize_with = "crate::log::deserialize_level")]
        log_level: Option<String>,
    }

    #[test]
    fn every_mistake_in_a_file_is_told_with_its_place_what_belongs_there_and_an_example() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quilt.toml");
        let examples = ["name = \"cam-1\"", "lanes = 4"];
        for (text, told) in [
            (
                "[station]\n\nnmae = 'x'\n",
                &[
                    ":3:1: [station] nmae: expected one of `name`, `manager`, `lanes`, `log_level`, got the unknown key `nmae`",
                ][..],
            ),
            (
                "[client]\n[sation]\nname = 'x'\n",
                &[":2:2: expected one of [manager], [station], [client], got [sation]"],
            ),
            (
                "[station]\nname = 1\nlanes = 70000\nmanager = ['a']\n",
                &[
                    ":2:8: [station] name: expected text in quotes, got 1; for example name = \"cam-1\"",
                    ":3:9: [station] lanes: expected a whole number in range, got 70000; for example lanes = 4",
                    ":4:11: [station] manager: expected text in quotes, got ['a']",
                ],
            ),
            ("[station]\nname = 'x\n", &[":2:10: "]),
            (
                "[station]\nlog_level = 'inof'\n",
                &[":2:13: [station] log_level: log level \"inof\": expected off, error, warn"],
            ),
            ("station = 1\n", &[":1:11: expected a section [station], got 1"]),
            ("[[station]]\n", &[":1:1: expected a section [station], got [[station]]"]),
        ] {
            fs::write(&path, text).unwrap();
            let error = read::<Station>(Some(&path), "station", &examples).unwrap_err().to_string();
            assert_eq!(error.lines().count(), told.len(), "{error}");
            for (line, told) in error.lines().zip(told) {
                assert!(line.starts_with(&format!("{}{told}", path.display())), "{error}");
            }
        }
        fs::write(&path, "[client]\nx = 1\n[station]\nname = 'a'\nlog_level = 'warning'\n").unwrap();
        let read = read::<Station>(Some(&path), "station", &[]).unwrap();
        assert_eq!((read.name.as_str(), read.log_level.as_deref()), ("a", Some("warning")));
    }

    #[test]
    fn a_value_that_json_has_not_is_refused_where_it_stands() {
        let wrong = |text: &str| parse::<Table>(Path::new("fleet.toml"), text).unwrap_err().to_string();
        let date = wrong("[a]\nx = [1, { y = 2024-01-01 }]\n");
        assert_eq!(date, "fleet.toml:2:15: expected a date or time in quotes, got 2024-01-01");
        assert_eq!(wrong("x = -inf"), "fleet.toml:1:5: expected a finite number, got -inf");
        assert!(wrong("x = nan").contains("a finite number"));
        let fine: Table = parse(Path::new("fleet.toml"), "x = \"2024-01-01\"\ny = 1.5").unwrap();
        assert_eq!(fine["y"].as_float(), Some(1.5));
    }

    #[test]
    fn an_editors_hidden_files_are_no_settings() {
        let folder = tempfile::tempdir().unwrap();
        let seen = folder.path().join("b.toml");
        fs::write(&seen, "").unwrap();
        fs::write(folder.path().join(".b.toml"), "half a line").unwrap();
        std::os::unix::fs::symlink("ada@host.4711:1", folder.path().join(".#b.toml")).unwrap();
        assert_eq!(drop_ins(folder.path()).unwrap(), [seen]);
    }

    #[test]
    fn later_tables_go_over_earlier_ones_key_by_key() {
        let mut below: Table = toml::from_str("[station]\nname = 'a'\nmanager = 'm'\n").unwrap();
        merge(&mut below, toml::from_str("[station]\nname = 'b'\n").unwrap());
        let station: Station = below.remove("station").unwrap().try_into().unwrap();
        assert_eq!((station.name.as_str(), station.manager.as_str()), ("b", "m"));
        assert_eq!(station.lanes, 0);
    }
}
