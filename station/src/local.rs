//! Instances that the host itself configures: drop-in files in `roles.d`, in name order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use quilt_core::settings;
use quilt_protocol::control::Document;

use crate::spec::Key;

/// What the host configures.
#[derive(Clone, Default)]
pub(crate) struct Local {
    pub(crate) document: Document,
    /// Whether every file could be read: otherwise nobody knows all that should run here.
    pub(crate) whole: bool,
    /// What is wrong with the files, each with its file.
    pub(crate) problems: Vec<String>,
    /// The file that configures an instance.
    files: BTreeMap<Key, PathBuf>,
}

impl Local {
    /// The file that configures an instance, if one does.
    pub(crate) fn file_of(&self, key: &Key) -> Option<&Path> {
        self.files.get(key).map(PathBuf::as_path)
    }
}

/// Reads every file: `[ROLE.INSTANCE]` sections. Goes on past a file that cannot be read, because that must not keep the station from
/// registering. Of an instance in two files the first is taken.
pub(crate) fn read(folder: &Path) -> Local {
    let mut local = Local { whole: true, ..Local::default() };
    let files = settings::drop_ins(folder).unwrap_or_else(|error| {
        local.problems.push(format!("{error:#}"));
        local.whole = false;
        Vec::new()
    });
    for path in files {
        let file = match read_file(&path) {
            Ok(file) => file,
            Err(error) => {
                local.problems.push(format!("{error:#}"));
                local.whole = false;
                continue;
            }
        };
        for (role, instances) in file.roles {
            let known = local.document.roles.entry(role.clone()).or_default();
            for (instance, config) in instances {
                let key = Key { role: role.clone(), instance: instance.clone() };
                match local.files.entry(key) {
                    Entry::Vacant(free) => {
                        free.insert(path.clone());
                        known.insert(instance, config);
                    }
                    Entry::Occupied(taken) => {
                        let (path, first, key) = (path.display(), taken.get().display(), taken.key());
                        let text = format!("{path}: {key} is configured in {first} too, which is taken; remove one");
                        local.problems.push(text);
                    }
                }
            }
        }
    }
    local
}

fn read_file(path: &Path) -> anyhow::Result<Document> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let roles = settings::parse(path, &text).map_err(|error| {
        anyhow::anyhow!(
            "{error}; a file of roles.d has a section [ROLE.INSTANCE] for each instance, such as [process.clock]"
        )
    })?;
    Ok(Document { roles, ..Document::default() })
}
