//! What the manager, and tools through it, ask of a station.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quilt_core::{lines, time};
use quilt_net::{BoxFuture, Inbound, ItemSink, NoService, Responder, Service, done};
use quilt_plugin_api as api;
use quilt_protocol::control::{
    ASK_FOR_STREAM, AllowPlugin, Control, Discover, LogLine, Logs, Plan, PurgeFolders, UpdateConfiguration, command,
};
use quilt_protocol::dedupe::{Dedupe, Seen, WAITING_MAX};
use quilt_protocol::message::{Delivered, Refusal};
use quilt_protocol::session::Closed;
use quilt_protocol::{Address, Digest, Encoding, Hello, Outcome, RequestHead, Welcome};
use smol_str::SmolStr;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::board::Board;
use crate::catch::{PANICKED, catch, catch_now};
use crate::commands::{Commands, Found, NoHandler, Offer};
use crate::folders;
use crate::identity;
use crate::instance::{self, Surroundings};
use crate::listing;
use crate::plan::RoleTable;
use crate::plugins::Catalog;
use crate::push::Push;
use crate::session::Link;
use crate::spec::Key;
use crate::supervisor;

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
                    Ok(board.get(&key))
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
                    aside(move || folders::list(&folder, is_used)).await
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
                match identity::renew(&self.identity_folder) {
                    Ok(id) => {
                        // Answered first: taking the new identity ends this session.
                        responder.reply(head.terms.encoding, &id.to_string());
                        self.link.renew(id);
                    }
                    Err(error) => responder.fail(Outcome::Refused, &format!("{error:#}")),
                }
                done()
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
    fn around(&self) -> Surroundings {
        Surroundings {
            folder: self.folder.clone(),
            roles: self.roles.clone(),
            board: self.board.clone(),
            commands: self.commands.clone(),
            link: self.link.clone(),
        }
    }

    /// Streams the log of an instance, or as `plugin/NAME` what a plugin's process prints. One who follows is told when the
    /// instance is removed.
    fn logs(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        let (folder, board, plugins) = (self.folder.clone(), self.board.clone(), self.plugins.clone());
        let mut items = inbound.responder.items();
        let streaming = inbound.head.terms.credit > 0;
        inbound.answer(move |Logs { role, instance, lines, follow }: Logs| async move {
            let key = Key { role, instance };
            let mut log = instance::log_dir(&folder, &key);
            let mut changes = board.subscribe();
            let printed = plugins.printed_by(key.instance.as_str());
            let of_plugin = key.role == *"plugin" && !log.exists() && printed.exists();
            if of_plugin {
                log = printed;
            }
            let is_there = || of_plugin || board.get(&key).is_some();
            let was_there = is_there();
            if !was_there && !log.exists() {
                return Err((Outcome::NoTarget, format!("this station has no instance {key}")));
            }
            if !streaming {
                return Err((Outcome::Refused, "logs are a stream; ask for one".into()));
            }
            let failed = |error: std::io::Error| (Outcome::Refused, error.to_string());
            let removed = async { while changes.changed().await.is_ok() && is_there() {} };
            let mut removed = std::pin::pin!(removed);
            // The log of an instance that is gone already does not grow.
            let mut grows = follow && was_there;
            let mut reader = lines::Reader::open(&log, lines as usize).map_err(failed)?;
            loop {
                let mut lines = reader.more().map_err(failed)?;
                if lines.is_empty() && grows {
                    lines = tokio::select! {
                        lines = reader.next() => lines.map_err(failed)?,
                        () = &mut removed => {
                            grows = false;
                            continue;
                        }
                    };
                }
                if lines.is_empty() && follow {
                    let text = format!("{key} is removed from this station; its log ends here");
                    let (at, stream) = (time::now_text(), "quilt".to_owned());
                    let _ = items.send_json(&LogLine { at, stream, text, continues: false, bytes: None }).await;
                }
                if lines.is_empty() {
                    return Ok(());
                }
                for line in lines {
                    let (text, bytes) = (line.text().into_owned(), line.raw().map(<[u8]>::to_vec));
                    let lines::Line { at, stream, continues, .. } = line;
                    if items.send_json(&LogLine { at, stream, text, continues, bytes }).await.is_err() {
                        return Ok(());
                    }
                }
            }
        })
    }

    /// Calls a command of an instance. A retry of a call is not carried out twice.
    fn call(&self, key: &Key, inbound: Inbound) -> BoxFuture<'static, ()> {
        let Inbound { head, body, responder } = inbound;
        // A role may keep what it is asked for as long as it likes.
        let body = body.keep();
        let streaming = head.terms.credit > 0;
        let found = match self.find(key, &head, streaming) {
            Ok(found) => found,
            Err((outcome, text)) => {
                responder.fail(outcome, &text);
                return done();
            }
        };
        if streaming {
            let items = Box::new(Sink(responder.items())) as Box<dyn api::RawItems>;
            let calling = Calling::begin(found, head.terms.encoding, body, Some(items));
            return Box::pin(async move { answer(responder, calling.end().await) });
        }
        if found.offer.record.read {
            // To look twice does no harm.
            return match Calling::begin(found, head.terms.encoding, body, None).now() {
                Ok(ended) => {
                    answer(responder, ended);
                    done()
                }
                Err(calling) => Box::pin(async move { answer(responder, calling.end().await) }),
            };
        }
        // The lock is let go of before anything of a role runs: what answers takes it again.
        let arrived = lock(&self.dedupe).arrived(head.message_id, responder, Instant::now());
        match arrived {
            Seen::Fresh(responder) => self.call_once(found, head, body, responder),
            Seen::Answered(responder, answered) => {
                answer(responder, answered);
                done()
            }
            Seen::Joined => done(),
            Seen::Crowded(responder) => {
                let text = format!("{WAITING_MAX} retries of this request wait for its answer, which is the limit");
                responder.fail(Outcome::Overloaded, &text);
                done()
            }
        }
    }

    /// Carries out what may be asked for again: a caller that lost its connection finds the answer then, so what it began goes
    /// on to its end. One that cancels, or whose time is over, wants it ended.
    fn call_once(&self, found: Found, head: RequestHead, body: Bytes, responder: Responder) -> BoxFuture<'static, ()> {
        let time = Duration::from_millis(head.remaining_ms.into());
        let encoding = head.terms.encoding;
        let guard = Guard { dedupe: self.dedupe.clone(), head };
        let calling = match Calling::begin(found, encoding, body, None).now() {
            Ok(ended) => {
                guard.done(responder, ended);
                return done();
            }
            Err(calling) => calling,
        };
        responder.outlive_connection();
        Box::pin(async move {
            let ended = tokio::time::timeout(time, calling.end()).await;
            guard.done(responder, ended.unwrap_or((Outcome::TimedOut, Encoding::Json, Bytes::new())));
        })
    }

    fn find(&self, key: &Key, head: &RequestHead, streaming: bool) -> Result<Found, (Outcome, String)> {
        let found = self.commands.find(key, &head.terms.command).map_err(|error| match error {
            NoHandler::NoTarget => match self.board.get(key) {
                Some(report) => (Outcome::NoTarget, format!("{key} is {} and takes no commands", report.state)),
                None => (Outcome::NoTarget, format!("this station has no instance {key}")),
            },
            NoHandler::NoCommand => (Outcome::NoCommand, format!("{key} has no command {:?}", head.terms.command)),
            NoHandler::Ambiguous(text) => (Outcome::NoCommand, text),
        })?;
        let agrees =
            head.terms.fingerprint == found.offer.record.fingerprint && head.terms.fingerprint != api::JSON_ONLY;
        if head.terms.encoding == Encoding::Bincode && !agrees {
            let text = "the caller's types are not the role's; send JSON".to_owned();
            return Err((Outcome::SchemaMismatch, text));
        }
        if found.offer.record.streaming != streaming {
            let text = if streaming { "does not answer with a stream" } else { ASK_FOR_STREAM };
            return Err((Outcome::Refused, format!("{:?} {text}", head.terms.command)));
        }
        Ok(found)
    }
}

