//! Panics of roles, turned into errors of their instance.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

/// What a panic's message begins with, where nothing else says that it was one.
pub(crate) const PANICKED: &str = "panicked: ";

/// Runs `work`; `Err` with the message if it panics.
pub(crate) async fn catch<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let mut work = pin!(work);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
        Err(payload) => Poll::Ready(Err(message(payload))),
    })
    .await
}

/// Calls `work`; `Err` with the message if it panics.
pub(crate) fn catch_now<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(message)
}

fn message(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    // One that was caught and passed on has it already.
    let text = text.map(|text| text.strip_prefix(PANICKED).map_or(text.clone(), str::to_owned));
    // A payload's own drop may panic; its memory is not worth that.
    #[allow(clippy::mem_forget, reason = "see above")]
    std::mem::forget(payload);
    format!("{PANICKED}{}", text.as_deref().unwrap_or("no message"))
}
