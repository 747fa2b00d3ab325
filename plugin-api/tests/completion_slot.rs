//! The table that completions go through, in every order in which threads can get at it: loom runs each model once for each.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::new_without_default,
    reason = "the modules are compiled here for their own sake"
)]

#[path = "../src/bridge/answers.rs"]
mod answers;
#[path = "../src/bridge/tokens.rs"]
mod tokens;

mod sync {
    pub(super) use loom::sync::Mutex;
    pub(super) use std::sync::PoisonError;
}

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use answers::Answers;
use loom::sync::Arc;
use loom::thread;
use tokens::{Slots, Tokens};

/// Counts how often it was let go of.
struct Body(std::sync::Arc<AtomicUsize>);

impl Drop for Body {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn answers<A>() -> Arc<Answers<A>> {
    Arc::new(Answers::over(Tokens::over(sync::Mutex::new(Slots::new()))))
}

#[test]
fn of_two_answers_and_a_caller_that_gives_up_at_most_one_is_taken_and_each_body_is_let_go_of() {
    loom::model(|| {
        let (answers, dropped) = (answers(), std::sync::Arc::new(AtomicUsize::new(0)));
        let token = answers.expect();
        let given = [(); 2].map(|()| {
            let (answers, body) = (answers.clone(), Body(dropped.clone()));
            thread::spawn(move || answers.give(token, body))
        });
        let taken = answers.give_up(token).is_some();
        let given: usize = given.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum();
        assert!(given <= 1 && (!taken || given == 1), "{given} answers counted, taken: {taken}");
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn a_caller_that_waits_is_woken_whenever_the_answer_comes() {
    loom::model(|| {
        let (answers, woken) = (answers(), std::sync::Arc::new(Woken::default()));
        let token = answers.expect();
        let giving = {
            let answers = answers.clone();
            thread::spawn(move || assert!(answers.give(token, 7)))
        };
        let waker = Waker::from(woken.clone());
        let first = answers.poll(token, &Context::from_waker(&waker));
        giving.join().unwrap();
        if first == Poll::Pending {
            assert_eq!(woken.0.load(Ordering::Relaxed), 1, "it would wait for ever");
            assert_eq!(answers.poll(token, &Context::from_waker(&waker)), Poll::Ready(Some(7)));
        } else {
            assert_eq!(first, Poll::Ready(Some(7)));
        }
        assert_eq!(answers.poll(token, &Context::from_waker(&waker)), Poll::Ready(None));
    });
}

#[test]
fn a_late_answer_never_reaches_the_call_that_uses_the_place_by_then() {
    loom::model(|| {
        let answers = answers();
        let token = answers.expect();
        let late = {
            let answers = answers.clone();
            thread::spawn(move || answers.give(token, "late"))
        };
        // The caller gives up, and the next call is put where the one before was.
        let given_up = answers.give_up(token);
        let newer = answers.expect();
        assert_ne!(newer, token);
        let was_in_time = late.join().unwrap();
        assert_eq!(given_up, was_in_time.then_some("late"));
        assert!(answers.give(newer, "its own"));
        assert_eq!(answers.give_up(newer), Some("its own"));
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
