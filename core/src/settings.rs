//! Settings from files: `quilt.toml`, then `quilt.local.toml`, then `conf.d/*.toml` in name order, each over the one
//! before. Environment variables and flags go over them; that is clap's part.

use std::fmt;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
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
    /// A file is not TOML, or a key is unknown or of the wrong type.
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
        Self::Invalid { place: format!("{}{at}", path.display()), text: error.message().to_owned() }
    }
}

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

/// Reads section `section` of the settings. `file` replaces `quilt.toml` and must exist; the default files need not.
///
/// # Errors
///
/// [`SettingsError`].
pub fn read<T: DeserializeOwned>(file: Option<&Path>, section: &str) -> Result<T, SettingsError> {
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
        check::<T>(&text, section).map_err(|error| SettingsError::invalid(&path, &text, &error))?;
        merge(&mut merged, parse(&path, &text)?);
        last = path;
    }
    let section = merged.remove(section).unwrap_or_else(|| Value::Table(Table::new()));
    section.try_into().map_err(|error| SettingsError::invalid(&last, "", &error))
}

/// The sections of a settings file.
const SECTIONS: [&str; 3] = ["manager", "station", "client"];

/// Checks that a file has known sections only and that `section` in it is a `T`.
fn check<T: DeserializeOwned>(text: &str, section: &str) -> Result<(), toml::de::Error> {
    SectionOf::<T> { section, is: PhantomData }.deserialize(toml::Deserializer::parse(text)?)
}

/// Reads one section in place, so that errors have line and column.
struct SectionOf<'a, T> {
    section: &'a str,
    is: PhantomData<T>,
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for SectionOf<'_, T> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, file: D) -> Result<(), D::Error> {
        file.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for SectionOf<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sections [{}]", SECTIONS.join("], ["))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut file: A) -> Result<(), A::Error> {
        while let Some(Section(section)) = file.next_key()? {
            if section == self.section {
                drop(file.next_value::<T>()?);
            } else {
                file.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The name of a section. Checking it while parsing gives the error line and column.
struct Section(&'static str);

impl<'de> Deserialize<'de> for Section {
    fn deserialize<D: Deserializer<'de>>(key: D) -> Result<Self, D::Error> {
        let name = String::deserialize(key)?;
        let known = SECTIONS.into_iter().find(|known| *known == name);
        let unknown = || format!("unknown section [{name}], expected one of [{}]", SECTIONS.join("], ["));
        known.map(Self).ok_or_else(|| D::Error::custom(unknown()))
    }
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

    #[derive(Deserialize, Default, Debug)]
    #[serde(default, deny_unknown_fields)]
    struct Station {
        name: String,
        manager: String,
        lanes: u16,
        #[serde(deserialize_with = "crate::log::deserialize_level")]
        log_level: Option<String>,
    }

    #[test]
    fn a_mistake_in_a_file_is_told_with_its_line_and_column() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quilt.toml");
        for (text, told) in [
            ("[station]\n\nnmae = 'x'\n", ":3:1: unknown field `nmae`, expected one of"),
            (
                "[client]\n[sation]\nname = 'x'\n",
                ":2:2: unknown section [sation], expected one of [manager], [station]",
            ),
            ("[station]\nname = 1\n", ":2:8: invalid type: integer `1`, expected a string"),
            ("[station]\nlanes = 70000\n", ":2:9: invalid value: integer `70000`, expected u16"),
            ("[station]\nname = 'x\n", ":2:10: "),
            ("[station]\nlog_level = 'inof'\n", ":2:13: log level \"inof\": expected off, error, warn"),
            ("station = 1\n", ":1:11: invalid type: integer `1`"),
        ] {
            fs::write(&path, text).unwrap();
            let error = read::<Station>(Some(&path), "station").unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}{told}", path.display())), "{error}");
        }
        fs::write(&path, "[client]\nx = 1\n[station]\nname = 'a'\nlog_level = 'warning'\n").unwrap();
        let read = read::<Station>(Some(&path), "station").unwrap();
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
