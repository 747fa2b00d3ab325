//! The fleet file: read, and its keys found again by line and column.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use quilt_client::control::{FleetFile, Problem, STDIN_SOURCE};
use quilt_core::settings::{self, line_and_column};
use quilt_plugin_api::config;
use quilt_protocol::Name;
use toml::de::{DeTable, DeValue};

use crate::exit::Failure;

/// A fleet file that was read.
pub(crate) struct Source {
    path: PathBuf,
    text: String,
    pub(crate) fleet: FleetFile,
}

/// The flags that name a fleet file.
#[derive(Args)]
pub(crate) struct FleetFileArgs {
    /// The fleet file; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// The file's name, instead of the one at its top; a file of the same name replaces it, wherever it lies
    #[arg(long = "as", value_name = "NAME")]
    known_as: Option<Name>,
}

impl FleetFileArgs {
    /// Reads the file.
    pub(crate) fn read(self) -> Result<Source, Failure> {
        let mut source = Source::read(&self.file)?;
        source.fleet.name = self.known_as.or(source.fleet.name);
        Ok(source)
    }
}

impl Source {
    /// Reads and parses a file.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::new(format!("{}: {error}", path.display()));
        let text = match path.as_os_str() == "-" {
            true => std::io::read_to_string(std::io::stdin()),
            false => fs::read_to_string(path),
        };
        Self::parse(path.to_owned(), text.map_err(|error| failed(&error))?)
    }

    /// Parses the text of a file.
    pub(crate) fn parse(path: PathBuf, text: String) -> Result<Self, Failure> {
        let fleet = settings::parse(&path, &text)
            .map_err(|first| Failure::new(mistakes(&path, &text).unwrap_or_else(|| first.to_string())))?;
        Ok(Self { path, text, fleet })
    }

    /// The path of the file, as sent to the manager.
    pub(crate) fn place_of_file(&self) -> String {
        if self.path.as_os_str() == STDIN_SOURCE {
            return STDIN_SOURCE.into();
        }
        let absolute = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        absolute.to_string_lossy().into_owned()
    }

    /// A note on what identifies a file without a name; `None` if it has one.
    pub(crate) fn unnamed(&self) -> Option<String> {
        let what = match (&self.fleet.name, self.path.as_os_str() == STDIN_SOURCE) {
            (Some(_), _) => return None,
            (None, true) => {
                "what comes through standard input has no name, so groups that it no longer has stay".into()
            }
            (None, false) => {
                format!(
                    "the file has no name and is known by where it lies, {}: a copy is another file",
                    self.place_of_file()
                )
            }
        };
        Some(format!("{what}; write `name = \"..\"` at its top or use --as"))
    }

    /// `FILE:LINE:COLUMN` of the value that a chain of keys leads to, as far as the file has them.
    pub(crate) fn place(&self, keys: &[&str]) -> Option<String> {
        let (line, column) = line_and_column(&self.text, position(&self.text, keys)?);
        Some(format!("{}:{line}:{column}", self.path.display()))
    }

    /// Where a station's problem comes from.
    pub(crate) fn place_of(&self, problem: &Problem) -> Option<String> {
        let instance = problem.instance.as_deref().unwrap_or_default();
        let has = |roles: &quilt_client::control::Roles| {
            let instances = roles.get(problem.role.as_str());
            instances.is_some_and(|instances| problem.instance.is_none() || instances.contains_key(instance))
        };
        let mut keys = Vec::new();
        if let Some(station) = self.fleet.station.get(&problem.station).filter(|station| has(&station.roles)) {
            let _ = station;
            keys.extend(["station", problem.station.as_str()]);
        } else if let Some((station, _)) = self.fleet.station.iter().find(|(key, station)| {
            // FleetFileArgs in other words; a group's instance must not be taken for another station's.
            (key.starts_with("id:") || key.starts_with("mac:")) && has(&station.roles)
        }) {
            keys.extend(["station", station.as_str()]);
        } else if let Some((group, _)) = self.fleet.group.iter().find(|(_, group)| has(&group.roles)) {
            keys.extend(["group", group.as_str()]);
        } else {
            return None;
        }
        keys.extend(["roles", problem.role.as_str(), instance]);
        // A place in a list is shown as the list's.
        let key = problem.key.as_deref().and_then(|key| key.split('[').next());
        keys.extend(key.into_iter().flat_map(|key| key.split('.')));
        self.place(&keys)
    }
}

