//! How far a station is with an apply. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use quilt_core::words::count;
use quilt_protocol::control::{InstanceReport, Owner, Phase, ProblemCode, Rejected, State as InstanceState};
use quilt_protocol::{Digest, Revision};

use crate::apply::Target;
use crate::fleet::{Instances, document_of, shown};
use crate::part::{Newer, Part};
use crate::state::{InstanceKey, Station};
use crate::store::{Desired, Origin};

/// A revision that a station was given after the one of an apply: by another file, or by a rollback.
#[derive(Debug)]
pub(super) struct Successor {
    pub(super) revision: Revision,
    digest: Digest,
    newer: Arc<Newer>,
    /// Why the apply has no effect any more, if the revision does not have its part.
    pub(super) supersedes: Option<String>,
}

impl Successor {
    /// Looks at a revision that came after the apply of the file `source`, which left the `part` of the instances `given`. `documents`
    /// are those that were read already: many stations are given the same.
    pub(super) fn new(
        desired: &Desired,
        source: &str,
        part: &Part,
        given: &Instances,
        documents: &mut BTreeMap<Digest, Arc<Newer>>,
    ) -> Self {
        let read = || Arc::new(Newer::of(document_of(Some(desired))));
        let newer = documents.entry(desired.digest).or_insert_with(read).clone();
        let Desired { revision, digest, origin, .. } = *desired;
        let others_may_give = origin == Origin::Fleet && desired.source != source;
        let supersedes = part.missing_from(given, &newer, others_may_give).map(|what| {
            let by = if desired.who.is_empty() { String::new() } else { format!(" by {}", desired.who) };
            format!("revision {revision} ({}{by}) took over meanwhile: it {what}", shown(&desired.source))
        });
        Self { revision, digest, newer, supersedes }
    }
}

/// How far a station is with the part of its configuration that an apply answers for. What it was given since is its `successor`: the
/// part is then followed in that.
pub(super) fn judge(
    station: Option<&Station>,
    target: &Target,
    successor: Option<&Successor>,
    misses_roles: bool,
) -> (Phase, String) {
    let Some(station) = station else { return (Phase::Failed, "it was forgotten".into()) };
    if let Some(supersedes) = successor.and_then(|successor| successor.supersedes.as_ref()) {
        return (Phase::Failed, supersedes.clone());
    }
    let Some(live) = &station.live else {
        if target.was_live {
            return (Phase::Applying, "it was lost".into());
        }
        return (Phase::Away, "gets its configuration when it registers".into());
    };
    let sight = Sight {
        rejected: station.rejected.as_ref(),
        applied: live.applied.map(|applied| applied.digest),
        applying: live.applying,
        instances: &live.instances,
    };
    judge_connected(&sight, target, successor, misses_roles)
}

/// What a connected station says of itself.
struct Sight<'a> {
    rejected: Option<&'a Rejected>,
    applied: Option<Digest>,
    applying: bool,
    instances: &'a BTreeMap<InstanceKey, InstanceReport>,
}

fn judge_connected(
    sight: &Sight<'_>,
    target: &Target,
    successor: Option<&Successor>,
    misses_roles: bool,
) -> (Phase, String) {
    let has_ours = sight.applied == Some(target.saying.digest);
    let has_newer = successor.is_some_and(|successor| sight.applied == Some(successor.digest));
    let desired = successor.map_or(target.revision(), |successor| Some(successor.revision));
    let meanwhile = successor.map(|successor| format!("revision {}, which was applied meanwhile", successor.revision));
    // A station that refuses what it was given since runs on with what this apply gave it.
    if let Some(rejected) = sight.rejected.filter(|rejected| Some(rejected.revision) == desired)
        && !(successor.is_some() && has_ours)
    {
        // It is offered that again until it can take it.
        let is_fault = rejected.rejection.code == ProblemCode::StationFault;
        let phase = if is_fault { Phase::Applying } else { Phase::Rejected };
        let message = &rejected.rejection.message;
        return (phase, meanwhile.map_or(message.clone(), |meanwhile| format!("{meanwhile}: {message}")));
    }
    if !has_ours && !has_newer {
        return (Phase::Applying, meanwhile.map_or(String::new(), |meanwhile| format!("is to get {meanwhile}")));
    }
    // While something newer is applied each instance says itself which configuration it has, but not which build of a plugin.
    if sight.applying && !(has_newer && target.part.plugins.is_empty()) {
        return (Phase::Applying, String::new());
    }
    judge_instances(sight, target, successor.map(|successor| &*successor.newer), misses_roles)
}

