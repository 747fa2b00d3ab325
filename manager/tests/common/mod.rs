//! A manager in this process, with simulated stations and tools over pipes in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quilt_client::Client;
use quilt_manager::{Manager, ManagerArgs};
use quilt_net::{AskError, BoxFuture, Handle, Inbound, NoService, Service};
use quilt_protocol::control::{
    Empty, Facts, InstanceReport, Owner, Plan, Registered, Registration, RoleOffer, State, UpdateConfiguration,
    Verdict, command,
};
use quilt_protocol::message::{Identity, Refusal};
use quilt_protocol::session::Closed;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Address, Digest, Encoding, Hello, Outcome, StationId, Welcome};
use smol_str::SmolStr;

/// How long a request may take.
pub(crate) const TIME: Duration = Duration::from_secs(60);

/// A manager and what it keeps on disk.
pub(crate) struct World {
    pub(crate) manager: Manager,
    _folder: tempfile::TempDir,
}

/// How a simulated station answers.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    /// Takes whatever it is given.
    Accepts,
    /// Beats, and answers nothing.
    Silent,
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut args =
            ManagerArgs { listen: Some("127.0.0.1:0".into()), http: Some("127.0.0.1:0".into()), ..Default::default() };
        args.daemon.data_dir = Some(folder.path().to_owned());
        let manager = Manager::start(&args.resolve().unwrap()).await.unwrap();
        Self { manager, _folder: folder }
    }

    /// A session with the manager.
    async fn connect(&self, identity: Identity, service: Arc<dyn Service>) -> Handle {
        let (near, far) = tokio::io::duplex(256 * 1024);
        self.manager.take(far);
        let hello = Hello {
            versions: SPOKEN,
            software: "test".into(),
            fleet: None,
            identity,
            features: Vec::new(),
            extensions: BTreeMap::new(),
        };
        quilt_net::connect(near, hello, service).await.unwrap().0
    }

    /// A tool's session, for requests that the client library does not make.
    pub(crate) async fn tool(&self) -> Handle {
        self.connect(Identity::Tool("test".parse().unwrap()), Arc::new(NoService)).await
    }

    pub(crate) async fn client(&self) -> Client {
        Client::over(self.tool().await, "test".parse().unwrap(), TIME)
    }

    /// Registers a station, as far as the manager takes it.
    pub(crate) async fn register(&self, registration: &Registration, manner: Manner) -> Result<Handle, AskError> {
        let handle = self.connect(Identity::Station(registration.id), Arc::new(Simulated(manner))).await;
        let asking = handle.ask(Address::Manager, command::REGISTER, Encoding::Bincode, registration, TIME);
        asking.await.map(|_: Registered| handle.clone())
    }
}

/// What a station says of itself that has nothing special.
pub(crate) fn registration(name: &str) -> Registration {
    Registration {
        id: StationId::random(),
        wished_name: name.parse().unwrap(),
        facts: Facts { hostname: name.into(), ..Facts::default() },
        labels: Default::default(),
        roles: vec![RoleOffer { role: "counter".parse().unwrap(), version: "1".into(), instances: 0 }],
        blocked: Vec::new(),
        applied: None,
        applying: false,
        instances: Vec::new(),
    }
}

/// An instance that runs well.
pub(crate) fn instance(number: usize) -> InstanceReport {
    InstanceReport {
        role: "counter".parse().unwrap(),
        instance: format!("i{number}").parse().unwrap(),
        owner: Owner::Fleet,
        digest: Digest::of(b"{}"),
        state: State::Active,
        detail: String::new(),
        pid: None,
        restarts: 0,
        since_ms: 0,
        attributes: BTreeMap::new(),
        held_back: None,
    }
}

struct Simulated(Manner);

impl Service for Simulated {
    fn hello(&self, hello: Hello) -> Result<(Welcome, SmolStr), Refusal> {
        NoService.hello(hello)
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        let command = inbound.head.terms.command.clone();
        match command.as_str() {
            _ if self.0 == Manner::Silent => Box::pin(async move {
                let _waits = inbound;
                std::future::pending::<()>().await;
            }),
            command::PLAN => inbound.answer(|_: Plan| async { Ok(Verdict::Accepted) }),
            command::UPDATE_CONFIGURATION => {
                inbound.answer(|_: UpdateConfiguration<'static>| async { Ok(Verdict::Accepted) })
            }
            _ => inbound.answer(|_: Empty| async { Err::<(), _>((Outcome::NoCommand, String::new())) }),
        }
    }

    fn closed(&self, _: &Closed) {}
}
