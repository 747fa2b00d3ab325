//! What an operator does and sees: verbs of `quiltctl`, and what a look at the whole round shows.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::abilities::Abilities;
use crate::expected::Outcome;
use crate::fleet::{Fleet, Mark};
use crate::program::of_journal;
use crate::schedule::Action;
use crate::site::Site;
use crate::verdict::{Journal, Seen, StationSeen};
use crate::{fleet, processes};

/// The last guard of a verb, which has time-outs of its own.
const VERB_TIMEOUT: Duration = Duration::from_secs(60);
/// How long `apply --wait` follows.
const WAIT: &str = "12";

/// What a verb came to.
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    /// Whether an apply says that all is as it should be.
    pub(crate) settled: bool,
    /// For people.
    pub(crate) text: String,
}

async fn ctl(site: &Site, abilities: &Abilities, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = site.ctl(abilities, arguments)?;
    tokio::time::timeout(VERB_TIMEOUT, command.output()).await.context("quiltctl does not end")?.map_err(Into::into)
}

/// What can be told of a verb from its exit code and the JSON that it prints.
fn judge_apply(code: Option<i32>, reply: Option<&Value>) -> (Outcome, bool) {
    let is = |key: &str| reply.and_then(|reply| reply[key].as_bool()).unwrap_or(false);
    match reply {
        Some(_) if is("rolled_back") => (Outcome::RolledBack, false),
        Some(reply) if is("stored") && reply["away"].as_array().is_some_and(|away| !away.is_empty()) => {
            (Outcome::Unwatched, false)
        }
        Some(_) if is("stored") => (Outcome::Done, code == Some(0)),
        Some(_) => (Outcome::Refused, false),
        None => (Outcome::Unknown, false),
    }
}

/// Applies a fleet.
pub(crate) async fn apply(
    site: &Site,
    abilities: &Abilities,
    fleet: &Fleet,
    wait: bool,
    rollback: bool,
) -> anyhow::Result<Answer> {
    let path = site.folder().join(format!("files/{}.toml", fleet.number));
    std::fs::write(&path, fleet.text(&std::env::current_exe()?, &site.journals(), !abilities.plugins.is_empty()))?;
    let path = path.to_string_lossy();
    let mut arguments = vec!["-o", "json", "apply", "-f", &path];
    if wait || rollback {
        arguments.extend(["--wait", WAIT, "--settle", "0.5"]);
    }
    if rollback {
        arguments.push("--rollback");
    }
    let output = ctl(site, abilities, &arguments).await?;
    let reply = serde_json::from_slice::<Value>(&output.stdout).ok();
    let (outcome, settled) = judge_apply(output.status.code(), reply.as_ref());
    Ok(Answer { outcome, settled: settled && (wait || rollback), text: told(&output) })
}

/// Gives an order to an instance.
pub(crate) async fn order(site: &Site, abilities: &Abilities, target: &str, action: Action) -> anyhow::Result<Answer> {
    let output = ctl(site, abilities, &[action.name(), target]).await?;
    let outcome = if output.status.success() { Outcome::Done } else { Outcome::Unknown };
    Ok(Answer { outcome, settled: false, text: told(&output) })
}

/// Goes back to what a station ran well last.
pub(crate) async fn rollback(site: &Site, abilities: &Abilities, station: usize) -> anyhow::Result<Answer> {
    let output = ctl(site, abilities, &["rollback", &fleet::station_name(station)]).await?;
    let outcome = if output.status.success() { Outcome::Done } else { Outcome::Unknown };
    Ok(Answer { outcome, settled: false, text: told(&output) })
}

/// Gives a build of the plugin to all stations.
pub(crate) async fn push(site: &Site, abilities: &Abilities, build: usize) -> anyhow::Result<Answer> {
    let file = abilities.plugins[build].file.to_string_lossy();
    let output = ctl(site, abilities, &["-o", "json", "plugin", "push", "--on", "name=*", &file]).await?;
    let reply = serde_json::from_slice::<Value>(&output.stdout).ok();
    let (outcome, _) = judge_apply(output.status.code(), reply.as_ref());
    Ok(Answer { outcome, settled: false, text: told(&output) })
}

fn told(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let code = output.status.code().map_or("killed".into(), |code| format!("exit code {code}"));
    if error.is_empty() { code } else { format!("{code}: {error}") }
}

/// Programs that run in a round, with their pids.
pub(crate) fn programs(folder: &Path) -> Vec<(Mark, u32)> {
    processes::below(folder).iter().filter_map(|process| Some((process.program()?, process.pid))).collect()
}

