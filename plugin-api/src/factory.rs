//! From typed roles to what a station handles: names, bytes and futures.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::RwLock;

use crate::body;
use crate::command::CommandRecord;
use crate::config::{self, Reading};
use crate::error::{Invalid, RoleError};
use crate::group::{CommandGroup, Shared};
use crate::role::{Role, Work};
use crate::{BoxFuture, RoleContext};

/// What a station knows of a role without running it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RoleDescription {
    /// Its name in the fleet file.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is for.
    pub doc: String,
    /// How many instances a station may run; 0 for any number.
    pub instances: u32,
    /// JSON Schema of an instance's configuration.
    pub config_schema: serde_json::Value,
    /// Its commands.
    pub commands: Vec<CommandRecord>,
}

/// Makes instances of one role. Configurations are JSON documents.
pub trait RoleFactory: Send + Sync + 'static {
    /// What there is to know about the role.
    fn description(&self) -> &RoleDescription;
    /// The role's name.
    fn name(&self) -> &str {
        &self.description().name
    }
    /// Checks a configuration and changes nothing.
    ///
    /// # Errors
    ///
    /// [`RoleError::Rejected`] with all that is wrong with it. Any other error is no verdict: it could not be judged.
    fn validate(&self, config: &[u8]) -> BoxFuture<'static, Result<(), RoleError>>;
    /// What the host itself lacks now to start an instance, such as a process for the plugin. The role has no part in that.
    fn lacks(&self) -> BoxFuture<'static, Option<String>> {
        Box::pin(async { None })
    }
    /// Starts an instance. Its commands are callable when this is ready.
    fn start(&self, config: &[u8], cx: RoleContext) -> BoxFuture<'static, Result<Box<dyn Instance>, RoleError>>;
    /// [`Role::abandon`].
    fn abandon(&self, cx: RoleContext) -> BoxFuture<'static, ()>;
    /// [`Role::survives`]. The C contract has no such call, so loaded roles always wait for their needs.
    fn survives(&self, _cx: RoleContext) -> BoxFuture<'static, bool> {
        Box::pin(async { false })
    }
}

