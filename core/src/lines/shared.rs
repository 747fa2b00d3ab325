//! What the readers of one log share: its open file and the watch of its folder. However many follow a log, it takes two descriptors.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures_core::Stream as _;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchMask};
use tokio::sync::watch;

/// By device and inode number, which nobody else gets while a reader has the file open.
static FILES: Mutex<BTreeMap<(u64, u64), Weak<File>>> = Mutex::new(BTreeMap::new());
static WATCHES: Mutex<BTreeMap<PathBuf, Weak<FolderWatch>>> = Mutex::new(BTreeMap::new());

/// Opens a file, or gives the one that another reader has open. It has no position of its own: read it by offsets.
///
/// # Errors
///
/// What the operating system says.
pub(super) fn open(path: &Path) -> io::Result<Arc<File>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut files = lock(&FILES);
    if let Some(open) = files.get(&(metadata.dev(), metadata.ino())).and_then(Weak::upgrade) {
        return Ok(open);
    }
    files.retain(|_, file| file.strong_count() > 0);
    let file = Arc::new(file);
    files.insert((metadata.dev(), metadata.ino()), Arc::downgrade(&file));
    Ok(file)
}

/// Tells of changes in a folder, as long as somebody holds it.
pub(super) struct FolderWatch {
    changes: watch::Receiver<()>,
}

impl FolderWatch {
    /// Watches a folder, or gives the watch that another reader has. Call it inside a runtime.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub(super) fn of(folder: &Path) -> io::Result<Arc<Self>> {
        let mut watches = lock(&WATCHES);
        // One whose folder was removed, or whose runtime ended, tells nothing any more.
        let works = |watch: &Arc<Self>| watch.changes.has_changed().is_ok();
        if let Some(watch) = watches.get(folder).and_then(Weak::upgrade).filter(works) {
            return Ok(watch);
        }
        watches.retain(|_, watch| watch.strong_count() > 0);
        let inotify = Inotify::init()?;
        inotify.watches().add(folder, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO)?;
        let events = inotify.into_event_stream([0; 1024])?;
        let (tell, changes) = watch::channel(());
        tokio::spawn(pass_on(events, tell));
        let watch = Arc::new(Self { changes });
        watches.insert(folder.to_owned(), Arc::downgrade(&watch));
        Ok(watch)
    }

    /// Hears of every change from now on; ends when the folder is removed.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.clone()
    }
}

async fn pass_on(mut events: EventStream<[u8; 1024]>, tell: watch::Sender<()>) {
    loop {
        let event = tokio::select! {
            event = next(&mut events) => event,
            () = tell.closed() => return,
        };
        match event {
            // The kernel removes the watch with its folder.
            Some(Ok(event)) if !event.mask.contains(EventMask::IGNORED) => tell.send_replace(()),
            _ => return,
        }
    }
}

async fn next(events: &mut EventStream<[u8; 1024]>) -> Option<io::Result<EventOwned>> {
    poll_fn(|cx| Pin::new(&mut *events).poll_next(cx)).await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
