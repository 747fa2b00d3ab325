//! Supervision in memory: a toy role, a paused clock, no sockets and no processes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quilt_plugin_api::{
    BoxFuture, Instance, RoleContext, RoleDescription, RoleError, RoleFactory, Work, factory, role,
};
use quilt_protocol::StationId;
use quilt_protocol::control::{Action, InstanceReport};
use schemars::JsonSchema;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::plan;
use crate::saved::Saved;

/// How long everything that it does takes, in milliseconds.
#[derive(Deserialize, JsonSchema, Default)]
#[serde(default, deny_unknown_fields)]
struct ToyConfig {
    start: u64,
    update: u64,
    /// Its work ends well after this time.
    work: Option<u64>,
    /// Something of it cannot be ended.
    held: bool,
    /// How long a start takes that finds nothing of an earlier station.
    slow: u64,
    /// Its memory cannot be given back without a panic.
    bursts: bool,
    /// Its work waits for so long, begins a run then and says so in its log.
    waits: Option<u64>,
}

struct Toy {
    work: Option<u64>,
    bursts: bool,
    waits: Option<u64>,
}

impl Drop for Toy {
    fn drop(&mut self) {
        assert!(!self.bursts, "it bursts");
    }
}

/// The file that stands for something that cannot be ended.
fn held(cx: &RoleContext) -> std::path::PathBuf {
    cx.state_dir().join("held")
}

async fn until_let_go(cx: &RoleContext) {
    while held(cx).exists() {
        cx.ended("process 7 holds it");
        cx.sleep(Duration::from_secs(1)).await;
    }
}

/// Takes its time.
#[role(name = "toy")]
impl Toy {
    async fn start(config: ToyConfig, cx: &RoleContext) -> Result<Self, RoleError> {
        let slow = if held(cx).exists() { 0 } else { config.slow };
        cx.sleep(Duration::from_millis(config.start + slow)).await;
        tracing::info!(target: "toy", start = config.start, "begins");
        cx.spawn(async { tracing::info!(target: "toy", "has a task") });
        if config.held {
            std::fs::write(held(cx), "").unwrap();
        }
        Ok(Self { work: config.work, bursts: config.bursts, waits: config.waits })
    }

    async fn update(&mut self, config: ToyConfig, cx: &RoleContext) -> Result<(), RoleError> {
        cx.sleep(Duration::from_millis(config.update)).await;
        Ok(())
    }

    async fn stop(self, cx: &RoleContext) {
        until_let_go(cx).await;
    }

    async fn abandon(cx: &RoleContext) {
        until_let_go(cx).await;
    }

    async fn survives(cx: &RoleContext) -> bool {
        held(cx).exists()
    }

    fn run(&mut self, cx: &RoleContext) -> Option<Work> {
        if let Some(waits) = self.waits {
            let cx = cx.clone();
            return Some(Box::pin(async move {
                cx.waiting("room");
                cx.sleep(Duration::from_millis(waits)).await;
                quilt_core::lines::Position::begin_run(cx.log_dir()).unwrap();
                cx.active();
                cx.log(quilt_plugin_api::LogLevel::Info, "here it is");
                std::future::pending().await
            }));
        }
        let (work, cx) = (Duration::from_millis(self.work?), cx.clone());
        Some(Box::pin(async move {
            cx.sleep(work).await;
            tracing::warn!(target: "toy", "its work is done");
            Ok(())
        }))
    }
}

/// A supervisor without a station around it.
struct Bench {
    handle: Handle,
    board: Arc<Board>,
    roles: Arc<RoleTable>,
    folder: TempDir,
    /// An earlier station was here.
    resuming: bool,
}

