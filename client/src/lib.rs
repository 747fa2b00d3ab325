//! Talks to a quilt fleet: lists stations, applies fleet files, calls commands, follows events.
//!
//! Of the role contract this knows the [`Command`] trait only, for typed calls. Read first: [`Client`],
//! [`Client::call`], [`CallError`]. Modules in reading order: `command` (calls), `push` (fleet files), `watch`
//! (listing, logs, events), `plugin`, `folders`.
//!
//! ```no_run
//! use quilt_client::Client;
//! # use quilt_plugin_api::Command;
//! # #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema, Command)]
//! # #[command(group = "Counting", reply = i64)]
//! # struct Increment { by: i64 }
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let fleet = Client::connect("127.0.0.1:7440", "my-tool").await?;
//! for station in fleet.stations("").await? {
//!     println!("{} is {}", station.name, station.state.name());
//! }
//! let value: i64 = fleet.call("local/counter/main", &Increment { by: 2 }).await?;
//! # Ok(())
//! # }
//! ```

mod command;
mod folders;
mod plugin;
mod push;
mod schemas;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quilt_net::{ConnectError, Handle, NoService, decode, dial, encode};
use quilt_protocol::message::{Hello, Identity, NO_DEADLINE, PERSON};
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Address, Encoding, Name, RequestHead, Terms};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use command::{CallError, CallOptions, TypedItems};
pub use push::ApplyStream;
pub use quilt_net::{Answer, AskError, Items};
pub use quilt_plugin_api::{Command, split_error};
pub use quilt_protocol::control;
pub use quilt_protocol::message::{Delivered, Outcome};
pub use watch::JsonItems;

/// How many pieces of a list may wait here.
const PIECES_WAITING: u32 = 16;

/// A target as it was given, and what was asked of it.
type Recent = (String, Arc<Terms>);

/// A connection to a fleet's manager. Cheap to clone.
///
/// A connection that [`Client::connect`] made is closed when the last clone is dropped and nothing that was asked over it is under way.
/// [`Client::close`] closes it at once.
#[derive(Clone)]
pub struct Client {
    /// How to connect anew; nothing for a session that was given.
    dialled: Option<Arc<(String, Name)>>,
    session: Arc<Mutex<Session>>,
    schemas: Arc<Mutex<schemas::Kept>>,
    /// The terms of the last few calls, and the targets as they were given.
    recent: Arc<Mutex<VecDeque<Recent>>>,
    timeout: Duration,
}