fn judge_instances(sight: &Sight<'_>, target: &Target, newer: Option<&Newer>, misses_roles: bool) -> (Phase, String) {
    let given = target.saying.instances();
    let (mut judged, mut waiting, mut beside) = (0, Vec::new(), Vec::new());
    for (key, digest) in given.iter() {
        let name = format!("{}/{}", key.0, key.1);
        let report = sight.instances.get(key);
        if !target.part.is_judged_by(key, digest, newer) {
            continue;
        }
        judged += 1;
        if target.unhealthy_before.contains(key) {
            beside.extend(report.filter(|report| !report.state.is_as_wanted()).map(|report| describe(&name, report)));
            continue;
        }
        if let Some(InstanceReport { held_back: Some((asked, why)), .. }) = report
            && Some(*asked) == sight.applied
        {
            return (Phase::Failed, format!("{name}: {why}"));
        }
        if let Some(report) = report.filter(|report| report.cannot_run()) {
            if misses_roles {
                return (Phase::Failed, format!("{name}: {}", report.detail));
            }
            beside.push(describe(&name, report));
            continue;
        }
        match report.filter(|report| report.digest == *digest) {
            Some(report) if report.state == InstanceState::Failed => {
                return (Phase::Failed, format!("{name}: {}", report.detail));
            }
            Some(report) if report.state == InstanceState::Active => {}
            Some(report) if report.state.is_as_wanted() => beside.push(describe(&name, report)),
            Some(report) => waiting.push(describe(&name, report)),
            None => waiting.push(format!("{name} is to come")),
        }
    }
    let stays =
        |key: &InstanceKey| given.contains_key(key) || newer.is_some_and(|newer| newer.instances.contains_key(key));
    let leaving = sight.instances.iter().filter(|(key, report)| report.owner == Owner::Fleet && !stays(key));
    waiting.extend(leaving.map(|((role, instance), report)| match report.detail.as_str() {
        "" => format!("{role}/{instance} is to go"),
        detail => format!("{role}/{instance} is to go ({detail})"),
    }));
    match waiting.is_empty() {
        true => (Phase::Healthy, healthy(judged, &beside)),
        false => (Phase::Applying, waiting.join(", ")),
    }
}

/// How many instances there are, and those that do not run any more although nothing is wrong with them.
fn healthy(instances: usize, beside: &[String]) -> String {
    const SHOWN_MAX: usize = 5;
    let all = count(instances, "instance");
    let more = beside.len().checked_sub(SHOWN_MAX).filter(|more| *more > 0);
    let more = more.map(|more| format!("and {more} more that do not run"));
    std::iter::once(all).chain(beside.iter().take(SHOWN_MAX).cloned()).chain(more).collect::<Vec<_>>().join(", ")
}

