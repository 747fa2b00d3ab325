//! Where connections come from.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::task::AbortHandle;

/// How many connections the kernel holds for us: after a manager's restart the whole fleet comes within a second.
const BACKLOG: u32 = 4096;
/// How many connections may be open without having greeted. One more, and the oldest goes of the source that has the most:
/// whoever opens connections without end closes their own, and others have time to greet.
const UNGREETED_MAX: usize = 1024;
/// How long to wait when out of descriptors, instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes connections and counts those that have not greeted.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    ungreeted: Arc<Mutex<Table>>,
}

/// In the order in which they came.
#[derive(Debug, Default)]
struct Table {
    next: u64,
    all: BTreeMap<u64, (IpAddr, Arc<OnceLock<AbortHandle>>)>,
}

impl Table {
    fn make_room(&mut self) {
        let mut sources = BTreeMap::<IpAddr, usize>::new();
        self.all.values().for_each(|(from, _)| *sources.entry(*from).or_default() += 1);
        let busiest = sources.into_iter().max_by_key(|(_, count)| *count).map(|(from, _)| from);
        let oldest = self.all.iter().find(|(_, (from, _))| Some(*from) == busiest).map(|(number, _)| *number);
        if let Some((from, task)) = oldest.and_then(|oldest| self.all.remove(&oldest)) {
            tracing::debug!(%from, "too many connections that do not greet; the oldest is closed");
            if let Some(task) = task.get() {
                task.abort();
            }
        }
    }
}

/// Counts one connection as not greeted until it is dropped.
#[derive(Debug)]
pub struct Ungreeted {
    number: u64,
    task: Arc<OnceLock<AbortHandle>>,
    table: Arc<Mutex<Table>>,
}

impl Ungreeted {
    /// To be set to the task that serves the connection, which is aborted if it has to make room for others before this is
    /// dropped.
    pub fn task(&self) -> Arc<OnceLock<AbortHandle>> {
        self.task.clone()
    }
}

impl Drop for Ungreeted {
    fn drop(&mut self) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).all.remove(&self.number);
    }
}

impl Listener {
    /// Listens on `address` (`HOST:PORT`, port 0 for any).
    ///
    /// # Errors
    ///
    /// What the operating system or the resolver says.
    pub async fn bind(address: &str) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
        for address in lookup_host(address).await? {
            let listen = || {
                let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                socket.set_reuseaddr(true)?;
                socket.bind(address)?;
                socket.listen(BACKLOG)
            };
            match listen() {
                Ok(socket) => return Ok(Self { socket, ungreeted: Arc::default() }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The address that was bound.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The next connection. Drop the [`Ungreeted`] once it has greeted or ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn accept(&self) -> (TcpStream, SocketAddr, Ungreeted) {
        loop {
            match self.socket.accept().await {
                Ok((stream, from)) => {
                    // Writes are gathered by the driver; Nagle would only add delay.
                    let _ = stream.set_nodelay(true);
                    return (stream, from, self.admit(from.ip()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, from: IpAddr) -> Ungreeted {
        let task = Arc::new(OnceLock::new());
        let mut table = self.ungreeted.lock().unwrap_or_else(PoisonError::into_inner);
        if table.all.len() >= UNGREETED_MAX {
            table.make_room();
        }
        table.next += 1;
        let number = table.next;
        table.all.insert(number, (from, task.clone()));
        Ungreeted { number, task, table: self.ungreeted.clone() }
    }
}

/// Connects to `address` (`HOST:PORT`), within `time`.
///
/// # Errors
///
/// What the operating system or the resolver says, or `TimedOut`.
pub async fn dial(address: &str, time: Duration) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(time, TcpStream::connect(address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {time:?}")))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
