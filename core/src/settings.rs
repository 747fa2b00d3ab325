//! Settings from files: `quilt.toml`, then `quilt.local.toml`, then `conf.d/*.toml` in name order, each over the one
//! before. Environment variables and flags go over them; that is clap's part.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Why settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A named file, or one that exists, cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        error: io::Error,
    },
    /// A file is not TOML, or a key is unknown or of the wrong type. The text shows the line.
    #[error("{path}: {text}")]
    Invalid {
        /// The file, or the files that were put together.
        path: PathBuf,
        /// What the parser says.
        text: String,
    },
}

/// The folder of configuration files: `$QUILT_CFG_DIR`, or `/etc/quilt`.
pub fn config_dir() -> PathBuf {
    std::env::var_os("QUILT_CFG_DIR").map_or_else(|| "/etc/quilt".into(), PathBuf::from)
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
        let invalid = |text: String| SettingsError::Invalid { path: path.clone(), text };
        let table: Table = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        // Each file is checked alone, so that an error names the file it is in.
        section_of::<T>(&table, section).map_err(invalid)?;
        merge(&mut merged, table);
        last = path;
    }
    section_of(&merged, section).map_err(|text| SettingsError::Invalid { path: last, text })
}

fn section_of<T: DeserializeOwned>(table: &Table, section: &str) -> Result<T, String> {
    let known = ["manager", "station", "client"];
    if let Some(unknown) = table.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("unknown section [{unknown}], expected one of [{}]", known.join("], [")));
    }
    let section = table.get(section).cloned().unwrap_or_else(|| Value::Table(Table::new()));
    section.try_into().map_err(|error: toml::de::Error| error.to_string())
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
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    paths.sort();
    Ok(paths)
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
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize, Default, Debug)]
    #[serde(default, deny_unknown_fields)]
    struct Station {
        name: String,
        manager: String,
    }

    #[test]
    fn a_misspelt_key_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quilt.toml");
        fs::write(&path, "[station]\nnmae = \"x\"\n").unwrap();
        let error = read::<Station>(Some(&path), "station").unwrap_err().to_string();
        assert!(error.contains("quilt.toml") && error.contains("nmae"), "{error}");
        fs::write(&path, "[sation]\nname = \"x\"\n").unwrap();
        let error = read::<Station>(Some(&path), "station").unwrap_err().to_string();
        assert!(error.contains("unknown section [sation]"), "{error}");
    }

    #[test]
    fn later_tables_go_over_earlier_ones_key_by_key() {
        let mut below: Table = toml::from_str("[station]\nname = 'a'\nmanager = 'm'\n").unwrap();
        merge(&mut below, toml::from_str("[station]\nname = 'b'\n").unwrap());
        let station: Station = section_of(&below, "station").unwrap();
        assert_eq!((station.name.as_str(), station.manager.as_str()), ("b", "m"));
    }
}
