//! Appending to a log from code that may not wait for the disk.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Writer;
use crate::{disk, time};

/// How many bytes of memory wait for the disk. What comes when it does not keep up is left out, and the log says how much.
const QUEUE_MAX: usize = 1 << 20;
/// What a piece costs beside its text: empty lines take memory too.
const PIECE_COST: usize = 160;
/// How many pieces are written before other disk work gets its turn: whoever logs faster than the disk writes must not keep it.
const WRITTEN_AT_ONCE: usize = 256;

/// One for each log, so that its lines are in the order in which they came.
static APPENDERS: Mutex<BTreeMap<PathBuf, Weak<Appender>>> = Mutex::new(BTreeMap::new());

/// Appends to a log on the threads for disk work. Nobody waits; [`disk::flush`] and [`Appender::flush`] do if they are asked to.
#[derive(Debug)]
pub struct Appender {
    folder: PathBuf,
    runtime: Handle,
    shared: Mutex<Shared>,
    /// How many pieces are written, since the beginning.
    written: watch::Sender<u64>,
}

#[derive(Debug)]
struct Shared {
    /// `None` while it writes.
    writer: Option<Writer>,
    queue: VecDeque<Piece>,
    /// How many bytes of memory the queue takes.
    bytes: usize,
    /// How many pieces were put into the queue, since the beginning.
    queued: u64,
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
        let shared = Mutex::new(Shared { writer, queue: VecDeque::new(), bytes: 0, queued: 0 });
        let folder = folder.to_owned();
        let appender = Arc::new(Self {
            folder: folder.clone(),
            runtime: Handle::current(),
            shared,
            written: watch::Sender::new(0),
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
        let cost = bytes.len() + PIECE_COST;
        if shared.bytes + cost > QUEUE_MAX
            && let Some(last) = shared.queue.back_mut()
        {
            last.left_out += 1 + bytes.iter().rev().skip(1).filter(|byte| **byte == b'\n').count() as u64;
            return;
        }
        shared.bytes += cost;
        shared.queued += 1;
        shared.queue.push_back(Piece { at: time::now_text(), stream, bytes, left_out: 0 });
        if let Some(writer) = shared.writer.take() {
            drop(shared);
            self.runtime.spawn(self.clone().write_all(writer, disk::Unwritten::new()));
        }
    }

    async fn write_all(self: Arc<Self>, mut writer: Writer, _unwritten: disk::Unwritten) {
        loop {
            let this = self.clone();
            match disk::run(move || this.write_some(writer)).await {
                Some(again) => writer = again,
                None => return,
            }
        }
    }

    /// Writes the next pieces; gives the writer back if there are more.
    fn write_some(&self, mut writer: Writer) -> Option<Writer> {
        for _ in 0..WRITTEN_AT_ONCE {
            let mut shared = lock(&self.shared);
            let Some(Piece { at, stream, bytes, left_out }) = shared.queue.pop_front() else {
                shared.writer = Some(writer);
                return None;
            };
            shared.bytes -= bytes.len() + PIECE_COST;
            drop(shared);
            // A full disk must not end who logs.
            let _ = writer.copy_at(&at, stream, &bytes);
            if left_out > 0 {
                writer.skip_lines(left_out, "the disk did not keep up".into());
                let _ = writer.report_losses();
            }
            self.written.send_modify(|written| *written += 1);
        }
        Some(writer)
    }

    /// Waits until all that was appended before is written, and not for what is appended meanwhile. Give it a time-out: the disk may
    /// hang.
    pub async fn flush(&self) {
        let queued = lock(&self.shared).queued;
        let _ = self.written.subscribe().wait_for(|written| *written >= queued).await;
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
        let line = "x".repeat(QUEUE_MAX / 4 - PIECE_COST - 1);
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

    #[tokio::test]
    async fn empty_lines_take_no_more_memory_than_long_ones() {
        let folder = tempfile::tempdir().unwrap();
        let appender = Appender::of(folder.path());
        // As if it wrote, and the disk hung.
        let writer = lock(&appender.shared).writer.take();
        for _ in 0..2 * QUEUE_MAX / PIECE_COST {
            appender.append("quilt", "");
        }
        let shared = lock(&appender.shared);
        assert!(
            shared.queue.len() <= QUEUE_MAX / PIECE_COST && shared.queue.capacity() * size_of::<Piece>() < QUEUE_MAX
        );
        drop((shared, writer));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_flush_does_not_wait_for_what_is_appended_meanwhile_nor_does_other_disk_work() {
        let folder = tempfile::tempdir().unwrap();
        let appender = Appender::of(folder.path());
        let (stop, ends) = mpsc::channel::<()>();
        let flood = {
            let appender = appender.clone();
            std::thread::spawn(move || {
                while ends.try_recv() == Err(mpsc::TryRecvError::Empty) {
                    appender.append("quilt", "again");
                }
            })
        };
        for _ in 0..disk::THREADS {
            flush(folder.path()).await;
            disk::run(|| ()).await;
        }
        drop(stop);
        flood.join().unwrap();
        appender.flush().await;
    }
}
