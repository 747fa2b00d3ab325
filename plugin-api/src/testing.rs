//! A station in miniature, to test a role without one.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::body::{self, Encoding, JSON_ONLY};
use crate::command::{Call, Command, CommandRecord, Ended, Handler, RawItems};
use crate::context::{CallAnswer, Host, LogLevel, Place, Report, RoleContext};
use crate::factory::{Instance, RoleFactory, factory};
use crate::{BoxFuture, Role, RoleError};

/// Hosts one instance of a role on the test's own tokio runtime.
pub struct Harness {
    host: Arc<TestHost>,
    instance: Option<Box<dyn Instance>>,
}

#[derive(Default)]
struct TestHost {
    seen: Mutex<Seen>,
}

/// What a role did to its host.
#[derive(Default, Clone)]
pub struct Seen {
    /// Log lines.
    pub logs: Vec<String>,
    /// Reports, oldest first.
    pub reports: Vec<Report>,
    /// Published attributes.
    pub attributes: BTreeMap<String, String>,
    /// Emitted events.
    pub events: Vec<(String, String)>,
    commands: BTreeMap<(String, String), Handler>,
}

impl TestHost {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[allow(clippy::disallowed_methods, reason = "the harness is the host, and the host is who may spawn")]
impl Host for TestHost {
    fn spawn(&self, work: BoxFuture<'static, ()>) {
        tokio::spawn(work);
    }
    fn blocking(&self, work: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(work);
    }
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
    fn stop_timeout(&self) -> Duration {
        Duration::from_secs(10)
    }
    fn log(&self, _: LogLevel, text: &str) {
        self.seen().logs.push(text.into());
    }
    fn report(&self, report: Report) {
        self.seen().reports.push(report);
    }
    fn attribute(&self, name: &str, json: Option<String>) {
        match json {
            Some(json) => self.seen().attributes.insert(name.into(), json),
            None => self.seen().attributes.remove(name),
        };
    }
    fn emit(&self, topic: &str, json: String) {
        self.seen().events.push((topic.into(), json));
    }
    fn register(&self, record: CommandRecord, handler: Handler) -> bool {
        // As a station does: the first that registers a name keeps it.
        match self.seen().commands.entry((record.group, record.name)) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(handler);
                true
            }
        }
    }
    fn de_register(&self, group: &str, name: &str) {
        self.seen().commands.remove(&(group.into(), name.into()));
    }
    fn call(&self, _: String, _: String, _: Bytes, _: Duration) -> BoxFuture<'static, CallAnswer> {
        Box::pin(async { CallAnswer { outcome: "no_target".into(), body: Bytes::new() } })
    }
}

/// How a call through the harness ended.
#[derive(Debug, PartialEq)]
pub enum Outcome<R, E> {
    /// The reply.
    Reply(R),
    /// The command's own error.
    Error(E),
    /// Not callable now.
    NoCommand,
    /// Anything else, for people.
    Other(String),
}

impl Harness {
    /// Starts an instance of `R` with a configuration in JSON; its files go below `folder`.
    ///
    /// # Errors
    ///
    /// What `validate` or `start` answers.
    pub async fn start<R: Role>(config: serde_json::Value, folder: &Path) -> Result<Self, RoleError> {
        Self::start_one_of(&*factory::<R>(), config, folder).await
    }

    /// The same for a role that is known by what makes it.
    ///
    /// # Errors
    ///
    /// What `validate` or `start` answers.
    pub async fn start_one_of(
        factory: &dyn RoleFactory,
        config: serde_json::Value,
        folder: &Path,
    ) -> Result<Self, RoleError> {
        let host = Arc::new(TestHost::default());
        let place = Place {
            role: factory.name().into(),
            instance: "test".into(),
            state_dir: folder.join("state"),
            log_dir: folder.join("log"),
            resuming: false,
        };
        // As a station does; the folder of the log comes with its first line.
        let made = std::fs::create_dir_all(&place.state_dir);
        made.map_err(|error| RoleError::failed(format!("{}: {error}", place.state_dir.display())))?;
        let cx = RoleContext::new(host.clone(), place);
        let config = config.to_string();
        factory.validate(config.as_bytes()).await?;
        let instance = factory.start(config.as_bytes(), cx).await?;
        Ok(Self { host, instance: Some(instance) })
    }

