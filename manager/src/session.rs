//! One connection: greeted as a station or a tool, and known by that from then on.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use quilt_core::shortage;
use quilt_net::{BoxFuture, Handle, Inbound, Listener, Service, accept, done};
use quilt_protocol::control::command;
use quilt_protocol::message::{Identity, PERSON, Refusal};
use quilt_protocol::session::{Closed, Limits};
use quilt_protocol::{Address, Hello, Name, Outcome, StationId, Welcome};
use smol_str::SmolStr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::state::Client;
use crate::{Core, register, route, tools};

/// Bytes of bodies that are arriving, or wait for an answer or for whoever takes them, on all connections together: however
/// many peers send large ones, memory stays bounded.
pub(crate) const ARRIVING_MAX: usize = 256 << 20;

/// For how long to look for what comes next before sleeping, where that comes soon: about as long as two wake-ups take, the
/// peer's and that of its processor. Where there is one processor, whoever is looked for would not get it meanwhile.
pub(crate) static WATCH: LazyLock<Duration> = LazyLock::new(|| match std::thread::available_parallelism() {
    Ok(count) if count.get() > 1 => Duration::from_micros(200),
    _ => Duration::ZERO,
});

/// How many characters of a person's name are kept.
const PERSON_MAX: usize = 100;

/// How often a manager without descriptors to spare looks whether it has some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes connections until told to stop.
pub(crate) async fn listen(core: Arc<Core>, listener: Arc<Listener>, stop: CancellationToken) {
    while let Some((stream, peer, ungreeted)) = stop.run_until_cancelled(listener.accept()).await {
        let is_last = shortage::is_reserved(&stream);
        let task = ungreeted.task();
        let session = take(&core, stream, peer, Some(ungreeted));
        let serving = core.spawn(async move {
            let why = session.await;
            tracing::debug!(%peer, %why, "connection ended");
        });
        task.set(serving).expect("nobody else sets it");
        if is_last {
            let kept = shortage::DESCRIPTORS_RESERVED;
            tracing::warn!(
                "{kept} descriptors are left, which are kept for the sessions that there are; new connections wait"
            );
            while shortage::is_short_of_descriptors() && core.pause(ACCEPT_PAUSE).await {}
        }
    }
}

/// Serves one connection.
pub(crate) fn take<T>(
    core: &Arc<Core>,
    stream: T,
    peer: SocketAddr,
    ungreeted: Option<quilt_net::Ungreeted>,
) -> impl Future<Output = Closed> + Send + 'static
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    core.metrics.connections.inc();
    let limits = Limits { shared: core.arriving.clone(), ..Limits::default() };
    let (core, watch) = (core.clone(), core.watch);
    accept(stream, limits, watch, move |handle| {
        Arc::new(Session {
            core,
            handle,
            peer,
            who: OnceLock::new(),
            principal: OnceLock::new(),
            person: OnceLock::new(),
            registers: AtomicBool::new(false),
            ungreeted: Mutex::new(ungreeted),
        })
    })
}

/// The manager's side of one connection.
pub(crate) struct Session {
    pub(crate) core: Arc<Core>,
    pub(crate) handle: Handle,
    pub(crate) peer: SocketAddr,
    who: OnceLock<Who>,
    /// The same as it is stamped on requests.
    principal: OnceLock<SmolStr>,
    /// Which person a tool says it acts for.
    person: OnceLock<String>,
    /// A station has asked to be registered.
    registers: AtomicBool,
    /// Counts the connection as not greeted until it has.
    ungreeted: Mutex<Option<quilt_net::Ungreeted>>,
}

/// Who greeted.
#[derive(Clone, Debug)]
pub(crate) enum Who {
    Station(StationId),
    Tool(Name),
}

impl Session {
    /// Who is at the other end, as it is stamped on requests.
    pub(crate) fn principal(&self) -> SmolStr {
        self.principal.get().cloned().unwrap_or(SmolStr::new_static("nobody"))
    }

    /// The same with what the tool says of the person who uses it, for histories: as good as the tool's word.
    pub(crate) fn who(&self) -> String {
        let person = self.person.get().map_or_else(String::new, |person| format!(" ({person})"));
        format!("{}{person}", self.principal())
    }

    /// Notes that a station wants to be registered; whether it did before.
    pub(crate) fn registers_again(&self) -> bool {
        self.registers.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn station(&self) -> Option<StationId> {
        match self.who.get() {
            Some(Who::Station(id)) => Some(*id),
            _ => None,
        }
    }

    fn welcome_tool(&self, wished: &Name, software: &str) -> Name {
        let mut state = self.core.state();
        let numbered = (2..).map(|number| {
            let stem: String = wished.as_str().chars().take(quilt_protocol::names::NAME_MAX - 11).collect();
            format!("{stem}~{number}").parse().expect("a name and a number")
        });
        let name = std::iter::once(wished.clone()).chain(numbered);
        let name = name.into_iter().find(|name| !state.clients.contains_key(name)).expect("numbers do not run out");
        let client = Client {
            handle: self.handle.clone(),
            software: software.to_owned(),
            peer: self.peer.to_string(),
            since_ms: state.clock.now_ms(),
        };
        state.clients.insert(name.clone(), client);
        name
    }
}

impl Service for Session {
    fn hello(&self, hello: Hello) -> Result<(Welcome, SmolStr), Refusal> {
        self.ungreeted.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (who, assigned) = match hello.identity {
            Identity::Station(id) => (Who::Station(id), None),
            Identity::Tool(wished) => {
                let name = self.welcome_tool(&wished, &hello.software);
                (Who::Tool(name.clone()), Some(name))
            }
        };
        tracing::debug!(peer = %self.peer, ?who, software = hello.software, "greeted");
        if let Some(person) = hello.extensions.get(PERSON) {
            let person = String::from_utf8_lossy(person).chars().filter(|c| !c.is_control()).take(PERSON_MAX).collect();
            let _ = self.person.set(person);
        }
        let principal = SmolStr::from(match &who {
            Who::Station(id) => format!("station:{id}"),
            Who::Tool(name) => format!("tool:{name}"),
        });
        let _ = self.principal.set(principal.clone());
        self.who.set(who).expect("a connection greets once");
        let welcome = Welcome {
            version: 0,
            software: concat!("quilt-manager ", env!("CARGO_PKG_VERSION")).into(),
            fleet: self.core.fleet,
            assigned,
            heartbeat_ms: u32::try_from(self.core.heartbeat().as_millis()).unwrap_or(u32::MAX),
            features: Vec::new(),
            extensions: Default::default(),
        };
        Ok((welcome, principal))
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        self.core.metrics.requests.inc();
        match (&inbound.head.terms.to, self.station()) {
            (Address::Manager, Some(id)) => match inbound.head.terms.command.as_str() {
                command::REGISTER => register::register(self, id, inbound),
                command::REPORT => register::report(self, id, inbound),
                command::READ_FILE => tools::read_file(self, inbound),
                name if tools::is_for_roles(name) => tools::answer(self, inbound),
                other => {
                    let text = format!("a station may not ask the manager for {other:?}");
                    inbound.responder.fail(Outcome::Denied, &text);
                    done()
                }
            },
            (Address::Manager, None) => tools::answer(self, inbound),
            _ => route::relay(self, inbound),
        }
    }

    fn closed(&self, why: &Closed) {
        match self.who.get() {
            Some(Who::Station(id)) => register::left(&self.core, *id, &self.handle, why),
            Some(Who::Tool(name)) => drop(self.core.state().clients.remove(name)),
            None => {}
        }
    }
}
