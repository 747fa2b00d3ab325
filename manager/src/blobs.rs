//! Files that stations fetch, kept once each under their hash: plugins now, whatever a fleet needs later.
//!
//! Tools bring them in pieces and stations read them in pieces; both go on where they were when a connection was lost. A file
//! counts only once all of it is there and has the hash that it is kept under.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quilt_core::{disk, files};
use quilt_protocol::Digest;
use quilt_protocol::control::{AddToFile, BeginFile, FILE_MAX, FilePiece, FileProgress, PIECE_MAX, ReadFile};
use tokio::sync::Mutex;

/// How long a file that is not whole is kept for the tool that brings it to go on.
const PART_KEPT: Duration = Duration::from_secs(7 * 86_400);
/// How many bytes all files together may have, those that are not whole yet included.
const TOTAL_MAX: u64 = 8 << 30;

/// Why a file is not taken or given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    #[error("{size} bytes; the manager keeps files of at most {FILE_MAX}")]
    TooLong { size: u64 },
    #[error("the manager keeps {max} bytes of files at most, and has {there}; remove some from {folder}")]
    Full { there: u64, max: u64, folder: String },
    #[error("a piece of {0} bytes; at most {PIECE_MAX} are taken")]
    LongPiece(usize),
    #[error("what arrived has another hash than {0}; push it again")]
    WrongHash(Digest),
    #[error("the manager has no file {0}; push it with `quiltctl plugin push`")]
    NotThere(Digest),
    #[error("the manager's disk: {0}")]
    Io(#[from] io::Error),
}

/// The files of a manager.
#[derive(Clone)]
pub(crate) struct Blobs {
    folder: Arc<Path>,
    /// One change at a time.
    changing: Arc<Mutex<()>>,
    total_max: u64,
}

impl Blobs {
    /// Opens the folder. Removes what was begun long ago and never became whole.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        files::create_private_dir(&folder)?;
        for entry in fs::read_dir(&folder)?.flatten() {
            let is_part = entry.path().extension().is_some_and(|kind| kind == "part");
            let age =
                entry.metadata().and_then(|metadata| metadata.modified()).map(|at| at.elapsed().unwrap_or_default());
            if is_part && age.is_ok_and(|age| age > PART_KEPT) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { folder: folder.into(), changing: Arc::default(), total_max: TOTAL_MAX })
    }

    /// How much of a file is there. One that has all its bytes is checked, and counts from then on.
    pub(crate) async fn begin(&self, BeginFile { sha256, size }: BeginFile) -> Result<FileProgress, BlobError> {
        let (this, _changing) = (self.clone(), self.changing.lock().await);
        self.on_disk(move || this.begin_now(sha256, size)).await
    }

    /// Adds a piece. One that does not follow what is there is not taken; the answer says what would.
    pub(crate) async fn add(&self, AddToFile { sha256, offset, piece }: AddToFile) -> Result<FileProgress, BlobError> {
        let (this, _changing) = (self.clone(), self.changing.lock().await);
        self.on_disk(move || {
            if piece.len() > PIECE_MAX {
                return Err(BlobError::LongPiece(piece.len()));
            }
            let part = this.part(sha256);
            let there = length(&part)?;
            if there != offset || this.whole(sha256).exists() {
                return Ok(FileProgress { there, whole: this.whole(sha256).exists() });
            }
            let there = there + piece.len() as u64;
            if there > FILE_MAX {
                return Err(BlobError::TooLong { size: there });
            }
            this.check_room(piece.len() as u64)?;
            OpenOptions::new().append(true).create(true).open(&part)?.write_all(&piece)?;
            Ok(FileProgress { there, whole: false })
        })
        .await
    }

    /// A piece of a file.
    pub(crate) async fn read(&self, ReadFile { sha256, offset }: ReadFile) -> Result<FilePiece, BlobError> {
        let this = self.clone();
        self.on_disk(move || {
            let mut file = match File::open(this.whole(sha256)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BlobError::NotThere(sha256)),
                file => file?,
            };
            let size = file.metadata()?.len();
            file.seek(SeekFrom::Start(offset))?;
            let mut piece = Vec::new();
            file.take(PIECE_MAX as u64).read_to_end(&mut piece)?;
            Ok(FilePiece { size, piece: Bytes::from(piece) })
        })
        .await
    }

    /// Does disk work where nobody waits for it but whoever asked, and names the folder if the disk refuses it.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, BlobError> {
        disk::run(work).await.map_err(|error| match error {
            BlobError::Io(error) => {
                let text = format!("{}: {error}", self.folder.display());
                BlobError::Io(io::Error::new(error.kind(), text))
            }
            other => other,
        })
    }

    fn begin_now(&self, sha256: Digest, size: u64) -> Result<FileProgress, BlobError> {
        let (whole, part) = (self.whole(sha256), self.part(sha256));
        if whole.exists() {
            if Digest(files::sha256_of(&whole)?) == sha256 {
                return Ok(FileProgress { there: size, whole: true });
            }
            tracing::error!(file = %whole.display(), "a file of a plugin is damaged; it is uploaded again");
            fs::remove_file(&whole)?;
        }
        if size > FILE_MAX {
            return Err(BlobError::TooLong { size });
        }
        let there = length(&part)?;
        if there < size {
            self.check_room(size - there)?;
            return Ok(FileProgress { there, whole: false });
        }
        // Checked before it counts, and on disk before anybody is told.
        let found = Digest(files::sha256_of(&part)?);
        if there > size || found != sha256 {
            fs::remove_file(&part)?;
            return Err(BlobError::WrongHash(sha256));
        }
        File::open(&part)?.sync_all()?;
        fs::rename(&part, &whole)?;
        File::open(&self.folder)?.sync_all()?;
        Ok(FileProgress { there, whole: true })
    }

    /// Checks that so many bytes more are not too many, with the files that are not whole yet.
    fn check_room(&self, more: u64) -> Result<(), BlobError> {
        let sizes = fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.metadata()?.len()));
        let there = sizes.sum::<io::Result<u64>>()?;
        if there + more <= self.total_max {
            return Ok(());
        }
        Err(BlobError::Full { there, max: self.total_max, folder: self.folder.display().to_string() })
    }

    fn whole(&self, sha256: Digest) -> PathBuf {
        self.folder.join(sha256.to_string())
    }

    fn part(&self, sha256: Digest) -> PathBuf {
        self.folder.join(format!("{sha256}.part"))
    }
}

