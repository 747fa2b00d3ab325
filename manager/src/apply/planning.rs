//! Asking stations what they think of what they are to have, before anything is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quilt_net::Body;
use quilt_protocol::control::{Problem, ProblemCode, Verdict, command};
use quilt_protocol::{Address, Digest, Name, StationId};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::Target;
use crate::Core;
use crate::workers::give_way;

/// How long a station may take to plan.
const PLAN: Duration = Duration::from_secs(30);
/// How long it may take if it has plugins to fetch first.
pub(crate) const PLAN_WITH_PLUGINS: Duration = Duration::from_secs(600);
/// How long a station may take at least, once others have answered.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many times as long as the slowest of the others it may take, where that is more: then all of them have much to do.
const SLOWER: u32 = 4;
/// How many stations are asked before others get their turn.
const ASKED_AT_ONCE: usize = 8;

/// What stations were asked, and what they said.
#[derive(Default)]
pub(super) struct Asked {
    documents: Vec<(StationId, Digest)>,
    pub(super) problems: Vec<Problem>,
    pub(super) notes: Vec<String>,
}

impl Asked {
    /// Whether this is what these targets are to be asked.
    pub(super) fn is_about(&self, targets: &[Target]) -> bool {
        self.documents.iter().copied().eq(to_ask(targets))
    }
}

/// Which stations are to be asked, about which document.
fn to_ask(targets: &[Target]) -> impl Iterator<Item = (StationId, Digest)> {
    targets.iter().filter(|target| target.is_asked()).map(|target| (target.id, target.saying.digest))
}

/// Until when stations are waited for that have not answered, if the last answer of another came after `answered`, counted from when all
/// were asked. A station that sends heartbeats and never answers must not hold up the others; one that is alone is waited for.
fn patience(answered: Option<Duration>) -> Duration {
    answered.map_or(PLAN, |slowest| (slowest * SLOWER).clamp(PATIENCE, PLAN))
}

/// Asks every target that is to be asked what it thinks, all at once.
pub(super) async fn plan_all(core: &Core, targets: &[Target]) -> Asked {
    let (documents, mut notes) = (to_ask(targets).collect(), Vec::new());
    let mut asked = JoinSet::new();
    // Those that have no plugins to fetch.
    let mut prompt = BTreeMap::<Name, AbortHandle>::new();
    let began = Instant::now();
    for (number, target) in targets.iter().filter(|target| target.is_asked()).enumerate() {
        if number % ASKED_AT_ONCE == ASKED_AT_ONCE - 1 {
            give_way().await;
        }
        let state = core.state();
        let live = state.stations.get(&target.id).and_then(|station| station.live.as_ref());
        let Some(handle) = live.map(|live| live.handle.clone()) else { continue };
        drop(state);
        let name = target.name.clone();
        let has_plugins = !target.saying.document.plugins.is_empty();
        let time = if has_plugins { PLAN_WITH_PLUGINS } else { PLAN };
        // A `Plan`. Those of all stations that are to have the same share the document.
        let plan = Body::ending_in(&(), &target.saying.json);
        let task = asked.spawn(async move {
            let to = Address::Station(name.clone());
            (name, handle.ask_encoded::<Verdict>(to, command::PLAN, plan, time).await)
        });
        if !has_plugins {
            prompt.insert(target.name.clone(), task);
        }
    }
    let (mut problems, mut answered) = (Vec::new(), None);
    loop {
        let waiting = if prompt.is_empty() { PLAN_WITH_PLUGINS } else { patience(answered) };
        let Ok(answer) = tokio::time::timeout_at(began + waiting, asked.join_next()).await else {
            for (name, task) in std::mem::take(&mut prompt) {
                task.abort();
                let text = format!("station {name} did not answer within {} s", waiting.as_secs());
                notes.push(format!("{text} whether it can take this; it is offered the configuration all the same"));
            }
            continue;
        };
        match answer {
            None => {
                notes.extend(not_judged(&problems));
                return Asked { documents, problems, notes };
            }
            Some(Ok((name, verdict))) => {
                prompt.remove(&name);
                match verdict {
                    Ok(Verdict::Rejected(rejection)) => problems.extend(rejection.problems),
                    Ok(Verdict::Accepted | Verdict::Unchanged) => {}
                    // A station that goes away while planning gets its configuration when it comes back, like any other.
                    Err(error) => {
                        notes.push(format!("station {name} did not answer whether it can take this: {error}"));
                    }
                }
                answered = Some(began.elapsed());
            }
            Some(Err(error)) if error.is_cancelled() => {}
            Some(Err(error)) => tracing::error!(%error, "the task that asks a station to plan panicked"),
        }
    }
}

/// What to say of stations that could not judge it.
fn not_judged(problems: &[Problem]) -> impl Iterator<Item = String> {
    let faults = problems.iter().filter(|problem| problem.code == ProblemCode::StationFault);
    let stations: BTreeSet<_> = faults.map(|problem| problem.station.clone()).collect();
    stations.into_iter().map(|station| {
        format!(
            "station {station} has trouble of its own and could not judge all of this; apply it again when that is over"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_station_that_could_not_judge_what_it_is_to_have_is_named_once_with_what_to_do() {
        let problem = |station: &str, code| Problem {
            code,
            station: station.into(),
            role: "imp".into(),
            instance: None,
            key: None,
            expected: String::new(),
            got: String::new(),
        };
        let fault = ProblemCode::StationFault;
        let problems = [problem("a", fault), problem("a", fault), problem("b", ProblemCode::InvalidConfiguration)];
        let notes: Vec<_> = not_judged(&problems).collect();
        assert!(
            matches!(&notes[..], [note] if note.contains("station a ") && note.contains("apply it again")),
            "{notes:?}"
        );
    }

    #[test]
    fn a_station_is_waited_for_a_while_longer_than_the_others_and_by_itself_to_the_end() {
        let seconds = Duration::from_secs;
        assert_eq!(patience(None), PLAN);
        assert_eq!(patience(Some(Duration::from_millis(3))), PATIENCE);
        // A machine on which all are slow.
        assert_eq!(patience(Some(seconds(4))), seconds(16));
        assert_eq!(patience(Some(seconds(20))), PLAN);
    }
}
