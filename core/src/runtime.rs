//! The async runtime of a daemon, its tasks, and the end of its process.

use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{panic, thread};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;

use crate::{disk, log};

/// How long the last events may take to reach the log at the end of a daemon.
const LOG_GRACE: Duration = Duration::from_secs(1);
/// How long an idle background thread is kept: longer than any process lives.
const KEEP_THREADS: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How many background threads there are from the start: for disk work, and for what must not wait for that.
const THREADS_KEPT: usize = disk::THREADS + 2;
/// How long a task that panicked rests before it is started again.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Builds a runtime, and ends the process with `exit_code` if the system gives it too few threads. The runtime itself would panic
/// then, and wait for its other threads for ever while the panic unwinds.
///
/// # Errors
///
/// The system gives no descriptors for it.
pub fn build(builder: &mut Builder, exit_code: i32) -> io::Result<Runtime> {
    end_without_threads(exit_code, || builder.enable_all().build())
}

/// Builds the runtime of a daemon, which has its first background threads from the start and keeps them. Background work, such as the
/// look-up of a name, panics if the system gives it no thread at a moment when there is none; with one, it waits for that. There are
/// enough of them that a disk that hangs leaves some. Ends the process as [`build`] does, with exit code 1.
///
/// # Errors
///
/// As [`build`].
pub fn build_for_daemon(builder: &mut Builder) -> io::Result<Runtime> {
    let runtime = build(builder.thread_keep_alive(KEEP_THREADS), 1)?;
    end_without_threads(1, || start_background_threads(&runtime));
    Ok(runtime)
}

/// Does what panics if the system gives it no thread; the process ends with `exit_code` then. Panics of other threads are nobody's
/// business here.
fn end_without_threads<T>(exit_code: i32, work: impl FnOnce() -> T) -> T {
    // There is one hook in a process: two at once would each put back what the other has set.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (this_thread, previous) = (thread::current().id(), Arc::new(panic::take_hook()));
    let of_others = previous.clone();
    panic::set_hook(Box::new(move |panic| {
        if thread::current().id() != this_thread {
            return of_others(panic);
        }
        let text = panic.payload_as_str().unwrap_or("no reason given");
        // Nobody may be there to read it; the exit code says it too.
        let _ = writeln!(io::stderr(), "cannot start the threads to work on: {text}");
        std::process::exit(exit_code);
    }));
    let done = work();
    panic::set_hook(Box::new(move |panic| previous(panic)));
    done
}

fn start_background_threads(runtime: &Runtime) {
    runtime.block_on(async {
        let (open, _) = broadcast::channel::<()>(1);
        // All are asked for before the first ends, so that each gets a thread of its own.
        let waiting = (0..THREADS_KEPT)
            .map(|_| open.subscribe())
            .map(|mut gate| tokio::task::spawn_blocking(move || drop(gate.blocking_recv())));
        let waiting: Vec<_> = waiting.collect();
        drop(open);
        for one in waiting {
            let _ = one.await;
        }
    });
}

/// Runs a task that is to last as long as its daemon. If it panics, the log says so and it is started again after a second. Returns
/// when the task ends by itself.
///
/// # Cancel safety
///
/// Dropping the future ends the task.
pub async fn keep_running<F>(name: &'static str, mut task: impl FnMut() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match AbortOnDropHandle::new(tokio::spawn(task())).await {
            Err(error) if error.is_panic() => {
                tracing::error!(task = name, %error, "a task of this daemon panicked; it is started again");
            }
            _ => return,
        }
        tokio::time::sleep(RESTART_DELAY).await;
    }
}

/// Runs `work` to its end, then waits at most `grace` for blocking background work, and a second at most for the log. Dropping the runtime instead would wait for all
/// of it: a name look-up cannot be cancelled, and lasts as long as the resolver's time-outs when no name server answers.
pub fn run<T>(runtime: Runtime, grace: Duration, work: impl Future<Output = T>) -> T {
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(grace);
    log::flush(LOG_GRACE);
    done
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_until_it_ends_by_itself() {
        let starts = Arc::new(AtomicU32::new(0));
        let counted = starts.clone();
        keep_running("test", move || {
            let start = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert!(start == 2, "a fault") }
        })
        .await;
        assert_eq!(starts.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_daemon_keeps_background_threads_from_its_start() {
        let (starts, started) = mpsc::channel();
        let mut builder = Builder::new_current_thread();
        builder.on_thread_start(move || starts.send(()).unwrap());
        let runtime = build_for_daemon(&mut builder).unwrap();
        for _ in 0..THREADS_KEPT {
            // A thread that was made may begin later than its runtime is there.
            started.recv_timeout(Duration::from_secs(20)).expect("there is one more");
        }
        assert!(started.try_recv().is_err(), "one too many");
        drop(runtime);
    }

    #[test]
    fn the_end_does_not_wait_for_what_blocks_in_the_background() {
        let (answer, lookup) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            run(runtime, Duration::ZERO, async {
                let (began, begun) = tokio::sync::oneshot::channel();
                tokio::task::spawn_blocking(move || {
                    let _ = began.send(());
                    lookup.recv()
                });
                begun.await.unwrap();
            });
            ended.send(()).unwrap();
        });
        end.recv_timeout(Duration::from_secs(20)).expect("it ends although the look-up has no answer");
        drop(answer);
    }
}
