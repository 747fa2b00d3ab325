//! The driver: one task per connection that reads, writes and keeps time for its session, and writes everything that has
//! gathered in one call.

use std::cell::{Cell, RefCell};
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quilt_protocol::error::Violation;
use quilt_protocol::message::{Refusal, RequestNumber};
use quilt_protocol::session::{Arrived, Closed};
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Event, Hello, Limits, RequestHead, Session, Welcome};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;

use crate::handle::Handle;
use crate::service::{Inbound, Responder, Service};
use crate::shared::{Due, Serving, Shared, Working, now};
use crate::watch::Watch;

/// A peer that takes nothing for so long is cut.
const WRITE_STALLED: Duration = Duration::from_secs(30);
/// How long what is left to write may take once the session is over.
const FLUSH: Duration = Duration::from_secs(5);
/// A stalled peer counts as reading again when it has taken so many bytes.
const PROGRESS: usize = 64 * 1024;
/// How much is read at a time at most, in bytes.
const BLOCK: usize = 128 * 1024;
/// How many reads one wake-up does before other tasks get their turn. Bodies that wait to be handed out hold what they were
/// read with: at worst a block for each two of the requests that may be in flight.
const READS_PER_WAKE: usize = 16;
/// How many events a connection that is alone hands out before it writes what they led to, and others get their turn: so the
/// peer, and whoever was waiting here, work on the first part of a burst while the rest of it is handed out.
const BURST: usize = 16;

thread_local! {
    /// Everything is read into this first, so that an idle connection owns no read buffer, and short bodies are passed on from
    /// where they lie in it.
    static READ_INTO: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(BLOCK));
    /// What one connection has to do at a time; kept, so that it is not allocated each time.
    static DUE: RefCell<Vec<Due>> = const { RefCell::new(Vec::new()) };
    /// Whose connection had the last turn. Only ever compared: it may be gone by now.
    static LAST: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
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
    tokio::spawn(Driver::new(stream, shared, service, Duration::ZERO));
    let welcome = greeted.await.unwrap_or(Err(ConnectError::Closed(Closed::Broken("aborted".into()))))?;
    Ok((handle, welcome))
}

/// Takes a connection. `service` gets to know the session's [`Handle`] and decides about the peer's greeting.
///
/// For `watch` after something came or went the thread looks for more before it sleeps, if the peer's last answer to what was
/// sent to it came within such a time. That saves the time of waking up, which is most of a short call's. A peer that becomes
/// slow or silent costs one such look more, and none after it; with [`Duration::ZERO`] there is none.
pub fn accept<T, S>(
    stream: T,
    limits: Limits,
    watch: Duration,
    service: impl FnOnce(Handle) -> Arc<S>,
) -> impl Future<Output = Closed> + Send + 'static
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service,
{
    let shared = Shared::new(Session::answer(limits, now()));
    let service = service(Handle { shared: shared.clone() });
    Driver::new(stream, shared, service, watch)
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
    watch: Watch,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    fn new(stream: T, shared: Arc<Shared>, service: Arc<dyn Service>, watch: Duration) -> Self {
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
            watch: Watch::new(watch),
        }
    }

    /// Reads what is there.
    fn read(&mut self, cx: &mut Context<'_>) {
        READ_INTO.with_borrow_mut(|block| {
            for _ in 0..READS_PER_WAKE {
                // From its beginning, unless bodies that were read before are still on their way through.
                if !block.try_reclaim(BLOCK) && block.capacity() < BLOCK / 4 {
                    block.reserve(BLOCK);
                }
                match poll_read_buf(Pin::new(&mut self.stream), cx, block) {
                    Poll::Pending => return,
                    Poll::Ready(Ok(0)) => {
                        self.shared.with(|inner| inner.session.handle_end("the peer closed it"));
                        return;
                    }
                    Poll::Ready(Ok(_)) => {
                        self.watch.came();
                        let block = block.split().freeze();
                        self.shared.with(|inner| inner.session.handle_bytes(&block, now()));
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
        let burst = if LAST.get() == this { BURST } else { usize::MAX };
        let mut due = DUE.take();
        let mut events = 0;
        while events < burst {
            self.shared.with(|inner| {
                while events < burst
                    && let Some(event) = inner.session.poll_event()
                {
                    // A write that leaves makes one of these for every stream; they are no work for the peer.
                    events += usize::from(!matches!(event, Event::Credit(_)));
                    due.extend(inner.find(event));
                }
            });
            if due.is_empty() {
                break;
            }
            LAST.set(this);
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

    fn serve(&mut self, number: RequestNumber, head: RequestHead, body: Arrived) {
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
                    self.watch.went();
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
            self.shared.with(|inner| {
                inner.trim();
                inner.session.forget_terms();
            });
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
        // While the driver runs, whoever changes the session need not wake it.
        this.shared.inner.lock().unwrap_or_else(PoisonError::into_inner).driver = None;
        // Also while there are events: only who reads is told when there is more, and knows whether the peer is silent.
        if !this.shutting_down {
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
        if inner.leaves_when_idle && inner.waiting.is_empty() {
            inner.leaves_when_idle = false;
            inner.session.goodbye("nobody uses the connection any more");
        }
        // There is more to hand out, or others have changed the session since it was looked at: in the next turn.
        let may_write = this.write_blocked.is_none() && written.is_ok() && !this.shutting_down;
        if inner.session.has_events() || (inner.session.has_transmit() && may_write) {
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
        if this.watch.look_again(cx) {
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
