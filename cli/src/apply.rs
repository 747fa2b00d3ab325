//! `quiltctl apply`, `quiltctl diff`.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use quilt_client::Client;
use quilt_client::control::{ApplyReply, ChangeKind, Phase, Progress, Share, StationChange, Wait};

use quilt_protocol::Digest;

use crate::exit::{Failure, NO_ANSWER, PARTLY, PENDING, REFUSED, USAGE};
use crate::fleetfile::Source;
use crate::output::{self, Format, plain};
use crate::{Session, seconds};

/// How long stations may take to fetch plugins before they answer.
const FETCHING: Duration = Duration::from_secs(600);

/// Arguments of `apply`.
#[derive(Args)]
pub(crate) struct Apply {
    /// The fleet file
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
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
    /// Go back to the configuration before if it does not become healthy
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
    /// The fleet file
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
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
        let source = Source::read(&self.file)?;
        let client = session.connect().await?;
        let waits = self.wait.is_some() || self.rollback || self.batch.is_some();
        let wait = waits.then_some(Wait {
            within_ms: time.as_millis() as u64,
            settle_ms: self.settle.as_millis() as u64,
            rollback: self.rollback,
        });
        let request = quilt_client::control::Apply {
            source: source.name(),
            fleet: source.fleet.clone(),
            dry_run: self.dry_run,
            force: self.force,
            wait,
            batch: self.batch,
        };
        if !self.yes && !self.dry_run && std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
            let planned = quilt_client::control::Apply { dry_run: true, ..request.clone() };
            let planned = client.apply(&planned).reply().await?;
            if planned.mistakes.is_empty()
                && planned.rejection.is_none()
                && !planned.changes.is_empty()
                && !confirm(&planned)?
            {
                return Err(Failure::new("not applied"));
            }
        }
        let reply = follow(session, &client, &request).await?;
        report(session.format, Some(&source), &reply, self.dry_run, waits)?;
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
    let followed = tokio::time::timeout(patience, async {
        while let Some(progress) = applying.next().await {
            bars.show(&progress);
        }
    });
    let followed = followed.await;
    bars.finish();
    if followed.is_err() {
        let text = format!("no answer within {patience:?}; it may have been stored, see `quiltctl history STATION`");
        return Err(Failure::with_code(NO_ANSWER, text));
    }
    Ok(applying.reply().await?)
}

fn confirm(planned: &ApplyReply) -> Result<bool, Failure> {
    planned.changes.iter().for_each(|change| eprintln!("{}", describe(change)));
    eprint!("apply this to {} stations? [y/N] ", planned.changes.len());
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

/// What there is to say of a file beside its effect, to standard error.
pub(crate) fn remark(source: Option<&Source>, reply: &ApplyReply) {
    for warning in &reply.warnings {
        let keys: Vec<_> = warning.at.iter().map(String::as_str).collect();
        let place =
            source.and_then(|source| source.place(&keys)).map_or_else(String::new, |place| format!("{place}: "));
        eprintln!("warning: {place}{}", plain(&warning.text));
    }
    for mistake in &reply.mistakes {
        let keys: Vec<_> = mistake.at.iter().map(String::as_str).collect();
        let place =
            source.and_then(|source| source.place(&keys)).map_or_else(String::new, |place| format!("{place}: "));
        eprintln!("error: {place}{}", plain(&mistake.text));
    }
    reply.notes.iter().for_each(|note| eprintln!("note: {}", plain(note)));
}

/// Remarks to standard error, the result to standard output.
pub(crate) fn report(
    format: Format,
    source: Option<&Source>,
    reply: &ApplyReply,
    dry_run: bool,
    waited: bool,
) -> Result<(), Failure> {
    remark(source, reply);
    if let Some(rejection) = &reply.rejection {
        let problems = rejection.problems.len();
        let effect = if reply.stored { "stored and pushed all the same" } else { "nothing was changed" };
        eprintln!("{}: {problems} problem{}, {effect}", rejection.code, if problems == 1 { "" } else { "s" });
        for problem in &rejection.problems {
            let place = source.and_then(|source| source.place_of(problem));
            let place = place.map_or_else(String::new, |place| format!(" ({place})"));
            eprintln!("  {}{place}", plain(&problem.to_string()));
        }
    }
    if waited && !reply.away.is_empty() {
        eprintln!("not there: {}", reply.away.join(", "));
    }
    for (station, failure) in &reply.failures {
        eprintln!("{station}: {}", plain(failure));
    }
    if reply.rolled_back {
        eprintln!("rolled back to what was desired before");
    }
    output::one(format, reply, |reply| {
        let changes: Vec<_> = reply.changes.iter().map(describe).collect();
        match (changes.is_empty(), dry_run) {
            _ if !reply.mistakes.is_empty() => "nothing was changed".into(),
            (false, false) if !reply.stored => format!("{}\nnothing was changed", changes.join("\n")),
            (true, _) => "no changes".into(),
            (false, true) => format!("{}\nnothing was changed (dry run)", changes.join("\n")),
            (false, false) => changes.join("\n"),
        }
    })
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
    } else if dry_run && !reply.changes.is_empty() {
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
