//! The end of a process that has an async runtime.

use std::time::Duration;

use tokio::runtime::Runtime;

/// Runs `work` to its end, then waits at most `grace` for blocking background work. Dropping the runtime instead would wait for all
/// of it: a name look-up cannot be cancelled, and lasts as long as the resolver's time-outs when no name server answers.
pub fn run<T>(runtime: Runtime, grace: Duration, work: impl Future<Output = T>) -> T {
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(grace);
    done
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

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
