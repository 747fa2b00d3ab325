//! What instances of one station have to keep to together: limits of roles, names, and needs.

use std::collections::{BTreeMap, BTreeSet};

use quilt_protocol::control::{Document, Problem, ProblemCode};

use crate::role_table::RoleTable;
use crate::spec::{Key, Policy, Spec};

/// Roles of which there would be more instances than a station may have.
pub(super) fn over_limit(station: &str, document: &Document, others: &[Spec], roles: &RoleTable) -> Vec<Problem> {
    let (mut problems, known) = (Vec::new(), roles.all());
    for (role, instances) in &document.roles {
        let Some(limit) = known.get(role).map(|offer| offer.instances as usize) else { continue };
        let count = instances.len() + others.iter().filter(|other| other.key.role == *role).count();
        if limit > 0 && count > limit {
            problems.push(Problem {
                code: ProblemCode::InvalidConfiguration,
                station: station.into(),
                role: role.to_string(),
                instance: instances.keys().nth(limit).or(instances.keys().last()).map(ToString::to_string),
                key: None,
                expected: format!("at most {limit} instance{} of it on a station", if limit == 1 { "" } else { "s" }),
                got: count.to_string(),
            });
        }
    }
    problems
}

/// What is wrong with a name that the host configures.
pub(crate) const TAKEN_BY_DROP_IN: &str = "one that a drop-in file on its host configures";

/// Names that both the fleet and the host give to an instance.
pub(super) fn clashes(station: &str, document: &Document, others: &[Spec]) -> Vec<Problem> {
    let taken = others.iter().filter(|other| {
        document.roles.get(&other.key.role).is_some_and(|instances| instances.contains_key(&other.key.instance))
    });
    let clash = |other: &Spec| Problem {
        code: ProblemCode::InvalidConfiguration,
        station: station.into(),
        role: other.key.role.to_string(),
        instance: Some(other.key.instance.to_string()),
        key: None,
        expected: "a name that is free on this station".into(),
        got: TAKEN_BY_DROP_IN.into(),
    };
    taken.map(clash).collect()
}

/// Needs that name nothing, or each other in a circle.
pub(super) fn wrong_needs(station: &str, document: &Document, specs: &[Spec], others: &[Spec]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let known: BTreeMap<&Key, &Spec> = specs.iter().chain(others).map(|spec| (&spec.key, spec)).collect();
    for spec in specs {
        let problem = |expected: String, got: String| Problem {
            code: ProblemCode::InvalidConfiguration,
            station: station.into(),
            role: spec.key.role.to_string(),
            instance: Some(spec.key.instance.to_string()),
            key: Some("needs".into()),
            expected,
            got,
        };
        for need in &spec.settings.needs {
            let needed = known.get(&need.key);
            if needed.is_none() && !contains(document, &need.key) {
                let got = format!("`{}`, which this station does not have", need.key);
                problems.push(problem(instances_but(&spec.key, document, others), got));
            }
            if need.completed && needed.is_some_and(|needed| needed.settings.restart.policy == Policy::Permanent) {
                let got = format!("`{}`, which is restarted whenever it ends: its policy is `permanent`", need.key);
                problems.push(problem("an instance that can be completed".into(), got));
            }
        }
        if reaches(&spec.key, &known) {
            let needs: Vec<_> = spec.settings.needs.iter().map(|need| format!("`{}`", need.key)).collect();
            problems.push(problem("needs without a circle".into(), needs.join(", ")));
        }
    }
    problems
}

/// Whether following needs from `start` leads back to it.
fn reaches(start: &Key, known: &BTreeMap<&Key, &Spec>) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![start];
    while let Some(key) = open.pop() {
        for next in known.get(key).into_iter().flat_map(|spec| &spec.settings.needs) {
            if next.key == *start {
                return true;
            }
            if seen.insert(&next.key) {
                open.push(&next.key);
            }
        }
    }
    false
}

fn contains(document: &Document, key: &Key) -> bool {
    document.roles.get(&key.role).is_some_and(|instances| instances.contains_key(&key.instance))
}

/// The instances that one could need, in words.
fn instances_but(key: &Key, document: &Document, others: &[Spec]) -> String {
    const SHOWN_MAX: usize = 8;
    let in_document = document.roles.iter().flat_map(|(role, instances)| {
        instances.keys().map(|instance| Key { role: role.clone(), instance: instance.clone() })
    });
    let all: BTreeSet<Key> = in_document.chain(others.iter().map(|other| other.key.clone())).collect();
    let shown: Vec<_> =
        all.iter().filter(|other| *other != key).take(SHOWN_MAX).map(|key| format!("`{key}`")).collect();
    match shown.len() {
        0 => "another instance of this station, which has none".into(),
        _ => format!("another instance of this station, such as {}", shown.join(", ")),
    }
}

/// Fleet instances that a document removes although instances of drop-in files need them: their next start would wait for ever.
/// `accepted` are the fleet's instances so far. A need that is not met now is the host's own affair.
pub(crate) fn lost_needs(station: &str, document: &Document, local: &[Spec], accepted: &BTreeSet<Key>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for spec in local {
        for need in &spec.settings.needs {
            if accepted.contains(&need.key) && !contains(document, &need.key) {
                problems.push(Problem {
                    code: ProblemCode::InvalidConfiguration,
                    station: station.into(),
                    role: need.key.role.to_string(),
                    instance: Some(need.key.instance.to_string()),
                    key: None,
                    expected: format!("it to stay as long as `{}` of a drop-in file on its host needs it", spec.key),
                    got: "its removal".into(),
                });
            }
        }
    }
    problems
}
