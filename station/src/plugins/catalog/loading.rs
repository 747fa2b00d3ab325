//! From a file that was taken in to a plugin in use.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quilt_core::{disk, files};
use quilt_plugin_api::{RoleDescription, RoleFactory};
use tokio::sync::{OnceCell, watch};
use tokio::time::Instant;

use super::local::Local;
use super::state::{Loading, Refused};
use super::{Catalog, Offered, Plugin, TOGETHER};
use crate::plugins::child::{Keeper, Library};
use crate::plugins::intake::{self, Taken};
use crate::plugins::{LoadError, MANIFESTS_MAX, Manifest};

impl Catalog {
    /// Where the log of what a plugin's process prints is kept.
    pub(crate) fn printed_by(&self, plugin: &str) -> PathBuf {
        self.setup.folder.join("printed").join(plugin)
    }

    /// Loads what was taken in, in a task of its own: whoever wants the same waits for that. With `together` not longer than files
    /// are waited for together; then it goes on, and the folders are looked at or what was asked for is considered anew when it is
    /// done.
    pub(super) async fn loaded(
        self: &Arc<Self>,
        path: &Path,
        taken: &Taken,
        together: bool,
    ) -> Result<Arc<Plugin>, LoadError> {
        let key = (path.to_owned(), taken.sha256.clone());
        let Loading { since, mut done } = self.loading(&key, taken);
        let waiting = done.wait_for(Option::is_some);
        let loaded = if together {
            // Whoever comes late still takes what is there.
            match tokio::time::timeout_at(since + TOGETHER, waiting).await {
                Ok(loaded) => loaded.ok().and_then(|loaded| loaded.clone()),
                Err(_) => return Err(LoadError::Loading),
            }
        } else {
            waiting.await.ok().and_then(|loaded| loaded.clone())
        };
        self.state().loading.remove(&key);
        loaded.unwrap_or_else(|| Err(LoadError::StationFault("loading it was given up".into())))
    }

    fn loading(self: &Arc<Self>, key: &(PathBuf, String), taken: &Taken) -> Loading {
        let mut state = self.state();
        if let Some(loading) = state.loading.get(key) {
            return loading.clone();
        }
        let (done, watch) = watch::channel(None);
        let loading = Loading { since: Instant::now(), done: watch };
        state.loading.insert(key.clone(), loading.clone());
        let (this, path, taken, since) = (self.clone(), key.0.clone(), taken.clone(), loading.since);
        #[allow(clippy::disallowed_methods, reason = "bounded by the time-outs of loading")]
        tokio::spawn(async move {
            let loaded = this.load(&path, &taken).await.map(Arc::new);
            done.send_replace(Some(loaded));
            if since.elapsed() >= TOGETHER {
                this.changed.send_modify(|count| *count += 1);
            }
        });
        loading
    }

    /// The plugin that is being loaded and says that it offers a role.
    pub(crate) fn loads(&self, role: &str) -> Option<String> {
        let state = self.state();
        let loading = state.refused.values().filter(|refused| refused.error == LoadError::Loading);
        let mut notes = loading.filter_map(|refused| refused.taken.as_ref()).map(|taken| &taken.inspection);
        notes.find(|note| note.roles.iter().any(|offered| offered == role)).map(|note| note.name.clone())
    }

    /// Loads what was taken in.
    async fn load(&self, path: &Path, taken: &Taken) -> Result<Plugin, LoadError> {
        if let Some(reason) = self.quarantine.get(&taken.sha256) {
            return Err(LoadError::Quarantined(reason));
        }
        let name = taken.inspection.name.clone();
        let library = Library {
            path: taken.path.clone(),
            sha256: taken.sha256.clone(),
            name: name.clone(),
            aborts: taken.inspection.aborts,
            printed: Some(self.printed_by(&name)),
        };
        let keeper = Keeper::new(library.clone(), Some(self.quarantine.clone()));
        let manifest = self.described(&keeper, &taken.sha256).await?;
        if manifest.name != name {
            return Err(LoadError::Describe(format!("as {:?}, its note says {name:?}", manifest.name)));
        }
        let by_name = |roles: Vec<Arc<dyn RoleFactory>>| {
            roles.into_iter().map(|role| (role.name().to_owned(), role)).collect::<BTreeMap<_, _>>()
        };
        let remote = by_name(keeper.roles(&manifest));
        let image = Arc::new(OnceCell::new());
        let folder = self.setup.folder.clone();
        let local = manifest.roles.iter().map(|role| {
            let (library, image, folder) = (library.clone(), image.clone(), folder.clone());
            Arc::new(Local { library, image, folder, role: role.clone() }) as Arc<dyn RoleFactory>
        });
        let local = by_name(local.collect());
        Ok(Plugin { taken: taken.clone(), file: path.to_owned(), manifest, keeper, remote, local })
    }

    /// Whether all roles of a plugin are its own, beside what others offer, and there is room for what it says of them.
    pub(super) fn check_roles(&self, plugin: &Plugin, others: &Offered) -> Result<(), LoadError> {
        let length = plugin.manifest.length;
        let beside = others.iter().filter(|(name, _)| **name != plugin.manifest.name);
        let beside: usize = beside.map(|(_, other)| other.manifest.length).sum();
        if beside + length > MANIFESTS_MAX {
            return Err(LoadError::DescriptionsFull { length, limit: MANIFESTS_MAX });
        }
        for RoleDescription { name: role, .. } in &plugin.manifest.roles {
            let taken_by = |by: String| LoadError::DuplicateRole { role: role.clone(), by };
            if self.setup.linked.contains(role) {
                return Err(taken_by("the station itself".into()));
            }
            // A plugin of the same name is what this one replaces.
            let other = others.iter().find(|(name, other)| **name != plugin.manifest.name && other.offers(role));
            if let Some((other, _)) = other {
                return Err(taken_by(format!("plugin {other}")));
            }
        }
        Ok(())
    }

    /// What the plugin says of itself: asked once, and remembered by its content.
    async fn described(&self, keeper: &Arc<Keeper>, sha256: &str) -> Result<Manifest, LoadError> {
        let cache = self.setup.folder.join(format!("{sha256}.json"));
        let known = cache.clone();
        let known = disk::run(move || fs::read(known)).await;
        if let Some(manifest) = known.ok().and_then(|json| Manifest::read(&json).ok()) {
            return Ok(manifest);
        }
        let manifest = keeper.describe().await?;
        let json = serde_json::to_vec(&manifest).expect("descriptions have text keys");
        if let Err(error) = disk::run(move || files::write_atomically(&cache, &json)).await {
            tracing::warn!(%error, "a plugin's description is not kept");
        }
        Ok(manifest)
    }

    /// Loads a private copy that was made earlier.
    pub(super) async fn kept_copy(
        self: &Arc<Self>,
        name: &str,
        sha256: String,
        file: &Path,
        together: bool,
    ) -> Result<Arc<Plugin>, LoadError> {
        let (trust, copy) = (self.setup.trust.clone(), self.setup.folder.join(format!("{sha256}.so")));
        let taken = disk::run(move || intake::retake(&copy, &sha256, &trust)).await?;
        if taken.inspection.name != name {
            return Err(LoadError::OtherName { expected: name.into(), got: taken.inspection.name });
        }
        self.loaded(file, &taken, together).await.inspect_err(|error| {
            let refused = Refused { error: error.clone(), taken: Some(taken.clone()) };
            self.state().refused.insert(taken.path.clone(), refused);
        })
    }
}
