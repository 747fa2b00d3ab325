//! One instance as configured: quilt's own keys taken out, the rest left to the role.

use std::time::Duration;

use quilt_plugin_api::{Invalid, config};
use quilt_protocol::control::{Owner, instance_digest};
use quilt_protocol::{Digest, Name};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::endpoint::{HttpUrl, TcpAddress};
use crate::needs::Need;
use crate::plugins::Carrier;

/// Which instance.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) role: Name,
    pub(crate) instance: Name,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.role, self.instance)
    }
}

impl std::str::FromStr for Key {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (role, instance) = text.split_once('/').ok_or("expected role/instance")?;
        let name = |text: &str| text.parse::<Name>().map_err(|error| error.to_string());
        Ok(Self { role: name(role)?, instance: name(instance)? })
    }
}

/// An instance that should be.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) key: Key,
    pub(crate) owner: Owner,
    /// Hash of the whole of it, quilt's keys included.
    pub(crate) digest: Digest,
    pub(crate) settings: Settings,
    /// The role's part, as JSON.
    pub(crate) config: String,
    /// The plugin that it runs on, if its role is not linked in.
    #[serde(skip)]
    pub(crate) carrier: Option<Carrier>,
}

/// quilt's own keys of an instance. All others belong to the role.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) restart: Restart,
    pub(crate) needs: Vec<Need>,
    pub(crate) ready: Option<Ready>,
    /// How long a start may take. A ready check has its own time.
    #[serde(with = "humantime_serde")]
    pub(crate) start_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) stop_timeout: Duration,
    pub(crate) isolation: Option<Isolation>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            restart: Restart::default(),
            needs: Vec::new(),
            ready: None,
            start_timeout: Duration::from_secs(60),
            stop_timeout: Duration::from_secs(10),
            isolation: None,
        }
    }
}

/// The longest time that an instance's keys take; more is a slip, and would overflow clocks.
const TIME_MAX: Duration = Duration::from_secs(DAYS_MAX * 24 * 60 * 60);
const DAYS_MAX: u64 = 365;

impl Settings {
    fn longest(&self) -> Option<Duration> {
        let ready = self.ready.iter().flat_map(|ready| [ready.within, ready.every]);
        let restart = [self.restart.delay, self.restart.max_delay, self.restart.period];
        restart.into_iter().chain(ready).chain([self.start_timeout, self.stop_timeout]).max()
    }
}

/// The keys that [`Settings`] takes.
pub(crate) const KEYS: [&str; 6] = ["restart", "needs", "ready", "start_timeout", "stop_timeout", "isolation"];

/// Whether and how an instance that ended is started again.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Restart {
    pub(crate) policy: Policy,
    /// The shortest delay, and the first; it doubles with every failure in a row, with jitter.
    #[serde(with = "humantime_serde")]
    pub(crate) delay: Duration,
    /// The longest delay, jitter included. Without the key it is 30 s, or `delay` if that is longer.
    #[serde(with = "humantime_serde")]
    pub(crate) max_delay: Duration,
    /// More failures than this within `period` and the instance is given up; 0 for never.
    pub(crate) intensity: u32,
    #[serde(with = "humantime_serde")]
    pub(crate) period: Duration,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: Policy::Transient,
            delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(30),
            intensity: 5,
            period: Duration::from_secs(120),
        }
    }
}

/// Restart kinds as OTP has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Policy {
    /// Whenever it ends.
    Permanent,
    /// When it fails.
    Transient,
    /// Never.
    Temporary,
}

/// Where a loaded role runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Isolation {
    /// In a child of its own (loaded roles only; the default for them).
    Process,
    /// In the station.
    Inproc,
}

/// When a started instance counts as active.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Ready {
    #[serde(flatten)]
    pub(crate) check: Check,
    /// It must pass within this time, or the start has failed.
    #[serde(with = "humantime_serde")]
    pub(crate) within: Duration,
    /// The pause between attempts.
    #[serde(with = "humantime_serde")]
    pub(crate) every: Duration,
}