/// A listing of what the manager knows.
async fn listing(site: &Site, abilities: &Abilities, verb: &[&str]) -> anyhow::Result<Vec<Value>> {
    let output = ctl(site, abilities, &[&["-o", "json"], verb].concat()).await?;
    anyhow::ensure!(output.status.success(), "{verb:?} is not answered: {}", told(&output));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What the manager shows of stations, without their history and plugins.
pub(crate) async fn stations(site: &Site, abilities: &Abilities) -> anyhow::Result<BTreeMap<String, StationSeen>> {
    let views = listing(site, abilities, &["stations"]).await?.into_iter();
    let named = |view: &Value| Some((view["name"].as_str()?.to_owned(), station_seen(view)));
    views.map(|view| named(&view).context("a station has a name")).collect()
}

/// All that there is to see.
pub(crate) async fn look(site: &Site, abilities: &Abilities) -> anyhow::Result<Seen> {
    let mut stations = stations(site, abilities).await?;
    for (name, seen) in &mut stations {
        seen.history = listing(site, abilities, &["history", name]).await?.iter().map(revision).collect();
    }
    if !abilities.plugins.is_empty() {
        for plugin in listing(site, abilities, &["plugin", "list"]).await? {
            let build = abilities.plugins.iter().position(|build| plugin["sha256"] == *build.digest);
            let station = plugin["station"].as_str().and_then(|name| stations.get_mut(name));
            if let Some(station) = station.filter(|_| plugin["state"] == "live") {
                station.build = build;
            }
        }
    }
    // After the manager was asked: it may not know of a process yet, but must not know of one that is gone.
    let all = processes::below(site.folder());
    let programs = all.iter().filter_map(|process| Some((process.program()?, process.pid))).collect();
    let children = all.iter().filter_map(|process| process.child().map(|(mark, parent)| (mark, parent, process.pid)));
    Ok(Seen { is_ready: site.is_ready().await, programs, children: children.collect(), stations })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The instances of a revision.
fn revision(entry: &Value) -> Vec<String> {
    entry["instances"].as_array().into_iter().flatten().map(text).collect()
}

fn station_seen(view: &Value) -> StationSeen {
    let instances = view["instances"].as_array().into_iter().flatten().map(|one| {
        let name = format!("{}/{}", text(&one["role"]), text(&one["instance"]));
        let pid = one["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        (name, (text(&one["state"]), pid))
    });
    StationSeen {
        state: text(&view["state"]),
        has_desired: !view["applied_digest"].is_null()
            && view["applied_digest"] == view["desired_digest"]
            && view["applying"] != true,
        instances: instances.collect(),
        history: Vec::new(),
        build: None,
    }
}

/// What programs wrote down.
pub(crate) fn journals(site: &Site) -> Vec<Journal> {
    let entries = std::fs::read_dir(site.journals()).into_iter().flatten().flatten();
    let journals = entries.filter_map(|entry| {
        let (mark, pid) = of_journal(entry.file_name().to_str()?)?;
        let lines = std::fs::read_to_string(entry.path()).ok()?.lines().map(str::to_owned).collect();
        Some(Journal { mark, pid, lines })
    });
    journals.collect()
}

/// What a station is called in targets of verbs.
pub(crate) fn target(station: usize, instance: &str) -> String {
    format!("{}/process/{instance}", fleet::station_name(station))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_apply_came_to_is_read_from_its_reply() {
        let judge = |code, reply: Value| judge_apply(Some(code), Some(&reply));
        assert_eq!(judge(0, json!({"stored": true, "rolled_back": false})), (Outcome::Done, true));
        assert_eq!(judge(6, json!({"stored": true, "rolled_back": false})), (Outcome::Done, false));
        assert_eq!(judge(0, json!({"stored": true, "away": ["s0"]})), (Outcome::Unwatched, false));
        assert_eq!(judge(4, json!({"stored": true, "rolled_back": true})), (Outcome::RolledBack, false));
        assert_eq!(judge(4, json!({"stored": false})), (Outcome::Refused, false));
        assert_eq!(judge_apply(Some(5), None), (Outcome::Unknown, false));
    }

    #[test]
    fn a_station_is_read_from_what_quiltctl_prints() {
        let view = json!({
            "state": "connected", "applied_digest": "a", "desired_digest": "a", "applying": false,
            "instances": [{"role": "process", "instance": "p0", "state": "active", "pid": 7}],
        });
        let seen = station_seen(&view);
        assert!(seen.has_desired);
        assert_eq!(seen.instances["process/p0"], ("active".to_owned(), Some(7)));
        assert_eq!(revision(&json!({"instances": ["counter/a1", "process/p0"]})), ["counter/a1", "process/p0"]);
    }
}
