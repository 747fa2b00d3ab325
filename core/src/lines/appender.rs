//! Appending to a log from code that may not wait for the disk.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Writer;
use crate::{disk, time};

/// How many bytes wait for the disk. What comes when it does not keep up is left out, and the log says how much.
const QUEUE_MAX: usize = 1 << 20;

/// One for each log, so that its lines are in the order in which they came.
static APPENDERS: Mutex<BTreeMap<PathBuf, Weak<Appender>>> = Mutex::new(BTreeMap::new());

/// Appends to a log on the threads for disk work. Nobody waits; [`disk::flush`] and [`Appender::flush`] do if they are asked to.
#[derive(Debug)]
pub struct Appender {
    folder: PathBuf,
    runtime: Handle,
    shared: Mutex<Shared>,
    /// Whether lines wait or are being written.
    busy: watch::Sender<bool>,
}

#[derive(Debug)]
struct Shared {
    /// `None` while it writes.
    writer: Option<Writer>,
    queue: VecDeque<Piece>,
    /// How many bytes of text are in the queue.
    bytes: usize,
}

/// Text that waits.
#[derive(Debug)]
struct Piece {
    at: String,
    stream: &'static str,
    bytes: Vec<u8>,
    /// There was no room for more: so many lines that came after it are left out.
    left_out: u64,
}

impl Appender {
    /// The appender of the log in `folder`. The first line creates folder and file. Call it inside a runtime.
    pub fn of(folder: &Path) -> Arc<Self> {
        let mut appenders = lock(&APPENDERS);
        if let Some(appender) = appenders.get(folder).and_then(Weak::upgrade) {
            return appender;
        }
        let writer = Some(Writer::new(folder));
        let shared = Mutex::new(Shared { writer, queue: VecDeque::new(), bytes: 0 });
        let folder = folder.to_owned();
        let appender = Arc::new(Self {
            folder: folder.clone(),
            runtime: Handle::current(),
            shared,
            busy: watch::Sender::new(false),
        });
        appenders.insert(folder, Arc::downgrade(&appender));
        appender
    }

    /// Appends each line of `text` as a record. The last line need not have a line break.
    pub fn append(self: &Arc<Self>, stream: &'static str, text: &str) {
        let text = text.strip_suffix('\n').unwrap_or(text);
        self.copy(stream, format!("{text}\n").into_bytes());
    }

    /// Appends the next bytes of a stream, as [`Writer::copy`] does.
    pub fn copy(self: &Arc<Self>, stream: &'static str, bytes: Vec<u8>) {
        let mut shared = lock(&self.shared);
        if shared.bytes + bytes.len() > QUEUE_MAX
            && let Some(last) = shared.queue.back_mut()
        {
            last.left_out += 1 + bytes.iter().rev().skip(1).filter(|byte| **byte == b'\n').count() as u64;
            return;
        }
        shared.bytes += bytes.len();
        shared.queue.push_back(Piece { at: time::now_text(), stream, bytes, left_out: 0 });
        if let Some(writer) = shared.writer.take() {
            self.busy.send_replace(true);
            drop(shared);
            let (this, unwritten) = (self.clone(), disk::Unwritten::new());
            self.runtime.spawn(disk::run(move || {
                this.write(writer);
                drop(unwritten);
            }));
        }
    }

    fn write(&self, mut writer: Writer) {
        loop {
            let mut shared = lock(&self.shared);
            let Some(Piece { at, stream, bytes, left_out }) = shared.queue.pop_front() else {
                shared.writer = Some(writer);
                self.busy.send_replace(false);
                return;
            };
            shared.bytes -= bytes.len();
            drop(shared);
            // A full disk must not end who logs.
            let _ = writer.copy_at(&at, stream, &bytes);
            if left_out > 0 {
                writer.skip_lines(left_out, "the disk did not keep up".into());
                let _ = writer.report_losses();
            }
        }
    }

    /// Waits until all that was appended before is written. Give it a time-out: the disk may hang.
    pub async fn flush(&self) {
        let _ = self.busy.subscribe().wait_for(|busy| !*busy).await;
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        let mut appenders = lock(&APPENDERS);
        // There may be another one by now.
        if appenders.get(&self.folder).is_some_and(|appender| appender.strong_count() == 0) {
            appenders.remove(&self.folder);
        }
    }
}

/// Waits until all that this process has appended to the log in `folder` is written. Give it a time-out: the disk may hang.
pub async fn flush(folder: &Path) {
    let appender = lock(&APPENDERS).get(folder).and_then(Weak::upgrade);
    if let Some(appender) = appender {
        appender.flush().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::lines::Reader;

    #[tokio::test]
    async fn who_logs_does_not_wait_for_the_disk_and_what_has_no_room_meanwhile_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (answer, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let hung = (0..disk::THREADS).map(|_| {
            let hangs = hangs.clone();
            tokio::spawn(disk::run(move || lock(&hangs).recv().is_err()))
        });
        let hung: Vec<_> = hung.collect();
        tokio::task::yield_now().await;
        let appender = Appender::of(folder.path());
        assert!(Arc::ptr_eq(&appender, &Appender::of(folder.path())));
        let line = "x".repeat(QUEUE_MAX / 4 - 1);
        for number in 0..10 {
            appender.append("quilt", &format!("{number}{}", &line[1..]));
        }
        appender.append("quilt", "two\nlines");
        drop(answer);
        for one in hung {
            assert!(one.await.unwrap());
        }
        flush(folder.path()).await;
        appender.append("quilt", "later");
        disk::flush().await;
        let mut reader = Reader::open(folder.path(), 1000).unwrap();
        let mut all = Vec::new();
        while let Ok(more) = reader.more()
            && !more.is_empty()
        {
            all.extend(more);
        }
        let begins = all.iter().filter(|line| line.bytes.len() > 1000 && line.bytes[0] != b'x').count();
        let notices: Vec<_> = all.iter().map(|line| line.text()).filter(|text| text.contains("lost here")).collect();
        assert_eq!((begins, notices.len()), (4, 1));
        assert_eq!(notices[0], "8 lines were lost here: the disk did not keep up");
        assert_eq!(all.last().unwrap().text(), "later");
    }
}