/// What is checked.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Check {
    /// A line of its log contains this text.
    Log(String),
    /// A TCP connection succeeds.
    Tcp(TcpAddress),
    /// An HTTP GET answers with a status below 400.
    Http(HttpUrl),
    /// A program exits with 0.
    Command(Vec<String>),
}

impl<'de> Deserialize<'de> for Ready {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Raw {
            log: Option<String>,
            tcp: Option<TcpAddress>,
            http: Option<HttpUrl>,
            command: Option<Vec<String>>,
            #[serde(with = "humantime_serde")]
            within: Duration,
            #[serde(with = "humantime_serde")]
            every: Duration,
        }
        impl Default for Raw {
            fn default() -> Self {
                let (within, every) = (Duration::from_secs(30), Duration::from_secs(1));
                Self { log: None, tcp: None, http: None, command: None, within, every }
            }
        }
        let raw = Raw::deserialize(deserializer)?;
        let check = match (raw.log, raw.tcp, raw.http, raw.command) {
            (Some(text), None, None, None) => Check::Log(text),
            (None, Some(address), None, None) => Check::Tcp(address),
            (None, None, Some(url), None) => Check::Http(url),
            (None, None, None, Some(command)) if !command.is_empty() => Check::Command(command),
            _ => return Err(serde::de::Error::custom("expected exactly one of `log`, `tcp`, `http`, `command`")),
        };
        if raw.every.is_zero() {
            return Err(serde::de::Error::custom("every = \"0s\", expected a time between attempts, such as \"1s\""));
        }
        if raw.within.is_zero() {
            return Err(serde::de::Error::custom(
                "within = \"0s\", expected a time to become ready in, such as \"30s\"",
            ));
        }
        Ok(Self { check, within: raw.within, every: raw.every })
    }
}

impl Spec {
    /// What stands for an instance that cannot be made.
    pub(crate) fn placeholder(key: Key, owner: Owner) -> Self {
        let digest = quilt_protocol::control::InstanceReport::no_configuration();
        Self { key, owner, digest, settings: Settings::default(), config: String::new(), carrier: None }
    }

