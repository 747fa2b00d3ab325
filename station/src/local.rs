//! Instances that the host itself configures: drop-in files in `roles.d`, in name order.

use std::collections::btree_map::Entry;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use quilt_core::settings;
use quilt_protocol::control::Document;

/// What the host configures.
#[derive(Default)]
pub(crate) struct Local {
    pub(crate) document: Document,
    /// Whether every file could be read: otherwise nobody knows all that should run here.
    pub(crate) whole: bool,
}

/// Reads every file: `[ROLE.INSTANCE]` sections. A file that is wrong is left out and said to be so; it must not keep the
/// station from registering. Of an instance in two files the first is taken.
pub(crate) fn read(folder: &Path) -> Local {
    let mut local = Local { whole: true, ..Local::default() };
    let files = settings::drop_ins(folder).unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        local.whole = false;
        Vec::new()
    });
    for path in files {
        let file = match read_file(&path) {
            Ok(file) => file,
            Err(error) => {
                tracing::error!("{error:#}; this file is left out");
                local.whole = false;
                continue;
            }
        };
        for (role, instances) in file.roles {
            let known = local.document.roles.entry(role.clone()).or_default();
            for (instance, config) in instances {
                match known.entry(instance) {
                    Entry::Vacant(free) => drop(free.insert(config)),
                    Entry::Occupied(taken) => {
                        let (path, instance) = (path.display(), taken.key());
                        tracing::error!("{path}: {role}/{instance} is configured by an earlier file too; remove one");
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
