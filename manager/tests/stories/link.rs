//! A network in memory between two peers. It takes time, can be held up, and can break.

use std::future::pending;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// How long bytes are under way.
const LATENCY: Duration = Duration::from_millis(1);
/// How many bytes are under way at most.
const BUFFER: usize = 256 * 1024;
/// How many bytes are carried at a time at most.
const BLOCK: usize = 16 * 1024;

/// What lies between two peers.
pub(crate) struct Link {
    carrying: AbortHandle,
    is_held: watch::Sender<bool>,
}

impl Link {
    /// A link with its two ends.
    pub(crate) fn new() -> (Self, DuplexStream, DuplexStream) {
        let ((one, near), (far, other)) = (duplex(BUFFER), duplex(BUFFER));
        let (is_held, held) = watch::channel(false);
        let ((read_one, write_one), (read_other, write_other)) = (split(near), split(far));
        let carrying = tokio::spawn(async move {
            tokio::join!(carry(read_one, write_other, held.clone()), carry(read_other, write_one, held));
        });
        (Self { carrying: carrying.abort_handle(), is_held }, one, other)
    }

    /// Breaks it: both ends see the end of the stream.
    pub(crate) fn cut(&self) {
        self.carrying.abort();
    }

    /// Holds up everything that is under way and comes later, in both directions, until [`Link::go_on`]. Nobody is told.
    pub(crate) fn hold(&self) {
        self.is_held.send_replace(true);
    }

    /// Delivers what was held up.
    pub(crate) fn go_on(&self) {
        self.is_held.send_replace(false);
    }
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut held: watch::Receiver<bool>) {
    let mut block = vec![0; BLOCK];
    loop {
        let length = from.read(&mut block).await.unwrap_or(0);
        sleep(LATENCY).await;
        if held.wait_for(|held| !held).await.is_err() {
            // Nobody is left who could let it go on.
            pending::<()>().await;
        }
        if length == 0 || to.write_all(&block[..length]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}
