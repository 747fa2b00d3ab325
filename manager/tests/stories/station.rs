//! A light station: it speaks the real protocol and keeps what a station keeps, and runs instances that fare as a test says.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use quilt_net::{AskError, BoxFuture, Handle, Inbound, NoService, Service};
use quilt_protocol::control::{
    Action, Applied, Control, Controlled, Document, Empty, Facts, InstanceReport, Owner, Plan, Problem, ProblemCode,
    Registered, Registration, Rejection, Report, RoleOffer, State, StateChange, StationEvent, UpdateConfiguration,
    Verdict, command, instance_digest,
};
use quilt_protocol::message::{Identity, Refusal};
use quilt_protocol::session::Closed;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Address, Digest, Encoding, Hello, Name, Outcome, Revision, StationId, Welcome};
use serde_json::Value;
use smol_str::SmolStr;
use tokio::io::DuplexStream;
use tokio::time::{Instant, sleep};

use crate::link::Link;

/// How long a station waits for the manager.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What becomes of an instance that is configured.
#[derive(Clone, Copy)]
pub(crate) enum Fate {
    /// It runs at once.
    Runs,
    /// It runs after a while.
    RunsAfter(Duration),
    /// It does not start.
    Fails(&'static str),
    /// It runs, ends and is restarted again and again.
    Flaps,
}

/// What a station answers to a plan or a push.
#[derive(Clone, Copy)]
pub(crate) enum Answer {
    /// As a station in order.
    Takes,
    /// The same, after a while.
    TakesAfter(Duration),
    /// The configuration is wrong.
    Refuses(&'static str),
    /// It has trouble of its own.
    HasTrouble(&'static str),
    /// Nothing.
    IsSilent,
}

/// A station, connected or not. Clones are the same station.
#[derive(Clone)]
pub(crate) struct Station(Arc<Mutex<Machine>>);

struct Machine {
    id: StationId,
    name: String,
    labels: BTreeMap<String, String>,
    facts: BTreeMap<String, String>,
    roles: Vec<Name>,
    /// What it keeps on disk.
    applied: Option<Applied>,
    document: String,
    instances: BTreeMap<(Name, Name), InstanceReport>,
    fates: BTreeMap<String, Fate>,
    on_plan: Answer,
    on_push: Answer,
    session: Option<(Handle, Arc<Link>)>,
    /// Every push that came, in order, and when.
    offered: Vec<(Applied, Instant)>,
    began: Instant,
}

impl Station {
    /// A station that was never configured and can run the role `counter`.
    pub(crate) fn new(name: &str) -> Self {
        Self(Arc::new(Mutex::new(Machine {
            id: StationId::random(),
            name: name.into(),
            labels: BTreeMap::new(),
            facts: BTreeMap::new(),
            roles: vec!["counter".parse().unwrap()],
            applied: None,
            document: Document::default().to_json(),
            instances: BTreeMap::new(),
            fates: BTreeMap::new(),
            on_plan: Answer::Takes,
            on_push: Answer::Takes,
            session: None,
            offered: Vec::new(),
            began: Instant::now(),
        })))
    }

    /// A copy of its disk in another machine: the same identity.
    pub(crate) fn cloned_disk(&self) -> Self {
        let machine = self.machine();
        let clone = Self::new(&machine.name);
        {
            let mut other = clone.machine();
            other.id = machine.id;
            other.applied = machine.applied;
            other.document.clone_from(&machine.document);
            other.instances.clone_from(&machine.instances);
        }
        clone
    }

    pub(crate) fn with_label(self, key: &str, value: &str) -> Self {
        self.machine().labels.insert(key.into(), value.into());
        self
    }

    pub(crate) fn with_fact(self, key: &str, value: &str) -> Self {
        self.machine().facts.insert(key.into(), value.into());
        self
    }

    /// It calls itself so from the next registration on.
    pub(crate) fn rename(&self, name: &str) {
        self.machine().name = name.into();
    }

    /// Whatever is configured under `role/instance` from now on fares so.
    pub(crate) fn set_fate(&self, instance: &str, fate: Fate) {
        self.machine().fates.insert(instance.into(), fate);
    }

    pub(crate) fn on_plan(&self, answer: Answer) {
        self.machine().on_plan = answer;
    }

    pub(crate) fn on_push(&self, answer: Answer) {
        self.machine().on_push = answer;
    }

    /// Whether both are the same machine.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn id(&self) -> StationId {
        self.machine().id
    }

    pub(crate) fn name(&self) -> String {
        self.machine().name.clone()
    }

    /// The revision that it accepted last.
    pub(crate) fn applied(&self) -> Option<u64> {
        self.machine().applied.map(|applied| applied.revision.0)
    }

    /// The revision that it accepted last, with its digest.
    pub(crate) fn given(&self) -> Option<(Revision, Digest)> {
        self.machine().applied.map(|applied| (applied.revision, applied.digest))
    }

    /// The document that it accepted last.
    pub(crate) fn document(&self) -> String {
        self.machine().document.clone()
    }

    /// The epoch of the store from which it was given that.
    pub(crate) fn epoch(&self) -> Option<u64> {
        self.machine().applied.map(|applied| applied.epoch)
    }

    /// The revisions that it was offered, in order.
    pub(crate) fn offered(&self) -> Vec<u64> {
        self.machine().offered.iter().map(|(offer, _)| offer.revision.0).collect()
    }

    /// The revisions that it was offered, each with its digest, in order.
    pub(crate) fn offers(&self) -> Vec<(Revision, Digest)> {
        self.machine().offered.iter().map(|(offer, _)| (offer.revision, offer.digest)).collect()
    }

    /// The pauses between the pushes that came, in seconds.
    pub(crate) fn pauses(&self) -> Vec<u64> {
        let machine = self.machine();
        machine.offered.windows(2).map(|pair| (pair[1].1 - pair[0].1).as_secs()).collect()
    }

    /// How an instance is configured; null if there is none.
    pub(crate) fn config(&self, instance: &str) -> Value {
        let document: Document = serde_json::from_str(&self.machine().document).unwrap();
        let (role, instance) = instance.split_once('/').unwrap();
        let found = document.roles.get(role).and_then(|instances| instances.get(instance));
        found.map_or(Value::Null, |config| config.clone().into())
    }

    /// The instances that it has, as `role/instance`.
    pub(crate) fn instances(&self) -> Vec<String> {
        self.machine().instances.keys().map(|(role, instance)| format!("{role}/{instance}")).collect()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.machine().session.as_ref().is_some_and(|(handle, _)| !handle.is_closed())
    }

    /// Breaks its connection.
    pub(crate) fn cut(&self) {
        self.link().cut();
    }

    /// Holds up what goes over its connection.
    pub(crate) fn hold(&self) {
        self.link().hold();
    }

    /// Delivers what was held up.
    pub(crate) fn go_on(&self) {
        self.link().go_on();
    }

    /// Says goodbye.
    pub(crate) fn leave(&self) {
        self.session().goodbye("stopped");
    }

    /// An instance comes into another state, and the manager hears of it.
    pub(crate) async fn turn(&self, instance: &str, state: State, detail: &str) {
        self.change(instance, |report| {
            report.state = state;
            report.detail = detail.into();
        });
        self.tell(&[instance.into()]).await.unwrap();
    }

    /// An instance was restarted, and the manager hears of it.
    pub(crate) async fn restart(&self, instance: &str) {
        self.change(instance, |report| report.restarts += 1);
        self.tell(&[instance.into()]).await.unwrap();
    }

    /// It can run other roles from now on, and the manager hears of it.
    pub(crate) async fn offer_roles(&self, roles: &[&str]) {
        self.machine().roles = roles.iter().map(|role| role.parse().unwrap()).collect();
        let report = {
            let machine = self.machine();
            Report { roles: Some(machine.offers()), ..machine.report() }
        };
        self.send(&self.session(), &report).await.unwrap();
    }

    /// What it would report if nothing had changed, for a test to change.
    pub(crate) fn plain_report(&self) -> Report {
        self.machine().report()
    }

    /// Sends a report that a test made.
    pub(crate) async fn report(&self, report: &Report) -> Result<(), AskError> {
        self.send(&self.session(), report).await
    }

    /// The session that it has, to be used after it has another one.
    pub(crate) fn session(&self) -> Handle {
        self.machine().session.as_ref().expect("it was connected").0.clone()
    }

    pub(crate) async fn send(&self, session: &Handle, report: &Report) -> Result<(), AskError> {
        session.ask(Address::Manager, command::REPORT, Encoding::Bincode, report, TIMEOUT).await
    }

    /// Greets and registers over a stream.
    pub(crate) async fn register(&self, stream: DuplexStream, link: Link) -> Result<Registered, AskError> {
        let (id, applied) = (self.id(), self.machine().applied);
        let hello = Hello {
            versions: SPOKEN,
            software: "test".into(),
            fleet: applied.map(|applied| applied.fleet),
            identity: Identity::Station(id),
            features: Vec::new(),
            extensions: BTreeMap::new(),
        };
        let (handle, _) = quilt_net::connect(stream, hello, Arc::new(Agent(self.clone()))).await.unwrap();
        self.machine().session = Some((handle.clone(), Arc::new(link)));
        let registration = self.machine().registration();
        handle.ask(Address::Manager, command::REGISTER, Encoding::Bincode, &registration, TIMEOUT).await
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap()
    }

    /// The link of the session that it has, to be used after it has another one.
    pub(crate) fn link(&self) -> Arc<Link> {
        self.machine().session.as_ref().expect("it was connected").1.clone()
    }

    fn change(&self, instance: &str, change: impl FnOnce(&mut InstanceReport)) {
        let mut machine = self.machine();
        let now_ms = machine.now_ms();
        // It may be gone meanwhile.
        if let Some(report) = machine.instances.get_mut(&key(instance)) {
            report.since_ms = now_ms;
            change(report);
        }
    }

    /// Reports the instances that are named, as they are now.
    async fn tell(&self, instances: &[String]) -> Result<(), AskError> {
        let (session, report) = {
            let machine = self.machine();
            let Some((session, _)) = machine.session.clone() else { return Ok(()) };
            let changed = instances.iter().filter_map(|instance| machine.instances.get(&key(instance))).cloned();
            let changed: Vec<_> = changed.collect();
            let events = changed.iter().map(event).collect();
            (session, Report { changed, events, ..machine.report() })
        };
        self.send(&session, &report).await
    }

    async fn plan(self, _: Plan) -> Result<Verdict, (Outcome, String)> {
        let answer = self.machine().on_plan;
        Ok(self.answer(answer).await.unwrap_or(Verdict::Accepted))
    }

    async fn take(self, update: UpdateConfiguration<'static>) -> Result<Verdict, (Outcome, String)> {
        let UpdateConfiguration { offer, document } = update;
        assert_eq!(Digest::of(document.as_bytes()), offer.digest, "the document is the one that was hashed");
        self.machine().offered.push((offer, Instant::now()));
        let answer = self.machine().on_push;
        if let Some(verdict) = self.answer(answer).await {
            return Ok(verdict);
        }
        let gone = {
            let mut machine = self.machine();
            let before = machine.applied;
            if before.is_some_and(|before| before.fleet == offer.fleet && offer.epoch < before.epoch) {
                return Ok(machine.rejected(ProblemCode::InvalidConfiguration, "an older store"));
            }
            machine.applied = Some(offer);
            if before.is_some_and(|before| before.digest == offer.digest) {
                return Ok(Verdict::Unchanged);
            }
            machine.configure(&document)
        };
        tokio::spawn(self.run(gone, offer));
        Ok(Verdict::Accepted)
    }

    /// The verdict, unless it is to take what it is given.
    async fn answer(&self, answer: Answer) -> Option<Verdict> {
        match answer {
            Answer::Takes => None,
            Answer::TakesAfter(time) => {
                sleep(time).await;
                None
            }
            Answer::Refuses(why) => Some(self.machine().rejected(ProblemCode::InvalidConfiguration, why)),
            Answer::HasTrouble(why) => Some(self.machine().rejected(ProblemCode::StationFault, why)),
            Answer::IsSilent => pending().await,
        }
    }

    /// Does what was accepted: tells of it, and lets instances fare as they should. What does not reach the manager is told at the
    /// next registration.
    async fn run(self, gone: Vec<(Name, Name)>, offer: Applied) {
        let (session, report, late) = {
            let machine = self.machine();
            let changed: Vec<_> = machine.instances.values().cloned().collect();
            let mut events = vec![StationEvent::Applying];
            events.extend(changed.iter().map(event));
            events.extend(gone.iter().map(|(role, instance)| StationEvent::Gone(role.clone(), instance.clone())));
            events.push(StationEvent::Applied);
            let report = Report { changed, gone, events, ..machine.report() };
            (machine.session.clone(), report, machine.fated(|fate| matches!(fate, Fate::RunsAfter(_))))
        };
        if let Some((session, _)) = session {
            let _ = self.send(&session, &report).await;
        }
        for instance in late {
            let fate = self.machine().fates[&instance];
            if let Fate::RunsAfter(time) = fate {
                sleep(time).await;
                self.change(&instance, |report| report.state = State::Active);
                let _ = self.tell(&[instance]).await;
            }
        }
        loop {
            let flapping = self.machine().fated(|fate| matches!(fate, Fate::Flaps));
            if flapping.is_empty() || self.machine().applied != Some(offer) {
                return;
            }
            for instance in &flapping {
                self.change(instance, |report| report.restarts += 1);
            }
            let _ = self.tell(&flapping).await;
            sleep(Duration::from_millis(700)).await;
        }
    }

    async fn control(self, control: Control) -> Result<Controlled, (Outcome, String)> {
        let Control { role, instance, action } = control;
        let state = match action {
            Action::Start | Action::Restart => State::Active,
            Action::Stop => State::Stopped,
        };
        let name = format!("{role}/{instance}");
        self.change(&name, |report| report.state = state);
        let report = self.machine().instances.get(&(role, instance)).cloned();
        Ok(Controlled { report, dependants: Vec::new() })
    }
}

impl Machine {
    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn offers(&self) -> Vec<RoleOffer> {
        let offer = |role: &Name| RoleOffer { role: role.clone(), version: "1".into(), instances: 0 };
        self.roles.iter().map(offer).collect()
    }

