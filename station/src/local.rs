//! Instances that the host itself configures: drop-in files in `roles.d`, in name order.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use quilt_core::settings;
use quilt_protocol::control::Document;

/// Reads every file: `[ROLE.INSTANCE]` sections. The same instance in two files is an error.
pub(crate) fn read(folder: &Path) -> anyhow::Result<Document> {
    let mut document = Document::default();
    for path in settings::drop_ins(folder)? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let roles: toml::Table = toml::from_str(&text).with_context(|| path.display().to_string())?;
        let file = serde_json::json!({ "roles": roles });
        let file: Document = serde_json::from_value(file)
            .with_context(|| format!("{}: expected [ROLE.INSTANCE] sections", path.display()))?;
        for (role, instances) in file.roles {
            for (instance, config) in instances {
                let earlier = document.roles.entry(role.clone()).or_default().insert(instance.clone(), config);
                if earlier.is_some() {
                    bail!("{}: {role}/{instance} is configured by an earlier file too; remove one", path.display());
                }
            }
        }
    }
    Ok(document)
}
