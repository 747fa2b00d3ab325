//! The fleet files that rounds apply: which program every station should run. Values only.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// What a program is like, and how it is configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Runs until it is told to stop, and then exits with 0 at once.
    Plain,
    /// The same, restarted whenever it ends.
    Permanent,
    /// Takes half a second to stop.
    Slow,
    /// Stopped by its keeper when its station was away for a second.
    Orphan,
    /// Starts a process in a session of its own, which must not outlive it.
    Forks,
    /// Ready when it says so, which takes it a moment.
    Ready,
    /// Exits with 3 at once.
    Fails,
}

impl Kind {
    /// All that can run.
    pub(crate) const RUNNABLE: [Self; 6] =
        [Self::Plain, Self::Permanent, Self::Slow, Self::Orphan, Self::Forks, Self::Ready];

    /// The argument that makes the program so.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Permanent => "permanent",
            Self::Slow => "slow",
            Self::Orphan => "orphan",
            Self::Forks => "forks",
            Self::Ready => "ready",
            Self::Fails => "fails",
        }
    }

    /// Further keys of its instance.
    fn keys(self) -> &'static str {
        match self {
            Self::Plain | Self::Slow | Self::Forks => "",
            Self::Permanent => "restart = { policy = \"permanent\", delay = \"200ms\", intensity = 0 }\n",
            Self::Orphan => "orphan_timeout = \"1s\"\n",
            Self::Ready => "ready = { log = \"ready\" }\n",
            Self::Fails => "restart = { delay = \"50ms\", max_delay = \"50ms\", intensity = 2 }\n",
        }
    }
}

/// A program as one apply configured it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Program {
    /// The number of that apply.
    pub(crate) version: usize,
    pub(crate) kind: Kind,
}

/// What one apply makes desired: the programs of each station by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fleet {
    /// The number of the apply.
    pub(crate) number: usize,
    pub(crate) stations: Vec<BTreeMap<String, Program>>,
}

/// The name of a station.
pub(crate) fn station_name(station: usize) -> String {
    format!("s{station}")
}

/// The plugin, and its role.
pub(crate) const PLUGIN: &str = "hello";
/// Its instance on every station.
pub(crate) const GREETER: &str = "greeter";

/// The instance that tells which apply a station has: its only use is its name.
pub(crate) fn marker(number: usize) -> String {
    format!("a{number}")
}

impl Fleet {
    /// Whether a station cannot run all of it.
    pub(crate) fn fails(&self) -> bool {
        self.stations.iter().flat_map(BTreeMap::values).any(|program| program.kind == Kind::Fails)
    }

    /// The fleet file. Programs are run by the binary `program` and keep their journals in the folder `journals`. With the plugin every
    /// station runs an instance of it.
    pub(crate) fn text(&self, program: &Path, journals: &Path, has_plugin: bool) -> String {
        let mut text = "name = \"pressure\"\n".to_owned();
        let mut add = |line: String| writeln!(text, "{line}").expect("text grows");
        for (number, programs) in self.stations.iter().enumerate() {
            let station = station_name(number);
            add(format!("[station.{station}.roles.counter.{}]", marker(self.number)));
            if has_plugin {
                let number = self.number;
                add(format!("[station.{station}.roles.{PLUGIN}.{GREETER}]\ngreeting = \"apply {number}\""));
            }
            for (name, Program { version, kind }) in programs {
                let mark = Mark { station: number, instance: name.clone(), version: *version };
                let command = [program.to_str(), Some("program"), journals.to_str(), Some(&mark.to_string())];
                let command: Vec<_> = command.into_iter().flatten().chain([kind.name()]).collect();
                add(format!("[station.{station}.roles.process.{name}]\ncommand = {command:?}\n{}", kind.keys()));
            }
        }
        text
    }
}

/// The argument by which a process is known as a program of a station, wherever it came from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Mark {
    pub(crate) station: usize,
    pub(crate) instance: String,
    pub(crate) version: usize,
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/v{}", station_name(self.station), self.instance, self.version)
    }
}

impl std::str::FromStr for Mark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a mark such as s0/p1/v2");
        let [station, instance, version] = text.split('/').collect::<Vec<_>>()[..] else { return Err(wrong()) };
        let number =
            |text: &str, prefix| text.strip_prefix(prefix).and_then(|rest| rest.parse().ok()).ok_or_else(wrong);
        Ok(Self { station: number(station, 's')?, instance: instance.to_owned(), version: number(version, 'v')? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let mark = Mark { station: 2, instance: "p0".into(), version: 17 };
        assert_eq!(mark.to_string().parse(), Ok(mark));
        for text in ["", "s0/p0", "s0/p0/17", "x0/p0/v1", "s0/p0/v1/v1"] {
            assert!(text.parse::<Mark>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_station_of_a_file_says_which_apply_it_has() {
        let program = Program { version: 3, kind: Kind::Orphan };
        let fleet = Fleet { number: 4, stations: vec![BTreeMap::from([("p0".to_owned(), program)]), BTreeMap::new()] };
        let text = fleet.text(Path::new("/bin/x"), Path::new("/tmp/j"), true);
        for line in [
            "[station.s0.roles.counter.a4]",
            "[station.s1.roles.counter.a4]",
            "command = [\"/bin/x\", \"program\", \"/tmp/j\", \"s0/p0/v3\", \"orphan\"]",
            "orphan_timeout = \"1s\"",
            "[station.s1.roles.hello.greeter]",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