    fn registration(&self) -> Registration {
        Registration {
            id: self.id,
            wished_name: self.name.parse().unwrap(),
            facts: Facts { hostname: self.name.clone(), more: self.facts.iter().collect(), ..Facts::default() },
            labels: self.labels.iter().collect(),
            roles: self.offers(),
            blocked: Vec::new(),
            applied: self.applied,
            applying: false,
            instances: self.instances.values().cloned().collect(),
        }
    }

    fn report(&self) -> Report {
        Report {
            applied: self.applied,
            applying: false,
            changed: Vec::new(),
            gone: Vec::new(),
            events: Vec::new(),
            roles: None,
            remarks: None,
        }
    }

    fn rejected(&self, code: ProblemCode, why: &str) -> Verdict {
        Verdict::Rejected(Box::new(Rejection::new(vec![Problem {
            code,
            station: self.name.clone(),
            role: "counter".into(),
            instance: None,
            key: None,
            expected: "something else".into(),
            got: why.into(),
        }])))
    }

    /// The instances that it has and that fare so, as `role/instance`.
    fn fated(&self, is_so: fn(&Fate) -> bool) -> Vec<String> {
        let all = self.instances.keys().map(|(role, instance)| format!("{role}/{instance}"));
        all.filter(|name| self.fates.get(name).is_some_and(is_so)).collect()
    }

