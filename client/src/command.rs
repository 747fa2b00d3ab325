//! Calling commands, typed and in JSON.

use std::marker::PhantomData;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quilt_net::{Answer, Items};
use quilt_plugin_api as api;
use quilt_plugin_api::Command;
use quilt_protocol::control::{InstanceRef, LeftOut, Resolve, Share, command};
use quilt_protocol::message::{Delivered, NO_DEADLINE};
use quilt_protocol::names::NameError;
use quilt_protocol::{Address, Encoding, Outcome, RequestHead, Terms};

use crate::{AskError, Client, Recent};

/// How a call is made.
#[derive(Clone, Debug)]
pub struct CallOptions {
    /// How long it may take.
    pub timeout: Duration,
    /// Whether asking twice does no more than asking once.
    pub idempotent: bool,
    /// Whether to ask again, under the same message id, when the connection is lost and time is left. A station
    /// remembers what it answered, so a retry is not carried out twice unless the station itself was restarted.
    pub retry: bool,
}

/// Why a typed call has no reply.
#[derive(Debug, thiserror::Error)]
pub enum CallError<E: std::fmt::Display> {
    /// The command's own error.
    #[error("{0}")]
    Command(E),
    /// The command was carried out, but its answer does not decode as the caller's type.
    #[error("the command was carried out, but its answer is not of the caller's type: {0}")]
    Answer(String),
    /// It ended otherwise.
    #[error("{}{}{text}", .outcome.name(), if .text.is_empty() { "" } else { ": " })]
    Ended {
        /// How.
        outcome: Outcome,
        /// For people.
        text: String,
    },
}

impl Client {
    /// Calls a typed command of `station/role/instance` with the default options.
    ///
    /// The call uses bincode if that can carry the types and they agree with the role's. If they do not agree, it uses JSON after
    /// one more round trip.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the call; it may have been carried out.
    pub async fn call<C: Command>(&self, target: &str, request: &C) -> Result<C::Reply, CallError<C::Error>> {
        let options = CallOptions { timeout: self.timeout(), idempotent: false, retry: false };
        self.call_with(target, request, &options).await
    }

