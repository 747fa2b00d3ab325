//! What a manager remembers, copied to one file and brought back.

use std::path::Path;

use anyhow::Context as _;
use quilt_core::files;
use quilt_core::folder_lock::FolderLock;

use crate::config::{FOLDER, ManagerConfig};
use crate::store::{self, STORE_FILE, Summary};

/// What was done, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// What was done, in a line.
    pub text: String,
    /// What an operator should know beside that.
    pub notes: Vec<String>,
}

/// Copies the store of a data folder to the file `target`, also while a manager runs on it. Blocks.
///
/// # Errors
///
/// There is no store, it is damaged in its structure, or `target` exists or cannot be written.
pub fn back_up(config: &ManagerConfig, target: &Path) -> anyhow::Result<Done> {
    let Summary { content, notes } = store::back_up(&config.folder().join(STORE_FILE), target)?;
    Ok(Done { text: format!("backed up to {}: {content}", target.display()), notes })
}

/// Makes the store of a data folder from the file `source`. Blocks.
///
/// # Errors
///
/// A manager runs on the folder, `source` is no store or is damaged in its structure, or the folder cannot be written.
pub fn restore(config: &ManagerConfig, source: &Path) -> anyhow::Result<Done> {
    let folder = files::create_data_dir(&config.data_dir, FOLDER).context("the data folder")?;
    let _lock = FolderLock::take(&folder)?;
    let path = folder.join(STORE_FILE);
    let Summary { content, notes } = store::restore(&path, source)?;
    Ok(Done { text: format!("restored {}: {content}", path.display()), notes })
}
