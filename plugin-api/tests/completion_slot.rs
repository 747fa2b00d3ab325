//! The table that completions go through, in every order in which threads can get at it: loom runs each model once for each.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::new_without_default,
    reason = "the module is compiled here for its own sake"
)]

#[path = "../src/bridge/tokens.rs"]
mod tokens;

mod sync {
    pub(super) use loom::sync::Mutex;
    pub(super) use std::sync::PoisonError;
}

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use tokens::{Slots, Tokens};

/// Stands for the sender of an answer: counts how often one was given, and how often it was let go of.
struct Sender {
    answered: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

struct Slot {
    tokens: Arc<Tokens<Sender>>,
    answered: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    token: u64,
}

fn slot() -> Slot {
    let tokens = Arc::new(Tokens::over(sync::Mutex::new(Slots::new())));
    let (answered, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let token = tokens.insert(Sender { answered: answered.clone(), dropped: dropped.clone() });
    Slot { tokens, answered, dropped, token }
}

/// What a completion that is called does.
fn complete(tokens: &Tokens<Sender>, token: u64) -> bool {
    let Some(sender) = tokens.take(token) else { return false };
    sender.answered.fetch_add(1, Ordering::Relaxed);
    true
}

#[test]
fn of_two_answers_and_a_caller_that_gives_up_exactly_one_gets_the_slot() {
    loom::model(|| {
        let Slot { tokens, answered, dropped, token } = slot();
        let answers = [(); 2].map(|()| {
            let tokens = tokens.clone();
            thread::spawn(move || complete(&tokens, token))
        });
        let given_up = tokens.take(token).is_some();
        let answers = answers.map(|thread| usize::from(thread.join().unwrap()));
        assert_eq!(answers[0] + answers[1] + usize::from(given_up), 1);
        assert_eq!(answered.load(Ordering::Relaxed), answers[0] + answers[1]);
        assert_eq!((dropped.load(Ordering::Relaxed), tokens.len()), (1, 0));
    });
}

#[test]
fn a_late_answer_never_reaches_the_call_that_uses_the_place_by_then() {
    loom::model(|| {
        let Slot { tokens, answered, dropped, token } = slot();
        let late = {
            let tokens = tokens.clone();
            thread::spawn(move || complete(&tokens, token))
        };
        // The caller gives up, and the next call is put where the one before was.
        drop(tokens.take(token));
        let next = Arc::new(AtomicUsize::new(0));
        let newer = tokens.insert(Sender { answered: next.clone(), dropped: dropped.clone() });
        assert_ne!(newer, token);
        let was_in_time = late.join().unwrap();
        assert_eq!(answered.load(Ordering::Relaxed), usize::from(was_in_time));
        assert_eq!((next.load(Ordering::Relaxed), tokens.len()), (0, 1));
        assert!(complete(&tokens, newer));
        assert_eq!((next.load(Ordering::Relaxed), dropped.load(Ordering::Relaxed)), (1, 2));
    });
}

#[test]
fn calls_that_begin_and_end_side_by_side_keep_apart() {
    loom::model(|| {
        let tokens = Arc::new(Tokens::over(sync::Mutex::new(Slots::new())));
        let pairs = [1, 2].map(|value| {
            let tokens = tokens.clone();
            thread::spawn(move || {
                let token = tokens.insert(value);
                assert_eq!(tokens.with(token, |value| *value), Some(value));
                assert_eq!((tokens.take(token), tokens.take(token)), (Some(value), None));
            })
        });
        pairs.into_iter().for_each(|pair| pair.join().unwrap());
        assert!(tokens.is_empty());
    });
}
