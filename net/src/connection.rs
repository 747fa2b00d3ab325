//! The driver: one task per connection that reads, writes and keeps time for its session.
//!
//! The session lives in a mutex that is held for a few lines at a time and never across an `await`. Whoever asks or
//! answers appends to the session and wakes the driver, which writes everything that has gathered in one call.

use std::cell::{Cell, RefCell};
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quilt_protocol::error::Violation;
use quilt_protocol::message::{Refusal, RequestNumber};
use quilt_protocol::session::{Closed, NotAsked};
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Event, Hello, Limits, RequestHead, Session, Welcome};
use rustc_hash::FxHashMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Sleep;

use crate::handle::{Answer, Handle};
use crate::service::{Inbound, Responder, Service};

/// A peer that takes nothing for so long is cut.
const WRITE_STALLED: Duration = Duration::from_secs(30);
/// How long what is left to write may take once the session is over.
const FLUSH: Duration = Duration::from_secs(5);
/// A stalled peer counts as reading again when it has taken so many bytes.
const PROGRESS: usize = 64 * 1024;
/// How many reads one wake-up does before other tasks get their turn.
const READS_PER_WAKE: usize = 16;
/// How many events a connection that is alone hands out before it writes what they led to, and others get their turn: so the
/// peer, and whoever was waiting here, work on the first part of a burst while the rest of it is handed out.
const BURST: usize = 16;

thread_local! {
    /// Everything is read into this first, so that an idle connection owns no read buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; 128 * 1024]);
    /// What one connection has to do at a time; kept, so that it is not allocated each time.
    static DUE: RefCell<Vec<Due>> = const { RefCell::new(Vec::new()) };
    /// Whose connection had the last turn.
    static LAST: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
}

/// What the driver, the handles and the handlers of one session share.
#[derive(Debug)]
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    pub(crate) closed: OnceLock<Closed>,
    pub(crate) closed_notify: Notify,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) session: Session,
    pub(crate) waiting: FxHashMap<RequestNumber, Waiter>,
    pub(crate) serving: FxHashMap<RequestNumber, Serving>,
    driver: Option<Waker>,
    greeting: Option<oneshot::Sender<Result<Welcome, ConnectError>>>,
}

/// Who waits for the answer of a request.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// A [`Pending`](crate::Pending); whom to wake, and where items go if it is a stream.
    Pending(Option<Waker>, Option<mpsc::Sender<Bytes>>),
    /// The same, until it takes its answer.
    Answered(Answer),
    /// The answer is another session's.
    Relay(Responder),
    /// Where the answer arrives, something is done with it.
    Then(Then),
}

/// What is done with an answer.
pub(crate) struct Then(pub(crate) Box<dyn FnOnce(Answer) + Send>);

impl std::fmt::Debug for Then {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Then")
    }
}

impl Waiter {
    /// Keeps the answer for whoever polls for it; gives whom to wake.
    fn answer(&mut self, answer: Answer) -> Option<Waker> {
        match std::mem::replace(self, Self::Answered(answer)) {
            Self::Pending(waker, _) => waker,
            _ => None,
        }
    }

    pub(crate) fn give(self, answer: Answer) {
        match self {
            Self::Pending(..) | Self::Answered(_) => {}
            Self::Relay(responder) => responder.respond(answer.outcome, answer.encoding, answer.body),
            // A panic in it ends no connection: others wait for theirs.
            Self::Then(Then(then)) => {
                drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| then(answer))));
            }
        }
    }
}

/// A request being served.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    work: Option<Working>,
    /// Goes on when the connection is lost; ends when the request is cancelled or its time is over.
    pub(crate) outlives: bool,
    pub(crate) credit_waker: Option<Waker>,
}

/// What is to be ended when a request is given up.
#[derive(Debug)]
enum Working {
    Here(AbortHandle),
    /// It was passed on to this session.
    There(Arc<Shared>, RequestNumber),
}

impl Serving {
    fn abort(self) {
        match self.work {
            Some(Working::Here(task)) => task.abort(),
            Some(Working::There(session, number)) => session.give_up(number),
            None => {}
        }
        if let Some(waker) = self.credit_waker {
            waker.wake();
        }
    }
}

