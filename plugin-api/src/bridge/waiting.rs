//! Awaiting an answer that the other side gives by calling a function.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use quilt_plugin_abi::{Buf, Completion, DROPPED, FAILED};

use super::answers::Answers;
use super::buf::{to_buf, to_bytes};
use super::tokens::Tokens;

/// A status and what comes with it.
pub type Answer = (u32, Bytes);

static WAITING: Answers<Answer> = Answers::over(Tokens::new());
static IGNORED: AtomicU64 = AtomicU64::new(0);

/// How many completions were called a second time, too late, or for nothing.
pub fn ignored_completions() -> u64 {
    IGNORED.load(Ordering::Relaxed)
}

/// An answer that is to come. Dropping it lets go of the answer, not of the work.
pub struct Waiting {
    token: u64,
}

impl Waiting {
    /// A completion to hand over, and the answer that it will bring.
    pub fn new() -> (Completion, Self) {
        let token = WAITING.expect();
        (Completion { ctx: token, done: Some(done) }, Self { token })
    }
}

impl Future for Waiting {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        WAITING.poll(self.token, cx).map(|answer| answer.unwrap_or((DROPPED, Bytes::new())))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(WAITING.give_up(self.token));
    }
}

unsafe extern "C" fn done(ctx: u64, status: u32, body: Buf) {
    // SAFETY: the contract says that the body is ours now.
    let body = unsafe { to_bytes(body) };
    let answer = body.map_or_else(|bad| (FAILED, bad.to_string().into()), |body| (status, body));
    if !WAITING.give(ctx, answer) {
        IGNORED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Calls a completion of the other side.
pub fn complete(completion: Completion, status: u32, body: Bytes) {
    if let Some(done) = completion.done {
        // SAFETY: the other side says that this may be called once, on any thread; `completion` is used up by its callers.
        unsafe { done(completion.ctx, status, to_buf(body)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_answer_and_a_late_one_are_ignored_and_counted() {
        let before = ignored_completions();
        let (completion, waiting) = Waiting::new();
        complete(completion, 0, Bytes::from_static(b"first"));
        complete(completion, 0, Bytes::from_static(b"second"));
        assert_eq!(waiting.await, (0, Bytes::from_static(b"first")));
        let (completion, waiting) = Waiting::new();
        drop(waiting);
        complete(completion, 0, Bytes::new());
        assert!(ignored_completions() >= before + 2);
    }

    #[tokio::test]
    async fn of_answers_that_race_with_one_another_and_with_giving_up_one_is_taken_and_each_body_is_given_back() {
        const ROUNDS: usize = 2000;
        let body = Bytes::from(vec![7; 100]);
        let (completions, waiting): (Vec<_>, Vec<_>) = (0..ROUNDS).map(|_| Waiting::new()).unzip();
        let (mut kept, mut given_up) = (Vec::new(), Vec::new());
        for (number, waiting) in waiting.into_iter().enumerate() {
            if number % 2 == 0 { &mut kept } else { &mut given_up }.push(waiting);
        }
        let begin = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (completions, body, begin) = (&completions, &body, &begin);
                scope.spawn(move || {
                    begin.wait();
                    for completion in completions {
                        complete(Completion { ctx: completion.ctx, done: completion.done }, thread, body.clone());
                    }
                });
            }
            begin.wait();
            drop(given_up);
        });
        for waiting in kept {
            let (status, answer) = waiting.await;
            assert!(status < 3 && answer == body);
        }
        assert!(body.is_unique(), "a body was lost");
    }

    #[tokio::test]
    async fn a_buffer_that_is_none_is_a_failure_and_not_a_crash() {
        let (completion, waiting) = Waiting::new();
        let buf = Buf { ptr: std::ptr::null(), len: 9, owner: std::ptr::null_mut(), release: None };
        // SAFETY: the function of this module.
        unsafe { completion.done.unwrap()(completion.ctx, 0, buf) };
        assert_eq!(waiting.await.0, FAILED);
    }
}
