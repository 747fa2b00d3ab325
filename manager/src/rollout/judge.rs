//! How far a station is with an apply. Pure.

use quilt_core::words::count;
use quilt_protocol::control::{InstanceReport, Owner, Phase, ProblemCode, State as InstanceState};

use crate::apply::Target;
use crate::fleet::Instances;
use crate::state::Station;

/// How far a station is with what is desired of it.
pub(super) fn judge(station: Option<&Station>, target: &Target, wanted: &Instances, misses_roles: bool) -> (Phase, String) {
    let Some(station) = station else { return (Phase::Failed, "it was forgotten".into()) };
    let current = station.desired.as_ref().map(|desired| desired.revision);
    let ours = target.desired.as_ref().or(target.before.as_ref()).map(|desired| desired.revision);
    if current != ours {
        return (Phase::Failed, "something newer was applied meanwhile".into());
    }
    let Some(live) = &station.live else {
        if target.was_live {
            return (Phase::Applying, "it was lost".into());
        }
        return (Phase::Away, "gets its configuration when it registers".into());
    };
    let desired = station.desired.as_ref();
    if let Some(rejected) = &station.rejected
        && desired.is_some_and(|desired| desired.revision == rejected.revision)
    {
        // It is offered that again until it can take it.
        let is_fault = rejected.rejection.code == ProblemCode::StationFault;
        let phase = if is_fault { Phase::Applying } else { Phase::Rejected };
        return (phase, rejected.rejection.message.clone());
    }
    let digest_of_all = desired.map(|desired| desired.digest);
    if live.applied.map(|applied| applied.digest) != digest_of_all || live.applying {
        return (Phase::Applying, String::new());
    }
    let (mut waiting, mut beside) = (Vec::new(), Vec::new());
    for (key, digest) in wanted {
        let name = format!("{}/{}", key.0, key.1);
        if target.unhealthy_before.contains(key) {
            let report = live.instances.get(key).filter(|report| !report.state.is_as_wanted());
            beside.extend(report.map(|report| describe(&name, report)));
            continue;
        }
        if let Some(InstanceReport { held_back: Some((asked, why)), .. }) = live.instances.get(key)
            && Some(*asked) == digest_of_all
        {
            return (Phase::Failed, format!("{name}: {why}"));
        }
        if let Some(report) = live.instances.get(key).filter(|report| report.cannot_run()) {
            if misses_roles {
                return (Phase::Failed, format!("{name}: {}", report.detail));
            }
            beside.push(describe(&name, report));
            continue;
        }
        match live.instances.get(key).filter(|report| report.digest == *digest) {
            Some(report) if report.state == InstanceState::Failed => {
                return (Phase::Failed, format!("{name}: {}", report.detail));
            }
            Some(report) if report.state == InstanceState::Active => {}
            Some(report) if report.state.is_as_wanted() => beside.push(describe(&name, report)),
            Some(report) => waiting.push(describe(&name, report)),
            None => waiting.push(format!("{name} is to come")),
        }
    }
    let leaving =
        live.instances.iter().filter(|(key, report)| report.owner == Owner::Fleet && !wanted.contains_key(*key));
    waiting.extend(leaving.map(|((role, instance), report)| match report.detail.as_str() {
        "" => format!("{role}/{instance} is to go"),
        detail => format!("{role}/{instance} is to go ({detail})"),
    }));
    match waiting.is_empty() {
        true => (Phase::Healthy, healthy(wanted.len(), &beside)),
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
