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
    next_ping: Option<Instant>,
    nonce: u32,
}

impl Liveness {
    /// Only the opener pings; the acceptor listens for its pings.
    pub(super) fn new(opener: bool, interval: Duration, now: Instant) -> Self {
        Self { interval, planned: interval, last_heard: now, next_ping: opener.then(|| now + interval), nonce: 0 }
    }

    pub(super) fn is_lost(&self, now: Instant) -> bool {
        now >= self.lost_at()
    }

    fn lost_at(&self) -> Instant {
        self.last_heard + self.interval * MISSED_MAX
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
