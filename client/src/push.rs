//! Changing what stations run.

use quilt_net::{AskError, Items, decode, encode};
use quilt_protocol::control::{
    Action, Adopt, Adopted, Apply, ApplyReply, ControlInstance, Empty, HistoryEntry, OneStation, Operated, Progress,
    Rollback, RolledBack, command,
};
use quilt_protocol::message::NO_DEADLINE;
use quilt_protocol::{Address, Encoding, Outcome, RequestHead, Revision, Terms};

use crate::Client;

/// An apply under way: progress, then the reply.
pub struct ApplyStream(Items);

impl ApplyStream {
    /// The next piece of progress; `None` when the reply is there.
    pub async fn next(&mut self) -> Option<Progress> {
        loop {
            // An item that is no progress comes from a newer manager; what matters is in the reply.
            if let Ok(progress) = decode("progress", Encoding::Json, &self.0.next().await?) {
                return Some(progress);
            }
        }
    }

    /// How it ended.
    ///
    /// # Errors
    ///
    /// The file is wrong whatever the stations say, or no answer.
    pub async fn reply(self) -> Result<ApplyReply, AskError> {
        let answer = self.0.end().await;
        match answer.outcome {
            Outcome::Reply => Ok(decode("the reply", answer.encoding, &answer.body)?),
            outcome => Err(AskError::Ended { outcome, text: answer.text() }),
        }
    }
}

impl Client {
    /// Applies a fleet file.
    pub fn apply(&self, request: &Apply) -> ApplyStream {
        let mut head = RequestHead::new(Terms::new(Address::Manager, command::APPLY));
        // The manager keeps the time of an apply that waits; one that does not is as quick as its stations' plans.
        head.remaining_ms = NO_DEADLINE;
        ApplyStream(self.handle().stream(head, encode(Encoding::Json, request), 256))
    }

    /// Makes an earlier configuration of a station desired again; the last good one unless told which.
    ///
    /// # Errors
    ///
    /// There is none, or no answer.
    pub async fn rollback(&self, station: &str, to: Option<Revision>) -> Result<RolledBack, AskError> {
        self.ask(command::ROLLBACK, &Rollback { station: station.into(), to }).await
    }

    /// A station's desired configurations, newest first.
    ///
    /// # Errors
    ///
    /// The station is unknown, or no answer.
    pub async fn history(&self, station: &str) -> Result<Vec<HistoryEntry>, AskError> {
        self.ask_list(command::HISTORY, &OneStation { station: station.into() }).await
    }

    /// Starts, stops or restarts `station/role/instance`. The answer to a stop names the instances that need it and run on.
    ///
    /// # Errors
    ///
    /// There is none, or no answer.
    pub async fn control(&self, target: &str, action: Action) -> Result<Operated, AskError> {
        let request = ControlInstance { target: target.into(), action };
        self.ask(command::CONTROL, &request).await
    }

    /// Adopts a station: takes what it runs as desired, or replaces it. The answer names the fleet files that say something else.
    ///
    /// # Errors
    ///
    /// It is adopted already or away, or no answer.
    pub async fn adopt(&self, station: &str, replace: bool) -> Result<Adopted, AskError> {
        self.ask(command::ADOPT, &Adopt { station: station.into(), replace }).await
    }

    /// Forgets a station that is away.
    ///
    /// # Errors
    ///
    /// It is connected or unknown, or no answer.
    pub async fn forget(&self, station: &str) -> Result<(), AskError> {
        self.ask::<_, Empty>(command::FORGET, &OneStation { station: station.into() }).await.map(drop)
    }

    /// Lets a quarantined newcomer take the place of the older session of its identity.
    ///
    /// # Errors
    ///
    /// There is none of that name, or no answer.
    pub async fn replace(&self, station: &str) -> Result<(), AskError> {
        self.ask::<_, Empty>(command::REPLACE, &OneStation { station: station.into() }).await.map(drop)
    }

    /// Gives a quarantined newcomer an identity of its own.
    ///
    /// # Errors
    ///
    /// There is none of that name, or no answer.
    pub async fn renew(&self, station: &str) -> Result<(), AskError> {
        self.ask::<_, Empty>(command::RENEW, &OneStation { station: station.into() }).await.map(drop)
    }
}
