//! The plugins of a station as operators see them.

use quilt_protocol::control::{PluginState, PluginView};

use super::state::Refused;
use super::{Catalog, Plugin};
use crate::plugins::LoadError;

impl Catalog {
    /// What operators see.
    pub(crate) async fn views(&self) -> Vec<PluginView> {
        let live: Vec<_> = self.state().live.values().cloned().collect();
        let mut views = Vec::new();
        for plugin in live {
            let Plugin { taken, manifest, file, keeper, .. } = &*plugin;
            let crashed = self.quarantine.get(&taken.sha256).map(LoadError::Quarantined);
            views.push(PluginView {
                state: if crashed.is_some() { PluginState::Quarantined } else { PluginState::Live },
                name: manifest.name.clone(),
                version: manifest.version.clone(),
                roles: manifest.roles.iter().map(|role| role.name.clone()).collect(),
                sha256: taken.sha256.clone(),
                file: file.display().to_string(),
                code: crashed.as_ref().map(|error| error.code().into()),
                detail: crashed.map(|error| error.to_string()).unwrap_or_default(),
                pid: keeper.pid().await,
            });
        }
        let state = self.state();
        let pushed_over = state.found.iter().filter(|(name, found)| {
            let live = state.live.get(*name).filter(|_| state.assigned.contains_key(*name));
            live.is_some_and(|live| live.taken.sha256 != found.taken.sha256)
        });
        let pushed_over = pushed_over.map(|(name, found)| {
            let error = LoadError::Shadowed { name: name.clone(), by: "what was pushed to this station".into() };
            (found.file.clone(), Refused { error, taken: Some(found.taken.clone()) })
        });
        let pushed_over: Vec<_> = pushed_over.collect();
        let unused = state.refused.iter().chain(pushed_over.iter().map(|(path, refused)| (path, refused)));
        for (path, Refused { error, taken }) in unused {
            let inspection = taken.as_ref().map(|taken| taken.inspection.clone()).unwrap_or_default();
            views.push(PluginView {
                state: match error {
                    LoadError::Loading => PluginState::Loading,
                    LoadError::Quarantined(_) | LoadError::Crashed(_) => PluginState::Quarantined,
                    _ => PluginState::Refused,
                },
                name: inspection.name,
                version: inspection.version,
                roles: inspection.roles,
                sha256: taken.as_ref().map(|taken| taken.sha256.clone()).unwrap_or_default(),
                file: path.display().to_string(),
                code: Some(error.code().into()),
                detail: error.to_string(),
                pid: None,
            });
        }
        views
    }
}
