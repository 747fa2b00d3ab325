//! Threads for work that takes long. One thread serves every connection: whatever keeps it busy for milliseconds is felt by every
//! station and tool.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quilt_net::{BoxFuture, Inbound, decode, encode};
use quilt_protocol::Outcome;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::Core;

/// How many pieces of such work go on at a time. Each may hold a large fleet file in several forms.
const AT_ONCE: usize = 2;
/// From here on, in bytes, the text of a configuration or a request counts as long: reading it takes about a millisecond.
pub(crate) const LONG: usize = 64 << 10;
/// After a request with a body of so many bytes, memory is given back.
const GIVE_BACK: usize = 1 << 20;
/// What took so long to drop was large: memory is given back after it.
const LONG_DROP: Duration = Duration::from_millis(5);

/// How long a turn of everything that is ready may take before a loop over all stations adds more to it.
const SHORT_TURN: Duration = Duration::from_micros(150);
/// How long such a loop waits at most before it goes on: it must not starve where the manager is busy all the time.
const GIVE_WAY_TIMEOUT: Duration = Duration::from_millis(2);

/// Lets others have their turn, and again until their turns are short. A loop that sends something to every station calls it every few
/// stations. Otherwise the answers of thousands of stations are ready at the same time, and a call waits behind all of them at each of
/// its steps.
pub(crate) async fn give_way() {
    let began = Instant::now();
    loop {
        let turn = Instant::now();
        tokio::task::yield_now().await;
        if may_go_on(turn.elapsed(), began.elapsed()) {
            return;
        }
    }
}

fn may_go_on(turn: Duration, waited: Duration) -> bool {
    turn < SHORT_TURN || waited >= GIVE_WAY_TIMEOUT
}

/// Bounds how much work goes on at a time.
pub(crate) struct Workers(Semaphore);

impl Workers {
    pub(crate) fn new() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Core {
    /// Does `work` on a thread of its own, when it is its turn. A panic in it is one here.
    ///
    /// # Cancel safety
    ///
    /// Work that has begun goes on to its end; nobody gets its result.
    pub(crate) async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let _turn = self.workers.0.acquire().await.expect("nobody closes it");
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// As [`Inbound::answer`], for requests that are mostly short: a long one is read on a thread for such work.
pub(crate) fn answer<Q, R, F>(
    core: Arc<Core>,
    inbound: Inbound,
    work: impl FnOnce(Q) -> F + Send + 'static,
) -> BoxFuture<'static, ()>
where
    Q: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
    F: Future<Output = Result<R, (Outcome, String)>> + Send + 'static,
{
    match inbound.body.len() {
        length if length > LONG => answer_long(core, inbound, work),
        _ => inbound.answer(work),
    }
}

/// As [`Inbound::answer`], for requests that may be long or get a long reply: bodies are read and written on threads for such work.
pub(crate) fn answer_long<Q, R, F>(
    core: Arc<Core>,
    inbound: Inbound,
    work: impl FnOnce(Q) -> F + Send + 'static,
) -> BoxFuture<'static, ()>
where
    Q: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
    F: Future<Output = Result<R, (Outcome, String)>> + Send + 'static,
{
    let Inbound { head, body, responder } = inbound;
    let (body, encoding) = (body.keep(), head.terms.encoding);
    let length = body.len();
    Box::pin(async move {
        let read = core.compute(move || decode("the request", encoding, &body)).await;
        let made = match read {
            Ok(request) => work(request).await,
            Err(error) => Err((Outcome::SchemaMismatch, error.to_string())),
        };
        match made {
            Ok(reply) => {
                let body = core.compute(move || encode(encoding, &reply)).await;
                responder.respond(Outcome::Reply, encoding, body);
            }
            Err((outcome, text)) => responder.fail(outcome, &text),
        }
        if length >= GIVE_BACK {
            core.compute(give_back).await;
        }
    })
}

/// Something large: when it is dropped, that happens on a thread for such work, since it takes long.
pub(crate) struct Apart<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Apart<T> {
    pub(crate) fn new(large: T) -> Self {
        Self(Some(large))
    }

    pub(crate) fn take(mut self) -> T {
        self.0.take().expect(HELD)
    }
}

/// Why there is something in an [`Apart`].
const HELD: &str = "only the end takes it out";

impl<T: Default + Send + 'static> Default for Apart<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: Send + 'static> Deref for Apart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect(HELD)
    }
}

impl<T: Send + 'static> DerefMut for Apart<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect(HELD)
    }
}

impl<T: Send + 'static> Drop for Apart<T> {
    fn drop(&mut self) {
        if let (Some(large), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || {
                let began = Instant::now();
                drop(large);
                // After it: whoever asked for it may have given memory back before this was free.
                if began.elapsed() >= LONG_DROP {
                    give_back();
                }
            });
        }
    }
}

/// Gives the memory back that the allocator keeps.
#[cfg_attr(target_env = "gnu", allow(unsafe_code, reason = "the allocator has no safe way to be asked"))]
pub(crate) fn give_back() {
    // SAFETY: it may be called at any time from any thread, and only unused memory is concerned.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_goes_on_when_turns_are_short_or_it_has_waited_long() {
        assert!(may_go_on(SHORT_TURN / 2, SHORT_TURN / 2));
        assert!(!may_go_on(SHORT_TURN * 2, SHORT_TURN * 2), "much is ready");
        assert!(may_go_on(SHORT_TURN * 2, GIVE_WAY_TIMEOUT), "the manager is busy all the time");
    }
}
