//! The thread that writes a daemon's log. A disk that hangs, or a reader of standard error that does not read, holds up this thread and
//! nobody else.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What an event costs beside its text, in bytes.
const EVENT_COST: usize = 64;
/// How many bytes of memory events take that wait. Events beyond that are left out, and the log says how many.
const QUEUE_MAX: usize = 1 << 20;

/// What the thread is to do.
enum Job {
    /// Write an event, and say that so many before it were left out.
    Write(Vec<u8>, u64),
    Reopen,
}

struct Queue {
    jobs: VecDeque<Job>,
    /// How many bytes of memory they take.
    bytes: usize,
    /// How many events were left out since the last one that was taken.
    left_out: u64,
    /// The thread is at a job.
    is_busy: bool,
    /// There is a thread. Without one, who logs writes.
    has_thread: bool,
}

static QUEUE: Mutex<Queue> =
    Mutex::new(Queue { jobs: VecDeque::new(), bytes: 0, left_out: 0, is_busy: false, has_thread: false });
static HAS_JOB: Condvar = Condvar::new();
static IS_IDLE: Condvar = Condvar::new();

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    /// Takes an event; false if there is no room for it.
    fn push(&mut self, event: &[u8]) -> bool {
        let cost = event.len() + EVENT_COST;
        if self.bytes + cost > QUEUE_MAX {
            self.left_out += 1;
            return false;
        }
        self.bytes += cost;
        self.jobs.push_back(Job::Write(event.to_vec(), std::mem::take(&mut self.left_out)));
        true
    }

    fn pop(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front();
        if let Some(Job::Write(event, _)) = &job {
            self.bytes -= event.len() + EVENT_COST;
        }
        job
    }
}

/// Starts the thread, unless it is there. Where the machine refuses it, who logs writes.
pub(super) fn start() {
    let mut queue = queue();
    if !queue.has_thread {
        queue.has_thread = thread::Builder::new().name("log".into()).spawn(work).is_ok();
    }
}

fn work() {
    let mut queue = queue();
    loop {
        let Some(job) = queue.pop() else {
            queue.is_busy = false;
            IS_IDLE.notify_all();
            queue = HAS_JOB.wait(queue).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        queue.is_busy = true;
        drop(queue);
        do_now(job);
        queue = self::queue();
    }
}

fn do_now(job: Job) {
    match job {
        // An event that cannot be written is counted, and the log says so once it can be written again.
        Job::Write(event, left_out) => drop(super::write_event(&event, left_out)),
        Job::Reopen => super::reopen_now(),
    }
}

pub(super) fn write(event: &[u8]) {
    let mut queue = queue();
    if !queue.has_thread {
        drop(queue);
        let _ = super::write_event(event, 0);
    } else if queue.push(event) {
        HAS_JOB.notify_one();
    }
}

pub(super) fn reopen() {
    let mut queue = queue();
    if queue.has_thread {
        queue.jobs.push_back(Job::Reopen);
        HAS_JOB.notify_one();
    } else {
        drop(queue);
        super::reopen_now();
    }
}

pub(super) fn flush(patience: Duration) {
    let is_at_work = |queue: &mut Queue| queue.has_thread && (queue.is_busy || !queue.jobs.is_empty());
    drop(IS_IDLE.wait_timeout_while(queue(), patience, is_at_work));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_find_no_room_are_counted_and_told_with_the_next_that_does() {
        let mut queue = Queue { jobs: VecDeque::new(), bytes: 0, left_out: 0, is_busy: false, has_thread: true };
        let event = vec![b'x'; QUEUE_MAX / 4 - EVENT_COST];
        let taken = (0..10).filter(|_| queue.push(&event)).count();
        assert_eq!((taken, queue.left_out), (4, 6));
        assert!(matches!(queue.pop(), Some(Job::Write(_, 0))));
        assert!(queue.push(b"later") && queue.left_out == 0);
        let left_out = std::iter::from_fn(|| queue.pop()).map(|job| match job {
            Job::Write(_, left_out) => left_out,
            Job::Reopen => 0,
        });
        assert_eq!(left_out.collect::<Vec<_>>(), [0, 0, 0, 6]);
        assert_eq!(queue.bytes, 0);
    }
}