/// Something to be done outside the lock.
enum Due {
    Hello(Box<Hello>),
    Greeted(Result<Welcome, ConnectError>),
    Serve(RequestNumber, RequestHead, Bytes),
    Answer(Waiter, Answer),
    Wake(Waker),
    Cancel(RequestNumber),
    End(Closed),
}

impl Inner {
    fn trim(&mut self) {
        self.session.trim();
        if self.waiting.is_empty() {
            self.waiting = FxHashMap::default();
        }
        if self.serving.is_empty() {
            self.serving = FxHashMap::default();
        }
    }

    /// Whom an event concerns, if anybody.
    fn find(&mut self, event: Event) -> Option<Due> {
        Some(match event {
            Event::Hello(hello) => Due::Hello(hello),
            Event::Established(welcome) => Due::Greeted(Ok(*welcome)),
            Event::Refused(refusal) => Due::Greeted(Err(ConnectError::Refused(refusal))),
            Event::Request(number, head, body) => Due::Serve(number, head, body),
            Event::Answered(number, outcome, encoding, body) => {
                let answer = Answer { outcome, encoding, body };
                match self.waiting.get_mut(&number)? {
                    waiter @ Waiter::Pending(..) => Due::Wake(waiter.answer(answer)?),
                    _ => Due::Answer(self.waiting.remove(&number)?, answer),
                }
            }
            Event::Item(number, item) => {
                let length = item.len();
                // The channel is as long as the credit given, which the session enforces.
                let sent = match self.waiting.get(&number) {
                    Some(Waiter::Pending(_, Some(items))) => items.try_send(item).is_ok(),
                    _ => false,
                };
                if !sent {
                    self.session.item_taken(length);
                }
                return None;
            }
            Event::Credit(number) => Due::Wake(self.serving.get_mut(&number)?.credit_waker.take()?),
            // Found when its turn comes: it may be the cancellation of what is to be served before.
            Event::Cancelled(number) => Due::Cancel(number),
            Event::Closed(why) => Due::End(why),
        })
    }
}

impl Shared {
    fn new(session: Session) -> Arc<Self> {
        let (waiting, serving) = Default::default();
        let inner = Inner { session, waiting, serving, driver: None, greeting: None };
        Arc::new(Self { inner: Mutex::new(inner), closed: OnceLock::new(), closed_notify: Notify::new() })
    }

    /// Does something to the session and lets the driver see to what follows.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut inner);
        let driver = inner.driver.take();
        drop(inner);
        if let Some(driver) = driver {
            driver.wake();
        }
        result
    }

    /// Asks; gives the waiter back if that cannot be.
    pub(crate) fn ask(
        &self,
        head: &RequestHead,
        body: Bytes,
        waiter: Waiter,
    ) -> Result<RequestNumber, (NotAsked, Waiter)> {
        self.with(|inner| match inner.session.request(head, body, now()) {
            Ok(number) => {
                inner.waiting.insert(number, waiter);
                Ok(number)
            }
            Err(why) => Err((why, waiter)),
        })
    }

    /// The answer of a request that a [`Pending`](crate::Pending) waits for. Asking for it is nothing that the driver need know.
    pub(crate) fn poll_answer(&self, number: RequestNumber, cx: &Context<'_>) -> Poll<Option<Answer>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.waiting.get_mut(&number) {
            Some(Waiter::Pending(waker, _)) => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            Some(Waiter::Answered(_)) => match inner.waiting.remove(&number) {
                Some(Waiter::Answered(answer)) => Poll::Ready(Some(answer)),
                _ => unreachable!("it was looked at under the same lock"),
            },
            _ => Poll::Ready(None),
        }
    }

    /// Nobody wants the answer of a request any more.
    pub(crate) fn give_up(&self, number: RequestNumber) {
        // Dropped outside the lock: a responder in it answers another session, which may be this one.
        let _waiter = self.with(|inner| {
            let waiter = inner.waiting.remove(&number);
            if waiter.is_some() {
                inner.session.cancel(number);
            }
            waiter
        });
    }

    /// Notes that a request being served was passed on to another session. It may be over already.
    pub(crate) fn passed_on(&self, number: RequestNumber, to: &Arc<Self>, as_number: RequestNumber) {
        let over = self.with(|inner| match inner.serving.get_mut(&number) {
            Some(serving) => {
                serving.work = Some(Working::There(to.clone(), as_number));
                false
            }
            None => true,
        });
        if over {
            to.give_up(as_number);
        }
    }
}

