//! What an instance needs of another one on its station before it starts.

use std::fmt;

use quilt_protocol::control::{InstanceReport, State};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spec::Key;

/// One entry of `needs`: `"role/instance"`, which must be active or completed, or `{ completed = "role/instance" }`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Need {
    pub(crate) key: Key,
    /// Whether its work must have ended well: being active is not enough.
    pub(crate) completed: bool,
}

/// How an entry of `needs` is spelled.
const FORMS: &str = "\"role/instance\" or { completed = \"role/instance\" }";

impl Need {
    /// What the start must still wait for, by the latest report of the needed instance; `None` once the need is met.
    pub(crate) fn unmet(&self, report: Option<&InstanceReport>) -> Option<String> {
        let key = &self.key;
        let Some(report) = report else {
            return Some(format!("{key}, which this station does not have"));
        };
        Some(match report.state {
            State::Completed => return None,
            State::Active if !self.completed => return None,
            State::Active => format!("{key} to be completed"),
            State::Failed if report.detail.is_empty() => format!("{key}, which failed"),
            State::Failed => format!("{key}, which failed: {}", report.detail),
            // Its detail changes with every attempt; whoever wants it looks at the needed instance.
            State::Backoff => format!("{key}, which ended and is to be started again"),
            State::Stopped => format!("{key}, which an operator stopped"),
            State::Starting | State::Waiting | State::Stopping | State::Unknown => key.to_string(),
        })
    }
}

impl Serialize for Need {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.completed {
            return serializer.collect_str(&self.key);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("completed", &self.key.to_string())?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Need {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NeedVisitor;

        impl<'de> Visitor<'de> for NeedVisitor {
            type Value = Need;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(FORMS)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Need, E> {
                Ok(Need { key: parse(text)?, completed: false })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Need, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Completed {
                    completed: String,
                }
                let Completed { completed } = Completed::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Need { key: parse(&completed)?, completed: true })
            }
        }

        deserializer.deserialize_any(NeedVisitor)
    }
}

fn parse<E: Error>(text: &str) -> Result<Key, E> {
    text.parse().map_err(|_| E::custom(format!("{text:?}, expected {FORMS}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use quilt_protocol::Digest;
    use quilt_protocol::control::Owner;

    use super::*;

    fn need(json: &str) -> Need {
        serde_json::from_str(json).unwrap()
    }

    fn report(state: State, detail: &str) -> InstanceReport {
        InstanceReport {
            role: "process".parse().unwrap(),
            instance: "db".parse().unwrap(),
            owner: Owner::Fleet,
            digest: Digest::of(b""),
            state,
            detail: detail.into(),
            pid: None,
            restarts: 0,
            since_ms: 0,
            attributes: BTreeMap::new(),
            held_back: None,
        }
    }

    #[test]
    fn a_need_is_met_by_what_is_active_and_one_of_completion_by_what_has_ended_well() {
        let (active, completed) = (need(r#""process/db""#), need(r#"{"completed":"process/db"}"#));
        for need in [&active, &completed] {
            assert_eq!(need.unmet(Some(&report(State::Completed, "exit code 0"))), None);
            let wait = |state, detail: &str| need.unmet(Some(&report(state, detail))).unwrap();
            assert_eq!(wait(State::Failed, "exit code 3"), "process/db, which failed: exit code 3");
            assert_eq!(
                wait(State::Backoff, "exit code 3; again at .."),
                "process/db, which ended and is to be started again"
            );
            assert_eq!(wait(State::Stopped, ""), "process/db, which an operator stopped");
            assert_eq!(wait(State::Starting, "not ready yet"), "process/db");
            assert_eq!(need.unmet(None).unwrap(), "process/db, which this station does not have");
        }
        assert_eq!(active.unmet(Some(&report(State::Active, ""))), None);
        assert_eq!(completed.unmet(Some(&report(State::Active, ""))).unwrap(), "process/db to be completed");
    }

    #[test]
    fn a_need_is_written_as_it_is_read() {
        for json in [r#""process/db""#, r#"{"completed":"process/db"}"#] {
            assert_eq!(serde_json::to_string(&need(json)).unwrap(), json);
        }
        for wrong in [r#""db""#, "1", r#"{"completed":"db"}"#, r#"{"finished":"process/db"}"#, "{}"] {
            assert!(serde_json::from_str::<Need>(wrong).is_err(), "{wrong}");
        }
    }
}
