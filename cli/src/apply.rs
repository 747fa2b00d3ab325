//! `quiltctl apply`, `quiltctl diff`.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use quilt_client::Client;
use quilt_client::control::{ApplyReply, ChangeKind, Phase, Progress, Remark, Share, StationChange, Wait};
use quilt_core::words::count;
use quilt_protocol::Digest;

use crate::exit::{Failure, NO_ANSWER, PARTLY, PENDING, REFUSED, USAGE};
use crate::fleetfile::{FleetFileArgs, Source};
use crate::output::{self, Format, plain};
use crate::{Session, seconds};

/// How long stations may take to fetch plugins before they answer.
const FETCHING: Duration = Duration::from_secs(600);

/// Arguments of `apply`.
#[derive(Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    file: FleetFileArgs,
    /// Say what would change and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Store and push even if stations would refuse
    #[arg(long)]
    force: bool,
    /// Follow until every instance is healthy, for at most S seconds (60)
    #[arg(long, value_name = "S", num_args = 0..=1, default_missing_value = "60", value_parser = seconds)]
    wait: Option<Duration>,
    /// How long every instance must stay healthy
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    settle: Duration,
    /// If it does not become healthy, go back to what the stations had before; what other files gave them stays
    #[arg(long)]
    rollback: bool,
    /// How many stations at a time, as a number or percentage
    #[arg(long, value_name = "N|N%")]
    batch: Option<Share>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Arguments of `diff`.
#[derive(Args)]
pub(crate) struct Diff {
    #[command(flatten)]
    file: FleetFileArgs,
}

impl Diff {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let apply = Apply {
            file: self.file,
            dry_run: true,
            force: false,
            wait: None,
            settle: Duration::ZERO,
            rollback: false,
            batch: None,
            yes: true,
        };
        apply.run(session).await
    }
}

impl Apply {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let time = self.wait.unwrap_or(Duration::from_secs(60));
        if self.wait.is_some() && self.settle > time {
            let text = format!("--settle {:?} cannot be seen within --wait {time:?}", self.settle);
            return Err(Failure::with_code(USAGE, text));
        }
        let source = self.file.read()?;
        if let Some(note) = source.unnamed() {
            eprintln!("note: {note}");
        }
        let client = session.connect().await?;
        let waits = self.wait.is_some() || self.rollback || self.batch.is_some();
        let wait = waits.then_some(Wait {
            within_ms: time.as_millis() as u64,
            settle_ms: self.settle.as_millis() as u64,
            rollback: self.rollback,
        });
        let request = quilt_client::control::Apply {
            source: source.place_of_file(),
            fleet: source.fleet.clone(),
            dry_run: self.dry_run,
            force: self.force,
            wait,
            batch: self.batch,
        };
        let mut told = Vec::new();
        if !self.yes && !self.dry_run && std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
            let planned = quilt_client::control::Apply { dry_run: true, ..request.clone() };
            let planned = client.apply(&planned).reply().await?;
            if let Some(question) = question(&source, &planned, self.force) {
                eprint!("{question}");
                if !is_confirmed()? {
                    return Err(Failure::new("not applied"));
                }
                told = remarks(Some(&source), &planned);
            }
        }
        let reply = follow(session, &client, &request).await?;
        report(session.format, Some(&source), &reply, self.dry_run, &told)?;
        Ok(code(&reply, self.dry_run, waits))
    }
}

/// Has the manager apply something, and shows the progress of it.
pub(crate) async fn follow(
    session: &Session,
    client: &Client,
    request: &quilt_client::control::Apply,
) -> Result<ApplyReply, Failure> {
    let mut applying = client.apply(request);
    let mut bars = Bars::new();
    let plugins = request.fleet.group.values().any(|group| !group.plugins.is_empty())
        || request.fleet.station.values().any(|station| !station.plugins.is_empty());
    // Following an effect has a time of its own, and so has fetching plugins before a plan.
    let fetching = if plugins { FETCHING } else { Duration::ZERO };
    let following = Duration::from_millis(request.wait.map_or(0, |wait| wait.within_ms));
    let patience = session.timeout.saturating_add(following).saturating_add(fetching);
    // Each batch has the time anew, and so has going back.
    let followed = loop {
        match tokio::time::timeout(patience, applying.next()).await {
            Ok(Some(progress)) => bars.show(&progress),
            Ok(None) => break Ok(()),
            Err(elapsed) => break Err(elapsed),
        }
    };
    bars.finish();
    if followed.is_err() {
        let text = format!("no answer within {patience:?}; it may have been stored, see `quiltctl history STATION`");
        return Err(Failure::with_code(NO_ANSWER, text));
    }
    Ok(applying.reply().await?)
}

