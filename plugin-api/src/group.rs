//! Groups of commands: named, registered and de-registered together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::RwLock;

use crate::command::{self, Call, Command, CommandRecord, Ended, Handler, Items, Streaming};
use crate::{BoxFuture, LogLevel, RoleContext};

/// A role behind the lock that keeps its commands apart: `&mut self` ones run alone, `&self` ones beside each other.
/// Empty once the role has stopped.
pub type Shared<R> = Arc<RwLock<Option<R>>>;

/// Commands known only at run time, under one descriptive name.
///
/// What `#[command]` writes is a group too; use this directly for commands that depend on configuration or hardware.
/// Responders can be added and removed at any time; while the group is registered, that takes effect at once. Nothing
/// is left behind when it is dropped.
///
/// ```no_run
/// # use quilt_plugin_api::{Command, CommandGroup, NoError, RoleContext};
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, JsonSchema, Command)]
/// # #[command(group = "Lamps", reply = bool)]
/// # struct Switch { on: bool }
/// # fn start(cx: &RoleContext) {
/// let lamps = CommandGroup::new(Switch::GROUP, cx);
/// lamps.responder(|request: Switch| async move { Ok::<_, NoError>(request.on) });
/// lamps.register(); // callable from here on
/// lamps.de_register(); // and from here on not
/// lamps.remove_responder::<Switch>(); // and cannot come back by accident
/// # }
/// ```
pub struct CommandGroup {
    name: String,
    cx: RoleContext,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    registered: bool,
    responders: BTreeMap<String, Responder>,
}

struct Responder {
    record: CommandRecord,
    handler: Handler,
    /// It is callable. Not so while another group of the same name offers a command of that name.
    callable: bool,
}

