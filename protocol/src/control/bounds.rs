//! How much a station may say of itself. A station checks what it is configured with when it starts, and cuts what it gathers itself. A
//! manager checks all of it again, because its memory and every listing of the fleet depend on it.

use std::collections::BTreeMap;

use super::{Facts, InstanceReport, Registration, Report, RoleOffer, StationEvent};
use crate::labels;

/// The longest fact about a machine, such as its host name, in bytes.
pub const FACT_MAX: usize = 256;
/// How many roles a station offers, and how many it refuses.
pub const ROLES_MAX: usize = 4096;
/// The longest version of a role, in bytes.
pub const VERSION_MAX: usize = 256;
/// How many instances a station has.
pub const INSTANCES_MAX: usize = 100_000;
/// The longest text about an instance's state, in bytes.
pub const DETAIL_MAX: usize = 8 << 10;
/// How many attributes an instance publishes.
pub const ATTRIBUTES_MAX: usize = 64;
/// How many bytes all attributes of an instance come to, with their names.
pub const ATTRIBUTES_BYTES_MAX: usize = 128 << 10;
/// The longest name of an attribute and the longest topic of an event, in bytes.
pub const ATTRIBUTE_NAME_MAX: usize = 256;
/// The longest attribute or body of an event, in bytes of JSON: what a status line can bear.
pub const ATTRIBUTE_MAX: usize = 16 << 10;
/// How many events one report tells.
pub const REPORTED_EVENTS_MAX: usize = 1000;
/// How many remarks a station has about the files on its host, each as long as a detail.
pub const REMARKS_MAX: usize = 20;

impl Registration {
    /// Checks it against the bounds of this module and of [`labels::check_table`].
    ///
    /// # Errors
    ///
    /// Names what is too much, how much it is and how much there may be.
    pub fn check(&self) -> Result<(), String> {
        let Facts { hostname, mac, ip, machine_id, boot_id, software, more } = &self.facts;
        labels::check_table("label", self.labels.iter())?;
        labels::check_table("fact", more.iter())?;
        let texts = [("host name", Some(hostname)), ("software", Some(software)), ("mac", mac.as_ref())];
        let others = [("ip", ip.as_ref()), ("machine id", machine_id.as_ref()), ("boot id", boot_id.as_ref())];
        for (name, fact) in texts.into_iter().chain(others) {
            at_most(fact.map_or(0, String::len), FACT_MAX, || format!("bytes of its {name}"))?;
        }
        check_roles(&self.roles)?;
        at_most(self.blocked.len(), ROLES_MAX, || "blocked roles".into())?;
        at_most(self.instances.len(), INSTANCES_MAX, || "instances".into())?;
        self.instances.iter().try_for_each(check_instance)
    }
}

impl Report {
    /// Checks it against the bounds of this module.
    ///
    /// # Errors
    ///
    /// As [`Registration::check`].
    pub fn check(&self) -> Result<(), String> {
        self.roles.iter().try_for_each(|roles| check_roles(roles))?;
        at_most(self.changed.len(), INSTANCES_MAX, || "instances".into())?;
        at_most(self.gone.len(), INSTANCES_MAX, || "instances that are gone".into())?;
        at_most(self.events.len(), REPORTED_EVENTS_MAX, || "events in one report".into())?;
        let remarks = self.remarks.as_deref().unwrap_or_default();
        at_most(remarks.len(), REMARKS_MAX, || "remarks".into())?;
        remarks.iter().try_for_each(|remark| at_most(remark.len(), DETAIL_MAX, || "bytes of a remark".into()))?;
        self.changed.iter().try_for_each(check_instance)?;
        self.events.iter().try_for_each(|event| match event {
            StationEvent::State(change) => at_most(change.detail.len(), DETAIL_MAX, || "bytes of a detail".into()),
            StationEvent::Emitted(emitted) => {
                at_most(emitted.topic.len(), ATTRIBUTE_NAME_MAX, || "bytes of an event's topic".into())?;
                at_most(emitted.body.len(), ATTRIBUTE_MAX, || format!("bytes of event `{}`", emitted.topic))
            }
            StationEvent::Gone(..) | StationEvent::Applying | StationEvent::Applied => Ok(()),
        })
    }
}

fn check_roles(roles: &[RoleOffer]) -> Result<(), String> {
    at_most(roles.len(), ROLES_MAX, || "roles".into())?;
    roles.iter().try_for_each(|offer| {
        at_most(offer.version.len(), VERSION_MAX, || format!("bytes of the version of role {}", offer.role))
    })
}

fn check_instance(report: &InstanceReport) -> Result<(), String> {
    let InstanceReport { role, instance, detail, attributes, held_back, .. } = report;
    let of = |what: &str| format!("{what} of {role}/{instance}");
    at_most(detail.len(), DETAIL_MAX, || of("bytes of the detail"))?;
    let held_back = held_back.as_ref().map_or(0, |(_, why)| why.len());
    at_most(held_back, DETAIL_MAX, || of("bytes of why it is held back"))?;
    at_most(attributes.len(), ATTRIBUTES_MAX, || of("attributes"))?;
    at_most(attribute_bytes(attributes), ATTRIBUTES_BYTES_MAX, || of("bytes of all attributes"))?;
    attributes.iter().try_for_each(|(name, json)| {
        at_most(name.len(), ATTRIBUTE_NAME_MAX, || of("bytes of an attribute's name"))?;
        at_most(json.len(), ATTRIBUTE_MAX, || of(&format!("bytes of attribute `{name}`")))
    })
}