/// How a call ended, as it is answered.
type Answer = (Outcome, Encoding, Bytes);

fn answer(responder: Responder, (outcome, encoding, body): Answer) {
    responder.respond(outcome, encoding, body);
}

/// A call under way.
struct Calling {
    offer: Arc<Offer>,
    encoding: Encoding,
    /// What the handler is given, until it is.
    call: Option<api::Call>,
    work: Option<api::BoxFuture<'static, api::Ended>>,
    calls: Arc<CancellationToken>,
    _under_way: TaskTrackerToken,
}

impl Calling {
    fn begin(found: Found, encoding: Encoding, body: Bytes, items: Option<Box<dyn api::RawItems>>) -> Self {
        let as_role_sees_it = match encoding {
            Encoding::Json => api::Encoding::Json,
            Encoding::Bincode => api::Encoding::Bincode,
        };
        let Found { offer, calls, under_way } = found;
        let call = Some(api::Call { encoding: as_role_sees_it, body, items });
        Self { offer, encoding, call, work: None, calls, _under_way: under_way }
    }

    /// How it ended, if it may be tried here and ends at once. What does not is tried again by a task of its own.
    fn now(mut self) -> Result<Answer, Self> {
        if !self.offer.inline {
            return Err(self);
        }
        let ended = self.begin_work().and_then(|mut work| {
            let polled = catch_now(|| work.as_mut().poll(&mut Context::from_waker(Waker::noop())));
            self.work = Some(work);
            polled
        });
        match ended {
            Ok(Poll::Pending) => Err(self),
            Ok(Poll::Ready(ended)) => Ok(self.answer(Ok(ended))),
            Err(panic) => Ok(self.answer(Err(panic))),
        }
    }