    /// Takes a document; gives the instances that are gone.
    fn configure(&mut self, document: &str) -> Vec<(Name, Name)> {
        let read: Document = serde_json::from_str(document).unwrap();
        let mut before = std::mem::take(&mut self.instances);
        for (role, instances) in &read.roles {
            for (instance, config) in instances {
                let (key, digest) = ((role.clone(), instance.clone()), instance_digest(config));
                let kept = before.remove(&key).filter(|report| report.digest == digest);
                let report = kept.unwrap_or_else(|| self.begin(&key, digest));
                self.instances.insert(key, report);
            }
        }
        self.document = document.to_owned();
        before.into_keys().collect()
    }

    fn begin(&self, (role, instance): &(Name, Name), digest: Digest) -> InstanceReport {
        let (state, detail) = match self.fates.get(&format!("{role}/{instance}")) {
            None | Some(Fate::Runs | Fate::Flaps) => (State::Active, ""),
            Some(Fate::RunsAfter(_)) => (State::Starting, ""),
            Some(Fate::Fails(why)) => (State::Failed, *why),
        };
        InstanceReport {
            role: role.clone(),
            instance: instance.clone(),
            owner: Owner::Fleet,
            digest,
            state,
            detail: detail.into(),
            pid: None,
            restarts: 0,
            since_ms: self.now_ms(),
            attributes: BTreeMap::new(),
            held_back: None,
        }
    }
}

fn key(instance: &str) -> (Name, Name) {
    let (role, instance) = instance.split_once('/').expect("role/instance");
    (role.parse().unwrap(), instance.parse().unwrap())
}

fn event(report: &InstanceReport) -> StationEvent {
    let InstanceReport { role, instance, state, detail, since_ms, .. } = report.clone();
    StationEvent::State(Box::new(StateChange { role, instance, state, detail, at_ms: since_ms }))
}

/// What answers the manager.
struct Agent(Station);

impl Service for Agent {
    fn hello(&self, hello: Hello) -> Result<(Welcome, SmolStr), Refusal> {
        NoService.hello(hello)
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        let station = self.0.clone();
        match inbound.head.terms.command.clone().as_str() {
            command::PLAN => inbound.answer(move |plan| station.plan(plan)),
            command::UPDATE_CONFIGURATION => inbound.answer(move |update| station.take(update)),
            command::CONTROL => inbound.answer(move |control| station.control(control)),
            command::ADOPT => inbound.answer(move |(): ()| async move { Ok(station.machine().document.clone()) }),
            command::RENEW => inbound.answer(move |_: Empty| async move {
                let id = StationId::random();
                station.machine().id = id;
                Ok(id.to_string())
            }),
            other => panic!("a light station does not know {other}"),
        }
    }

    fn closed(&self, _: &Closed) {}
}