    /// Updates the instance in place.
    ///
    /// # Errors
    ///
    /// What `update` answers.
    pub async fn update(&mut self, config: serde_json::Value) -> Result<(), RoleError> {
        self.instance.as_mut().expect("stop consumes the harness").update(config.to_string().as_bytes()).await
    }

    /// The instance's own work.
    pub async fn run(&mut self) -> Option<crate::Work> {
        self.instance.as_mut().expect("stop consumes the harness").run().await
    }

    /// Calls a command as a Rust tool does.
    pub async fn call<C: Command>(&self, request: C) -> Outcome<C::Reply, C::Error> {
        let handler = self.host.seen().commands.get(&(C::GROUP.into(), C::NAME.into())).cloned();
        let Some(handler) = handler else { return Outcome::NoCommand };
        let encoding = if C::fingerprint() == JSON_ONLY { Encoding::Json } else { Encoding::Bincode };
        let body = match body::encode(encoding, &request) {
            Ok(body) => body,
            Err(error) => return Outcome::Other(error),
        };
        match handler(Call { encoding, body, items: None }).await {
            Ended::Reply(body) => body::decode(encoding, &body).map_or_else(Outcome::Other, Outcome::Reply),
            Ended::Error(body) => body::decode_error(encoding, &body).map_or_else(Outcome::Other, Outcome::Error),
            Ended::SchemaMismatch(text) | Ended::Refused(text) | Ended::Overloaded(text) | Ended::Lost(text) => {
                Outcome::Other(text)
            }
            Ended::TimedOut => Outcome::Other("it took too long".into()),
        }
    }

    /// The commands that are callable now, as group and name.
    pub fn commands(&self) -> Vec<(String, String)> {
        self.host.seen().commands.keys().cloned().collect()
    }

    /// Calls a command as `quiltctl` does, with a body of JSON text.
    pub async fn call_json(&self, group: &str, name: &str, body: &str) -> Outcome<String, String> {
        let handler = self.host.seen().commands.get(&(group.into(), name.into())).cloned();
        let Some(handler) = handler else { return Outcome::NoCommand };
        let items = Some(Box::new(Gather(Arc::default(), 1)) as Box<dyn RawItems>);
        let text = |body: Bytes| String::from_utf8_lossy(&body).into_owned();
        match handler(Call { encoding: Encoding::Json, body: Bytes::copy_from_slice(body.as_bytes()), items }).await {
            Ended::Reply(body) => Outcome::Reply(text(body)),
            Ended::Error(body) => Outcome::Error(text(Bytes::copy_from_slice(body::split_error(&body).0))),
            Ended::SchemaMismatch(text) | Ended::Refused(text) | Ended::Overloaded(text) | Ended::Lost(text) => {
                Outcome::Other(text)
            }
            Ended::TimedOut => Outcome::Other("it took too long".into()),
        }
    }

    /// Calls a streaming command and gathers what it sends, at most `limit` items.
    pub async fn items<C: Command>(&self, request: C, limit: usize) -> Vec<C::Reply> {
        let handler = self.host.seen().commands.get(&(C::GROUP.into(), C::NAME.into())).cloned();
        let Some(handler) = handler else { return Vec::new() };
        let gathered = Arc::new(Mutex::new(Vec::new()));
        let items = Some(Box::new(Gather(gathered.clone(), limit)) as Box<dyn RawItems>);
        let body = body::encode(Encoding::Json, &request).expect("requests encode as JSON");
        handler(Call { encoding: Encoding::Json, body, items }).await;
        let gathered = gathered.lock().unwrap_or_else(PoisonError::into_inner);
        gathered.iter().map(|item| body::decode(Encoding::Json, item).expect("an item is its own type")).collect()
    }

    /// What the role did to its host so far.
    pub fn seen(&self) -> Seen {
        self.host.seen().clone()
    }

    /// Stops the instance and gives what it did.
    pub async fn stop(mut self) -> Seen {
        self.instance.take().expect("taken only here").stop().await;
        self.seen()
    }
}

struct Gather(Arc<Mutex<Vec<Bytes>>>, usize);

impl RawItems for Gather {
    fn send(&mut self, item: Bytes) -> BoxFuture<'_, bool> {
        let mut gathered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gathered.push(item);
        let more = gathered.len() < self.1;
        Box::pin(async move { more })
    }
}
