//! Everything that a keeper waits for, on one thread: signals, the end of children, its station.
//!
//! Only the newest connection counts, and none is accepted any more once the program has ended: a station that was greeted then
//! would take the run for a running one.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::children::{self, EndStatus};
use super::{FromKeeper, Paths, Run, ToKeeper};

/// How long a write to the station may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The longest line that a station may send, in bytes.
const LINE_MAX: usize = 64 << 10;

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// The program ended.
    Ended(EndStatus),
    /// The station asks for something.
    Station(ToKeeper),
    /// A station is there, which has been greeted.
    Connected,
    /// No station is there any more.
    Disconnected,
    /// Somebody tells the keeper to end.
    Terminated,
    /// Make files again that somebody removed.
    Restore,
}

/// The signals that a keeper waits for. They are blocked from the beginning.
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals. Call it before anybody can find this process.
    pub(super) fn block() -> io::Result<Self> {
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect();
        signals.thread_block()?;
        Ok(Self(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }
}

/// See the module.
pub(super) struct Events {
    signals: Signals,
    socket: Socket,
    station: Option<Station>,
    program: u32,
    /// When a connection is accepted again, after one could not be.
    accept_at: Instant,
}

/// The connection to the station.
struct Station {
    stream: UnixStream,
    /// Read, and not a whole line yet.
    unread: Vec<u8>,
}

impl Events {
    pub(super) fn new(signals: Signals, socket: Socket, program: u32) -> Self {
        Self { signals, socket, station: None, program, accept_at: Instant::now() }
    }

    /// Waits until something happens, at most until `until`. A station that connects is greeted with `run`.
    pub(super) fn wait(&mut self, until: Instant, run: &Run) -> Vec<Event> {
        let mut events = Vec::new();
        let now = Instant::now();
        let accepts = now >= self.accept_at;
        let wake_at = if accepts { until } else { until.min(self.accept_at) };
        let (mut has_signals, mut has_words, mut has_caller) = (false, false, false);
        {
            let is_ready = |polled: &PollFd<'_>| polled.revents().is_none_or(|found| !found.is_empty());
            // First the caller, then the station, which need not be there.
            let mut polled = vec![PollFd::new(self.signals.0.as_fd(), PollFlags::POLLIN)];
            let caller = if accepts { PollFlags::POLLIN } else { PollFlags::empty() };
            polled.push(PollFd::new(self.socket.listener.as_fd(), caller));
            polled.extend(self.station.iter().map(|station| PollFd::new(station.stream.as_fd(), PollFlags::POLLIN)));
            if matches!(poll(&mut polled, timeout(wake_at.saturating_duration_since(now))), Ok(1..)) {
                has_signals = is_ready(&polled[0]);
                has_caller = accepts && is_ready(&polled[1]);
                has_words = polled.get(2).is_some_and(is_ready);
            }
        }
        while has_signals && let Ok(Some(signal)) = self.signals.0.read_signal() {
            match signal.ssi_signo as i32 {
                nix::libc::SIGHUP => events.push(Event::Restore),
                nix::libc::SIGCHLD => {}
                _ => events.push(Event::Terminated),
            }
        }
        if has_words {
            self.read_station(&mut events);
        }
        let ended = children::ended(self.program);
        if has_caller && ended.is_none() {
            self.accept(run, &mut events);
        }
        // First: what ended by itself was not made to end by what is asked for in this moment.
        events.splice(..0, ended.map(Event::Ended));
        events
    }

    fn accept(&mut self, run: &Run, events: &mut Vec<Event>) {
        let Ok((stream, _)) = self.socket.listener.accept() else {
            // Out of descriptors or memory: not for ever, but for longer than a moment.
            self.accept_at = Instant::now() + ACCEPT_PAUSE;
            return;
        };
        // A station that does not read must not hold up the end of the program.
        let _ = stream.set_write_timeout(Some(WRITE_TIMEOUT));
        // The older connection is closed: it belongs to a station that is gone or going.
        self.station = Some(Station { stream, unread: Vec::new() });
        self.tell(&FromKeeper::Running(run.clone()));
        events.push(Event::Connected);
    }

    fn read_station(&mut self, events: &mut Vec<Event>) {
        let Some(station) = &mut self.station else { return };
        let mut buffer = [0; 4096];
        let count = match station.stream.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            read => read.unwrap_or(0),
        };
        station.unread.extend_from_slice(&buffer[..count]);
        let whole = station.unread.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in station.unread.drain(..whole).as_slice().split(|byte| *byte == b'\n') {
            // What a later station may ask for is not known here.
            events.extend(serde_json::from_slice(line).ok().map(Event::Station));
        }
        if count == 0 || station.unread.len() > LINE_MAX {
            self.station = None;
            events.push(Event::Disconnected);
        }
    }

    /// Tells the station something, if one is there.
    pub(super) fn tell(&mut self, message: &FromKeeper) {
        let mut line = serde_json::to_vec(message).expect("it has text keys");
        line.push(b'\n');
        if let Some(station) = &mut self.station {
            // One that is gone is noticed when it is read from.
            let _ = station.stream.write_all(&line);
        }
    }

    /// Makes the socket's file again if it is not there.
    pub(super) fn restore_socket(&mut self, paths: &Paths) {
        // What cannot be made again now is asked for again.
        let _ = self.socket.bind_again(paths);
    }
}

