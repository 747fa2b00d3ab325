//! One light station: registers with full facts, beats, accepts what it is pushed as a real station does, says so, and answers
//! commands. It runs nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use quilt_core::slots::Slots;
use quilt_core::time;
use quilt_net::{BoxFuture, Handle, Inbound, NoService, Service, connect};
use quilt_protocol::control::{
    Applied, Document, Facts, InstanceReport, Owner, Plan, Registered, Registration, Report, RoleOffer, State,
    StationEvent, UpdateConfiguration, Verdict, command, instance_digest,
};
use quilt_protocol::message::{Identity, Refusal};
use quilt_protocol::session::Closed;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Address, Digest, Encoding, Hello, Name, Outcome, StationId, Welcome};
use smol_str::SmolStr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// How long a registration or a report may take.
const ANSWER: Duration = Duration::from_secs(60);
/// Reports of different stations come up to so many milliseconds apart.
const JITTER_MS: u64 = 10;
/// What the command `big` answers, in bytes.
const BIG: usize = 8 << 20;

/// A light station, connected or not.
pub(crate) struct Light {
    id: StationId,
    number: usize,
    /// Where what it accepts is put, as durably as a station does.
    folder: Option<PathBuf>,
    slots: Arc<Mutex<Option<Slots>>>,
    accepted: Mutex<Accepted>,
    /// How many pushes all light stations have answered.
    answered: watch::Sender<usize>,
}

#[derive(Default)]
struct Accepted {
    applied: Option<Applied>,
    instances: Vec<InstanceReport>,
    session: Option<Handle>,
}

impl Light {
    pub(crate) fn new(number: usize, folder: Option<PathBuf>, answered: watch::Sender<usize>) -> Arc<Self> {
        let (accepted, slots) = Default::default();
        Arc::new(Self { id: StationId::random(), number, folder, slots, accepted, answered })
    }

    fn accepted(&self) -> MutexGuard<'_, Accepted> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Greets and registers.
    pub(crate) async fn register<T>(self: &Arc<Self>, stream: T) -> anyhow::Result<Handle>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let hello = Hello {
            versions: SPOKEN,
            software: "quilt-bench".into(),
            fleet: self.accepted().applied.map(|applied| applied.fleet),
            identity: Identity::Station(self.id),
            features: Vec::new(),
            extensions: BTreeMap::new(),
        };
        let (handle, _) = connect(stream, hello, Arc::new(Answering(self.clone()))).await?;
        self.accepted().session = Some(handle.clone());
        let registration = self.registration()?;
        handle
            .ask::<_, Registered>(Address::Manager, command::REGISTER, Encoding::Bincode, &registration, ANSWER)
            .await
            .context("registration")?;
        Ok(handle)
    }

    fn registration(&self) -> anyhow::Result<Registration> {
        let more =
            [("os", "Debian GNU/Linux 12 (bookworm)"), ("arch", "x86_64"), ("cores", "2"), ("kernel", "6.1.0-18")];
        let number = self.number;
        let accepted = self.accepted();
        Ok(Registration {
            id: self.id,
            wished_name: format!("swarm-{number}").parse()?,
            facts: Facts {
                hostname: format!("swarm-{number}"),
                mac: Some(format!(
                    "02:00:00:{:02x}:{:02x}:{:02x}",
                    number >> 16 & 255,
                    number >> 8 & 255,
                    number & 255
                )),
                ip: Some("127.0.0.1".into()),
                machine_id: Some("0123456789abcdef0123456789abcdef".into()),
                boot_id: Some(self.id.to_string()),
                software: "quilt-bench".into(),
                more: more.into_iter().collect(),
            },
            labels: [("swarm", "yes")].into_iter().collect(),
            roles: vec![RoleOffer { role: "counter".parse()?, version: "0.1.0".into(), instances: 0 }],
            blocked: Vec::new(),
            applied: accepted.applied,
            applying: false,
            instances: accepted.instances.clone(),
        })
    }

    async fn update(self: Arc<Self>, update: UpdateConfiguration<'static>) -> Result<Verdict, (Outcome, String)> {
        let wrong = |text: String| (Outcome::Refused, text);
        let UpdateConfiguration { offer, document } = update;
        if Digest::of(document.as_bytes()) != offer.digest {
            return Err(wrong("the digest is another".into()));
        }
        let unchanged = self.accepted().applied.is_some_and(|applied| applied.digest == offer.digest);
        if !unchanged {
            let instances = planned(&document).map_err(wrong)?;
            if let Some(folder) = &self.folder {
                let (folder, name, slots) = (folder.clone(), self.number.to_string(), self.slots.clone());
                let writing = tokio::task::spawn_blocking(move || {
                    let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
                    match &mut *slots {
                        Some(slots) => slots.put(document.as_bytes()),
                        // A station makes them when it starts for the first time.
                        none => none.insert(Slots::open(&folder, &name)?.0).put(document.as_bytes()),
                    }
                });
                writing.await.map_err(|error| wrong(error.to_string()))?.map_err(|error| wrong(error.to_string()))?;
            }
            let gone = {
                let mut accepted = self.accepted();
                accepted.applied = Some(offer);
                std::mem::replace(&mut accepted.instances, instances)
            };
            tokio::spawn(self.clone().tell(gone));
        }
        self.accepted().applied = Some(offer);
        self.answered.send_modify(|answered| *answered += 1);
        Ok(if unchanged { Verdict::Unchanged } else { Verdict::Accepted })
    }

    /// Says that what it accepted runs.
    async fn tell(self: Arc<Self>, before: Vec<InstanceReport>) {
        tokio::time::sleep(Duration::from_millis(self.number as u64 % JITTER_MS)).await;
        let (session, report) = {
            let accepted = self.accepted();
            let is_gone = |old: &InstanceReport| {
                !accepted.instances.iter().any(|new| new.role == old.role && new.instance == old.instance)
            };
            let report = Report {
                applied: accepted.applied,
                applying: false,
                changed: accepted.instances.clone(),
                gone: before.into_iter().filter(is_gone).map(|old| (old.role, old.instance)).collect(),
                events: vec![StationEvent::Applying, StationEvent::Applied],
                roles: None,
                remarks: None,
            };
            (accepted.session.clone(), report)
        };
        if let Some(session) = session {
            // What was not taken is told at the next registration.
            let _ = session.ask::<_, ()>(Address::Manager, command::REPORT, Encoding::Bincode, &report, ANSWER).await;
        }
    }
}

