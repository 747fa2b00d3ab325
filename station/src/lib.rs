//! The station: hosts role instances on one machine, with or without a manager.
//!
//! It dials the manager, registers, receives configurations, and keeps its instances running whatever becomes of the
//! manager or of itself. This is where the wire and the role contract meet: `session` speaks the one, `instance` is
//! the only caller of the other.
//!
//! Absent on purpose: what a role does. Read first: [`Station`], `push`, `instance`. Modules in reading order:
//! `config`, `identity`, `plugins`, `spec`, `needs`, `endpoint`, `role_table`, `local`, `plan`, `push`, `saved`, `stopped`, `supervisor`,
//! `instance`, `catch`, `restarts`, `ready`, `host`, `role_events`, `commands`, `board`, `session`, `requests`, `listing`, `folders`,
//! `stop`.

mod board;
mod catch;
mod commands;
mod config;
mod endpoint;
mod folders;
mod host;
mod identity;
mod instance;
mod listing;
mod local;
mod needs;
mod plan;
mod plugins;
mod push;
mod ready;
mod requests;
mod restarts;
mod role_events;
mod role_table;
mod saved;
mod session;
mod spec;
pub mod stop;
mod stopped;
mod supervisor;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use quilt_core::folder_lock::FolderLock;
use quilt_core::signals::Stop;
use quilt_core::{disk, files, runtime, shortage};

pub use config::{StationArgs, StationConfig};
pub use plugins::{
    Finding, FoundPlugin, Inspection, RefusedPlugin, Verdict, become_plugin_host_if_asked, check_plugin,
    inspect_plugin, inspect_plugin_bytes, load_plugin,
};

// Linked for their registration only; without a use the linker drops them.
use quilt_role_counter as _;
use quilt_role_process as _;

/// How long the last records of instances may take to be written.
const LAST_RECORDS: Duration = Duration::from_secs(1);

/// The station's own folder in its data folder.
const FOLDER: &str = "station";

/// A running station.
pub struct Station {
    supervisor: supervisor::Handle,
    push: Arc<push::Push>,
    session: tokio::task::JoinHandle<()>,
    stop_session: tokio_util::sync::CancellationToken,
    /// Looks at the plugin folders, follows what they bring, and deletes the folders of removed instances.
    plugins: [tokio::task::JoinHandle<()>; 3],
    _lock: FolderLock,
}

impl Station {
    /// Starts a station: its accepted configuration at once, its session with the manager as soon as there is one.
    ///
    /// # Errors
    ///
    /// The data folder is in use or cannot be written.
    pub async fn start(config: StationConfig) -> anyhow::Result<Self> {
        shortage::raise_descriptor_limit();
        let folder = files::create_data_dir(&config.data_dir, FOLDER).context("the data folder")?;
        let lock = FolderLock::take(&folder)?;
        let identity = identity::load(&folder)?;
        let link = Arc::new(session::Link::new(identity, config.name.clone()));
        let linked = quilt_plugin_api::linked_roles().iter().map(|role| role.name().to_owned()).collect();
        let plugins = plugins::Catalog::open(plugins::Setup {
            folder: folder.join("plugins"),
            dirs: config.plugin_dirs.clone(),
            trust: config.trust.clone(),
            linked,
            link: link.clone(),
        })?;
        #[allow(clippy::disallowed_methods, reason = "owned here and ended by stop")]
        let watch = tokio::spawn({
            let plugins = plugins.clone();
            runtime::keep_running("plugin folders", move || plugins.clone().watch())
        });
        plugins.settled_in().await;
        let roles = Arc::new(role_table::RoleTable::linked(plugins.clone(), config.blocked.clone()));
        let saved = saved::Saved::open(&folder)?;
        let local = local::read(&config.roles_dir);
        let board = Arc::new(board::Board::default());
        let commands = Arc::new(commands::Commands::default());
        let supervisor = supervisor::start(supervisor::Setup {
            folder: folder.join("instances"),
            roles: roles.clone(),
            board: board.clone(),
            commands: commands.clone(),
            link: link.clone(),
            stopped: saved.stopped(),
        });
        let push = push::Push::start(saved, local, roles.clone(), supervisor.clone(), &link, &board).await;
        let stop_session = tokio_util::sync::CancellationToken::new();
        let service = Arc::new(requests::Requests {
            roles,
            commands,
            push,
            supervisor: supervisor.clone(),
            board: board.clone(),
            folder: folder.join("instances"),
            dedupe: Default::default(),
            link: link.clone(),
            identity_folder: folder,
            plugins: plugins.clone(),
            log_streams: Arc::default(),
        });
        #[allow(clippy::disallowed_methods, reason = "owned here and ended by stop")]
        let follow = tokio::spawn({
            let (push, board) = (service.push.clone(), board.clone());
            runtime::keep_running("plugins", move || follow_plugins(plugins.clone(), push.clone(), board.clone()))
        });
        let push = service.push.clone();
        #[allow(clippy::disallowed_methods, reason = "owned here and ended by stop")]
        let sweep = tokio::spawn({
            let (push, around, keep) = (push.clone(), service.around(), config.keep_removed);
            runtime::keep_running("folders of removed instances", move || {
                push.clone().sweep_folders(around.clone(), keep)
            })
        });
        #[allow(clippy::disallowed_methods, reason = "the session's task is owned here and awaited by stop")]
        let session = tokio::spawn({
            let (config, stop) = (Arc::new(config), stop_session.clone());
            runtime::keep_running("the session with the manager", move || {
                session::keep(config.clone(), link.clone(), service.clone(), board.clone(), stop.clone())
            })
        });
        Ok(Self { supervisor, push, session, stop_session, plugins: [watch, follow, sweep], _lock: lock })
    }

    /// Reads the drop-in files of local instances again, from the folder that `config` names, and goes for what they say now. If one
    /// cannot be read the log says why, and all stays as it was.
    pub fn reload(&self, config: &StationConfig) {
        self.push.reload(&config.roles_dir);
    }

    /// Waits until the station cannot go on: nobody is left who knows what should run. Stop it then with [`Stop::Detach`], and end the
    /// process so that a service manager starts it again.
    pub async fn failed(&self) -> String {
        self.supervisor.failed().await
    }

    /// Ends the station: with its instances in order, or leaving those that can outlive it. Returns what was late.
    pub async fn stop(self, how: Stop) -> Vec<String> {
        self.plugins.iter().for_each(tokio::task::JoinHandle::abort);
        let late = self.supervisor.shut_down(how == Stop::Detach).await;
        // Last, so that the manager sees the instances stop; the goodbye is the session's own.
        self.stop_session.cancel();
        let _ = self.session.await;
        let _ = tokio::time::timeout(LAST_RECORDS, disk::flush()).await;
        late
    }
}

/// Keeps what the station offers and runs up with its plugins.
async fn follow_plugins(plugins: Arc<plugins::Catalog>, push: Arc<push::Push>, board: Arc<board::Board>) {
    let mut changes = plugins.subscribe();
    // What came while the station was put together.
    changes.mark_changed();
    while changes.changed().await.is_ok() {
        push.reconsider().await;
        board.roles_changed();
    }
}

/// The folder of a station's data, which one station at a time holds.
fn folder(config: &StationConfig) -> PathBuf {
    config.data_dir.join(FOLDER)
}
