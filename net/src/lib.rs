//! Runs [`quilt_protocol::Session`] over tokio sockets: the only place where quilt reads from and writes to peers.
//!
//! Absent on purpose: the meaning of any command. A [`Service`] answers what a peer asks; a [`Handle`] asks the peer.
//!
//! Read first: [`Handle`], [`Service`], [`connect`]. Modules in reading order: `service`, `handle`, `shared`,
//! `connection`, `watch`, `listener`, `backoff`.

mod backoff;
mod connection;
mod handle;
mod listener;
mod service;
mod shared;
mod watch;

pub use backoff::Backoff;
pub use connection::{ConnectError, accept, connect};
pub use handle::{Answer, AskError, Body, Handle, Items, Pending};
pub use listener::{Listener, Ungreeted, dial};
pub use service::{BoxFuture, Gone, Inbound, ItemSink, NoService, Responder, Service, decode, done, encode};