/// The byte position of the value that a chain of keys leads to, as far as the text has them.
fn position(text: &str, keys: &[&str]) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let mut table = table.get_ref();
    let mut at = None;
    for key in keys {
        let Some((found, value)) = table.iter().find(|(name, _)| name.get_ref() == key) else { break };
        at = Some(found.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    at
}

/// All mistakes in the keys of a file, each with its place; `None` if the file is not TOML or has none.
fn mistakes(path: &Path, text: &str) -> Option<String> {
    let table = settings::parse::<toml::Table>(path, text).ok()?;
    let wrong = config::read::<FleetFile>(&serde_json::to_value(table).ok()?, None).wrong;
    let mut placed: Vec<_> = wrong
        .iter()
        .map(|wrong| {
            let keys: Vec<_> = wrong.keys.iter().map(String::as_str).collect();
            (position(text, &keys).unwrap_or_default(), wrong.invalid.to_string())
        })
        .collect();
    placed.sort();
    let line = |(at, wrong): &(usize, String)| {
        let (line, column) = line_and_column(text, *at);
        format!("{}:{line}:{column}: {wrong}", path.display())
    };
    (!placed.is_empty()).then(|| placed.iter().map(line).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::parse("fleet.toml".into(), text.into()).unwrap()
    }

    #[test]
    fn all_mistakes_of_a_file_are_listed_with_their_places_and_in_its_own_words() {
        let text =
            "nmae = 'x'\n[station.cam-1]\nlabels = ['a']\nroles = { process = 5 }\n[group.g]\n[group.h]\nmatch = 1\n";
        let Err(failure) = Source::parse("f.toml".into(), text.into()) else { panic!("it is taken") };
        assert_eq!(
            failure.to_string().lines().collect::<Vec<_>>(),
            [
                "f.toml:1:1: key `nmae`: expected one of `name`, `station`, `group`, got an unknown key",
                "f.toml:3:1: key `station.cam-1.labels`: expected a table, got a list",
                "f.toml:4:11: key `station.cam-1.roles.process`: expected a table, got a whole number",
                "f.toml:5:8: key `group.g.match`: expected a value, got nothing",
                "f.toml:7:1: key `group.h.match`: expected text, got a whole number",
            ]
        );
    }

    #[test]
    fn a_file_without_a_name_is_told_what_it_is_known_by() {
        assert_eq!(source("name = 'room'\n").unnamed(), None);
        assert!(source("").unnamed().unwrap().contains("fleet.toml: a copy is another file"));
        let input = Source::parse("-".into(), String::new()).unwrap();
        assert!(input.unnamed().unwrap().contains("standard input has no name"));
    }

    #[test]
    fn a_problem_leads_back_to_its_line() {
        let source = source(
            "[station.cam-1]\nlabels = { room = 'a' }\n\n[station.cam-1.roles.process.clock]\ncomand = ['date']\n\
             [group.all]\nmatch = 'name=*'\n[group.all.roles.counter.main]\nstart = 'x'\n",
        );
        assert_eq!(source.place(&["group", "all", "match"]).unwrap(), "fleet.toml:7:1");
        let problem = |role: &str, instance: &str, key: &str| Problem {
            code: quilt_client::control::ProblemCode::InvalidConfiguration,
            station: "cam-1".into(),
            role: role.into(),
            instance: Some(instance.into()),
            key: Some(key.into()),
            expected: String::new(),
            got: String::new(),
        };
        assert_eq!(source.place_of(&problem("process", "clock", "comand")).unwrap(), "fleet.toml:5:1");
        assert_eq!(source.place_of(&problem("counter", "main", "start")).unwrap(), "fleet.toml:9:1");
        assert_eq!(source.place_of(&problem("counter", "other", "start")), None);
    }
}