/// The time to poll for, rounded up: otherwise the last millisecond would be spent looking.
pub(super) fn timeout(time: Duration) -> PollTimeout {
    if time.is_zero() {
        return PollTimeout::ZERO;
    }
    PollTimeout::try_from(time.as_millis().saturating_add(1).min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX)
}

/// The socket that the station connects to, as a file.
pub(super) struct Socket {
    listener: UnixListener,
    inode: u64,
}

impl Socket {
    pub(super) fn bind(paths: &Paths) -> io::Result<Self> {
        let (_folder, path) = paths.socket()?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        // A caller that has gone between the look and `accept` must not be waited for.
        listener.set_nonblocking(true)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, inode: path.metadata()?.ino() })
    }

    fn bind_again(&mut self, paths: &Paths) -> io::Result<()> {
        let (_folder, path) = paths.socket()?;
        if !path.metadata().is_ok_and(|found| found.ino() == self.inode) {
            *self = Self::bind(paths)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};

    use super::*;
    use crate::keeper::Exit;

    /// A keeper's side of its socket, with a child for its program.
    struct Keeper {
        folder: tempfile::TempDir,
        events: Events,
        run: Run,
        program: std::process::Child,
    }

    impl Keeper {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let program = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
            let socket = Socket::bind(&Paths::new(folder.path())).unwrap();
            let run = r#"{"id":"r","digest":"d","pid":1,"keeper":2,"boot_id":"b","started_ms":3}"#;
            let run = serde_json::from_str(run).unwrap();
            // Not blocked: the other tests of this process are not to wait for signals.
            let signals = Signals(SignalFd::new(&SigSet::empty()).unwrap());
            Self { events: Events::new(signals, socket, program.id()), folder, run, program }
        }

        fn wait(&mut self) -> Vec<Event> {
            self.events.wait(Instant::now() + Duration::from_secs(30), &self.run)
        }

        fn connect(&self) -> UnixStream {
            UnixStream::connect(self.folder.path().join("keeper.sock")).unwrap()
        }
    }

    fn line(stream: &UnixStream) -> String {
        let mut line = String::new();
        // One that was never accepted is reset.
        let _ = BufReader::new(stream).read_line(&mut line);
        line
    }

    #[test]
    fn the_newest_station_is_served_without_a_thread_and_none_is_greeted_once_the_program_has_ended() {
        let mut keeper = Keeper::new();
        let first = keeper.connect();
        assert!(matches!(keeper.wait()[..], [Event::Connected]));
        assert!(line(&first).contains("running"));
        let mut second = keeper.connect();
        assert!(matches!(keeper.wait()[..], [Event::Connected]));
        assert!(line(&second).contains("running"));
        assert_eq!(line(&first), "", "the older connection is closed");
        // Cut anywhere, and with something that nobody knows between.
        second.write_all(b"{\"signal\":10}\n{\"later\":1}\n{\"sto").unwrap();
        assert!(matches!(keeper.wait()[..], [Event::Station(ToKeeper::Signal(10))]));
        second.write_all(b"p\":{\"timeout_ms\":5}}\n").unwrap();
        assert!(matches!(keeper.wait()[..], [Event::Station(ToKeeper::Stop { timeout_ms: Some(5) })]));

        drop(keeper.program.stdin.take());
        let third = keeper.connect();
        while children::ended(keeper.program.id()).is_none() {
            std::thread::yield_now();
        }
        assert!(matches!(keeper.wait()[..], [Event::Ended(EndStatus { code: Some(0), signal: None })]));
        keeper.events.tell(&FromKeeper::Exited(Exit::unseen(&keeper.run)));
        assert!(line(&second).contains("exited"));
        keeper.program.wait().unwrap();
        drop(keeper);
        assert_eq!(line(&third), "");
    }

    #[test]
    fn a_station_that_is_gone_is_noticed() {
        let mut keeper = Keeper::new();
        drop(keeper.connect());
        let mut seen = Vec::new();
        while seen.len() < 2 {
            seen.extend(keeper.wait());
        }
        assert!(matches!(seen[..], [Event::Connected, Event::Disconnected]), "{seen:?}");
        keeper.program.kill().unwrap();
        keeper.program.wait().unwrap();
    }
}