/// The time as sessions take it: tokio's, so that tests can pause it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Why a connection did not become a session.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConnectError {
    /// The other side declined.
    #[error("{}", .0.text)]
    Refused(Box<Refusal>),
    /// It ended first.
    #[error("{0}")]
    Closed(Closed),
}

/// Greets over `stream` and waits until the session is established. The session then runs on a task of its own until it
/// is closed or the peer is lost.
///
/// # Errors
///
/// [`ConnectError`].
///
/// # Cancel safety
///
/// Dropping the future leaves the connection to its greeting time-out.
pub async fn connect<T>(stream: T, hello: Hello, service: Arc<dyn Service>) -> Result<(Handle, Welcome), ConnectError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let session = Session::open(hello, Limits::default(), now());
    let shared = Shared::new(session);
    let (sender, greeted) = oneshot::channel();
    shared.with(|inner| inner.greeting = Some(sender));
    let handle = Handle { shared: shared.clone() };
    tokio::spawn(Driver::new(stream, shared, service));
    let welcome = greeted.await.unwrap_or(Err(ConnectError::Closed(Closed::Broken("aborted".into()))))?;
    Ok((handle, welcome))
}

/// Takes a connection. `service` gets to know the session's [`Handle`] and decides about the peer's greeting.
pub fn accept<T, S>(
    stream: T,
    limits: Limits,
    service: impl FnOnce(Handle) -> Arc<S>,
) -> impl Future<Output = Closed> + Send + 'static
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service,
{
    let shared = Shared::new(Session::answer(limits, now()));
    let service = service(Handle { shared: shared.clone() });
    Driver::new(stream, shared, service)
}

struct Driver<T> {
    stream: T,
    shared: Arc<Shared>,
    service: Arc<dyn Service>,
    timer: Pin<Box<Sleep>>,
    /// The timer goes off at its deadline, and has not yet.
    armed: bool,
    write_blocked: Option<Instant>,
    /// Bytes written since the peer stalled.
    written: usize,
    /// When flushing ends, once the session is over.
    flush_by: Option<Instant>,
    shutting_down: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    fn new(stream: T, shared: Arc<Shared>, service: Arc<dyn Service>) -> Self {
        let timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        Self {
            stream,
            shared,
            service,
            timer,
            armed: false,
            write_blocked: None,
            written: 0,
            flush_by: None,
            shutting_down: false,
        }
    }