pub(super) fn describe(name: &str, report: &InstanceReport) -> String {
    match report.detail.as_str() {
        "" => format!("{name} is {}", report.state),
        detail => format!("{name} is {} ({detail})", report.state),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use quilt_protocol::StationId;
    use quilt_protocol::control::Rejection;
    use serde_json::json;

    use super::*;
    use crate::desired::new_desired;
    use crate::fleet::{Document, Saying};

    fn key(instance: &str) -> InstanceKey {
        ("p".parse().unwrap(), instance.parse().unwrap())
    }

    fn document(instances: &serde_json::Value) -> Document {
        serde_json::from_value(json!({ "roles": { "p": instances } })).unwrap()
    }

    /// An apply of `ours.toml`, which gives the instance `own` as revision 2.
    fn target(before: &serde_json::Value, after: &serde_json::Value) -> Target {
        let saying = Saying::new(document(after), Vec::new());
        let own = BTreeSet::from([key("own")]);
        Target {
            id: StationId::random(),
            name: "cam-1".parse().unwrap(),
            before: None,
            was_damaged: false,
            desired: Some(new_desired(Revision(2), saying.json.clone(), Origin::Fleet, 0)),
            was_live: true,
            refused: false,
            part: Arc::new(Part::new(&document(before), &saying.document, &own)),
            unhealthy_before: BTreeSet::new(),
            saying: Arc::new(saying),
        }
    }

    /// What the station is given as revision 3.
    fn successor(target: &Target, instances: &serde_json::Value, source: &str, origin: Origin) -> Successor {
        let saying = Saying::new(document(instances), Vec::new());
        let mut desired = new_desired(Revision(3), saying.json, origin, 0);
        (desired.source, desired.who) = (source.into(), "ann".into());
        Successor::new(&desired, "ours.toml", &target.part, &target.saying.instances(), &mut BTreeMap::new())
    }

    /// What a station says that runs a document, but for the states of some instances.
    fn runs(instances: &serde_json::Value, but: &[(&str, InstanceState)]) -> BTreeMap<InstanceKey, InstanceReport> {
        let report = |((role, instance), digest)| {
            let other = but.iter().find(|(name, _)| instance == *name);
            let state = other.map_or(InstanceState::Active, |(_, state)| *state);
            let (attributes, detail, owner) = (BTreeMap::new(), String::new(), Owner::Fleet);
            let (pid, restarts, since_ms, held_back) = (None, 0, 0, None);
            InstanceReport {
                role,
                instance,
                owner,
                digest,
                state,
                detail,
                pid,
                restarts,
                since_ms,
                attributes,
                held_back,
            }
        };
        let all = crate::fleet::instances_of(&document(instances)).into_iter().map(report);
        all.map(|report| ((report.role.clone(), report.instance.clone()), report)).collect()
    }

    fn digest(instances: &serde_json::Value) -> Option<Digest> {
        Some(Saying::new(document(instances), Vec::new()).digest)
    }

    fn judged(
        target: &Target,
        successor: Option<&Successor>,
        applied: &serde_json::Value,
        instances: &BTreeMap<InstanceKey, InstanceReport>,
    ) -> (Phase, String) {
        let sight = Sight { rejected: None, applied: digest(applied), applying: false, instances };
        judge_connected(&sight, target, successor, true)
    }

    #[test]
    fn an_apply_goes_on_in_what_another_file_gave_its_stations_meanwhile() {
        let ours = json!({ "own": {}, "theirs": {} });
        let target = target(&json!({ "theirs": {} }), &ours);
        let newer = json!({ "own": {}, "theirs": { "x": 1 }, "more": {} });
        let successor = successor(&target, &newer, "theirs.toml", Origin::Fleet);
        assert_eq!(successor.supersedes, None);
        // What the other file gives and changes decides nothing here, nor does that it is still being applied.
        let instances = runs(&newer, &[("theirs", InstanceState::Failed), ("more", InstanceState::Starting)]);
        let mut sight = Sight { rejected: None, applied: digest(&newer), applying: true, instances: &instances };
        assert_eq!(judge_connected(&sight, &target, Some(&successor), true), (Phase::Healthy, "1 instance".into()));
        // Nor does it when the station has not got it yet, or refuses it.
        let instances = runs(&ours, &[]);
        let rejection = Rejection { code: ProblemCode::InvalidConfiguration, message: "no".into(), problems: vec![] };
        let rejected = Rejected { revision: Revision(3), rejection };
        sight = Sight { rejected: None, applied: digest(&ours), applying: false, instances: &instances };
        assert_eq!(judge_connected(&sight, &target, Some(&successor), true).0, Phase::Healthy);
        sight.rejected = Some(&rejected);
        assert_eq!(judge_connected(&sight, &target, Some(&successor), true).0, Phase::Healthy);
        sight.applied = None;
        let (phase, why) = judge_connected(&sight, &target, Some(&successor), true);
        assert_eq!((phase, why.as_str()), (Phase::Rejected, "revision 3, which was applied meanwhile: no"));
        // Its own instance does decide, and what is in neither document has to go.
        let failing = runs(&newer, &[("own", InstanceState::Failed)]);
        assert_eq!(judged(&target, Some(&successor), &newer, &failing).0, Phase::Failed);
        let leaving = runs(&json!({ "own": {}, "theirs": { "x": 1 }, "more": {}, "gone": {} }), &[]);
        let expected = (Phase::Applying, "p/gone is to go".into());
        assert_eq!(judged(&target, Some(&successor), &newer, &leaving), expected);
    }

    #[test]
    fn an_apply_whose_part_is_gone_from_what_was_given_since_says_what_took_over() {
        let target = target(&json!({}), &json!({ "own": { "x": 1 } }));
        let why = |instances, source, origin| successor(&target, &instances, source, origin).supersedes.unwrap();
        assert_eq!(
            why(json!({ "own": { "x": 2 } }), "ours.toml", Origin::Fleet),
            "revision 3 (ours.toml by ann) took over meanwhile: it does not have p/own as this apply gave it"
        );
        assert_eq!(
            why(json!({}), "rollback to revision 1", Origin::Pinned),
            "revision 3 (rollback to revision 1 by ann) took over meanwhile: it does not have p/own as this apply gave it"
        );
    }

    #[test]
    fn what_another_file_gives_and_an_apply_does_not_change_never_decides_over_it() {
        let after = json!({ "own": {}, "theirs": {} });
        let target = target(&json!({ "theirs": {} }), &after);
        for state in [InstanceState::Active, InstanceState::Backoff, InstanceState::Failed, InstanceState::Starting] {
            let (phase, detail) = judged(&target, None, &after, &runs(&after, &[("theirs", state)]));
            assert_eq!((phase, detail.as_str()), (Phase::Healthy, "1 instance"), "{state}");
        }
        assert_eq!(judged(&target, None, &after, &runs(&after, &[("own", InstanceState::Failed)])).0, Phase::Failed);
    }
}
