//! Tells the station what roles in this process do: in order, in batches, and no faster than it listens.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quilt_net::Handle;
use quilt_protocol::{Address, Encoding};
use tokio::sync::{Notify, watch};

use super::wire::{self, Told, What};

/// About how many bytes are told at once.
const BATCH: usize = 256 << 10;
/// How many bytes may wait; beyond, lines and events are dropped and counted.
const WAITING_MAX: usize = 16 << 20;
/// The exit code of a process whose plugin says too much.
const TOO_MUCH: i32 = 70;
/// How long the station may take for a batch.
const ANSWER: Duration = Duration::from_secs(30);

/// What is to be told.
pub(super) struct Teller {
    queue: Mutex<Queue>,
    more: Notify,
    /// How many were told and heard.
    heard: watch::Sender<u64>,
}

#[derive(Default)]
struct Queue {
    waiting: std::collections::VecDeque<Told>,
    bytes: usize,
    /// How many were ever put in.
    added: u64,
    dropped: u64,
}

impl Default for Teller {
    fn default() -> Self {
        Self { queue: Mutex::default(), more: Notify::new(), heard: watch::Sender::new(0) }
    }
}

fn size(told: &Told) -> usize {
    let texts = match &told.what {
        What::Active | What::Pid(_) | What::FoundAgain(_) => 0,
        What::Log(_, text) | What::Waiting(text) | What::Failed(text) | What::Ended(text) | What::Register(_, text) => {
            text.len()
        }
        What::Attribute(name, json) => name.len() + json.as_ref().map_or(0, String::len),
        What::Emit(a, b) | What::DeRegister(a, b) => a.len() + b.len(),
        What::Trace { target, fields, .. } => target.len() + fields.len(),
    };
    texts + 32
}

impl Teller {
    /// Puts something in line.
    pub(super) fn add(&self, told: Told) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let may_be_dropped = matches!(told.what, What::Log(..) | What::Emit(..) | What::Trace { .. });
        if queue.bytes > WAITING_MAX && may_be_dropped {
            queue.dropped += 1;
            return;
        }
        if queue.bytes > 2 * WAITING_MAX {
            // States, attributes and commands cannot be left out, and nobody needs so many.
            eprintln!("the plugin says more than its station can hear");
            std::process::exit(TOO_MUCH);
        }
        queue.bytes += size(&told);
        queue.added += 1;
        queue.waiting.push_back(told);
        drop(queue);
        self.more.notify_one();
    }

    /// Waits until the station has heard all that was put in line so far.
    pub(super) async fn flush(&self) {
        let added = self.queue.lock().unwrap_or_else(PoisonError::into_inner).added;
        let _ = self.heard.subscribe().wait_for(|heard| *heard >= added).await;
    }

    fn batch(&self) -> Vec<Told> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH
            && let Some(told) = queue.waiting.pop_front()
        {
            bytes += size(&told);
            batch.push(told);
        }
        queue.bytes -= bytes;
        if queue.bytes < WAITING_MAX / 2 {
            let dropped = std::mem::take(&mut queue.dropped);
            if dropped > 0 {
                let fields = format!("{{\"message\":\"{dropped} lines and events of this plugin were dropped\"}}");
                let (level, target) = (quilt_plugin_api::abi::LOG_WARN, "quilt::plugin".to_owned());
                let what = What::Trace { level, target, instance: None, fields };
                queue.added += 1;
                let told = Told { instance: 0, what };
                queue.bytes += size(&told);
                queue.waiting.push_back(told);
            }
        }
        batch
    }

    /// Tells until the session ends.
    pub(super) async fn tell(&self, station: &Handle) {
        loop {
            let batch = self.batch();
            if batch.is_empty() {
                self.more.notified().await;
                continue;
            }
            let told = station.ask::<_, ()>(Address::Manager, wire::TELL, Encoding::Bincode, &batch, ANSWER).await;
            if told.is_err() {
                return;
            }
            self.heard.send_modify(|heard| *heard += batch.len() as u64);
        }
    }
}
