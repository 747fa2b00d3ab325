//! The keeper's connection to the station. Only the newest one counts, and none is accepted once the program has ended.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::{PollTimeout, poll};

use super::serve::Event;
use super::{FromKeeper, Run};

/// How long a write to the station may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait after a failed `accept`, in milliseconds.
const ACCEPT_PAUSE_MS: u8 = 100;

/// The one station that is connected, if any.
#[derive(Default)]
pub(super) struct Station(Mutex<State>);

#[derive(Default)]
struct State {
    connection: Option<UnixStream>,
    /// The program has ended. A station that connects now would take the run for a running one.
    has_ended: bool,
}

impl Station {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the station of the end. Later connections are not greeted.
    pub(super) fn tell_end(&self, message: &FromKeeper) {
        let mut state = self.state();
        state.has_ended = true;
        if let Some(connection) = state.connection.as_mut() {
            tell(connection, message);
        }
    }

    /// Greets a station and closes the older connection, which belongs to a station that is gone or going. Returns whether it
    /// was greeted.
    fn greet(&self, mut stream: UnixStream, run: &Run, events: &Sender<Event>) -> bool {
        let mut state = self.state();
        if state.has_ended {
            return false;
        }
        let _ = events.send(Event::Connected);
        tell(&mut stream, &FromKeeper::Running(run.clone()));
        if let Some(older) = state.connection.replace(stream) {
            let _ = older.shutdown(std::net::Shutdown::Both);
        }
        true
    }

    fn is_connected_by(&self, stream: &UnixStream) -> bool {
        let inode = |stream: &UnixStream| nix::sys::stat::fstat(stream).map(|stat| stat.st_ino).ok();
        self.state().connection.as_ref().is_some_and(|connection| inode(connection) == inode(stream))
    }
}

fn tell(stream: &mut UnixStream, message: &FromKeeper) {
    let mut line = serde_json::to_vec(message).expect("it has text keys");
    line.push(b'\n');
    let _ = stream.write_all(&line);
}

/// Serves each station that connects. Never returns.
pub(super) fn accept(listener: &UnixListener, station: &Arc<Station>, events: &Sender<Event>, run: &Run) {
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors or memory: not for ever, but for longer than a moment.
            let _ = poll(&mut [], PollTimeout::from(ACCEPT_PAUSE_MS));
            continue;
        };
        // A station that does not read must not hold up the end of the program.
        let _ = stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let Ok(reading) = stream.try_clone() else { continue };
        if !station.greet(stream, run, events) {
            continue;
        }
        let (events, station) = (events.clone(), station.clone());
        thread::spawn(move || {
            for line in BufReader::new(&reading).lines() {
                let Ok(line) = line else { break };
                if let Ok(message) = serde_json::from_str(&line) {
                    let _ = events.send(Event::Station(message));
                }
            }
            if station.is_connected_by(&reading) {
                let _ = events.send(Event::Disconnected);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::keeper::Exit;

    #[test]
    fn a_run_that_was_told_to_have_ended_is_not_offered_as_a_running_one() {
        let run: Run =
            serde_json::from_str(r#"{"id":"r","digest":"d","pid":1,"keeper":2,"boot_id":"b","started_ms":3}"#).unwrap();
        let (events, _inbox) = mpsc::channel();
        let station = Station::default();
        let first_line = |stream: UnixStream| BufReader::new(stream).lines().next().map(Result::unwrap);
        let (watching, theirs) = UnixStream::pair().unwrap();
        assert!(station.greet(theirs, &run, &events));
        station.tell_end(&FromKeeper::Exited(Exit::unseen(&run)));
        let mut lines = BufReader::new(watching).lines().map(Result::unwrap);
        assert!(lines.next().unwrap().contains("running"));
        assert!(lines.next().unwrap().contains("exited"));
        let (next, theirs) = UnixStream::pair().unwrap();
        assert!(!station.greet(theirs, &run, &events));
        assert_eq!(first_line(next), None);
    }
}