impl Bench {
    fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap(), false)
    }

    /// Ends it as a restart of the station does, and begins another with what is on disk.
    async fn restart(self) -> Self {
        self.handle.shut_down(true).await;
        Self::on(self.folder, true)
    }

    fn on(folder: TempDir, resuming: bool) -> Self {
        Self::with(factory::<Toy>(), folder, resuming)
    }

    fn with(toy: Arc<dyn RoleFactory>, folder: TempDir, resuming: bool) -> Self {
        let roles = Arc::new(RoleTable::new(vec![toy], Vec::new()));
        let board = Arc::new(Board::default());
        let handle = start(Setup {
            folder: folder.path().join("instances"),
            roles: roles.clone(),
            board: board.clone(),
            commands: Arc::default(),
            link: Arc::new(Link::new(StationId::random(), "s".parse().unwrap())),
            stopped: Saved::open(folder.path()).unwrap().stopped(),
        });
        Self { handle, board, roles, folder, resuming }
    }

    /// Has the toys of these names and configurations run, and no others.
    async fn commit(&self, toys: &[(&str, &str)]) {
        let toys = toys.iter().map(|(name, keys)| format!(r#""{name}":{keys}"#)).collect::<Vec<_>>().join(",");
        let document = format!(r#"{{"roles":{{"toy":{{{toys}}}}}}}"#);
        let specs = plan::plan("s", &document, Owner::Fleet, &[], &self.roles, &BTreeMap::new()).await;
        let specs = specs.ok().unwrap().specs;
        let target = Target {
            specs,
            impossible: Vec::new(),
            resuming: self.resuming,
            digest: None,
            plugins: None,
            given_up: BTreeMap::new(),
            complete: true,
        };
        self.handle.commit(target).await;
    }

    /// Waits until a toy is as `seen` wants it.
    async fn until(&self, name: &str, seen: impl Fn(&InstanceReport) -> bool) -> InstanceReport {
        let mut changes = self.board.subscribe();
        loop {
            if let Some(report) = self.board.get(&key(name)).filter(&seen) {
                return report;
            }
            let waited = tokio::time::timeout(Duration::from_secs(120), changes.changed()).await;
            assert!(waited.is_ok(), "waited in vain: {:?}", self.board.get(&key(name)));
        }
    }

    /// Waits until a toy is off the board.
    async fn until_gone(&self, name: &str) {
        let mut changes = self.board.subscribe();
        while let Some(report) = self.board.get(&key(name)) {
            let waited = tokio::time::timeout(Duration::from_secs(120), changes.changed()).await;
            assert!(waited.is_ok(), "waited in vain: {report:?}");
        }
    }

    /// Lets go of what cannot be ended of a toy.
    fn let_go(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join(format!("instances/toy/{name}/state/held"))).unwrap();
    }

    async fn until_state(&self, name: &str, state: State) -> InstanceReport {
        self.until(name, |report| report.state == state).await
    }

    async fn operate(&self, name: &str, action: Action) {
        self.handle.operate(key(name), action).await.unwrap();
    }
}

fn key(name: &str) -> Key {
    Key { role: "toy".parse().unwrap(), instance: name.parse().unwrap() }
}

#[tokio::test(start_paused = true)]
async fn what_a_linked_role_says_by_tracing_is_in_the_log_of_its_instance_and_of_no_other() {
    quilt_core::log::init(None, "info").unwrap();
    let bench = Bench::new();
    bench.commit(&[("a", r#"{"start":1,"work":10}"#), ("b", r#"{"start":2,"work":10}"#)]).await;
    for (name, first) in [("a", "INFO toy: begins start=1"), ("b", "INFO toy: begins start=2")] {
        bench.until_state(name, State::Completed).await;
        let log = bench.folder.path().join(format!("instances/toy/{name}/log"));
        quilt_core::disk::flush().await;
        let lines = quilt_core::lines::Reader::open(&log, 100).unwrap().more().unwrap();
        let lines: Vec<_> = lines.iter().map(|line| line.text().into_owned()).collect();
        assert_eq!(lines, [first, "INFO toy: has a task", "WARN toy: its work is done"], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_under_permanent_is_counted_and_no_success() {
    let bench = Bench::new();
    let keys = r#"{"work":10,"restart":{"policy":"permanent","delay":"1s"}}"#;
    bench.commit(&[("periodic", keys), ("once", r#"{"work":10}"#)]).await;
    let report = bench.until("periodic", |report| report.restarts == 20).await;
    assert_eq!(report.state, State::Backoff);
    assert!(report.detail.contains("again at"), "{}", report.detail);
    assert_eq!(bench.until_state("once", State::Completed).await.restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_stopped_stays_stopped_whatever_its_configuration_becomes() {
    let bench = Bench::new();
    bench.commit(&[("a", "{}")]).await;
    let before = bench.until_state("a", State::Active).await.digest;
    bench.operate("a", Action::Stop).await;
    for keys in [r#"{"start":1}"#, r#"{"start":1,"stop_timeout":"1s"}"#] {
        bench.commit(&[("a", keys), (&"b".repeat(keys.len()), "{}")]).await;
        bench.until_state(&"b".repeat(keys.len()), State::Active).await;
        let report = bench.until("a", |report| report.digest != before).await;
        assert_eq!((report.state, &*report.detail), (State::Stopped, "stopped by an operator"));
    }
    bench.operate("a", Action::Start).await;
    bench.until_state("a", State::Active).await;
}

/// A toy for which the station lacks something so many times.
struct Short(Arc<dyn RoleFactory>, AtomicU32);

impl RoleFactory for Short {
    fn description(&self) -> &RoleDescription {
        self.0.description()
    }
    fn validate(&self, config: &[u8]) -> BoxFuture<'static, Result<(), RoleError>> {
        self.0.validate(config)
    }
    fn lacks(&self) -> BoxFuture<'static, Option<String>> {
        let left = self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        Box::pin(async move { left.ok().map(|_| "no process for it".to_owned()) })
    }
    fn start(&self, config: &[u8], cx: RoleContext) -> BoxFuture<'static, Result<Box<dyn Instance>, RoleError>> {
        self.0.start(config, cx)
    }
    fn abandon(&self, cx: RoleContext) -> BoxFuture<'static, ()> {
        self.0.abandon(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_for_which_the_station_lacks_something_waits_for_that_and_has_not_failed() {
    let toy = Arc::new(Short(factory::<Toy>(), AtomicU32::new(5)));
    let bench = Bench::with(toy, tempfile::tempdir().unwrap(), false);
    bench.commit(&[("a", r#"{"restart":{"policy":"temporary"}}"#)]).await;
    let report = bench.until_state("a", State::Backoff).await;
    assert!(report.detail.starts_with("no process for it; again at"), "{}", report.detail);
    assert_eq!(bench.until_state("a", State::Active).await.restarts, 0);
}

/// A port that nobody listens on: free by now, and nobody else is given it so soon.
fn unused_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn what_a_ready_check_answers_is_shown_at_once_and_with_the_failure() {
    let bench = Bench::new();
    let port = unused_port();
    let ready = |more: &str| format!(r#"{{"ready":{{"tcp":"127.0.0.1:{port}"{more}}}}}"#);
    bench.commit(&[("waits", &ready("")), ("fails", &ready(r#","within":"200ms""#))]).await;
    let refused = |report: &InstanceReport| report.detail.contains("Connection refused");
    let waits = bench.until("waits", refused).await;
    assert_eq!(waits.state, State::Starting);
    bench.until("fails", |report| report.state == State::Backoff && refused(report)).await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_to_begin_is_not_ready_by_what_its_earlier_run_printed() {
    let bench = Bench::new();
    bench.commit(&[("a", r#"{"waits":5000,"ready":{"log":"here it is"}}"#)]).await;
    bench.until_state("a", State::Active).await;
    let began = Instant::now();
    bench.operate("a", Action::Restart).await;
    bench.until_state("a", State::Active).await;
    assert!(began.elapsed() >= Duration::from_secs(5), "ready after {:?}", began.elapsed());
}

#[tokio::test]
async fn an_end_before_it_was_ready_says_what_the_check_answered() {
    let bench = Bench::new();
    let ready = format!(r#""ready":{{"tcp":"127.0.0.1:{}"}}"#, unused_port());
    let keys = format!(r#"{{"work":100,"restart":{{"policy":"temporary"}},{ready}}}"#);
    bench.commit(&[("ends", &keys)]).await;
    let failed = bench.until_state("ends", State::Failed).await;
    assert!(failed.detail.starts_with("it ended before it was ready: "), "{}", failed.detail);
}

/// An instance that starts for an hour, or whose ready check takes one, or that takes long to be updated in place; or one that is
/// not busy.
async fn busy(bench: &Bench, how: &str) {
    match how {
        "start" => bench.commit(&[("a", r#"{"start":3600000,"start_timeout":"2h"}"#)]).await,
        "ready" => bench.commit(&[("a", r#"{"ready":{"log":"never","within":"1h"}}"#)]).await,
        _ => {
            bench.commit(&[("a", "{}")]).await;
            bench.until_state("a", State::Active).await;
            if how == "update" {
                bench.commit(&[("a", r#"{"update":25000}"#)]).await;
            }
        }
    }
    // It is in the midst of it.
    tokio::time::sleep(Duration::from_secs(2)).await;
}

#[tokio::test(start_paused = true)]
async fn what_still_runs_after_a_stop_is_not_stopped_and_is_told_to_stop_again_by_itself_and_by_the_next_stop() {
    let bench = Bench::new();
    bench.commit(&[("a", r#"{"held":true,"stop_timeout":"1s"}"#)]).await;
    bench.until_state("a", State::Active).await;
    for _ in 0..2 {
        let why = bench.handle.operate(key("a"), Action::Stop).await.unwrap_err();
        assert_eq!(why, "it was told to stop and still runs: process 7 holds it");
        assert_eq!(bench.until_state("a", State::Failed).await.detail, why);
    }
    bench.let_go("a");
    bench.until_state("a", State::Stopped).await;
}

#[tokio::test(start_paused = true)]
async fn what_runs_although_it_was_given_up_is_taken_back_by_the_next_station() {
    let bench = Bench::new();
    // Its start leaves something running, and takes longer than it may.
    let keys = r#"{"slow":200,"start_timeout":"100ms","stop_timeout":"1s","restart":{"policy":"temporary"}}"#;
    bench.commit(&[("a", keys), ("b", keys)]).await;
    bench.until_state("a", State::Failed).await;
    bench.until_state("b", State::Failed).await;
    std::fs::write(bench.folder.path().join("instances/toy/a/state/held"), "").unwrap();
    let bench = bench.restart().await;
    bench.commit(&[("a", keys), ("b", keys)]).await;
    bench.until_state("a", State::Active).await;
    assert_eq!(bench.until_state("b", State::Failed).await.restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_heard_within_a_second_whatever_is_under_way() {
    for how in ["start", "ready", "update"] {
        let bench = Bench::new();
        busy(&bench, how).await;
        let ordered = Instant::now();
        bench.operate("a", Action::Stop).await;
        assert!(ordered.elapsed() <= Duration::from_secs(1), "{how}: after {:?}", ordered.elapsed());
        let report = bench.until_state("a", State::Stopped).await;
        assert_eq!(report.restarts, 0, "{how}: {}", report.detail);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_station_waits_for_no_start() {
    for detach in [true, false] {
        let bench = Bench::new();
        busy(&bench, "start").await;
        let ordered = Instant::now();
        assert!(bench.handle.shut_down(detach).await.is_empty());
        assert!(ordered.elapsed() <= Duration::from_secs(1), "after {:?}", ordered.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_takes_long_delays_no_other_of_a_push() {
    // The last takes longer than an update in place may, and begins again after it.
    for (how, update) in [("start", 20), ("ready", 20), ("update", 20), ("active", 20), ("active", 40)] {
        let bench = Bench::new();
        busy(&bench, how).await;
        let pushed = Instant::now();
        bench.commit(&[("a", &format!(r#"{{"update":{update}000,"work":1}}"#)), ("b", "{}")]).await;
        bench.until_state("b", State::Active).await;
        assert!(pushed.elapsed() <= Duration::from_secs(2), "{how}: after {:?}", pushed.elapsed());
        // And takes what was pushed in its turn.
        let digest = |report: &InstanceReport| report.digest;
        let before = bench.board.get(&key("a")).as_ref().map(digest);
        bench.until("a", |report| how != "active" || Some(report.digest) != before).await;
        bench.until("a", |report| report.state.is_healthy()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_takes_longer_than_its_time_fails_and_says_which_key() {
    let bench = Bench::new();
    bench.commit(&[("a", r#"{"start":10000,"start_timeout":"3s","restart":{"policy":"temporary"}}"#)]).await;
    let report = bench.until_state("a", State::Failed).await;
    assert_eq!(report.detail, "its start took longer than `start_timeout`, 3s");
    bench.commit(&[("a", r#"{"start":100000,"start_timeout":"2m"}"#)]).await;
    bench.until_state("a", State::Active).await;
}

#[tokio::test(start_paused = true)]
async fn restarts_and_since_survive_a_restart_of_the_station() {
    let bench = Bench::new();
    let periodic = r#"{"work":10,"restart":{"policy":"permanent","delay":"10s"}}"#;
    let gives_up = r#"{"start":10,"start_timeout":"5ms","restart":{"policy":"temporary"}}"#;
    let toys = [("periodic", periodic), ("stopped", "{}"), ("gives-up", gives_up), ("active", "{}")];
    bench.commit(&toys).await;
    bench.until_state("active", State::Active).await;
    bench.until_state("stopped", State::Active).await;
    bench.operate("stopped", Action::Stop).await;
    bench.until("periodic", |report| report.restarts == 3).await;
    let mut before = Vec::new();
    for (name, state) in [("stopped", State::Stopped), ("gives-up", State::Failed), ("active", State::Active)] {
        before.push((name, bench.until_state(name, state).await));
    }
    while quilt_core::time::now_ms() <= before[2].1.since_ms {
        std::thread::yield_now();
    }

    let bench = bench.restart().await;
    bench.commit(&toys).await;
    assert!(bench.until_state("periodic", State::Backoff).await.restarts > 3);
    for (name, before) in &before[..2] {
        let now = bench.until_state(name, before.state).await;
        assert_eq!((now.since_ms, &now.detail), (before.since_ms, &before.detail), "{name}");
    }
    // A role inside the station does begin anew.
    assert!(bench.until_state("active", State::Active).await.since_ms > before[2].1.since_ms);
    // Of another configuration nothing is known.
    let bench = bench.restart().await;
    bench.commit(&[("periodic", r#"{"work":100000}"#)]).await;
    assert_eq!(bench.until_state("periodic", State::Active).await.restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_ended_stays_on_the_board_until_it_is_gone_and_holds_up_nothing_else() {
    let bench = Bench::new();
    let held = r#"{"held":true,"stop_timeout":"1s"}"#;
    bench.commit(&[("a", held), ("b", held)]).await;
    bench.until_state("a", State::Active).await;
    bench.until_state("b", State::Active).await;
    bench.commit(&[("c", "{}")]).await;
    bench.until_state("c", State::Active).await;
    for name in ["a", "b"] {
        let report = bench.until_state(name, State::Stopping).await;
        assert!(report.detail.contains("process 7 holds it"), "{report:?}");
    }
    bench.let_go("a");
    bench.until_gone("a").await;

    // Another station takes up where the one before ended.
    let bench = bench.restart().await;
    bench.commit(&[("c", "{}")]).await;
    let survives = |report: &InstanceReport| report.detail.contains("process 7 holds it");
    let report = bench.until("b", survives).await;
    assert_eq!((report.state, report.owner), (State::Stopping, Owner::Fleet));
    // If it is to be again it is started as what is left allows, and is not taken off the board by its earlier end.
    bench.commit(&[("b", "{}"), ("c", "{}")]).await;
    bench.until_state("b", State::Active).await;
    bench.let_go("b");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.board.get(&key("b")).unwrap().state, State::Active);
}

#[tokio::test(start_paused = true)]
async fn a_dependant_says_that_what_it_needs_failed_and_starts_when_that_has_recovered() {
    let bench = Bench::new();
    let fails = r#"{"start":10000,"start_timeout":"3s","restart":{"policy":"temporary"}}"#;
    let web = r#"{"needs":["toy/db"]}"#;
    bench.commit(&[("db", fails), ("web", web)]).await;
    let failed = "toy/db, which failed: its start took longer than `start_timeout`, 3s";
    let waits = bench.until("web", |report| report.detail == failed).await;
    assert_eq!((waits.state, waits.restarts), (State::Waiting, 0));
    bench.commit(&[("db", "{}"), ("web", web)]).await;
    bench.until_state("web", State::Active).await;
    // It goes on without it, and says so to who stops it.
    bench.operate("db", Action::Stop).await;
    assert_eq!(bench.handle.running_dependants(&key("db")), [key("web")]);
    assert_eq!(bench.until_state("web", State::Active).await.restarts, 0);
    bench.operate("web", Action::Stop).await;
    bench.operate("web", Action::Start).await;
    bench.until("web", |report| report.detail == "toy/db, which an operator stopped").await;
    assert_eq!(bench.handle.running_dependants(&key("db")), []);
    bench.operate("db", Action::Start).await;
    bench.until_state("web", State::Active).await;
}

#[tokio::test(start_paused = true)]
async fn what_needs_a_job_to_be_completed_starts_once_its_work_has_ended_well() {
    let bench = Bench::new();
    let toys = [
        ("job", r#"{"work":60000}"#),
        ("beside", r#"{"needs":["toy/job"]}"#),
        ("after", r#"{"needs":[{"completed":"toy/job"}]}"#),
    ];
    bench.commit(&toys).await;
    bench.until("after", |report| report.detail == "toy/job to be completed").await;
    bench.until_state("beside", State::Active).await;
    assert_eq!(bench.until_state("after", State::Active).await.restarts, 0);
    assert_eq!(bench.board.get(&key("job")).unwrap().state, State::Completed);
    // One that was completed before is enough.
    bench.operate("after", Action::Restart).await;
    bench.until_state("after", State::Active).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_for_want_of_a_disk_is_tried_until_there_is_one_and_is_no_failure_of_the_instance() {
    let bench = Bench::new();
    // The folder of its state cannot be made, and neither can the file that tells whether the disk is usable.
    let state = bench.folder.path().join("instances/toy/a/state");
    let probe = bench.folder.path().join("probe.new");
    std::fs::create_dir_all(state.parent().unwrap()).unwrap();
    std::fs::write(&state, "").unwrap();
    std::fs::create_dir(&probe).unwrap();
    let began = Instant::now();
    bench.commit(&[("a", r#"{"restart":{"policy":"temporary"}}"#)]).await;
    let mut tries = BTreeSet::new();
    while tries.len() < 10 {
        let seen = |report: &InstanceReport| report.state == State::Backoff && !tries.contains(&report.detail);
        let report = bench.until("a", seen).await;
        assert!(report.detail.contains("this station's disk takes nothing"), "{}", report.detail);
        assert_eq!(report.restarts, 0);
        tries.insert(report.detail);
    }
    // Ever more slowly.
    assert!(began.elapsed() > Duration::from_secs(60), "{:?}", began.elapsed());
    std::fs::remove_file(&state).unwrap();
    assert_eq!(bench.until_state("a", State::Active).await.restarts, 0);
    // What fails with the disk in order is its own failure.
    std::fs::remove_dir(&probe).unwrap();
    let state = bench.folder.path().join("instances/toy/b/state");
    std::fs::create_dir_all(state.parent().unwrap()).unwrap();
    std::fs::write(&state, "").unwrap();
    bench.commit(&[("b", r#"{"restart":{"policy":"temporary"}}"#)]).await;
    bench.until_state("b", State::Failed).await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_task_panics_is_started_again_and_hears_orders_as_before() {
    let bench = Bench::new();
    // It does not stop in time, and then its memory is given back outside all that catches the panics of a role.
    bench.commit(&[("a", r#"{"held":true,"bursts":true,"stop_timeout":"1s"}"#)]).await;
    bench.until_state("a", State::Active).await;
    let _ = bench.handle.operate(key("a"), Action::Restart).await;
    let report = bench.until("a", |report| report.restarts == 1).await;
    assert!(report.detail.contains("its task in the station panicked: it bursts"), "{}", report.detail);
    bench.until_state("a", State::Active).await;
    bench.let_go("a");
    bench.operate("a", Action::Stop).await;
    bench.until_state("a", State::Stopped).await;
    bench.commit(&[]).await;
    bench.until_gone("a").await;
}
