//! A station's hold on the program of one instance: what is known of its run, the connection to its keeper, and the watch over its
//! end.

use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use quilt_core::disk;
use quilt_core::processes::PidFd;
use quilt_plugin_api::{RoleContext, RoleError};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};

use crate::api::SignalError;
use crate::find::{StartError, find_or_begin};
use crate::keeper::{Exit, FromKeeper, Look, Paths, Run, Spec, ToKeeper, ending, leftovers};
use crate::kept::{Ears, FIRST_WORD, Found, Kept, say};

/// How long to wait before something that could not be done now is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often to look whether what a killed keeper left has ended, and after how many looks to show that it has not.
const LEFT_INTERVAL: Duration = Duration::from_millis(50);
const LEFT_LOOKS: u32 = 20;

/// See the module. Shared by the instance's work and its commands.
pub(crate) struct Hold {
    pub(crate) paths: Paths,
    digest: String,
    known: StdMutex<Known>,
    /// Locked by the work as long as it listens.
    ears: Mutex<Option<Ears>>,
    mouth: Mutex<Option<OwnedWriteHalf>>,
    /// Signals that the keeper has answered.
    signalled: watch::Sender<Signals>,
}

/// Signals on one connection.
#[derive(Clone, Copy, Default)]
struct Signals {
    connection: u64,
    count: u64,
}

/// What is known of the run.
#[derive(Default)]
struct Known {
    /// `None` as long as the program cannot be begun or found again.
    run: Option<Run>,
    keeper: Option<Arc<PidFd>>,
    exit: Option<Exit>,
    /// Why there is no connection.
    trouble: Option<String>,
    orphan_timeout: Option<Duration>,
    /// Signals that the keeper was asked for.
    asked: Signals,
}