    /// Reads what is there.
    fn read(&mut self, cx: &mut Context<'_>) {
        SCRATCH.with_borrow_mut(|scratch| {
            for _ in 0..READS_PER_WAKE {
                let mut buffer = ReadBuf::new(scratch);
                match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                    Poll::Pending => return,
                    Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                        self.shared.with(|inner| inner.session.handle_end("the peer closed it"));
                        return;
                    }
                    Poll::Ready(Ok(())) => {
                        self.shared.with(|inner| inner.session.handle_bytes(buffer.filled(), now()));
                    }
                    Poll::Ready(Err(error)) => {
                        self.shared.with(|inner| inner.session.handle_end(&error.to_string()));
                        return;
                    }
                }
            }
            // There may be more, after others had their turn.
            cx.waker().wake_by_ref();
        });
    }

    /// Hands events to whoever waits for them: what belongs to whom is found under the lock, for a whole burst, and given
    /// without it. There may be more of them afterwards.
    fn dispatch(&mut self) {
        // Where several connections take turns, their peers have enough to work on.
        let this = Arc::as_ptr(&self.shared);
        let burst = if LAST.replace(this) == this { BURST } else { usize::MAX };
        let mut due = DUE.take();
        let mut events = 0;
        while events < burst {
            self.shared.with(|inner| {
                while events < burst
                    && let Some(event) = inner.session.poll_event()
                {
                    due.extend(inner.find(event));
                    events += 1;
                }
            });
            if due.is_empty() {
                break;
            }
            for due in due.drain(..) {
                match due {
                    Due::Hello(hello) => self.decide(*hello),
                    Due::Greeted(result) => self.greeted(result),
                    Due::Serve(number, head, body) => self.serve(number, head, body),
                    Due::Answer(waiter, answer) => waiter.give(answer),
                    Due::Wake(waker) => waker.wake(),
                    Due::Cancel(number) => self.cancel(number),
                    Due::End(why) => self.end(why),
                }
            }
        }
        DUE.set(due);
    }

    fn cancel(&self, number: RequestNumber) {
        let (serving, lost) = self.shared.with(|inner| (inner.serving.remove(&number), inner.session.is_closed()));
        if let Some(serving) = serving.filter(|serving| !(lost && serving.outlives)) {
            serving.abort();
        }
    }

    fn decide(&mut self, hello: Hello) {
        let version = SPOKEN.common(hello.versions).expect("the session checked the versions");
        let decision = self.service.hello(hello);
        self.shared.with(|inner| match decision {
            Ok((welcome, principal)) => inner.session.accept(welcome, version, principal, now()),
            Err(refusal) => inner.session.refuse(refusal),
        });
    }

    fn greeted(&mut self, result: Result<Welcome, ConnectError>) {
        if let Some(greeting) = self.shared.with(|inner| inner.greeting.take()) {
            let established = result.is_ok();
            if greeting.send(result).is_err() && established {
                // Whoever connected has given up meanwhile.
                self.shared.with(|inner| inner.session.goodbye("nobody waits for this connection"));
            }
        }
    }

    fn serve(&mut self, number: RequestNumber, head: RequestHead, body: Bytes) {
        // In its turn: an earlier request of this number may have been cancelled just before.
        self.shared.with(|inner| inner.serving.insert(number, Serving::default()));
        let responder = Responder::new(self.shared.clone(), number);
        let service = &self.service;
        let first = std::panic::AssertUnwindSafe(|| {
            let mut work = service.request(Inbound { head, body, responder });
            // Spawning polls again with a waker of its own, so what this one is told may be lost.
            let ready = work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            (!ready).then_some(work)
        });
        match std::panic::catch_unwind(first) {
            Ok(None) | Err(_) => {}
            Ok(Some(work)) => {
                let task = tokio::spawn(work).abort_handle();
                let wanted = self.shared.with(|inner| match inner.serving.get_mut(&number) {
                    Some(serving) => {
                        serving.work = Some(Working::Here(task.clone()));
                        true
                    }
                    None => inner.session.is_established(),
                });
                if !wanted {
                    task.abort();
                }
            }
        }
    }

    fn end(&mut self, why: Closed) {
        self.greeted(Err(ConnectError::Closed(why.clone())));
        self.service.closed(&why);
        let _ = self.shared.closed.set(why);
        self.shared.closed_notify.notify_waiters();
    }

    /// Writes what is there.
    fn write(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        let mut inner = self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let [bytes, body] = inner.session.poll_transmit();
            let writing = match (bytes, body) {
                ([], []) => {
                    self.write_blocked = None;
                    return Ok(());
                }
                (bytes, []) => Pin::new(&mut self.stream).poll_write(cx, bytes),
                (bytes, body) => {
                    let parts = [IoSlice::new(bytes), IoSlice::new(body)];
                    Pin::new(&mut self.stream).poll_write_vectored(cx, &parts)
                }
            };
            match writing {
                Poll::Ready(Ok(0)) => return Err(std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    inner.session.transmitted(count);
                    self.written += count;
                    if self.written >= PROGRESS {
                        (self.write_blocked, self.written) = (None, 0);
                    }
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    if self.write_blocked.is_none() {
                        (self.write_blocked, self.written) = (Some(now()), 0);
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Does what has become due, then waits for what will. Answers whether there was anything.
    fn keep_time(&mut self, cx: &mut Context<'_>) -> bool {
        let mut worked = false;
        loop {
            let stalled = self.write_blocked.map(|since| since + WRITE_STALLED);
            let stalled = stalled.into_iter().chain(self.flush_by).min();
            let due = self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner).session.poll_timeout();
            let Some(due) = due.into_iter().chain(stalled).min() else { return worked };
            // What is due moves with every message, mostly to later: then the timer is left as it is, and looks again when it
            // goes off.
            if !self.armed || due < self.timer.deadline().into_std() {
                self.timer.as_mut().reset(due.into());
                self.armed = true;
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return worked;
            }
            self.armed = false;
            self.shared.with(Inner::trim);
            let now = now();
            if now < due {
                continue;
            }
            worked = true;
            self.shared.with(|inner| inner.session.handle_timeout(now));
            if stalled.is_some_and(|stalled| stalled <= now) {
                let queued = self.shared.with(|inner| inner.session.poll_transmit().concat().len());
                let violation = Violation::NotReading { queued, limit: 0 };
                self.shared.with(|inner| inner.session.handle_end(&violation.to_string()));
                (self.write_blocked, self.flush_by) = (None, None);
                self.shutting_down = true;
                return true;
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = Closed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Closed> {
        let this = &mut *self;
        let mut written = Ok(());
        let has_events = {
            let mut inner = this.shared.inner.lock().unwrap_or_else(PoisonError::into_inner);
            // While the driver runs, whoever changes the session need not wake it.
            inner.driver = None;
            inner.session.has_events()
        };
        // What was read is handed out before more is. Whoever does not read now is not told either when there is something.
        let reads = !this.shutting_down && !has_events;
        if reads {
            this.read(cx);
        }
        loop {
            this.dispatch();
            if written.is_ok() {
                written = this.write(cx);
            }
            if let Err(error) = &written {
                this.shared.with(|inner| inner.session.handle_end(&error.to_string()));
            }
            if this.flush_by.is_none() && this.shared.closed.get().is_some() {
                this.flush_by = Some(now() + FLUSH);
            }
            if !this.keep_time(cx) {
                break;
            }
        }
        let mut inner = this.shared.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // There is more to hand out or to read, or others have changed the session since it was looked at: in the next turn.
        let may_write = this.write_blocked.is_none() && written.is_ok() && !this.shutting_down;
        let may_read = !reads && !this.shutting_down;
        if inner.session.has_events() || may_read || (inner.session.has_transmit() && may_write) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if inner.session.is_closed() {
            let flushed = written.is_err() || this.shutting_down || !inner.session.has_transmit();
            drop(inner);
            if flushed {
                // A polite end; the kernel sends what is buffered either way.
                let _ = Pin::new(&mut this.stream).poll_shutdown(cx);
                return Poll::Ready(this.shared.closed.get().cloned().unwrap_or(Closed::ByUs));
            }
            return Poll::Pending;
        }
        if inner.session.is_small_and_idle() {
            inner.trim();
        }
        inner.driver = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A driver that is dropped half-way still answers everybody.
impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        if self.shared.closed.get().is_some() {
            return;
        }
        let (due, serving) = self.shared.with(|inner| {
            inner.session.handle_end("the connection's task was ended");
            let mut due = Vec::new();
            while let Some(event) = inner.session.poll_event() {
                due.extend(inner.find(event));
            }
            (due, std::mem::take(&mut inner.serving))
        });
        serving.into_values().filter(|serving| !serving.outlives).for_each(Serving::abort);
        let mut why = Closed::ByUs;
        for due in due {
            match due {
                Due::Answer(waiter, answer) => waiter.give(answer),
                Due::Wake(waker) => waker.wake(),
                Due::End(closed) => why = closed,
                Due::Hello(_) | Due::Greeted(_) | Due::Serve(..) | Due::Cancel(_) => {}
            }
        }
        self.service.closed(&why);
        let _ = self.shared.closed.set(why);
        self.shared.closed_notify.notify_waiters();
    }
}