/// Every instance of a document, as if it ran well.
fn planned(document: &str) -> Result<Vec<InstanceReport>, String> {
    let document: Document = serde_json::from_str(document).map_err(|error| error.to_string())?;
    let report = |role: &Name, instance: &Name, config: &serde_json::Map<_, _>| InstanceReport {
        role: role.clone(),
        instance: instance.clone(),
        owner: Owner::Fleet,
        digest: instance_digest(config),
        state: State::Active,
        detail: String::new(),
        pid: None,
        restarts: 0,
        since_ms: time::now_ms(),
        attributes: BTreeMap::new(),
        held_back: None,
    };
    let roles = document.roles.iter();
    Ok(roles.flat_map(|(role, all)| all.iter().map(|(name, config)| report(role, name, config))).collect())
}

struct Answering(Arc<Light>);

impl Service for Answering {
    fn hello(&self, hello: Hello) -> Result<(Welcome, SmolStr), Refusal> {
        NoService.hello(hello)
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        let light = self.0.clone();
        match (&inbound.head.terms.to, inbound.head.terms.command.as_str()) {
            (Address::Instance { .. }, "big") => {
                let zeros = Bytes::from_static(&[b'0'; BIG]);
                inbound.responder.respond(Outcome::Reply, Encoding::Json, zeros);
                Box::pin(async {})
            }
            (Address::Instance { .. }, _) => {
                inbound.responder.respond(Outcome::Reply, inbound.head.terms.encoding, inbound.body.pass_on());
                Box::pin(async {})
            }
            (_, command::UPDATE_CONFIGURATION) => inbound.answer(move |update| light.update(update)),
            (_, command::PLAN) => inbound.answer(|plan: Plan| async move {
                planned(&plan.document).map(|_| Verdict::Accepted).map_err(|error| (Outcome::Refused, error))
            }),
            (_, other) => {
                let text = format!("a light station has no {other}");
                inbound.responder.fail(Outcome::NoCommand, &text);
                Box::pin(async {})
            }
        }
    }

    fn closed(&self, _: &Closed) {
        self.0.accepted().session = None;
    }
}