impl CommandGroup {
    /// A group without commands, not registered. Another group of the same name is not touched; the one that registers
    /// a command first keeps it.
    pub fn new(name: impl Into<String>, cx: &RoleContext) -> Self {
        Self { name: name.into(), cx: cx.clone(), state: Mutex::default() }
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Remembers who answers `C`; replaces an earlier responder for it.
    pub fn responder<C, F>(&self, responder: impl Fn(C) -> F + Send + Sync + 'static)
    where
        C: Command,
        F: Future<Output = Result<C::Reply, C::Error>> + Send + 'static,
    {
        let responder = Arc::new(responder);
        let handler: Handler = Arc::new(move |call| {
            let responder = responder.clone();
            Box::pin(command::carry_out(call, move |request| responder(request)))
        });
        self.add(CommandRecord::of::<C>("", false, false), handler);
    }

    pub(crate) fn add(&self, mut record: CommandRecord, handler: Handler) {
        record.group.clone_from(&self.name);
        let mut state = self.state();
        if let Some(mut earlier) = state.responders.remove(&record.name) {
            self.withdraw(&mut earlier);
        }
        let mut responder = Responder { record, handler, callable: false };
        if state.registered {
            self.offer(&mut responder);
        }
        state.responders.insert(responder.record.name.clone(), responder);
    }

    fn offer(&self, responder: &mut Responder) {
        if !responder.callable {
            responder.callable = self.cx.register_command(responder.record.clone(), responder.handler.clone());
            if !responder.callable {
                let (group, name) = (&self.name, &responder.record.name);
                let why = "the instance offers one of that group and name already, or too many";
                self.cx.log(LogLevel::Warn, format!("command `{name}` of group {group:?} is not offered: {why}"));
            }
        }
    }

    /// Takes back what this group offers, never what another of the same name does.
    fn withdraw(&self, responder: &mut Responder) {
        if std::mem::take(&mut responder.callable) {
            self.cx.de_register_command(&self.name, &responder.record.name);
        }
    }

    /// Forgets who answers `C`. Answers whether there was a responder.
    pub fn remove_responder<C: Command>(&self) -> bool {
        let mut state = self.state();
        let removed = state.responders.remove(C::NAME);
        removed.map(|mut responder| self.withdraw(&mut responder)).is_some()
    }

    /// Makes the group's commands callable. Again is without effect.
    pub fn register(&self) {
        let mut state = self.state();
        state.registered = true;
        state.responders.values_mut().for_each(|responder| self.offer(responder));
    }

    /// Makes them not callable; they stay remembered. Again is without effect.
    pub fn de_register(&self) {
        let mut state = self.state();
        state.registered = false;
        state.responders.values_mut().for_each(|responder| self.withdraw(responder));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CommandGroup {
    fn drop(&mut self) {
        self.de_register();
    }
}

/// A command under way.
pub type Answering<'a, C> = BoxFuture<'a, Result<<C as Command>::Reply, <C as Command>::Error>>;
/// A streaming command's method.
pub type StreamMethod<R, C> = fn(&R, C, Items<<C as Command>::Reply>) -> Streaming<<C as Command>::Error>;

/// A command of a role, as `#[command]` writes it down.
pub struct RoleCommand<R> {
    record: fn(&str, bool, bool) -> CommandRecord,
    doc: &'static str,
    read: bool,
    streaming: bool,
    inline: bool,
    #[allow(clippy::type_complexity, reason = "one use; a name would hide that it makes a handler for a role")]
    handler: Box<dyn FnOnce(Shared<R>) -> Handler + Send>,
}

fn stopped() -> Ended {
    Ended::Refused("the instance is stopping".into())
}

impl<R: Send + Sync + 'static> RoleCommand<R> {
    /// A `&mut self` command: it runs alone.
    pub fn alone<C: Command>(
        doc: &'static str,
        read: bool,
        method: for<'a> fn(&'a mut R, C) -> Answering<'a, C>,
    ) -> Self {
        Self::new::<C>(doc, read, false, move |role: Shared<R>, call: Call| {
            Box::pin(async move {
                let mut role = role.write_owned().await;
                let Some(role) = role.as_mut() else { return stopped() };
                command::carry_out(call, |request| method(role, request)).await
            })
        })
    }

    /// A `&self` command: it runs beside others of its kind.
    pub fn beside<C: Command>(doc: &'static str, read: bool, method: for<'a> fn(&'a R, C) -> Answering<'a, C>) -> Self {
        Self::new::<C>(doc, read, false, move |role: Shared<R>, call: Call| {
            Box::pin(async move {
                // Mostly nobody changes it now, and there is nothing to wait for.
                let role = match role.try_read() {
                    Ok(role) => role,
                    Err(_) => role.read().await,
                };
                let Some(role) = role.as_ref() else { return stopped() };
                command::carry_out(call, |request| method(role, request)).await
            })
        })
    }

    /// A streaming command: it holds the role only while it begins.
    pub fn stream<C: Command>(doc: &'static str, read: bool, method: StreamMethod<R, C>) -> Self {
        Self::new::<C>(doc, read, true, move |role: Shared<R>, call: Call| {
            Box::pin(async move {
                let Call { encoding, body, items } = call;
                let Some(items) = items else {
                    return Ended::Refused("this command answers with a stream; ask for one".into());
                };
                let streaming = match crate::body::decode::<C>(encoding, &body) {
                    Err(error) => return Ended::SchemaMismatch(error),
                    Ok(request) => match role.read().await.as_ref() {
                        None => return stopped(),
                        Some(role) => method(role, request, Items::new(items, encoding)),
                    },
                };
                command::encoded(encoding, streaming.await)
            })
        })
    }

    fn new<C: Command>(
        doc: &'static str,
        read: bool,
        streaming: bool,
        work: impl Fn(Shared<R>, Call) -> BoxFuture<'static, Ended> + Send + Sync + 'static,
    ) -> Self {
        let handler = Box::new(|role: Shared<R>| -> Handler { Arc::new(move |call| work(role.clone(), call)) });
        Self { record: CommandRecord::of::<C>, doc, read, streaming, inline: false, handler }
    }

    /// Of a loaded role: runs where it arrives instead of on the plugin's own threads. For what takes microseconds.
    pub fn inline(mut self) -> Self {
        self.inline = true;
        self
    }

    /// What discovery knows of it.
    pub fn record(&self) -> CommandRecord {
        CommandRecord { inline: self.inline, ..(self.record)(self.doc, self.read, self.streaming) }
    }

    pub(crate) fn into_handler(self, role: Shared<R>) -> Handler {
        (self.handler)(role)
    }
}