fn length(path: &Path) -> io::Result<u64> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn uploads_that_are_under_way_count_and_those_of_long_ago_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut blobs = Blobs::open(folder.path().join("blobs")).unwrap();
        blobs.total_max = 100;
        let digests = [b"a", b"b"].map(|text| Digest::of(text));
        for sha256 in digests {
            assert!(!blobs.begin(BeginFile { sha256, size: 60 }).await.unwrap().whole, "each fits by itself");
        }
        let add = |sha256, offset| {
            let piece = Bytes::from_static(&[7; 30]);
            blobs.add(AddToFile { sha256, offset, piece })
        };
        add(digests[0], 0).await.unwrap();
        add(digests[1], 0).await.unwrap();
        add(digests[0], 30).await.unwrap();
        assert!(matches!(add(digests[1], 30).await, Err(BlobError::Full { there: 90, .. })));

        let old = std::time::SystemTime::now() - 2 * PART_KEPT;
        let part = std::fs::File::options().write(true).open(blobs.part(digests[0])).unwrap();
        part.set_modified(old).unwrap();
        drop(Blobs::open(folder.path().join("blobs")).unwrap());
        assert_eq!((blobs.part(digests[0]).exists(), blobs.part(digests[1]).exists()), (false, true));
    }

    #[tokio::test]
    async fn a_file_is_there_once_all_of_it_is_and_has_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path().join("blobs")).unwrap();
        let text = b"a file of a few pieces";
        let (sha256, size) = (Digest::of(text), text.len() as u64);
        let begin = || blobs.begin(BeginFile { sha256, size });
        let add = |offset: usize, end: usize| {
            let piece = Bytes::copy_from_slice(&text[offset..end]);
            blobs.add(AddToFile { sha256, offset: offset as u64, piece })
        };
        assert_eq!(begin().await.unwrap(), FileProgress { there: 0, whole: false });
        assert_eq!(add(0, 5).await.unwrap().there, 5);
        // Cut here, and asked again: it goes on where it was. A piece out of place changes nothing.
        assert_eq!(begin().await.unwrap().there, 5);
        assert_eq!(add(9, 12).await.unwrap().there, 5);
        assert!(matches!(blobs.read(ReadFile { sha256, offset: 0 }).await, Err(BlobError::NotThere(_))));
        add(5, text.len()).await.unwrap();
        assert_eq!(begin().await.unwrap(), FileProgress { there: size, whole: true });
        let read = blobs.read(ReadFile { sha256, offset: 7 }).await.unwrap();
        assert_eq!((read.size, &read.piece[..]), (size, &text[7..]));

        let wrong = BeginFile { sha256: Digest::of(b"something else"), size: 3 };
        blobs.add(AddToFile { sha256: wrong.sha256, offset: 0, piece: Bytes::from_static(b"abc") }).await.unwrap();
        assert!(matches!(blobs.begin(wrong.clone()).await, Err(BlobError::WrongHash(_))));
        assert_eq!(blobs.begin(wrong).await.unwrap().there, 0, "what was wrong is gone");
        // Damaged since: pushing it again heals it.
        std::fs::write(blobs.whole(sha256), b"a file of a few pigeons").unwrap();
        assert_eq!(begin().await.unwrap(), FileProgress { there: 0, whole: false });
        add(0, text.len()).await.unwrap();
        assert!(begin().await.unwrap().whole);
        assert_eq!(&blobs.read(ReadFile { sha256, offset: 0 }).await.unwrap().piece[..], text);
        let long = BeginFile { sha256, size: FILE_MAX + 1 };
        assert!(blobs.begin(BeginFile { sha256: Digest::of(b"x"), ..long }).await.is_err());
    }
}
