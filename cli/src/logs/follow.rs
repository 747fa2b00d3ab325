//! Following logs, also while stations restart.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quilt_client::control::{InstanceRef, LogLine, Logs};
use quilt_client::{AskError, Client, Outcome};
use tokio::sync::{Mutex, mpsc};

use super::show::Show;

/// How long to wait before a station that is away, or a manager, is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// What comes from one of the logs.
enum Event {
    Line(LogLine),
    /// The station is away; its log is asked for again.
    Away,
    Ended(AskError),
}

/// The log of one instance, and how far it was read.
struct Followed {
    client: Client,
    /// Held while the connection is made anew, so that many logs do not make many.
    connecting: Arc<Mutex<()>>,
    instance: InstanceRef,
    request: Logs,
    /// How many lines came after the cursor in the request.
    since_cursor: usize,
}

/// Shows the lines of instances as they come, until all logs have ended. One whose station is away goes on where it was when the
/// station is back.
pub(super) async fn follow<'a>(
    client: &Client,
    instances: &'a [InstanceRef],
    request: impl Fn(&InstanceRef) -> Logs,
    show: &mut Show,
) -> Vec<(&'a InstanceRef, AskError)> {
    let (sender, mut receiver) = mpsc::channel(256);
    let connecting = Arc::new(Mutex::new(()));
    for (number, instance) in instances.iter().enumerate() {
        let (client, instance, request) = (client.clone(), instance.clone(), request(instance));
        let followed = Followed { client, connecting: connecting.clone(), instance, request, since_cursor: 0 };
        tokio::spawn(followed.run(number, sender.clone()));
    }
    drop(sender);
    let (mut failures, mut away) = (Vec::new(), BTreeSet::new());
    while let Some((number, event)) = receiver.recv().await {
        let instance = &instances[number];
        match event {
            Event::Line(line) => {
                away.remove(&instance.station);
                show.line(instance, &line);
            }
            Event::Away => {
                if away.insert(instance.station.clone()) {
                    show.end();
                    eprintln!("quiltctl: station {} is away; its logs go on here when it is back", instance.station);
                }
            }
            Event::Ended(error) => failures.push((instance, error)),
        }
    }
    failures
}

impl Followed {
    async fn run(mut self, number: usize, sender: mpsc::Sender<(usize, Event)>) {
        // What cannot be followed at all is an error; what was followed is waited for.
        let mut was_here = false;
        loop {
            let Err(error) = self.read(number, &sender, &mut was_here).await else { return };
            let is_away = matches!(&error, AskError::Ended { outcome: Outcome::PeerLost(_), .. });
            if !was_here || !is_away {
                let _ = sender.send((number, Event::Ended(error))).await;
                return;
            }
            if sender.send((number, Event::Away)).await.is_err() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
            let _one_at_a_time = self.connecting.lock().await;
            // If the manager is not there yet the next turn finds out.
            let _ = self.client.reconnect().await;
        }
    }

    /// Passes lines on until the stream ends.
    async fn read(
        &mut self,
        number: usize,
        sender: &mpsc::Sender<(usize, Event)>,
        was_here: &mut bool,
    ) -> Result<(), AskError> {
        let mut known = self.since_cursor;
        let mut lines = self.client.logs(self.instance.station.clone(), &self.request);
        loop {
            // A stream that a station took does not end at once.
            let Ok(next) = tokio::time::timeout(PAUSE, lines.next()).await else {
                *was_here = true;
                continue;
            };
            let Some(mut line) = next else { return lines.end().await };
            *was_here = true;
            let is_known = known > 0;
            if is_known {
                known -= 1;
            } else {
                self.since_cursor += 1;
            }
            if let Some(cursor) = line.cursor.take() {
                self.request.after = Some(cursor);
                self.since_cursor = known;
            }
            if !is_known && sender.send((number, Event::Line(line))).await.is_err() {
                return Ok(());
            }
        }
    }
}
