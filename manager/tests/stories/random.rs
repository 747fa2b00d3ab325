//! Orders, losses of connection, restarts and failed commits at random. After each step the fleet keeps what DESIGN promises of
//! convergence, and when everything works again it converges.
//!
//! A run prints its seed if it fails; `QUILT_SEED=17 cargo test -p quilt-manager --test stories random` repeats that one.

use std::collections::BTreeSet;
use std::time::Duration;

use quilt_client::control::{State, StationState};
use quilt_manager::store::{Change, Store as _};
use quilt_protocol::{Digest, Revision};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::runtime::Builder;

use crate::fleet_file::{File, cameras, file};
use crate::station::{Answer, Fate, Station};
use crate::world::{Applying, World, moment, pass, seconds};

/// How many fleets are driven.
const SEEDS: u64 = 200;
/// How many things happen to each.
const STEPS: usize = 30;
/// Longer than any apply waits, in seconds.
const CALM: u64 = 300;

#[test]
fn a_fleet_to_which_anything_happens_converges_once_that_is_over() {
    if let Ok(seed) = std::env::var("QUILT_SEED") {
        return run(seed.parse().unwrap());
    }
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    std::thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || (first..SEEDS).step_by(threads as usize).for_each(run));
        }
    });
}

/// One fleet, on a clock of its own.
fn run(seed: u64) {
    let _told = SeedOnPanic(seed);
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(drive(seed));
}

struct SeedOnPanic(u64);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("QUILT_SEED={} repeats this", self.0);
        }
    }
}

async fn drive(seed: u64) {
    let mut driver = Driver::new(seed).await;
    for _ in 0..STEPS {
        let step = driver.step().await;
        driver.steps.push(step);
        driver.check().await;
    }
    driver.calm().await;
}

struct Driver {
    random: StdRng,
    world: World,
    stations: Vec<Station>,
    applying: Vec<Applying>,
    /// What happened, for whoever looks into a failure.
    steps: Vec<String>,
}

impl Driver {
    /// Three stations that run something.
    async fn new(seed: u64) -> Self {
        let mut world = World::new().await;
        let stations = world.stations(["cam-1", "cam-2", "cam-3"]).await.to_vec();
        assert!(world.apply(cameras(1).wait()).await.failures.is_empty());
        Self { random: StdRng::seed_from_u64(seed), world, stations, applying: Vec::new(), steps: Vec::new() }
    }

    fn any_station(&mut self) -> Station {
        self.stations[self.random.random_range(0..self.stations.len())].clone()
    }

    /// One of two files: the one every station's main counter comes from, or one that gives a station a second counter.
    fn any_file(&mut self) -> File {
        let step = self.random.random_range(2..100);
        let file = if self.random.random_bool(0.6) {
            cameras(step)
        } else {
            let name = self.any_station().name();
            let text = format!("[group.more]\nmatch = \"name={name}\"\n[group.more.roles.counter.more]\nstep = {step}");
            file(&text).source("more.toml")
        };
        match self.random.random_range(0..5) {
            0 => file,
            1 => file.wait(),
            2 => file.rollback(),
            3 => file.wait().batch(1),
            _ => file.rollback().batch(1),
        }
    }

    /// Lets something happen; says what.
    async fn step(&mut self) -> String {
        match self.random.random_range(0..16) {
            0..4 => {
                let file = self.any_file();
                let text = format!("apply {:?}", file.0);
                self.applying.push(self.world.begin(file));
                self.a_while().await;
                text
            }
            4 => {
                let station = self.any_station();
                if station.is_connected() {
                    station.cut();
                }
                format!("cut {}", station.name())
            }
            5 => {
                let station = self.any_station();
                if station.is_connected() {
                    station.hold();
                    self.a_while().await;
                    station.go_on();
                }
                format!("hold {}", station.name())
            }
            6 | 7 => {
                self.reconnect().await;
                "all come back".into()
            }
            8 => {
                let (station, instance) =
                    (self.any_station(), ["counter/main", "counter/more"][self.random.random_range(0..2)]);
                let (fate, text) = match self.random.random_range(0..4) {
                    0 => (Fate::Fails("no"), "fails"),
                    1 => (Fate::RunsAfter(Duration::from_secs(3)), "starts slowly"),
                    2 => (Fate::Flaps, "flaps"),
                    _ => (Fate::Runs, "runs"),
                };
                station.set_fate(instance, fate);
                format!("{instance} of {} {text} from now on", station.name())
            }
            9 => {
                let station = self.any_station();
                let (answer, text) = match self.random.random_range(0..5) {
                    0 => (Answer::Refuses("no"), "refuses"),
                    1 => (Answer::HasTrouble("no room"), "has trouble"),
                    2 => (Answer::IsSilent, "is silent"),
                    3 => (Answer::TakesAfter(Duration::from_secs(2)), "is slow"),
                    _ => (Answer::Takes, "takes"),
                };
                station.on_push(answer);
                format!("{} {text} from now on", station.name())
            }
            10 => {
                let mut left = self.random.random_range(0..6);
                self.world.store().refuse(move |changes| {
                    // Events are no promise, and would use it up.
                    let counts = !matches!(changes, [Change::AddEvent(_)]);
                    left -= i32::from(counts);
                    counts && left == -1
                });
                format!("the {}th commit fails", left + 1)
            }
            11 => {
                self.world.store().hang();
                self.a_while().await;
                self.world.store().resume();
                "the store hangs for a while".into()
            }
            12 => {
                self.world.store().hang();
                let file = self.any_file();
                let text = format!("killed while it stores {:?}", file.0);
                self.applying.push(self.world.begin(file));
                self.a_while().await;
                self.world.restart().await;
                text
            }
            13 => {
                self.world.restart().await;
                "killed".into()
            }
            14 => {
                let station = self.any_station();
                let went_back = self.world.tool().rollback(&station.name(), None).await.is_ok();
                format!("rollback of {}: {went_back}", station.name())
            }
            _ => {
                self.a_while().await;
                "a while".into()
            }
        }
    }

