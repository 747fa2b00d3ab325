//! Fleet files, written as code.

use std::fmt::Write as _;

/// A fleet file under construction.
#[derive(Clone, Default)]
pub struct Fleet(String);

impl Fleet {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names a station without roles.
    #[must_use]
    pub fn empty_station(mut self, station: &str) -> Self {
        writeln!(self.0, "[station.{station:?}]").expect("text grows");
        self
    }

    /// Adds an instance, as `station/role/instance`, with its keys in TOML.
    #[must_use]
    pub fn with(mut self, path: &str, keys: &str) -> Self {
        let [station, role, instance] = path.split('/').collect::<Vec<_>>()[..] else { panic!("{path}") };
        writeln!(self.0, "[station.{station:?}.roles.{role}.{instance}]\n{keys}").expect("text grows");
        self
    }

    /// Adds a program that a shell runs.
    #[must_use]
    pub fn shell(self, path: &str, script: &str) -> Self {
        self.with(path, &format!("command = [\"sh\", \"-c\", {script:?}]"))
    }

    /// The file.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// A fleet file with one long-running program on each of these stations.
pub fn clock(stations: &[&str]) -> Fleet {
    stations.iter().fold(Fleet::new(), |fleet, station| {
        fleet.shell(&format!("{station}/process/clock"), "while date; do sleep 1; done")
    })
}