/// The session of all clones of a client.
struct Session {
    handle: Handle,
    /// As the manager assigned it.
    name: Name,
    /// Made by the client and not given to it.
    is_own: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_own {
            self.handle.leave_when_idle();
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectFailure {
    /// Nobody answers there.
    #[error("no manager at {manager}: {error}; start one, or say where it is with --manager or QUILT_MANAGER")]
    Unreachable {
        /// Where.
        manager: String,
        /// What the operating system says.
        error: std::io::Error,
    },
    /// Something answers, and it is not a manager that takes us.
    #[error("{manager}: {error}")]
    Declined {
        /// Where.
        manager: String,
        /// Why.
        error: ConnectError,
    },
    /// Something answers, and does not greet in time.
    #[error("{manager}: no greeting within {time:?}; is it a quilt manager, and does it work?")]
    Late {
        /// Where.
        manager: String,
        /// How long it was waited for.
        time: Duration,
    },
    /// The tool's own name will not do.
    #[error(transparent)]
    Name(#[from] quilt_protocol::names::NameError),
}

impl Client {
    /// Connects to the manager at `HOST:PORT` as a tool called `name`; the manager may add a number to it.
    ///
    /// # Errors
    ///
    /// [`ConnectFailure`].
    pub async fn connect(manager: &str, name: &str) -> Result<Self, ConnectFailure> {
        Self::connect_within(manager, name, Duration::from_secs(15)).await
    }

    /// As [`Client::connect`], with a default time for connecting and for every request.
    ///
    /// # Errors
    ///
    /// [`ConnectFailure`].
    pub async fn connect_within(manager: &str, name: &str, timeout: Duration) -> Result<Self, ConnectFailure> {
        let wished: Name = name.parse()?;
        let (handle, name) = open(manager, &wished, timeout).await?;
        let dialled = Some(Arc::new((manager.to_owned(), wished)));
        Ok(Self::over_session(Session { handle, name, is_own: true }, dialled, timeout))
    }

    /// Asks over a session that there is, as a program that hosts a manager has one with each station. It is not made anew
    /// when it ends.
    pub fn over(session: Handle, name: Name, timeout: Duration) -> Self {
        Self::over_session(Session { handle: session, name, is_own: false }, None, timeout)
    }

    fn over_session(session: Session, dialled: Option<Arc<(String, Name)>>, timeout: Duration) -> Self {
        let session = Arc::new(Mutex::new(session));
        Self { dialled, session, schemas: Arc::default(), recent: Arc::default(), timeout }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name the manager assigned to this tool.
    pub fn name(&self) -> Name {
        self.session().name.clone()
    }

    /// The default time of requests.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Leaves; requests under way end as `peer_lost`.
    pub fn close(&self) {
        self.handle().goodbye("done");
    }

    pub(crate) fn handle(&self) -> Handle {
        self.session().handle.clone()
    }

    pub(crate) fn schemas(&self) -> MutexGuard<'_, schemas::Kept> {
        self.schemas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects anew if the connection is gone. Does nothing for a session that was given.
    ///
    /// # Errors
    ///
    /// [`ConnectFailure`].
    pub async fn reconnect(&self) -> Result<(), ConnectFailure> {
        if let Some(dialled) = self.dialled.as_deref().filter(|_| self.handle().is_closed()) {
            let (handle, name) = open(&dialled.0, &dialled.1, self.timeout).await?;
            *self.session() = Session { handle, name, is_own: true };
        }
        Ok(())
    }

    /// Asks the manager itself.
    pub(crate) async fn ask<Q: Serialize, R: DeserializeOwned>(
        &self,
        command: &str,
        request: &Q,
    ) -> Result<R, AskError> {
        self.handle().ask(Address::Manager, command, Encoding::Json, request, self.timeout).await
    }

    /// Asks the manager for a list of any length: it comes in pieces, the last one as the reply. Each may take the default time.
    pub(crate) async fn ask_list<Q: Serialize, T: DeserializeOwned>(
        &self,
        command: &str,
        request: &Q,
    ) -> Result<Vec<T>, AskError> {
        let late = |_| AskError::Ended { outcome: Outcome::TimedOut, text: "the list stopped coming".into() };
        let mut head = RequestHead::new(Terms::new(Address::Manager, command));
        head.remaining_ms = NO_DEADLINE;
        let mut pieces = self.handle().stream(head, encode(Encoding::Json, request), PIECES_WAITING);
        let mut text = Vec::new();
        while let Some(piece) = tokio::time::timeout(self.timeout, pieces.next()).await.map_err(late)? {
            text.extend_from_slice(&piece);
        }
        let answer = tokio::time::timeout(self.timeout, pieces.end()).await.map_err(late)?;
        match answer.outcome {
            Outcome::Reply => {
                text.extend_from_slice(&answer.body);
                Ok(decode("the list", answer.encoding, &text)?)
            }
            outcome => Err(AskError::Ended { outcome, text: answer.text() }),
        }
    }
}

async fn open(manager: &str, wished: &Name, timeout: Duration) -> Result<(Handle, Name), ConnectFailure> {
    let until = tokio::time::Instant::now() + timeout;
    let stream = dial(manager, timeout)
        .await
        .map_err(|error| ConnectFailure::Unreachable { manager: manager.to_owned(), error })?;
    let hello = Hello {
        versions: SPOKEN,
        software: format!("quilt-client {}", env!("CARGO_PKG_VERSION")),
        fleet: None,
        identity: Identity::Tool(wished.clone()),
        features: Vec::new(),
        extensions: BTreeMap::from([(PERSON.to_owned(), person().into_bytes())]),
    };
    let late = |_| ConnectFailure::Late { manager: manager.to_owned(), time: timeout };
    let greeted = tokio::time::timeout_at(until, quilt_net::connect(stream, hello, Arc::new(NoService)));
    let greeted = greeted.await.map_err(late)?;
    let (handle, welcome) = greeted.map_err(|error| ConnectFailure::Declined { manager: manager.to_owned(), error })?;
    Ok((handle, welcome.assigned.unwrap_or_else(|| wished.clone())))
}

/// Who runs this tool, for the histories that the manager keeps.
fn person() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    let user = user.map_or_else(|| nix::unistd::getuid().to_string(), |user| user.name);
    let host = hostname::get().map(|host| host.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{user}@{host}")
}
