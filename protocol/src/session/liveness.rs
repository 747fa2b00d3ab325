//! Whether the peer is still there.

use std::time::{Duration, Instant};

/// How often the opener pings unless the acceptor says otherwise.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// After how many silent heartbeats the peer is lost.
pub const MISSED_MAX: u32 = 3;

#[derive(Debug)]
pub(super) struct Liveness {
    /// The pace that the opener keeps, as far as both sides know.
    interval: Duration,
    /// The pace that the next pong asks for.
    planned: Duration,
    pub(super) last_heard: Instant,
    /// Until when the peer is not lost, because this side did not run itself.
    grace_until: Instant,
    next_ping: Option<Instant>,
    nonce: u32,
}

impl Liveness {
    /// Only the opener pings; the acceptor listens for its pings.
    pub(super) fn new(opener: bool, interval: Duration, now: Instant) -> Self {
        let next_ping = opener.then(|| now + interval);
        Self { interval, planned: interval, last_heard: now, grace_until: now, next_ping, nonce: 0 }
    }

    /// Whether the peer has been silent for too long. To be called once all that has arrived is handled.
    ///
    /// A side that comes to ask much later than it wanted to did not run itself: the process was stopped, its container paused, or
    /// the machine overloaded. What the peer did meanwhile is not known, and it may have stood still too, so it has one more
    /// heartbeat.
    pub(super) fn is_lost(&mut self, now: Instant) -> bool {
        let lost_at = self.lost_at();
        if now >= lost_at + self.interval {
            self.grace_until = now + self.interval;
            return false;
        }
        now >= lost_at
    }

    fn lost_at(&self) -> Instant {
        self.grace_until.max(self.last_heard + self.interval * MISSED_MAX)
    }

    /// The nonce of a ping that is due now.
    pub(super) fn ping_due(&mut self, now: Instant) -> Option<u32> {
        if now < self.next_ping? {
            return None;
        }
        self.next_ping = Some(now + self.interval);
        Some(self.next_nonce())
    }

    pub(super) fn next_nonce(&mut self) -> u32 {
        self.nonce = self.nonce.wrapping_add(1);
        self.nonce
    }

    /// The acceptor asks for another interval; the next ping moves accordingly. Only the opener is asked: a pace told to
    /// the acceptor would put off when it notices a dead peer.
    pub(super) fn set_interval(&mut self, interval: Duration, now: Instant) {
        if self.next_ping.is_some() && interval != self.interval {
            (self.interval, self.planned) = (interval, interval);
            self.next_ping = Some(now + interval);
        }
    }

    /// The acceptor wants another pace from the next pong on.
    pub(super) fn plan_interval(&mut self, interval: Duration) {
        self.planned = interval;
    }

    /// The pace a pong asks for. Until it is sent, the opener pings at the old pace and may not be taken for lost.
    pub(super) fn tell_interval(&mut self) -> Duration {
        self.interval = self.planned;
        self.interval
    }

    pub(super) fn next_timeout(&self) -> Instant {
        self.next_ping.map_or(self.lost_at(), |ping| ping.min(self.lost_at()))
    }
}
