//! Answers that are awaited by token: the first that is given counts, later ones are for nobody.

use std::task::{Context, Poll, Waker};

use super::tokens::Tokens;

/// What callers wait for.
pub(super) struct Answers<A> {
    slots: Tokens<Awaited<A>>,
}

/// What is in a caller's place.
pub(super) enum Awaited<A> {
    /// Nothing yet; whom to wake.
    Waiting(Option<Waker>),
    /// Its answer, until it is taken.
    Answered(A),
}

impl<A> Answers<A> {
    /// Over a table of tokens.
    pub(super) const fn over(slots: Tokens<Awaited<A>>) -> Self {
        Self { slots }
    }

    /// A token for an answer that is to come.
    pub(super) fn expect(&self) -> u64 {
        self.slots.insert(Awaited::Waiting(None))
    }

    /// Gives the answer; false if there is one, or nobody waits any more.
    pub(super) fn give(&self, token: u64, answer: A) -> bool {
        let mut answer = Some(answer);
        let waker = self.slots.with(token, |awaited| match awaited {
            Awaited::Answered(_) => None,
            Awaited::Waiting(waker) => {
                let waker = waker.take();
                *awaited = Awaited::Answered(answer.take().expect("it is given once"));
                waker
            }
        });
        // Outside the lock: what is woken may run at once, and what is dropped is a stranger's.
        if let Some(waker) = waker.flatten() {
            waker.wake();
        }
        answer.is_none()
    }

    /// The answer, if it is there; otherwise its coming wakes the task. `None` when the token is over.
    pub(super) fn poll(&self, token: u64, cx: &Context<'_>) -> Poll<Option<A>> {
        let earlier = self.slots.with(token, |awaited| match awaited {
            Awaited::Answered(_) => None,
            Awaited::Waiting(waker) => Some(waker.replace(cx.waker().clone())),
        });
        match earlier {
            Some(Some(_)) => Poll::Pending,
            _ => Poll::Ready(self.give_up(token)),
        }
    }

    /// Ends the waiting; gives what came meanwhile.
    pub(super) fn give_up(&self, token: u64) -> Option<A> {
        match self.slots.take(token)? {
            Awaited::Answered(answer) => Some(answer),
            Awaited::Waiting(_) => None,
        }
    }
}
