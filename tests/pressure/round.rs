//! One round: begins a site, carries out a schedule, and judges what is left when everything has been given back.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::abilities::Abilities;
use crate::expected::{Expected, Outcome};
use crate::fleet::{Fleet, Mark};
use crate::meanwhile::{Promises, judge_meanwhile, judge_order, promises};
use crate::operator::{self, Answer};
use crate::processes::{self, Process};
use crate::schedule::{Action, Blow, Schedule, Shortage, Verb, Victim};
use crate::site::Site;
use crate::take::take;
use crate::verdict::{judge, judge_journals, judge_settled, judge_stop};

/// How long all may take to be well again by itself.
const RECOVERY: Duration = Duration::from_secs(60);
/// How long a site may take to begin.
const BEGINNING: Duration = Duration::from_secs(60);
/// How often it is looked at meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How often it is looked at during the round.
const MEANWHILE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a program may take to end after an order that had no answer.
const ORDER_GRACE: Duration = Duration::from_secs(3);
/// How long it must stay well.
const STEADY: Duration = Duration::from_millis(1_500);

/// How a round ended.
pub(crate) struct Report {
    /// What is wrong.
    pub(crate) wrong: Vec<String>,
    /// How long it took to be well again.
    pub(crate) recovered_in: Duration,
    /// What was done, a line each.
    pub(crate) timeline: Vec<String>,
}

/// A round under way.
struct Round<'a> {
    site: &'a Site,
    abilities: &'a Abilities,
    /// What is promised of each station meanwhile.
    promises: Vec<Promises>,
    began: Instant,
    timeline: Mutex<Vec<String>>,
    wrong: Mutex<Vec<String>>,
    /// Instances that the round itself did something to.
    excused: Mutex<BTreeSet<(usize, String)>>,
}

/// Carries out a schedule in a new folder.
///
/// # Errors
///
/// The round could not begin or could not be watched, which says nothing about quilt.
pub(crate) async fn run(schedule: &Schedule, abilities: &Abilities, folder: &Path) -> anyhow::Result<Report> {
    let site = Site::start(folder, schedule.stations(), abilities)?;
    let done = run_at(schedule, abilities, &site).await;
    let keep = done.as_ref().map_or(true, |report| !report.wrong.is_empty());
    site.end(keep).await;
    done
}

async fn run_at(schedule: &Schedule, abilities: &Abilities, site: &Site) -> anyhow::Result<Report> {
    begin(site, abilities, &schedule.first).await.context("the round cannot begin")?;
    let round = Round {
        site,
        abilities,
        promises: (0..schedule.stations()).map(|station| promises(schedule, station)).collect(),
        began: Instant::now(),
        timeline: Mutex::default(),
        wrong: Mutex::default(),
        excused: Mutex::default(),
    };
    let mut expected = Expected::new(schedule.first.clone());
    if schedule.has_plugin {
        expected.pushed(0, Outcome::Done);
    }
    let shortages = async {
        let all: Vec<_> = schedule.shortages.iter().map(|shortage| round.shortage(shortage)).collect();
        join_all(all).await;
    };
    let blows = async {
        for blow in &schedule.blows {
            round.blow(blow).await;
        }
    };
    let all = async { tokio::join!(round.verbs(&schedule.verbs, &mut expected), shortages, blows) };
    let (verbs, (), ()) = tokio::select! {
        done = all => done,
        never = round.watch() => match never {},
    };
    verbs?;
    round.note("everything is given back");
    let recovered_in = round.recover(&expected).await;
    let alive: Vec<_> = operator::programs(site.folder()).into_iter().map(|(_, pid)| pid).collect();
    let excused = round.excused.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut wrong = round.wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    wrong.extend(judge_journals(&operator::journals(site), &excused, &alive));
    Ok(Report { wrong, recovered_in, timeline: round.timeline.into_inner().unwrap_or_else(PoisonError::into_inner) })
}