    /// As [`Client::call`], with options.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn call_with<C: Command>(
        &self,
        target: &str,
        request: &C,
        options: &CallOptions,
    ) -> Result<C::Reply, CallError<C::Error>> {
        let ended = |outcome, text: String| CallError::Ended { outcome, text };
        let terms = self.terms::<C>(target, options.idempotent);
        let mut head = RequestHead::new(terms.map_err(|error| ended(Outcome::NoTarget, format!("{error}")))?);
        let mut answer = None;
        if head.terms.encoding == Encoding::Bincode
            && let Ok(body) = api::encode(api::Encoding::Bincode, request)
        {
            let first = self.request(&mut head, body, options).await;
            answer = (first.outcome != Outcome::SchemaMismatch).then_some(first);
        }
        let answer = match answer {
            Some(answer) => answer,
            None => {
                // The types differ, or bincode cannot carry them. It was not carried out: ask anew, in JSON.
                head.message_id = quilt_protocol::MessageId::random();
                let terms = Arc::make_mut(&mut head.terms);
                (terms.encoding, terms.fingerprint) = (Encoding::Json, [0; 16]);
                let body = api::encode(api::Encoding::Json, request);
                let body = body.map_err(|error| ended(Outcome::SchemaMismatch, error))?;
                self.request(&mut head, body, options).await
            }
        };
        let encoding = match answer.encoding {
            Encoding::Json => api::Encoding::Json,
            Encoding::Bincode => api::Encoding::Bincode,
        };
        match answer.outcome {
            Outcome::Reply => api::decode(encoding, &answer.body).map_err(CallError::Answer),
            Outcome::Error => {
                let error = api::decode_error(encoding, &answer.body).map_err(CallError::Answer)?;
                Err(CallError::Command(error))
            }
            outcome => Err(ended(outcome, answer.text())),
        }
    }

    /// Calls any command with a JSON body, and gives the answer as it came.
    pub async fn call_json(&self, target: &Address, command: &str, body: Bytes, options: &CallOptions) -> Answer {
        let idempotent = options.idempotent;
        let mut head = RequestHead::new(Terms { idempotent, ..Terms::new(target.clone(), command) });
        self.request(&mut head, body, options).await
    }

    /// Calls any streaming command with a JSON body.
    pub fn stream_json(&self, target: &Address, command: &str, body: Bytes) -> Items {
        let mut head = RequestHead::new(Terms::new(target.clone(), command));
        head.remaining_ms = NO_DEADLINE;
        self.handle().stream(head, body, 64)
    }

    /// Calls a typed streaming command.
    ///
    /// # Errors
    ///
    /// The target is no address, or the request no JSON.
    pub fn stream<C: Command>(&self, target: &str, request: &C) -> Result<TypedItems<C>, CallError<C::Error>> {
        let ended = |outcome, text: String| CallError::Ended { outcome, text };
        let to: Address = target.parse().map_err(|error| ended(Outcome::NoTarget, format!("{error}")))?;
        let body = api::encode(api::Encoding::Json, request);
        let body = body.map_err(|error| ended(Outcome::SchemaMismatch, error))?;
        let items = self.stream_json(&to, &format!("{}:{}", C::GROUP, C::NAME), body);
        Ok(TypedItems { items, command: PhantomData })
    }

    /// The terms of a call, in bincode if that can carry it. Those of the last few calls are cached, because most are made again.
    fn terms<C: Command>(&self, target: &str, idempotent: bool) -> Result<Arc<Terms>, NameError> {
        const KEPT_MAX: usize = 8;
        let fingerprint = C::fingerprint();
        let is_it = |(known, terms): &Recent| {
            let name = terms.command.strip_prefix(C::GROUP).and_then(|rest| rest.strip_prefix(':'));
            let same = (terms.idempotent, terms.fingerprint, name) == (idempotent, fingerprint, Some(C::NAME));
            same && known == target
        };
        let mut kept = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(is_it) {
            // What is made again and again stays, whatever is made once.
            kept.swap(0, at);
            return Ok(kept[0].1.clone());
        }
        let terms = Arc::new(Terms {
            encoding: if fingerprint == api::JSON_ONLY { Encoding::Json } else { Encoding::Bincode },
            fingerprint,
            idempotent,
            ..Terms::new(target.parse()?, format!("{}:{}", C::GROUP, C::NAME))
        });
        kept.truncate(KEPT_MAX - 1);
        kept.push_front((target.to_owned(), terms.clone()));
        Ok(terms)
    }

    async fn request(&self, head: &mut RequestHead, body: Bytes, options: &CallOptions) -> Answer {
        if options.retry && self.dialled.is_some() {
            // In a place of its own: few calls need room for what it takes to connect anew.
            return Box::pin(self.request_until(head, body, options.timeout)).await;
        }
        head.remaining_ms = remaining_ms(options.timeout);
        self.handle().request(head, body).await
    }

    async fn request_until(&self, head: &mut RequestHead, body: Bytes, timeout: Duration) -> Answer {
        // A time beyond all clocks is as good as a year.
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        let until = Instant::now() + timeout.min(year);
        let mut pause = None;
        loop {
            head.remaining_ms = remaining_ms(until.saturating_duration_since(Instant::now()));
            let answer = self.handle().request(head, body.clone()).await;
            if !matches!(answer.outcome, Outcome::PeerLost(Delivered::No | Delivered::Unknown)) {
                return answer;
            }
            let new = || quilt_net::Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
            let delay = pause.get_or_insert_with(new).next_delay();
            if Instant::now() + delay >= until {
                return answer;
            }
            tokio::time::sleep(delay).await;
            // Not reachable yet is the same as lost: the next turn says so if time runs out.
            let _ = self.reconnect().await;
        }
    }

    /// Which instances a target means: `station/role/instance`, `station/role`, or a selector, at most `limit`.
    ///
    /// # Errors
    ///
    /// The manager does not know it, or no answer.
    pub async fn resolve(&self, target: &str, limit: Option<Share>) -> Result<Vec<InstanceRef>, AskError> {
        let request = Resolve { target: target.into(), limit };
        self.ask_list(command::RESOLVE, &request).await
    }

    /// What a selector of instances leaves out: stations that are away, labels that no station has.
    ///
    /// # Errors
    ///
    /// The selector is wrong, or no answer.
    pub async fn left_out(&self, selector: &str) -> Result<LeftOut, AskError> {
        self.ask(command::LEFT_OUT, &Resolve { target: selector.into(), limit: None }).await
    }
}

fn remaining_ms(left: Duration) -> u32 {
    u32::try_from(left.as_millis()).unwrap_or(NO_DEADLINE - 1).max(1)
}

/// Items of a typed streaming command. Dropping it cancels the stream.
pub struct TypedItems<C> {
    items: Items,
    command: PhantomData<fn() -> C>,
}

impl<C: Command> TypedItems<C> {
    /// The next item, or `None` when the stream has ended; [`TypedItems::end`] then says how.
    ///
    /// # Errors
    ///
    /// An item that is not of the command's type.
    pub async fn next(&mut self) -> Option<Result<C::Reply, String>> {
        let item = self.items.next().await?;
        Some(api::decode(api::Encoding::Json, &item))
    }

    /// How the stream ended.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn end(self) -> Result<(), CallError<C::Error>> {
        let answer = self.items.end().await;
        match answer.outcome {
            Outcome::Reply => Ok(()),
            Outcome::Error => {
                let error = api::decode_error(api::Encoding::Json, &answer.body).map_err(CallError::Answer)?;
                Err(CallError::Command(error))
            }
            outcome => Err(CallError::Ended { outcome, text: answer.text() }),
        }
    }
}