/// The bytes of an instance's attributes, with their names.
pub fn attribute_bytes(attributes: &BTreeMap<String, String>) -> usize {
    attributes.iter().map(|(name, json)| name.len() + json.len()).sum()
}

/// Checks a number of something that a station says of itself.
///
/// # Errors
///
/// Names what it is, how many there are and how many there may be.
pub fn at_most(count: usize, limit: usize, what: impl FnOnce() -> String) -> Result<(), String> {
    if count <= limit { Ok(()) } else { Err(format!("the station has {count} {}; at most {limit} are taken", what())) }
}

/// Cuts a text to at most `limit` bytes, at the end of a character. What is cut ends with an ellipsis.
pub fn cut(text: &mut String, limit: usize) {
    const ELLIPSIS: char = '…';
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit - ELLIPSIS.len_utf8()));
        text.push(ELLIPSIS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Owner, State};
    use crate::{Digest, StationId};

    fn registration() -> Registration {
        Registration {
            id: StationId::random(),
            wished_name: "cam-1".parse().unwrap(),
            facts: Facts::default(),
            labels: Default::default(),
            roles: Vec::new(),
            blocked: Vec::new(),
            applied: None,
            applying: false,
            instances: Vec::new(),
        }
    }

    fn instance() -> InstanceReport {
        InstanceReport {
            role: "r".parse().unwrap(),
            instance: "i".parse().unwrap(),
            owner: Owner::Fleet,
            digest: Digest::of(b""),
            state: State::Active,
            detail: String::new(),
            pid: None,
            restarts: 0,
            since_ms: 0,
            attributes: BTreeMap::new(),
            held_back: None,
        }
    }

    #[test]
    fn what_a_station_says_of_itself_has_bounds_that_the_refusal_names() {
        assert_eq!(registration().check(), Ok(()));
        let refused = |change: &dyn Fn(&mut Registration)| {
            let mut registration = registration();
            change(&mut registration);
            registration.check().unwrap_err()
        };
        let many = |number: usize| (0..number).map(|number| (format!("{number}"), "x".to_owned()));
        let text = refused(&|it| it.labels = many(65).collect());
        assert_eq!(text, "65 labels; at most 64 are taken");
        let text = refused(&|it| it.labels = [("k", "x".repeat(1025))].into_iter().collect());
        assert_eq!(text, "label `k` has a value of 1025 bytes; at most 1024 are taken");
        let text = refused(&|it| it.facts.more = [("k".repeat(257), "x")].into_iter().collect());
        assert!(text.contains("has a name of 257 bytes; at most 256"), "{text}");
        let text = refused(&|it| it.labels = (0..64).map(|n| (n.to_string(), "x".repeat(1000))).collect());
        assert!(text.contains("labels of 64118 bytes; at most 16384"), "{text}");
        let text = refused(&|it| it.facts.hostname = "h".repeat(300));
        assert_eq!(text, "the station has 300 bytes of its host name; at most 256 are taken");
        let text = refused(&|it| it.blocked = vec!["r".parse().unwrap(); ROLES_MAX + 1]);
        assert!(text.contains("4097 blocked roles; at most 4096"), "{text}");
        let text = refused(&|it| it.instances = vec![instance(); INSTANCES_MAX + 1]);
        assert!(text.contains("100001 instances; at most 100000"), "{text}");
        let text = refused(&|it| {
            let attributes = (0..9).map(|number| (number.to_string(), "x".repeat(ATTRIBUTE_MAX))).collect();
            it.instances = vec![InstanceReport { attributes, ..instance() }];
        });
        assert!(text.contains("147465 bytes of all attributes of r/i; at most 131072"), "{text}");
    }

    #[test]
    fn a_report_is_held_to_the_same_bounds() {
        let report = |changed, events| Report {
            applied: None,
            applying: false,
            changed,
            gone: Vec::new(),
            events,
            roles: None,
            remarks: None,
        };
        assert_eq!(report(vec![instance()], vec![StationEvent::Applied]).check(), Ok(()));
        let long = InstanceReport { detail: "x".repeat(DETAIL_MAX + 1), ..instance() };
        assert!(report(vec![long], Vec::new()).check().unwrap_err().contains("the detail of r/i; at most 8192"));
        let events = vec![StationEvent::Applied; REPORTED_EVENTS_MAX + 1];
        assert!(report(Vec::new(), events).check().unwrap_err().contains("1001 events in one report; at most 1000"));
    }

    #[test]
    fn a_text_is_cut_between_characters_and_shows_that_it_was() {
        let mut text = "ä".repeat(10);
        cut(&mut text, 20);
        assert_eq!(text, "ä".repeat(10));
        cut(&mut text, 18);
        assert_eq!(text, format!("{}…", "ä".repeat(7)));
    }
}
