//! Where connections come from.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};

/// How many connections the kernel holds for us: after a manager's restart the whole fleet comes within a second.
const BACKLOG: u32 = 4096;
/// How many connections may be open without having greeted.
const UNGREETED_MAX: usize = 1024;
/// From how many on the number per source address is limited too.
const NEARLY_FULL: usize = UNGREETED_MAX * 3 / 4;
/// How many of one source address then.
const PER_SOURCE_MAX: usize = 16;
/// How long to wait when out of descriptors, instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes connections and counts those that have not greeted.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    ungreeted: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// Counts one connection as not greeted until it is dropped.
#[derive(Debug)]
pub struct Ungreeted {
    from: IpAddr,
    table: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Drop for Ungreeted {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.from);
            }
        }
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
                Ok((stream, from)) => match self.admit(from.ip()) {
                    Some(ungreeted) => {
                        // Writes are gathered by the driver; Nagle would only add delay.
                        let _ = stream.set_nodelay(true);
                        return (stream, from, ungreeted);
                    }
                    None => tracing::debug!(peer = %from, "too many connections that do not greet; closed"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, from: IpAddr) -> Option<Ungreeted> {
        let mut table = self.ungreeted.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = table.values().sum();
        let of_source = table.get(&from).copied().unwrap_or(0);
        if all >= UNGREETED_MAX || (all >= NEARLY_FULL && of_source >= PER_SOURCE_MAX) {
            return None;
        }
        *table.entry(from).or_default() += 1;
        Some(Ungreeted { from, table: self.ungreeted.clone() })
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