    async fn a_while(&mut self) {
        pass(Duration::from_millis(self.random.random_range(0..6000))).await;
    }

    async fn reconnect(&mut self) {
        for station in self.stations.clone() {
            if !station.is_connected() {
                // The manager may be short of something, and it tries again.
                let _ = self.world.try_connect(&station).await;
            }
        }
    }

    /// What is always so.
    async fn check(&self) {
        moment().await;
        let steps = || self.steps.join("\n");
        let stored = self.world.backup();
        for station in &self.stations {
            let offered = station.offered();
            assert!(offered.is_sorted(), "{} was offered {offered:?}\n{}", station.name(), steps());
            let is_same = |pair: &[(Revision, Digest)]| pair[0].0 != pair[1].0 || pair[0].1 == pair[1].1;
            let offers = station.offers();
            assert!(offers.windows(2).all(is_same), "one number, two contents: {offered:?}\n{}", steps());
            let history = stored.history(station.id()).await.unwrap();
            if let Some((revision, digest)) = station.given() {
                let is_stored = history.desired.iter().any(|one| one.revision == revision && one.digest == digest);
                assert!(is_stored, "{} runs {revision}, which is not stored\n{}", station.name(), steps());
            }
            let instances = station.instances();
            assert!(instances.contains(&"counter/main".into()), "{} was emptied\n{}", station.name(), steps());
        }
        let views = self.world.tool().stations("").await.unwrap();
        let names: BTreeSet<_> = views.iter().map(|view| &view.name).collect();
        assert_eq!(names.len(), self.stations.len(), "{}", steps());
        for view in &views {
            let is_here = matches!(view.state, StationState::Connected | StationState::Unadopted);
            let connected = self.stations.iter().any(|station| station.id() == view.id && station.is_connected());
            assert_eq!(is_here, connected, "{} is shown as {:?}\n{}", view.name, view.state, steps());
            assert!(is_here || view.instances.is_empty(), "{} is away and shows instances\n{}", view.name, steps());
        }
    }

    /// What is so once everything works again.
    async fn calm(mut self) {
        self.world.store().recover();
        for station in &self.stations {
            station.on_push(Answer::Takes);
            for instance in ["counter/main", "counter/more"] {
                station.set_fate(instance, Fate::Runs);
            }
            // What was refused is offered again at a registration.
            if station.is_connected() {
                station.cut();
            }
        }
        moment().await;
        self.reconnect().await;
        seconds(CALM).await;
        self.reconnect().await;
        moment().await;
        let steps = self.steps.join("\n");
        for applying in &self.applying {
            assert!(!applying.is_under_way(), "an apply does not end\n{steps}");
        }
        self.converged(&steps).await;
        let left = self.world.backup().load().await.unwrap();
        assert!(left.trials.is_empty(), "{:?}\n{steps}", left.trials);
        assert!(left.desired.values().all(|desired| !desired.held), "a station waits for ever\n{steps}");
        // The next manager knows the same.
        self.world.restart().await;
        self.converged(&steps).await;
        let reply = self.world.apply(cameras(1000).wait()).await;
        assert!(reply.stored && reply.failures.is_empty(), "{reply:?}\n{steps}");
        for station in &self.stations {
            assert_eq!(station.config("counter/main"), json!({ "step": 1000 }), "{}\n{steps}", station.name());
        }
    }

    async fn converged(&self, steps: &str) {
        for station in &self.stations {
            let view = self.world.view(&station.name()).await;
            assert_eq!(view.state, StationState::Connected, "{}\n{steps}", view.name);
            let shown = view.applied_revision.zip(view.applied_digest);
            assert_eq!(view.desired_revision.zip(view.desired_digest), shown, "{}\n{steps}", view.name);
            assert_eq!(station.given(), shown, "{}\n{steps}", view.name);
            assert_eq!(Digest::of(station.document().as_bytes()), view.applied_digest.unwrap());
            let failed = view.instances.iter().filter(|one| !matches!(one.state, State::Active | State::Failed));
            assert_eq!(failed.count(), 0, "{:?}\n{steps}", view.instances);
        }
    }
}
