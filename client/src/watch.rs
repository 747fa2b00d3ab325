//! Seeing what is, and what happens.

use std::marker::PhantomData;
use std::time::Duration;

use quilt_net::{AskError, Items, decode, encode};
use quilt_protocol::control::{ClientView, Empty, Events, FleetEvent, LogLine, Logs, StationView, Stations, command};
use quilt_protocol::message::NO_DEADLINE;
use quilt_protocol::{Address, Encoding, Outcome, RequestHead, Terms};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Client;

/// A stream of JSON items. Dropping it ends it.
pub struct JsonItems<T> {
    items: Items,
    item: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> JsonItems<T> {
    /// The next item, or `None` when the stream has ended; [`JsonItems::end`] then says how.
    pub async fn next(&mut self) -> Option<T> {
        loop {
            if let Ok(item) = decode("an item", Encoding::Json, &self.items.next().await?) {
                return Some(item);
            }
        }
    }

    /// As [`JsonItems::next`], and no longer than `time` if there is one.
    ///
    /// # Errors
    ///
    /// The time is over.
    pub async fn next_within(&mut self, time: Option<Duration>) -> Result<Option<T>, AskError> {
        let Some(time) = time else { return Ok(self.next().await) };
        let late = |_| AskError::Ended { outcome: Outcome::TimedOut, text: format!("nothing came within {time:?}") };
        tokio::time::timeout(time, self.next()).await.map_err(late)
    }

    /// How the stream ended.
    ///
    /// # Errors
    ///
    /// Anything but a proper end.
    pub async fn end(self) -> Result<(), AskError> {
        let answer = self.items.end().await;
        match answer.outcome {
            Outcome::Reply => Ok(()),
            outcome => Err(AskError::Ended { outcome, text: answer.text() }),
        }
    }
}

impl Client {
    /// Stations that a selector matches; all if it is empty.
    ///
    /// # Errors
    ///
    /// The selector is wrong, or no answer.
    pub async fn stations(&self, selector: &str) -> Result<Vec<StationView>, AskError> {
        self.ask_list(command::STATIONS, &Stations { selector: selector.into() }).await
    }

    /// Connected tools.
    ///
    /// # Errors
    ///
    /// No answer.
    pub async fn clients(&self) -> Result<Vec<ClientView>, AskError> {
        self.ask_list(command::CLIENTS, &Empty {}).await
    }

    /// Events after a number (the last few if absent), and on request those to come.
    pub fn events(&self, after: Option<u64>, follow: bool) -> JsonItems<FleetEvent> {
        self.items(Address::Manager, command::EVENTS, &Events { after, follow })
    }

    /// Log lines of an instance.
    pub fn logs(&self, station: quilt_protocol::Name, request: &Logs) -> JsonItems<LogLine> {
        self.items(Address::Station(station), command::LOGS, request)
    }

    fn items<Q: Serialize, T>(&self, to: Address, command: &str, request: &Q) -> JsonItems<T> {
        let mut head = RequestHead::new(Terms::new(to, command));
        head.remaining_ms = NO_DEADLINE;
        let items = self.handle().stream(head, encode(Encoding::Json, request), 256);
        JsonItems { items, item: PhantomData }
    }
}
