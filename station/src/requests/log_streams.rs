//! How many logs a station streams at a time: each takes two descriptors, unless others stream the same log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quilt_core::shortage;
use smol_str::SmolStr;

/// Streams of all peers together. Well below the 1,024 requests of a session, so that logs never keep out a stop.
const STREAMS_MAX: usize = 256;
/// Streams of one peer.
const PEER_STREAMS_MAX: usize = 128;

/// Counts the streams of each peer.
#[derive(Default)]
pub(crate) struct LogStreams(Mutex<BTreeMap<SmolStr, usize>>);

/// One stream, until it is dropped.
pub(super) struct Place {
    streams: Arc<LogStreams>,
    peer: SmolStr,
}

impl LogStreams {
    /// Counts one more stream of a peer.
    ///
    /// # Errors
    ///
    /// The limit that this would go over, for people.
    pub(super) fn begin(self: &Arc<Self>, peer: SmolStr) -> Result<Place, String> {
        if shortage::is_short_of_descriptors() {
            let kept = shortage::DESCRIPTORS_RESERVED;
            return Err(format!(
                "this station has {kept} descriptors left, which are kept for its programs; raise its limit of open files"
            ));
        }
        let mut streams = self.streams();
        let (all, own) = (streams.values().sum::<usize>(), streams.get(&peer).copied().unwrap_or_default());
        if all >= STREAMS_MAX {
            return Err(format!("this station streams {STREAMS_MAX} logs, which is the limit; end one of them"));
        }
        if own >= PEER_STREAMS_MAX {
            let text = format!(
                "{peer} has {PEER_STREAMS_MAX} logs of this station streamed, which is the limit; end one of them"
            );
            return Err(text);
        }
        streams.insert(peer.clone(), own + 1);
        drop(streams);
        Ok(Place { streams: self.clone(), peer })
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<SmolStr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut streams = self.streams.streams();
        if let Some(count) = streams.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_peer_takes_all_streams_and_one_that_ends_makes_room() {
        let streams = Arc::new(LogStreams::default());
        let begin = |peer: &str, count: usize| {
            let places: Vec<_> =
                (0..count).map(|_| streams.begin(peer.into()).map_err(drop).expect("there is room")).collect();
            places
        };
        let mut first = begin("a", PEER_STREAMS_MAX);
        assert!(streams.begin("a".into()).err().unwrap().contains("a has 128 logs"));
        let second = begin("b", STREAMS_MAX - PEER_STREAMS_MAX);
        assert!(streams.begin("c".into()).err().unwrap().contains("streams 256 logs"));
        first.pop();
        drop(begin("c", 1));
        drop((first, second));
        assert!(streams.streams().is_empty());
    }
}
