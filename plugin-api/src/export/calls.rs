//! The functions that the station calls. Each ends in exactly one completion, whatever the role does.

use std::any::Any;
use std::ffi::c_void;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quilt_plugin_abi::{self as abi, Buf, Completion, Plugin, Slice};

use super::host::{COMMANDS, Registered, StationHost, StationItems};
use super::state::{Hosted, state};
use super::trace::within;
use crate::bridge::{complete, text, to_buf, to_bytes};
use crate::command::{Call, Ended, RawItems};
use crate::{BoxFuture, Encoding, Invalid, Place, RoleContext, RoleError};

pub(super) static PLUGIN: Plugin = Plugin {
    size: size_of::<Plugin>() as u32,
    minor: abi::MINOR,
    describe: Some(describe),
    validate: Some(validate),
    start: Some(start),
    update: Some(update),
    run: Some(run),
    stop: Some(stop),
    abandon: Some(abandon),
    call: Some(call),
    cancel: Some(cancel),
    extension: Some(extension),
};

/// An inline command that is slower than this on the caller's thread has broken its promise.
const INLINE_MAX: Duration = Duration::from_micros(200);
/// How often it may.
const INLINE_STRIKES: u32 = 3;

type Answer = (u32, Bytes);

/// Tells the station how something ended; if it is dropped, that it was cancelled.
struct Guard(Option<Completion>);

impl Guard {
    fn done(mut self, (status, body): Answer) {
        if let Some(completion) = self.0.take() {
            complete(completion, status, body);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(completion) = self.0.take() {
            complete(completion, abi::CANCELLED, Bytes::new());
        }
    }
}

/// Calls `work`; `Err` with the message if it panics.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(message)
}