impl Hold {
    /// A hold on nothing yet.
    pub(crate) fn new(paths: Paths, digest: String) -> Self {
        Self {
            paths,
            digest,
            known: StdMutex::default(),
            ears: Mutex::default(),
            mouth: Mutex::default(),
            signalled: watch::Sender::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn run(&self) -> Option<Run> {
        self.known().run.clone()
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        self.known().exit.clone()
    }

    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// Finds the program that is configured, or begins it. What cannot be done now is tried again by [`Hold::until_ended`].
    ///
    /// # Errors
    ///
    /// As the start of the role.
    pub(crate) async fn begin(
        &self,
        spec: impl FnOnce() -> Result<Spec, RoleError> + Send + 'static,
        cx: &RoleContext,
    ) -> Result<(), RoleError> {
        self.try_begin(&mut *self.ears.lock().await, spec, cx).await
    }

    async fn try_begin(
        &self,
        ears: &mut Option<Ears>,
        spec: impl FnOnce() -> Result<Spec, RoleError> + Send + 'static,
        cx: &RoleContext,
    ) -> Result<(), RoleError> {
        match find_or_begin(&self.paths, &self.digest, spec, cx).await {
            Ok(Found::Running(kept)) => {
                cx.pid(Some(kept.run.pid));
                self.take(ears, *kept).await;
            }
            Ok(Found::Unreachable(run, keeper, why)) => {
                cx.pid(Some(run.pid));
                let trouble = Some(unreachable(&run, &why));
                let mut known = self.known();
                (known.run, known.keeper, known.trouble) = (Some(run), Some(Arc::new(keeper)), trouble);
            }
            Ok(Found::Ended(run, exit)) => {
                let mut known = self.known();
                (known.run, known.exit) = (Some(run), Some(exit));
            }
            Ok(Found::Nothing) => return Err(RoleError::failed("the program did not begin")),
            Err(StartError::NotNow(why)) => self.known().trouble = Some(why),
            Err(StartError::Role(error)) => return Err(error),
        }
        Ok(())
    }

    /// Takes a connection.
    async fn take(&self, ears: &mut Option<Ears>, kept: Kept) {
        let Kept { run, keeper, ears: new_ears, mouth } = kept;
        *ears = Some(new_ears);
        *self.mouth.lock().await = Some(mouth);
        {
            let mut known = self.known();
            known.run = Some(run);
            known.keeper = keeper.map(Arc::new).or(known.keeper.take());
            known.trouble = None;
            known.asked = Signals { connection: known.asked.connection + 1, count: 0 };
            self.signalled.send_replace(known.asked);
        }
        self.tell_orphan_timeout().await;
    }

    /// Tells the keeper how long its program goes on without a station, now and whenever the connection is made again.
    pub(crate) async fn set_orphan_timeout(&self, timeout: Option<Duration>) {
        self.known().orphan_timeout = timeout;
        self.tell_orphan_timeout().await;
    }

    async fn tell_orphan_timeout(&self) {
        let timeout = self.known().orphan_timeout;
        let ms = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        self.say(&ToKeeper::OrphanTimeout(ms)).await;
    }

    /// Says something to the keeper, if there is a connection.
    async fn say(&self, message: &ToKeeper) {
        if let Some(mouth) = self.mouth.lock().await.as_mut() {
            say(mouth, message).await;
        }
    }

    /// Has the keeper send the program a signal, and waits until it has.
    ///
    /// # Errors
    ///
    /// The program does not run, or its keeper does not answer.
    pub(crate) async fn signal(&self, number: i32) -> Result<(), SignalError> {
        let asked = {
            let mut mouth = self.mouth.lock().await;
            let mouth = match mouth.as_mut() {
                _ if self.exit().is_some() || self.run().is_none() => return Err(SignalError::NotRunning),
                Some(mouth) => mouth,
                None => return Err(SignalError::Unanswered),
            };
            say(mouth, &ToKeeper::Signal(number)).await;
            // They are answered in the order in which they are asked for.
            let asked = &mut self.known().asked;
            asked.count += 1;
            *asked
        };
        let mut signalled = self.signalled.subscribe();
        let is_answered = |seen: &Signals| seen.connection == asked.connection && seen.count >= asked.count;
        match timeout(FIRST_WORD, signalled.wait_for(is_answered)).await {
            Ok(Ok(_)) => Ok(()),
            // It may have been the last thing that the program got.
            _ if self.exit().is_some() => Ok(()),
            _ => Err(SignalError::Unanswered),
        }
    }

    /// Waits until the program has ended, however often the connection to its keeper is lost, and however long the keeper cannot be
    /// reached: that is shown, and is no end. A program that could not be begun is begun.
    ///
    /// # Errors
    ///
    /// As the start of the role.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: what is known and the connection stay with the hold.
    pub(crate) async fn until_ended(
        &self,
        spec: impl FnOnce() -> Result<Spec, RoleError> + Clone + Send + 'static,
        cx: &RoleContext,
    ) -> Result<Exit, RoleError> {
        let mut ears = self.ears.lock().await;
        let mut shown = false;
        loop {
            let (run, trouble) = {
                let known = self.known();
                if let Some(exit) = &known.exit {
                    return Ok(exit.clone());
                }
                (known.run.clone(), known.trouble.clone())
            };
            match trouble {
                // Said again and again: the station shows an instance as active when its start is over.
                Some(trouble) => cx.waiting(trouble),
                None if shown => cx.active(),
                None => {}
            }
            shown = self.known().trouble.is_some();
            if let Some(listening) = ears.as_mut() {
                let exit = loop {
                    match listening.next().await {
                        Some(FromKeeper::Exited(exit)) => break Some(exit),
                        Some(FromKeeper::Signalled) => self.signalled.send_modify(|signals| signals.count += 1),
                        Some(FromKeeper::Running(_) | FromKeeper::Stopping) => {}
                        None => break None,
                    }
                };
                *ears = None;
                *self.mouth.lock().await = None;
                self.known().exit = exit;
            } else if let Some(run) = run {
                self.reconnect(&mut ears, &run, cx).await;
            } else {
                sleep(RETRY_INTERVAL).await;
                self.try_begin(&mut ears, spec.clone(), cx).await?;
            }
        }
    }

    /// Connects to the keeper again, or learns how the run ended: a keeper that is gone has left the exit on disk, or was killed and
    /// nobody saw it.
    async fn reconnect(&self, ears: &mut Option<Ears>, run: &Run, cx: &RoleContext) {
        let keeper = self.known().keeper.clone();
        let keeper = match keeper {
            Some(keeper) => Ok(Some(keeper)),
            None => self.paths.on_disk_of(run, Paths::keeper_of).await.map(|keeper| keeper.map(Arc::new)),
        };
        let why = match keeper {
            Ok(Some(keeper)) if !keeper.has_ended() => match Kept::connect(&self.paths).await {
                Ok(kept) if kept.run.id == run.id => return self.take(ears, kept).await,
                Ok(kept) => format!("it keeps another run, {}", kept.run.id),
                Err(_) if keeper.has_ended() => return,
                Err(error) => {
                    let _ = timeout(RETRY_INTERVAL, keeper.ended()).await;
                    error.to_string()
                }
            },
            Ok(_) => match self.paths.on_disk_of(run, Paths::exit_of).await {
                Ok(exit) => {
                    let exit = match exit {
                        Some(exit) => exit,
                        None => until_nothing_is_left(run, cx).await,
                    };
                    self.known().exit = Some(exit);
                    return;
                }
                Err(error) => self.wait_after(&error).await,
            },
            Err(error) => self.wait_after(&error).await,
        };
        self.known().trouble = Some(unreachable(run, &why));
    }

    async fn wait_after(&self, error: &std::io::Error) -> String {
        sleep(RETRY_INTERVAL).await;
        error.to_string()
    }

    /// Ends the run and does not return before it is seen to be gone. Passes on what is not.
    pub(crate) async fn end(&self, stop_timeout: Duration, mut tell: impl FnMut(String)) {
        let (run, keeper, exit) = {
            let known = self.known();
            (known.run.clone(), known.keeper.clone(), known.exit.clone())
        };
        let Some(run) = run else {
            // It was not begun, as far as is known.
            return ending::end_all_left_over(&self.paths, stop_timeout, tell).await;
        };
        let exit = match exit {
            Some(exit) => {
                ending::until_gone(keeper.as_deref()).await;
                exit
            }
            None => {
                let (mut ears, mut mouth) = (self.ears.lock().await, self.mouth.lock().await);
                let connection = ears.as_mut().zip(mouth.as_mut());
                let exit = ending::end(&self.paths, &run, keeper.as_deref(), connection, stop_timeout).await;
                self.known().exit = Some(exit.clone());
                exit
            }
        };
        let look = if exit.is_unseen() { Look::Everything } else { Look::Keeper };
        ending::until_free(&self.paths, Some(&run), keeper.as_deref(), look, &mut tell).await;
    }
}

fn unreachable(run: &Run, why: &str) -> String {
    format!("unreachable: its keeper, process {}, does not answer: {why}", run.keeper)
}

/// Ends what a killed keeper left of its run: the kernel has killed the program, but not what that had started. As long as something
/// is left the run has not ended, and no other begins.
async fn until_nothing_is_left(run: &Run, cx: &RoleContext) -> Exit {
    for look in 1_u32.. {
        let left = {
            let run = run.clone();
            disk::run(move || leftovers::kill(&run).and_then(|()| leftovers::of(&run))).await
        };
        let trouble = match left.as_deref() {
            Ok([]) => break,
            Ok([left, ..]) => format!("process {} of a run whose keeper was killed does not end", left.pid),
            Err(error) => format!("what a killed keeper left cannot be looked at: {error}"),
        };
        if look % LEFT_LOOKS == 0 {
            cx.waiting(trouble);
        }
        sleep(LEFT_INTERVAL).await;
    }
    Exit::unseen(run)
}