    /// Takes quilt's own keys out of an instance's configuration. Those that are wrong are left at their defaults and
    /// listed.
    pub(crate) fn read(key: Key, owner: Owner, whole: &Map<String, Value>) -> (Self, Vec<Invalid>) {
        let digest = instance_digest(whole);
        let (ours, theirs): (Map<_, _>, Map<_, _>) =
            whole.iter().map(|(k, v)| (k.clone(), v.clone())).partition(|(k, _)| KEYS.contains(&k.as_str()));
        let (mut settings, mut wrong) = (Settings::default(), Vec::new());
        for (key, value) in ours {
            let max_delay_is_given = key == "restart" && value.get("max_delay").is_some();
            // One key at a time: one that is wrong is left at its default whole.
            let alone = Value::Object(Map::from_iter([(key.clone(), value)]));
            let reading = config::read::<Settings>(&alone, None);
            let is_whole = reading.wrong.is_empty();
            wrong.extend(reading.wrong.into_iter().map(|wrong| wrong.invalid));
            let Some(mut read) = reading.value.filter(|_| is_whole) else { continue };
            if let Some(got) = read.longest().filter(|longest| *longest > TIME_MAX) {
                let got = humantime::format_duration(got).to_string();
                wrong.push(Invalid::key(key, format!("times of at most {DAYS_MAX} days"), got));
                continue;
            }
            if read.start_timeout.is_zero() {
                wrong.push(Invalid::key(key, "a time in which a start can succeed, such as \"60s\"", "0s"));
                continue;
            }
            let Restart { delay, max_delay, .. } = &mut read.restart;
            if delay > max_delay {
                if max_delay_is_given {
                    let [got, least] = [*max_delay, *delay].map(|time| humantime::format_duration(time).to_string());
                    wrong.push(Invalid::key("restart.max_delay", format!("at least `delay`, which is {least}"), got));
                    continue;
                }
                *max_delay = *delay;
            }
            match key.as_str() {
                "restart" => settings.restart = read.restart,
                "needs" => settings.needs = read.needs,
                "ready" => settings.ready = read.ready,
                "start_timeout" => settings.start_timeout = read.start_timeout,
                "stop_timeout" => settings.stop_timeout = read.stop_timeout,
                _ => settings.isolation = read.isolation,
            }
        }
        let config = Value::Object(theirs).to_string();
        (Self { key, owner, digest, settings, config, carrier: None }, wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(keys: &str) -> (Spec, Vec<Invalid>) {
        let key = Key { role: "a".parse().unwrap(), instance: "c".parse().unwrap() };
        Spec::read(key, Owner::Fleet, &serde_json::from_str(keys).unwrap())
    }

    #[test]
    fn a_long_delay_alone_is_its_own_maximum_and_beyond_a_given_one_it_is_wrong() {
        let (spec, wrong) = read(r#"{"restart":{"delay":"1m"}}"#);
        assert!(wrong.is_empty());
        assert_eq!(spec.settings.restart.max_delay, Duration::from_secs(60));
        let (_, wrong) = read(r#"{"restart":{"delay":"10s","max_delay":"5s"}}"#);
        assert_eq!(wrong, [Invalid::key("restart.max_delay", "at least `delay`, which is 10s", "5s")]);
    }

    #[test]
    fn a_ready_check_is_tried_once_a_second_and_its_address_is_judged() {
        let (spec, wrong) = read(r#"{"ready":{"tcp":"localhost:80"}}"#);
        assert!(wrong.is_empty());
        assert_eq!(spec.settings.ready.unwrap().every, Duration::from_secs(1));
        for (ready, key) in [
            (r#"{"tcp":"localhost"}"#, "ready.tcp"),
            (r#"{"tcp":"h:99999"}"#, "ready.tcp"),
            (r#"{"http":"http://user@host/"}"#, "ready.http"),
            (r#"{"http":"http://h/","every":"0s"}"#, "ready"),
            (r#"{"http":"http://h/","within":"0s"}"#, "ready"),
        ] {
            let (_, wrong) = read(&format!(r#"{{"ready":{ready}}}"#));
            assert_eq!(wrong.len(), 1, "{ready}");
            assert!(wrong[0].key.as_deref() == Some(key) && wrong[0].expected != "a valid value", "{}", wrong[0]);
        }
        let (_, wrong) = read(r#"{"needs":["a/b",{"completed":"a"},7,{"done":"a/b"}]}"#);
        let wrong: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        let forms = "expected \"role/instance\" or { completed = \"role/instance\" }";
        assert_eq!(wrong[0], format!("key `needs[1]`: {forms}, got \"a\""));
        assert_eq!(wrong[1], format!("key `needs[2]`: {forms}, got a whole number"));
        assert_eq!(wrong[2], "key `needs[3].done`: expected `completed`, got an unknown key");
        let (_, wrong) = read(r#"{"start_timeout":"0s"}"#);
        assert_eq!((wrong.len(), wrong[0].key.as_deref()), (1, Some("start_timeout")));
    }

    #[test]
    fn what_an_instance_is_to_be_can_be_kept_and_read_again() {
        let checks = [r#""log":"ready""#, r#""tcp":"[::1]:80""#, r#""http":"http://h/""#, r#""command":["true","x"]"#];
        for check in checks {
            let whole = format!(
                r#"{{"ready":{{{check},"within":"1m 1s","every":"5ms"}},"needs":["a/b",{{"completed":"a/d"}}],"start_timeout":"2s","stop_timeout":"3s","isolation":"inproc",
                "restart":{{"policy":"permanent","delay":"1s","max_delay":"7s","intensity":0,"period":"1h"}},"say":"ä"}}"#
            );
            let key = Key { role: "a".parse().unwrap(), instance: "c".parse().unwrap() };
            let (spec, wrong) = Spec::read(key, Owner::Fleet, &serde_json::from_str(&whole).unwrap());
            assert!(wrong.is_empty());
            let kept = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<Spec>(&kept).unwrap(), spec, "{kept}");
        }
    }
}