    /// How it ends. Not on the connection's own task, which must go on while a role takes its time.
    async fn end(mut self) -> Answer {
        if !self.offer.inline {
            tokio::task::yield_now().await;
        }
        let ended = match self.begin_work() {
            Ok(work) => tokio::select! {
                biased;
                ended = catch(work) => ended,
                () = self.calls.cancelled() => {
                    let text = Bytes::from_static(b"the instance was updated or stopped");
                    return (Outcome::Cancelled, Encoding::Json, text);
                }
            },
            Err(panic) => Err(panic),
        };
        self.answer(ended)
    }

    /// The work; what a role does to begin it runs here.
    fn begin_work(&mut self) -> Result<api::BoxFuture<'static, api::Ended>, String> {
        match (self.work.take(), self.call.take()) {
            (Some(work), _) => Ok(work),
            (None, Some(call)) => catch_now(|| (self.offer.handler)(call)),
            (None, None) => unreachable!("a call is begun once and its work is put back"),
        }
    }

    fn answer(&self, ended: Result<api::Ended, String>) -> Answer {
        let text = |outcome: Outcome, text: String| (outcome, Encoding::Json, Bytes::from(text));
        match ended {
            Ok(api::Ended::Reply(body)) => (Outcome::Reply, self.encoding, body),
            Ok(api::Ended::Error(body)) => (Outcome::Error, self.encoding, body),
            Ok(api::Ended::SchemaMismatch(why)) => text(Outcome::SchemaMismatch, why),
            Ok(api::Ended::Refused(why)) => text(Outcome::Refused, why),
            Ok(api::Ended::Overloaded(why)) => text(Outcome::Overloaded, why),
            Ok(api::Ended::Lost(why)) => text(Outcome::PeerLost(Delivered::Unknown), why),
            Ok(api::Ended::TimedOut) => text(Outcome::TimedOut, String::new()),
            Err(panic) => {
                // The outcome says that it panicked; what the instance failed of has to say so itself.
                let message = panic.strip_prefix(PANICKED).unwrap_or(&panic).to_owned();
                let _ = self.offer.crashed.try_send(panic);
                text(Outcome::Panicked, message)
            }
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes sure that a call that was dropped half-way does not stay "under way" for its retries.
struct Guard {
    dedupe: Arc<Mutex<Dedupe<Responder>>>,
    head: RequestHead,
}

impl Guard {
    /// Answers whoever asked, and whoever asked again meanwhile.
    fn done(self, first: Responder, ended: Answer) {
        let carried_out = matches!(ended.0, Outcome::Reply | Outcome::Error | Outcome::Panicked | Outcome::Cancelled);
        let mut dedupe = lock(&self.dedupe);
        let joined = match carried_out {
            true => dedupe.answered(self.head.message_id, ended.clone(), Instant::now()),
            false => dedupe.forget(self.head.message_id),
        };
        drop(dedupe);
        for joined in joined {
            answer(joined, ended.clone());
        }
        answer(first, ended);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // After `done` this finds an answer and leaves it.
        let under_way = lock(&self.dedupe).abandon(self.head.message_id);
        for joined in under_way {
            joined.fail(Outcome::Cancelled, "the first ask of this request was given up");
        }
    }
}

struct Sink(ItemSink);

impl api::RawItems for Sink {
    fn send(&mut self, item: Bytes) -> api::BoxFuture<'_, bool> {
        Box::pin(async move { self.0.send(item).await.is_ok() })
    }
}
