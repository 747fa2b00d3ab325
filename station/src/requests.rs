//! What the manager, and tools through it, ask of a station.

mod calls;
mod log_streams;
mod logs;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use quilt_core::disk;
use quilt_net::{BoxFuture, Inbound, NoService, Responder, Service, done};
use quilt_protocol::control::{
    Action, AllowPlugin, Control, Controlled, Discover, Plan, PurgeFolders, UpdateConfiguration, command,
};
use quilt_protocol::dedupe::Dedupe;
use quilt_protocol::message::Refusal;
use quilt_protocol::session::Closed;
use quilt_protocol::{Address, Digest, Hello, Outcome, Welcome};
use smol_str::SmolStr;

use crate::board::Board;
use crate::commands::Commands;
use crate::folders;
use crate::identity;
use crate::instance::Surroundings;
use crate::listing;
use crate::plugins::Catalog;
use crate::push::Push;
use crate::role_table::RoleTable;
use crate::session::Link;
use crate::spec::Key;
use crate::supervisor;

pub(crate) use self::log_streams::LogStreams;

/// Answers requests.
pub(crate) struct Requests {
    pub(crate) roles: Arc<RoleTable>,
    pub(crate) commands: Arc<Commands>,
    pub(crate) push: Arc<Push>,
    pub(crate) supervisor: supervisor::Handle,
    pub(crate) board: Arc<Board>,
    pub(crate) folder: PathBuf,
    pub(crate) dedupe: Arc<Mutex<Dedupe<Responder>>>,
    pub(crate) link: Arc<Link>,
    pub(crate) identity_folder: PathBuf,
    pub(crate) plugins: Arc<Catalog>,
    pub(crate) log_streams: Arc<LogStreams>,
}

impl Service for Requests {
    fn hello(&self, hello: Hello) -> Result<(Welcome, SmolStr), Refusal> {
        NoService.hello(hello)
    }

    fn closed(&self, _: &Closed) {}

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        match &inbound.head.terms.to {
            Address::Instance { role, instance, .. } if inbound.head.terms.command != command::LOGS => {
                let key = Key { role: role.clone(), instance: instance.clone() };
                self.call(&key, inbound)
            }
            _ => in_a_task(self.work(inbound)),
        }
    }
}

impl Requests {
    fn work(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        match inbound.head.terms.command.as_str() {
            command::UPDATE_CONFIGURATION => {
                let push = self.push.clone();
                inbound.answer(move |update: UpdateConfiguration<'static>| async move {
                    push.update(update).await.map_err(|text| (Outcome::Refused, text))
                })
            }
            command::PLAN => {
                let push = self.push.clone();
                inbound.answer(move |plan: Plan| async move { Ok(push.plan(&plan.document).await) })
            }
            command::ADOPT => {
                let push = self.push.clone();
                inbound.answer(move |(): ()| async move { Ok(push.document().await) })
            }
            command::CONTROL => {
                let (supervisor, board) = (self.supervisor.clone(), self.board.clone());
                inbound.answer(move |Control { role, instance, action }: Control| async move {
                    let (key, refused) = (Key { role, instance }, |text| (Outcome::Refused, text));
                    supervisor.operate(key.clone(), action).await.map_err(refused)?;
                    let dependants = match action {
                        Action::Stop => supervisor.running_dependants(&key),
                        Action::Start | Action::Restart => Vec::new(),
                    };
                    let dependants = dependants.into_iter().map(|key| (key.role, key.instance)).collect();
                    Ok(Controlled { report: board.get(&key), dependants })
                })
            }
            command::ROLES => {
                let roles = self.roles.clone();
                inbound.answer(move |ask: Discover| aside(move || listing::roles(&roles, &ask)))
            }
            command::COMMANDS => {
                let (commands, roles) = (self.commands.clone(), self.roles.clone());
                inbound.answer(move |ask: Discover| aside(move || listing::commands(&commands, &roles, &ask)))
            }
            command::SCHEMAS => {
                let (commands, roles) = (self.commands.clone(), self.roles.clone());
                inbound.answer(move |wanted: Vec<Digest>| aside(move || listing::schemas(&commands, &roles, &wanted)))
            }
            command::LOGS => self.logs(inbound),
            command::PLUGINS => {
                let plugins = self.plugins.clone();
                inbound.answer(move |_: serde_json::Value| async move { Ok(plugins.views().await) })
            }
            command::RELOAD_PLUGINS => {
                let plugins = self.plugins.clone();
                inbound.answer(move |_: serde_json::Value| async move {
                    plugins.reload().await;
                    Ok(plugins.views().await)
                })
            }
            command::ALLOW_PLUGIN => {
                let plugins = self.plugins.clone();
                inbound.answer(move |AllowPlugin { plugin }: AllowPlugin| async move {
                    plugins.allow(&plugin).await.map_err(|text| (Outcome::Refused, text))?;
                    Ok(plugins.views().await)
                })
            }
            command::FOLDERS => {
                let (push, board, folder) = (self.push.clone(), self.board.clone(), self.folder.clone());
                inbound.answer(move |_: serde_json::Value| async move {
                    let configured = push.configured().await.1;
                    let is_used = move |key: &Key| configured.contains(key) || board.get(key).is_some();
                    Ok(disk::run(move || folders::list(&folder, is_used)).await)
                })
            }
            command::PURGE_FOLDERS => {
                let around = self.around();
                let push = self.push.clone();
                inbound.answer(move |PurgeFolders { instances }: PurgeFolders| async move {
                    let keys = instances.into_iter().map(|(role, instance)| Key { role, instance }).collect();
                    push.purge(&around, keys).await.map_err(|text| (Outcome::Refused, text))
                })
            }
            command::RENEW => {
                let Inbound { head, responder, .. } = inbound;
                let (folder, link) = (self.identity_folder.clone(), self.link.clone());
                Box::pin(async move {
                    match disk::run(move || identity::renew(&folder)).await {
                        Ok(id) => {
                            // Answered first: taking the new identity ends this session.
                            responder.reply(head.terms.encoding, &id.to_string());
                            link.renew(id);
                        }
                        Err(error) => responder.fail(Outcome::Refused, &format!("{error:#}")),
                    }
                })
            }
            other => {
                inbound.responder.fail(Outcome::NoCommand, &format!("a station has no command {other:?}"));
                done()
            }
        }
    }
}

/// Has something made that takes long, on a thread where it keeps nobody waiting: sessions and their heartbeats go on meanwhile.
async fn aside<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Result<T, (Outcome, String)> {
    tokio::task::spawn_blocking(make).await.map_err(|error| (Outcome::Panicked, error.to_string()))
}

impl Requests {
    pub(crate) fn around(&self) -> Surroundings {
        Surroundings {
            folder: self.folder.clone(),
            roles: self.roles.clone(),
            board: self.board.clone(),
            commands: self.commands.clone(),
            link: self.link.clone(),
        }
    }
}

/// Not on the connection's own task, which must go on reading and beating while a role or the disk takes its time: what is
/// not ready at once is given a task.
fn in_a_task(work: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        tokio::task::yield_now().await;
        work.await;
    })
}