/// Waits until all stations are there and run the first fleet.
async fn begin(site: &Site, abilities: &Abilities, first: &Fleet) -> anyhow::Result<()> {
    let until = Instant::now() + BEGINNING;
    let mut expected = Expected::new(first.clone());
    if !abilities.plugins.is_empty() {
        expected.pushed(0, Outcome::Done);
    }
    let (mut is_pushed, mut is_applied) = (abilities.plugins.is_empty(), false);
    loop {
        let wrong = match operator::look(site, abilities).await {
            Ok(seen) if seen.stations.len() < first.stations.len() => "not all stations are there".to_owned(),
            Ok(_) if !is_pushed => {
                is_pushed = operator::push(site, abilities, 0).await?.outcome == Outcome::Done;
                "the plugin is not pushed".to_owned()
            }
            Ok(_) if !is_applied => {
                is_applied = operator::apply(site, abilities, first, true, false).await?.outcome != Outcome::Unknown;
                "the first fleet is not applied".to_owned()
            }
            Ok(seen) => judge(&expected, &seen).join("; "),
            Err(error) => error.to_string(),
        };
        if wrong.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < until, "{wrong}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Waits for all of them.
async fn join_all(all: Vec<impl Future<Output = ()>>) {
    let mut all: Vec<_> = all.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        all.retain_mut(|one| one.as_mut().poll(cx).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

impl Round<'_> {
    fn note(&self, text: &str) {
        let line = format!("{:>6} ms  {text}", self.began.elapsed().as_millis());
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn found(&self, wrong: Vec<String>) {
        wrong.iter().for_each(|text| self.note(&format!("WRONG: {text}")));
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).extend(wrong);
    }

    async fn until(&self, at_ms: u64) {
        tokio::time::sleep_until(self.began + Duration::from_millis(at_ms)).await;
    }

    async fn shortage(&self, shortage: &Shortage) {
        self.until(shortage.at_ms).await;
        self.note(&format!("taken {shortage}"));
        let done = take(self.site, shortage).await;
        let done = done.unwrap_or_else(|error| format!("could not be taken: {error:#}"));
        self.note(&format!("given back {shortage} ({done})"));
    }

    async fn blow(&self, blow: &Blow) {
        self.until(blow.at_ms).await;
        let Self { site, .. } = self;
        match &blow.to {
            Victim::KillManager { down_ms } => site.manager.end(Signal::SIGKILL, *down_ms),
            Victim::KillStation { station, down_ms } => site.stations[*station].end(Signal::SIGKILL, *down_ms),
            Victim::RestartStation { station, down_ms } => site.stations[*station].end(Signal::SIGTERM, *down_ms),
            Victim::KillKeeper(station, instance) => {
                self.kill(*station, instance, |process| process.is_keeper_of(*station, instance));
            }
            Victim::KillProgram(station, instance) => {
                let is_it = |mark: Mark| mark.station == *station && mark.instance == *instance;
                self.kill(*station, instance, |process| process.program().is_some_and(is_it));
            }
            Victim::RemoveLock(station, instance) => self.remove(*station, instance, false),
            Victim::RemoveState(station, instance) => self.remove(*station, instance, true),
            Victim::RemoveWhileAway { station, instance, all, down_ms } => {
                site.stations[*station].end(Signal::SIGKILL, *down_ms);
                site.stations[*station].ended().await;
                self.remove(*station, instance, *all);
            }
        }
        self.note(&format!("did {}", blow.to));
    }

    fn kill(&self, station: usize, instance: &str, is_it: impl Fn(&Process) -> bool) {
        self.excuse(station, instance);
        for process in processes::below(self.site.folder()).iter().filter(|process| is_it(process)) {
            let _ = kill(Pid::from_raw(process.pid as i32), Signal::SIGKILL);
        }
    }

    /// Removes the state folder of an instance, or only its lock.
    fn remove(&self, station: usize, instance: &str, all: bool) {
        self.excuse(station, instance);
        let folder = self.site.state_folder(station, instance);
        // It need not be there.
        let _ = if all { std::fs::remove_dir_all(folder) } else { std::fs::remove_file(folder.join("keeper.lock")) };
    }

    fn excuse(&self, station: usize, instance: &str) {
        self.excused.lock().unwrap_or_else(PoisonError::into_inner).insert((station, instance.to_owned()));
    }

    async fn verbs(&self, verbs: &[(u64, Verb)], expected: &mut Expected) -> anyhow::Result<()> {
        // Killed when the last verb was carried out.
        let mut followers = Vec::new();
        for (pause, verb) in verbs {
            tokio::time::sleep(Duration::from_millis(*pause)).await;
            self.note(&format!("> {verb}"));
            match verb {
                Verb::Apply { fleet, wait, rollback } => {
                    let answer = operator::apply(self.site, self.abilities, fleet, *wait, *rollback).await?;
                    let programs = operator::programs(self.site.folder());
                    self.note(&format!("< {verb}: {}", described(&answer)));
                    if answer.settled {
                        self.found(judge_settled(&programs, fleet));
                    }
                    expected.applied(fleet.clone(), *rollback, answer.outcome);
                }
                Verb::Order { station, instance, action } => {
                    let target = operator::target(*station, instance);
                    let before = operator::programs(self.site.folder());
                    let answer = operator::order(self.site, self.abilities, &target, *action).await?;
                    let programs = operator::programs(self.site.folder());
                    self.note(&format!("< {verb}: {}", described(&answer)));
                    if *action == Action::Stop && answer.outcome == Outcome::Done {
                        self.found(judge_stop(&programs, *station, instance));
                    }
                    self.look_at_order((*station, instance, *action), answer.outcome, &before).await;
                    let is_open = *action == Action::Stop && !self.promises[*station].records;
                    let outcome = if is_open { Outcome::Unknown } else { answer.outcome };
                    expected.ordered(*station, instance, *action, outcome);
                }
                Verb::Follow { station, instance } => {
                    let target = operator::target(*station, instance);
                    let mut command = self.site.ctl(self.abilities, &["logs", &target, "-f"])?;
                    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
                    followers.push(command.spawn()?);
                }
                Verb::Rollback { station } => {
                    let answer = operator::rollback(self.site, self.abilities, *station).await?;
                    self.note(&format!("< {verb}: {}", described(&answer)));
                    expected.rolled_back(*station, answer.outcome);
                }
                Verb::Push { build } => {
                    let answer = operator::push(self.site, self.abilities, *build).await?;
                    self.note(&format!("< {verb}: {}", described(&answer)));
                    expected.pushed(*build, answer.outcome);
                }
            }
        }
        Ok(())
    }

    /// Looks whether an order was carried out that had to be.
    async fn look_at_order(
        &self,
        (station, instance, action): (usize, &str, Action),
        outcome: Outcome,
        before: &[(Mark, u32)],
    ) {
        let mark = Mark { station, instance: instance.to_owned(), version: 0 };
        let judge = || {
            let after = operator::programs(self.site.folder());
            judge_order(self.promises[station], (&mark, action, outcome), before, &after)
        };
        if !judge().is_empty() {
            tokio::time::sleep(ORDER_GRACE).await;
            self.found(judge());
        }
    }

    /// Looks again and again whether what is promised meanwhile is kept. Says each thing once.
    async fn watch(&self) -> Infallible {
        let mut found = BTreeSet::new();
        loop {
            tokio::time::sleep(MEANWHILE_INTERVAL).await;
            // The manager may be what something is taken from.
            let Ok(stations) = operator::stations(self.site, self.abilities).await else { continue };
            let wrong = judge_meanwhile(&self.promises, &stations, &operator::journals(self.site));
            self.found(wrong.into_iter().filter(|text| found.insert(text.clone())).collect());
        }
    }

    /// Waits until all is well and stays so, or the time is over; what is wrong then is found.
    async fn recover(&self, expected: &Expected) -> Duration {
        let began = Instant::now();
        let mut well_since = None;
        loop {
            let wrong = match operator::look(self.site, self.abilities).await {
                Ok(seen) => judge(expected, &seen),
                Err(error) => vec![error.to_string()],
            };
            if wrong.is_empty() {
                let since = *well_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= STEADY {
                    self.note("all is well");
                    return since - began;
                }
            } else {
                well_since = None;
                if began.elapsed() >= RECOVERY {
                    self.found(wrong);
                    return began.elapsed();
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

fn described(answer: &Answer) -> String {
    format!("{:?}, {}", answer.outcome, answer.text)
}