/// A started instance.
pub trait Instance: Send + Sync + 'static {
    /// [`Role::update`]; waits for running `&mut self` commands, so cancel them first.
    fn update(&mut self, config: &[u8]) -> BoxFuture<'_, Result<(), RoleError>>;
    /// [`Role::run`].
    fn run(&mut self) -> BoxFuture<'_, Option<Work>>;
    /// Makes its commands not callable, then [`Role::stop`].
    fn stop(self: Box<Self>) -> BoxFuture<'static, ()>;
    /// Makes its commands not callable, then [`Role::detach`].
    fn detach(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// A role that was linked in; collected by `inventory`. A crate that is linked only for its registration needs
/// `use its_name as _;` somewhere, or the linker drops it.
pub struct StaticRole(pub fn() -> Arc<dyn RoleFactory>);

inventory::collect!(StaticRole);

/// The factories of all roles linked into this program, in name order.
pub fn linked_roles() -> Vec<Arc<dyn RoleFactory>> {
    let mut roles: Vec<_> = inventory::iter::<StaticRole>().map(|role| (role.0)()).collect();
    roles.sort_by(|a, b| a.name().cmp(b.name()));
    roles
}

/// The factory of a typed role.
pub fn factory<R: Role>() -> Arc<dyn RoleFactory> {
    let description = RoleDescription {
        name: R::NAME.into(),
        version: R::VERSION.into(),
        doc: R::DOC.into(),
        instances: R::INSTANCES,
        config_schema: Arc::unwrap_or_clone(body::schema_of::<R::Config>()),
        commands: R::commands().iter().map(|command| command.record()).collect(),
    };
    Arc::new(Factory::<R>(description, PhantomData))
}

struct Factory<R>(RoleDescription, PhantomData<fn() -> R>);

/// Reads a configuration as far as it can be read, and finds all that is wrong with it.
fn read_config<R: Role>(config: &[u8]) -> (Option<R::Config>, Vec<Invalid>) {
    let document = match serde_json::from_slice(config) {
        Ok(document) => document,
        Err(error) => {
            let at = format!("something else at line {}, column {}", error.line(), error.column());
            return (None, vec![Invalid { key: None, expected: "JSON".into(), got: at }]);
        }
    };
    let Reading { value, wrong } = config::read(&document, Some(&body::schema_of::<R::Config>()));
    (value, wrong.into_iter().map(|wrong| wrong.invalid).collect())
}

/// Reads a whole configuration; any mistake is an error.
fn whole_config<R: Role>(config: &[u8]) -> Result<R::Config, RoleError> {
    match read_config::<R>(config) {
        (Some(config), wrong) if wrong.is_empty() => Ok(config),
        (_, wrong) => Err(RoleError::Rejected(wrong)),
    }
}

/// Of what a role found in a configuration without its wrong parts, what is not about these parts.
fn beside(wrong: &[Invalid], found: Vec<Invalid>) -> Vec<Invalid> {
    let is_within = |key: &str, whole: &str| {
        key.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let is_news = |key: &str| {
        let mut left_out = wrong.iter().filter_map(|wrong| wrong.key.as_deref());
        !left_out.any(|left_out| is_within(key, left_out) || is_within(left_out, key))
    };
    found.into_iter().filter(|found| found.key.as_deref().is_some_and(is_news)).collect()
}

impl<R: Role> RoleFactory for Factory<R> {
    fn description(&self) -> &RoleDescription {
        &self.0
    }

    fn validate(&self, config: &[u8]) -> BoxFuture<'static, Result<(), RoleError>> {
        let config = config.to_vec();
        Box::pin(async move {
            let (config, mut wrong) = read_config::<R>(&config);
            let judged = config.map_or(Ok(()), |config| R::validate(&config));
            let found = judged.err().map_or_else(Vec::new, |error| match error {
                RoleError::Rejected(invalid) => invalid,
                // The role has answered.
                other => vec![Invalid::whole(other.to_string())],
            });
            match wrong.is_empty() {
                true => wrong = found,
                false => wrong.extend(beside(&wrong, found)),
            }
            RoleError::unless_empty(wrong)
        })
    }

    fn abandon(&self, cx: RoleContext) -> BoxFuture<'static, ()> {
        Box::pin(async move { R::abandon(&cx).await })
    }

    fn survives(&self, cx: RoleContext) -> BoxFuture<'static, bool> {
        Box::pin(async move { R::survives(&cx).await })
    }

    fn start(&self, config: &[u8], cx: RoleContext) -> BoxFuture<'static, Result<Box<dyn Instance>, RoleError>> {
        let config = whole_config::<R>(config);
        Box::pin(async move {
            let mut role = R::start(config?, &cx).await?;
            // Before a command can have the role to itself.
            let work = role.run(&cx);
            let role: Shared<R> = Arc::new(RwLock::new(Some(role)));
            let mut groups = BTreeMap::<String, CommandGroup>::new();
            for command in R::commands() {
                let record = command.record();
                let group = groups.entry(record.group.clone());
                let group = group.or_insert_with(|| CommandGroup::new(record.group.clone(), &cx));
                group.add(record, command.into_handler(role.clone()));
            }
            groups.values().for_each(CommandGroup::register);
            Ok(Box::new(Running { role, work: Mutex::new(work), groups, cx }) as Box<dyn Instance>)
        })
    }
}

struct Running<R> {
    role: Shared<R>,
    /// Its own work, until it is begun.
    work: Mutex<Option<Work>>,
    groups: BTreeMap<String, CommandGroup>,
    cx: RoleContext,
}

impl<R: Role> Instance for Running<R> {
    fn update(&mut self, config: &[u8]) -> BoxFuture<'_, Result<(), RoleError>> {
        let config = whole_config::<R>(config);
        Box::pin(async move {
            let config = config?;
            let mut role = self.role.write().await;
            role.as_mut().expect("the role is taken only by stop").update(config, &self.cx).await
        })
    }

    fn run(&mut self) -> BoxFuture<'_, Option<Work>> {
        let work = self.work.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async move { work })
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Some(role) = self.take().await {
                role.stop(&self.cx).await;
            }
        })
    }

    fn detach(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Some(role) = self.take().await {
                role.detach(&self.cx).await;
            }
        })
    }
}

impl<R> Running<R> {
    /// Whoever still has a handler finds the place empty.
    async fn take(&self) -> Option<R> {
        self.groups.values().for_each(CommandGroup::de_register);
        self.role.write().await.take()
    }
}
