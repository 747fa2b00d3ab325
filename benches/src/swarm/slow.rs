//! A peer that hardly reads.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How many bytes are read at a time, and how long it then reads nothing.
const SIP: usize = 512;
const PAUSE: Duration = Duration::from_millis(100);

/// A stream that is read slowly.
pub(crate) struct Slow<T> {
    stream: T,
    pause: Pin<Box<Sleep>>,
}

impl<T> Slow<T> {
    pub(crate) fn new(stream: T) -> Self {
        Self { stream, pause: Box::pin(sleep(Duration::ZERO)) }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Slow<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.pause.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let mut sip = [0; SIP];
        let room = SIP.min(buf.remaining());
        let mut sip = ReadBuf::new(&mut sip[..room]);
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut sip))?;
        buf.put_slice(sip.filled());
        self.pause.as_mut().reset(Instant::now() + PAUSE);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Slow<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
