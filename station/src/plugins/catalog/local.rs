//! A role of a plugin inside the station, whose library is mapped when it is first needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quilt_core::disk;
use quilt_plugin_api::{BoxFuture, Instance, RoleContext, RoleDescription, RoleError, RoleFactory};
use tokio::sync::OnceCell;

use crate::plugins::child::Library;
use crate::plugins::image::Image;
use crate::plugins::{LoadError, Manifest};

/// A role of a plugin inside the station; the library is mapped when the first instance needs it.
pub(super) struct Local {
    pub(super) library: Library,
    pub(super) image: Arc<OnceCell<Arc<Image>>>,
    pub(super) folder: PathBuf,
    pub(super) role: RoleDescription,
}

/// Marks what runs now, so that the next station knows what the one before died of.
struct Marker(PathBuf);

impl Marker {
    fn set(folder: &Path, library: &Library, what: &str) -> Self {
        let path = folder.join(format!("{}.running", library.sha256));
        if let Err(error) = disk::in_place(|| fs::write(&path, format!("{} {what}", library.name))) {
            tracing::warn!(%error, "a plugin is loaded without a mark");
        }
        Self(path)
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        let _ = disk::in_place(|| fs::remove_file(&self.0));
    }
}

impl Local {
    /// The role of the mapped library.
    fn factory(&self) -> impl Future<Output = Result<Arc<dyn RoleFactory>, LoadError>> + Send + 'static {
        let (library, image, folder, role) =
            (self.library.clone(), self.image.clone(), self.folder.clone(), self.role.clone());
        async move {
            let open = async || {
                let runtime = tokio::runtime::Handle::current();
                let opening = tokio::task::spawn_blocking(move || {
                    let _marker = Marker::set(&folder, &library, "was loaded");
                    Image::open(&library, &runtime, true)
                });
                opening.await.unwrap_or_else(|error| Err(LoadError::Open(error.to_string())))
            };
            let image = image.get_or_try_init(open).await?;
            let manifest = Manifest {
                name: String::new(),
                version: String::new(),
                sdk: String::new(),
                roles: vec![role],
                length: 0,
            };
            Ok(image.roles(&manifest).swap_remove(0))
        }
    }
}

impl RoleFactory for Local {
    fn description(&self) -> &RoleDescription {
        &self.role
    }

    fn validate(&self, config: &[u8]) -> BoxFuture<'static, Result<(), RoleError>> {
        let (factory, config) = (self.factory(), config.to_vec());
        Box::pin(async move {
            let unable = |error: LoadError| {
                let got = format!("one that {error}");
                RoleError::invalid("isolation", "a plugin that can run in the station", got)
            };
            factory.await.map_err(unable)?.validate(&config).await
        })
    }

    fn start(&self, config: &[u8], cx: RoleContext) -> BoxFuture<'static, Result<Box<dyn Instance>, RoleError>> {
        let (factory, config) = (self.factory(), config.to_vec());
        let (folder, library) = (self.folder.clone(), self.library.clone());
        Box::pin(async move {
            let factory = factory.await.map_err(|error| RoleError::failed(error.to_string()))?;
            let _marker = Marker::set(&folder, &library, &format!("started {}/{}", cx.role(), cx.instance()));
            factory.start(&config, cx).await
        })
    }

    fn abandon(&self, cx: RoleContext) -> BoxFuture<'static, ()> {
        let factory = self.factory();
        Box::pin(async move {
            if let Ok(factory) = factory.await {
                factory.abandon(cx).await;
            }
        })
    }
}