/// What to ask before a file is applied, with everything that there is to know for the answer; nothing if the manager would
/// store nothing new.
fn question(source: &Source, planned: &ApplyReply, force: bool) -> Option<String> {
    let is_refused = planned.rejection.is_some() && !force;
    if is_refused || !planned.mistakes.is_empty() || (planned.changes.is_empty() && planned.entries.is_empty()) {
        return None;
    }
    let mut lines: Vec<_> = planned.changes.iter().map(describe).collect();
    lines.extend(problems(Some(source), planned, "pushed all the same"));
    lines.extend(remarks(Some(source), planned));
    lines.push(match planned.changes.len() {
        0 => format!("no station changes now; store {}? [y/N] ", planned.entries.join(", ")),
        changes => format!("apply this to {}? [y/N] ", count(changes, "station")),
    });
    Some(lines.join("\n"))
}

pub(crate) fn is_confirmed() -> Result<bool, Failure> {
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn describe(change: &StationChange) -> String {
    let mut lines = vec![match change.revision {
        Some(revision) => format!("{}: revision {revision}", change.station),
        None => change.station.clone(),
    }];
    for instance in &change.instances {
        let sign = match instance.change {
            ChangeKind::Added => '+',
            ChangeKind::Removed => '-',
            ChangeKind::Changed => '~',
        };
        let keys = match instance.keys.is_empty() {
            true => String::new(),
            false => format!(": {}", instance.keys.join(", ")),
        };
        lines.push(plain(&format!("  {sign} {}/{}{keys}", instance.role, instance.instance)));
    }
    for change in &change.plugins {
        let short = |digest: &Digest| digest.to_string()[..12].to_owned();
        lines.push(match (&change.before, &change.after) {
            (Some(before), Some(after)) => {
                format!("  ~ plugin {}: {} > {}", change.plugin, short(before), short(after))
            }
            (None, Some(after)) => format!("  + plugin {}: {}", change.plugin, short(after)),
            (before, None) => {
                format!("  - plugin {}: {}", change.plugin, before.as_ref().map(short).unwrap_or_default())
            }
        });
    }
    lines.join("\n")
}

/// What there is to say of a file beside its effect, a line each.
pub(crate) fn remarks(source: Option<&Source>, reply: &ApplyReply) -> Vec<String> {
    let placed = |kind: &str, remark: &Remark| {
        let keys: Vec<_> = remark.at.iter().map(String::as_str).collect();
        let place = source.and_then(|source| source.place(&keys));
        let place = place.map_or_else(String::new, |place| format!("{place}: "));
        format!("{kind}: {place}{}", plain(&remark.text))
    };
    let warnings = reply.warnings.iter().map(|warning| placed("warning", warning));
    let mistakes = reply.mistakes.iter().map(|mistake| placed("error", mistake));
    let notes = reply.notes.iter().map(|note| format!("note: {}", plain(note)));
    warnings.chain(mistakes).chain(notes).collect()
}

/// What stations refuse, a line each, with a headline.
fn problems(source: Option<&Source>, reply: &ApplyReply, effect: &str) -> Vec<String> {
    let Some(rejection) = &reply.rejection else { return Vec::new() };
    let mut lines = vec![format!("{}: {}, {effect}", rejection.code, count(rejection.problems.len(), "problem"))];
    for problem in &rejection.problems {
        let place = source.and_then(|source| source.place_of(problem));
        let place = place.map_or_else(String::new, |place| format!(" ({place})"));
        lines.push(format!("  {}{place}", plain(&problem.to_string())));
    }
    lines
}

/// Remarks to standard error, without those that were `told` before; the result to standard output.
pub(crate) fn report(
    format: Format,
    source: Option<&Source>,
    reply: &ApplyReply,
    dry_run: bool,
    told: &[String],
) -> Result<(), Failure> {
    remarks(source, reply).iter().filter(|remark| !told.contains(remark)).for_each(|remark| eprintln!("{remark}"));
    let effect = if reply.stored { "stored and pushed all the same" } else { "nothing was changed" };
    problems(source, reply, effect).iter().for_each(|problem| eprintln!("{problem}"));
    if let Some(text) = stored_and_unhealthy(reply) {
        eprintln!("{text}");
    }
    for (station, failure) in &reply.failures {
        eprintln!("{station}: {}", plain(failure));
    }
    if reply.rolled_back {
        eprintln!("rolled back to what was configured before; `quiltctl history STATION` lists it");
        reply.taken_back.iter().for_each(|change| eprintln!("{}", describe(change)));
    }
    output::one(format, reply, |reply| outcome(reply, dry_run))
}

/// A sentence about an apply that was not refused and is not healthy everywhere: it has the same exit code as a refusal, and another
/// remedy.
fn stored_and_unhealthy(reply: &ApplyReply) -> Option<String> {
    let stations = count(reply.failures.len(), "station");
    if !reply.failures.is_empty() && reply.failures.keys().all(|station| reply.superseded.contains(station)) {
        return Some(format!("the configuration was stored, but {stations} got another one meanwhile:"));
    }
    let stored = if reply.rolled_back { "was stored and pushed" } else { "is stored and stays desired" };
    let late = if reply.timed_out { " in time" } else { "" };
    (reply.stored && !reply.failures.is_empty())
        .then(|| format!("the configuration {stored}, but {stations} did not become healthy{late}:"))
}

/// The result for people.
fn outcome(reply: &ApplyReply, dry_run: bool) -> String {
    if !reply.mistakes.is_empty() {
        return "nothing was changed".into();
    }
    let mut lines: Vec<_> = reply.changes.iter().map(describe).collect();
    if lines.is_empty() {
        lines.push(match (&reply.rejection, reply.entries.is_empty()) {
            (Some(_), _) => "what is refused is desired already".into(),
            (None, true) => return "no changes".into(),
            (None, false) => format!("no station changes now, but what is stored does: {}", reply.entries.join(", ")),
        });
    }
    if dry_run {
        lines.push("nothing was changed (dry run)".into());
    } else if !reply.stored {
        lines.push("nothing was changed".into());
    }
    lines.join("\n")
}

pub(crate) fn code(reply: &ApplyReply, dry_run: bool, waited: bool) -> ExitCode {
    let code = if !reply.mistakes.is_empty() {
        1
    } else if reply.rejection.is_some() {
        REFUSED
    } else if reply.timed_out {
        NO_ANSWER
    } else if !reply.failures.is_empty() {
        REFUSED
    } else if dry_run && !(reply.changes.is_empty() && reply.entries.is_empty()) {
        PENDING
    } else if waited && !reply.away.is_empty() {
        // Whoever waits wants to know that it runs: there it does not.
        if reply.away.len() < reply.targets { PARTLY } else { NO_ANSWER }
    } else {
        0
    };
    ExitCode::from(code)
}

/// Progress on standard error: bars on a terminal, lines elsewhere.
pub(crate) struct Bars {
    bars: Option<MultiProgress>,
    stations: BTreeMap<String, ProgressBar>,
}

impl Bars {
    pub(crate) fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, stations: BTreeMap::new() }
    }

    pub(crate) fn show(&mut self, progress: &Progress) {
        let Progress { station, phase, detail } = progress;
        let text = plain(format!("{station}: {} {detail}", phase.name()).trim_end());
        let Some(bars) = &self.bars else {
            eprintln!("{text}");
            return;
        };
        let bar = self.stations.entry(station.clone()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{spinner} {msg}").expect("a fixed template parses");
            let bar = bars.add(ProgressBar::new_spinner().with_style(style));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        match phase {
            Phase::Settled | Phase::Away | Phase::Failed | Phase::Rejected | Phase::RolledBack => {
                bar.finish_with_message(text);
            }
            _ => bar.set_message(text),
        }
    }

    pub(crate) fn finish(&mut self) {
        self.stations.values().filter(|bar| !bar.is_finished()).for_each(ProgressBar::abandon);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(changes: &[&str], entries: &[&str]) -> ApplyReply {
        let change = |station: &&str| StationChange {
            station: (*station).into(),
            revision: None,
            instances: Vec::new(),
            plugins: Vec::new(),
        };
        ApplyReply {
            changes: changes.iter().map(change).collect(),
            entries: entries.iter().map(ToString::to_string).collect(),
            notes: vec!["station `cam-9` is not known yet".into(), "group `g` came from a and now comes from b".into()],
            ..ApplyReply::default()
        }
    }

    #[test]
    fn what_is_taken_over_and_who_is_not_known_is_told_before_the_question() {
        let source = Source::parse("fleet.toml".into(), "name = 'b'\n".into()).unwrap();
        let asked = question(&source, &planned(&["cam-1"], &["group `g`"]), false).unwrap();
        let at = |text: &str| asked.find(text).unwrap_or_else(|| panic!("{text} is not in {asked}"));
        assert!(at("cam-9") < at("apply this to 1 station? [y/N]") && at("came from a") < at("[y/N]"), "{asked}");
        // Nothing changes anywhere now, but another file is taken over.
        let asked = question(&source, &planned(&[], &["group `g`"]), false).unwrap();
        assert!(asked.ends_with("no station changes now; store group `g`? [y/N] "), "{asked}");
        assert_eq!(question(&source, &planned(&[], &[]), false), None);
    }

    #[test]
    fn a_file_that_changes_only_what_is_stored_is_a_change() {
        let stored = ApplyReply { stored: true, ..planned(&[], &["group `g`"]) };
        assert_eq!(outcome(&stored, false), "no station changes now, but what is stored does: group `g`");
        assert_eq!(outcome(&ApplyReply { entries: Vec::new(), ..stored }, false), "no changes");
    }

    #[test]
    fn what_is_stored_and_unhealthy_is_told_from_what_is_refused() {
        let failures = [("cam-1".to_owned(), "process/x: exit code 1".to_owned())].into();
        let failed = ApplyReply { stored: true, failures, ..ApplyReply::default() };
        let told = |reply: &ApplyReply| stored_and_unhealthy(reply).unwrap_or_default();
        assert_eq!(
            told(&failed),
            "the configuration is stored and stays desired, but 1 station did not become healthy:"
        );
        let back = ApplyReply { rolled_back: true, timed_out: true, ..failed.clone() };
        assert_eq!(
            told(&back),
            "the configuration was stored and pushed, but 1 station did not become healthy in time:"
        );
        assert_eq!(told(&ApplyReply { stored: false, ..failed }), "");
    }
}