/// Runs `work`; `Err` with the message if it panics. The work is dropped in here too, where its panic is caught.
pub(super) async fn catch<T>(work: BoxFuture<'_, T>) -> Result<T, String> {
    let mut work = Some(work);
    let done = poll_fn(|cx| {
        let polled = caught(|| work.as_mut().expect("polled again after it was ready").as_mut().poll(cx));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await;
    match caught(|| drop(work)) {
        Ok(()) => done,
        Err(panic) => done.and(Err(panic)),
    }
}

fn message(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    // A payload's own drop may panic; its memory is not worth that.
    #[allow(clippy::mem_forget, reason = "see above")]
    std::mem::forget(payload);
    text.unwrap_or_else(|| "no message".into())
}

/// Makes a future and runs it on the library's own threads until it ends; every panic on the way is an answer. Gives a
/// handle for `cancel`.
fn begin(instance: u64, done: Completion, make: impl FnOnce() -> BoxFuture<'static, Answer>) -> u64 {
    let guard = Guard(Some(done));
    let work = match caught(make) {
        Ok(work) => work,
        Err(panic) => {
            guard.done((abi::PANICKED, panic.into()));
            return 0;
        }
    };
    let state = state();
    let handle = state.running.insert(None);
    let task = state.runtime.spawn(within(instance, async move {
        let answer = catch(work).await.unwrap_or_else(|panic| (abi::PANICKED, panic.into()));
        state.running.take(handle);
        guard.done(answer);
    }));
    state.running.with(handle, |abort| *abort = Some(task.abort_handle()));
    handle
}

fn invalid(invalid: &[Invalid]) -> Answer {
    (abi::INVALID, serde_json::to_vec(invalid).expect("texts serialize").into())
}

fn result(result: Result<(), RoleError>) -> Answer {
    match result {
        Ok(()) => (abi::OK, Bytes::new()),
        Err(RoleError::Rejected(wrong)) => invalid(&wrong),
        Err(RoleError::NeedsRestart) => (abi::NEEDS_RESTART, Bytes::new()),
        Err(RoleError::Failed(text)) => (abi::FAILED, text.into()),
    }
}

fn stale() -> Answer {
    (abi::STALE, Bytes::new())
}

/// A configuration or request that changed hands.
///
/// # Safety
///
/// As `to_bytes`.
unsafe fn taken(buf: Buf) -> Result<Bytes, Answer> {
    // SAFETY: passed on to the caller.
    unsafe { to_bytes(buf) }.map_err(|bad| (abi::FAILED, bad.to_string().into()))
}

fn place_of(json: &str) -> Result<Place, Answer> {
    serde_json::from_str(json).map_err(|error| (abi::FAILED, format!("its place: {error}").into()))
}

// SAFETY, for every function below: the station keeps to the contract; what it lends is read before the function returns.

unsafe extern "C" fn describe(out: *mut Buf) -> u32 {
    let (status, body) = match caught(|| state().manifest()) {
        Ok(manifest) => (abi::OK, Bytes::from(manifest)),
        Err(panic) => (abi::PANICKED, panic.into()),
    };
    // SAFETY: valid for this call.
    unsafe { out.write(to_buf(body)) };
    status
}

unsafe extern "C" fn validate(role: Slice, config: Buf, done: Completion) {
    // SAFETY: see above.
    let (role, config) = unsafe { (text(role), taken(config)) };
    begin(0, done, move || {
        let validating = match (state().roles.get(&role), config) {
            (_, Err(answer)) => Err(answer),
            (None, _) => Err((abi::NOT_FOUND, format!("there is no role `{role}` in it").into())),
            (Some(factory), Ok(config)) => Ok(factory.validate(&config)),
        };
        Box::pin(async move {
            match validating {
                Err(answer) => answer,
                Ok(validating) => result(validating.await),
            }
        })
    });
}

unsafe extern "C" fn start(instance: u64, role: Slice, place: Slice, config: Buf, done: Completion) {
    // SAFETY: see above.
    let (role, place, config) = unsafe { (text(role), text(place), taken(config)) };
    begin(instance, done, move || {
        Box::pin(async move {
            let (config, place) = match (config, place_of(&place)) {
                (Ok(config), Ok(place)) => (config, place),
                (Err(answer), _) | (_, Err(answer)) => return answer,
            };
            let Some(factory) = state().roles.get(&role) else {
                return (abi::NOT_FOUND, format!("there is no role `{role}` in it").into());
            };
            let host = Arc::new(StationHost::new(instance));
            let ending = EndUnlessKept(Some(host.clone()));
            let started = factory.start(&config, RoleContext::new(host.clone(), place)).await;
            match started {
                Ok(mut role) => {
                    let work = role.run().await;
                    ending.keep();
                    let body: &[u8] = if work.is_some() { b"{\"work\":true}" } else { b"" };
                    let (role, work) = (tokio::sync::Mutex::new(Some(role)), Mutex::new(work));
                    state().add(instance, Hosted { host, role, work });
                    (abi::OK, Bytes::from_static(body))
                }
                Err(error) => result(Err(error)),
            }
        })
    });
}

/// Ends what a start that failed, panicked or was cut short left behind.
struct EndUnlessKept(Option<Arc<StationHost>>);

impl EndUnlessKept {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for EndUnlessKept {
    fn drop(&mut self) {
        if let Some(host) = &self.0 {
            host.end();
        }
    }
}

unsafe extern "C" fn update(instance: u64, config: Buf, done: Completion) {
    // SAFETY: see above.
    let config = unsafe { taken(config) };
    begin(instance, done, move || {
        Box::pin(async move {
            let Some(hosted) = state().instance(instance) else { return stale() };
            let mut role = hosted.role.lock().await;
            match (role.as_mut(), config) {
                (_, Err(answer)) => answer,
                (None, _) => stale(),
                (Some(role), Ok(config)) => result(role.update(&config).await),
            }
        })
    });
}

unsafe extern "C" fn run(instance: u64, done: Completion) -> u64 {
    begin(instance, done, move || {
        Box::pin(async move {
            let Some(hosted) = state().instance(instance) else { return stale() };
            let work = hosted.work.lock().unwrap_or_else(PoisonError::into_inner).take();
            match work {
                None => (abi::UNSUPPORTED, Bytes::new()),
                Some(work) => result(work.await),
            }
        })
    })
}

unsafe extern "C" fn stop(instance: u64, detach: u32, done: Completion) {
    begin(instance, done, move || {
        Box::pin(async move {
            let Some(hosted) = state().instance(instance) else { return stale() };
            let role = hosted.role.lock().await.take();
            let stopped = match role {
                None => Ok(()),
                Some(role) => catch(if detach != 0 { role.detach() } else { role.stop() }).await,
            };
            hosted.host.end();
            state().remove(instance);
            match stopped {
                Ok(()) => (abi::OK, Bytes::new()),
                Err(panic) => (abi::PANICKED, panic.into()),
            }
        })
    });
}

unsafe extern "C" fn abandon(instance: u64, role: Slice, place: Slice, done: Completion) {
    // SAFETY: see above.
    let (role, place) = unsafe { (text(role), text(place)) };
    begin(instance, done, move || {
        Box::pin(async move {
            let place = match place_of(&place) {
                Ok(place) => place,
                Err(answer) => return answer,
            };
            let Some(factory) = state().roles.get(&role) else { return (abi::NOT_FOUND, Bytes::new()) };
            let host = Arc::new(StationHost::new(instance));
            let _ending = EndUnlessKept(Some(host.clone()));
            factory.abandon(RoleContext::new(host, place)).await;
            (abi::OK, Bytes::new())
        })
    });
}

unsafe extern "C" fn call(instance: u64, command: u64, stream: u64, encoding: u32, body: Buf, done: Completion) -> u64 {
    // SAFETY: see above.
    let body = unsafe { taken(body) };
    let not_now = |answer: Answer| {
        complete(done, answer.0, answer.1);
        0
    };
    let body = match body {
        Ok(body) => body,
        Err(answer) => return not_now(answer),
    };
    let encoding = match encoding {
        abi::JSON => Encoding::Json,
        abi::BINCODE => Encoding::Bincode,
        other => return not_now((abi::UNSUPPORTED, format!("encoding {other}").into())),
    };
    let Some(registered) = COMMANDS.get(command) else { return not_now((abi::NOT_FOUND, Bytes::new())) };
    let host = state().host;
    let items = (stream != 0).then(|| Box::new(StationItems { host, stream }) as Box<dyn RawItems>);
    let inline = items.is_none() && registered.inline.load(Ordering::Relaxed);
    let make = |registered: &Registered| -> BoxFuture<'static, Answer> {
        let ended = (registered.handler)(Call { encoding, body, items });
        Box::pin(async move { answer_of(ended.await) })
    };
    if !inline {
        return begin(instance, done, || make(&registered));
    }
    let began = Instant::now();
    let polled = {
        let _here = state().runtime.enter();
        caught(|| {
            let mut work = make(&registered);
            let polled = pin!(&mut work).poll(&mut Context::from_waker(Waker::noop()));
            (work, polled)
        })
    };
    if began.elapsed() > INLINE_MAX && registered.slow.fetch_add(1, Ordering::Relaxed) + 1 >= INLINE_STRIKES {
        registered.inline.store(false, Ordering::Relaxed);
    }
    match polled {
        Ok((work, Poll::Ready(answer))) => {
            let dropped = caught(|| drop(work));
            not_now(dropped.map_or_else(|panic| (abi::PANICKED, panic.into()), |()| answer))
        }
        // Polled once more there: that is how its waker gets to know where it is.
        Ok((work, Poll::Pending)) => begin(instance, done, move || work),
        Err(panic) => not_now((abi::PANICKED, panic.into())),
    }
}

fn answer_of(ended: Ended) -> Answer {
    match ended {
        Ended::Reply(body) => (abi::OK, body),
        Ended::Error(body) => (abi::APP_ERROR, body),
        Ended::SchemaMismatch(text) => (abi::SCHEMA_MISMATCH, text.into()),
        Ended::Refused(text) => (abi::REFUSED, text.into()),
        Ended::Overloaded(text) => (abi::BUSY, text.into()),
        Ended::Lost(text) => (abi::DROPPED, text.into()),
        Ended::TimedOut => (abi::TIMED_OUT, Bytes::new()),
    }
}

unsafe extern "C" fn cancel(handle: u64) {
    if let Some(Some(task)) = state().running.take(handle) {
        // The completion comes from the guard, where the task is dropped.
        task.abort();
    }
}

unsafe extern "C" fn extension(_: Slice) -> *const c_void {
    std::ptr::null()
}
