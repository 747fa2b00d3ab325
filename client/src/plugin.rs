//! Plugins of stations.

use bytes::Bytes;
use quilt_protocol::control::{
    AddToFile, AllowPlugin, BeginFile, Empty, FileProgress, GivenPlugin, PIECE_MAX, PluginView, command,
};
use quilt_protocol::{Address, Digest, Encoding, Name};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{AskError, Client};

impl Client {
    /// The plugins of a station: those it offers roles of, and those it does not use, with the reason.
    ///
    /// # Errors
    ///
    /// The station is unknown or away, or no answer.
    pub async fn plugins(&self, station: &Name) -> Result<Vec<PluginView>, AskError> {
        self.ask_station(station, command::PLUGINS, &Empty {}).await
    }

    /// The plugins that pushes and fleet files give to stations, whether or not there is one yet.
    ///
    /// # Errors
    ///
    /// No answer.
    pub async fn given_plugins(&self) -> Result<Vec<GivenPlugin>, AskError> {
        self.ask_list(command::GIVEN_PLUGINS, &Empty {}).await
    }

    /// Has a station look at its plugin folders anew.
    ///
    /// # Errors
    ///
    /// The station is unknown or away, or no answer.
    pub async fn reload_plugins(&self, station: &Name) -> Result<Vec<PluginView>, AskError> {
        self.ask_station(station, command::RELOAD_PLUGINS, &Empty {}).await
    }

    /// Lifts the quarantine of a plugin, by name or sha256.
    ///
    /// # Errors
    ///
    /// Nothing of that name is quarantined there, the station is unknown or away, or no answer.
    pub async fn allow_plugin(&self, station: &Name, plugin: &str) -> Result<Vec<PluginView>, AskError> {
        self.ask_station(station, command::ALLOW_PLUGIN, &AllowPlugin { plugin: plugin.into() }).await
    }

    /// Stores a file at the manager, once: what is there already is not sent again. `progress` hears how many bytes are there.
    ///
    /// # Errors
    ///
    /// The manager does not take it, or no answer.
    ///
    /// # Cancel safety
    ///
    /// A later call goes on where this one was dropped.
    pub async fn store_file(&self, content: &[u8], mut progress: impl FnMut(u64)) -> Result<Digest, AskError> {
        let (sha256, size) = (Digest::of(content), content.len() as u64);
        let begin = BeginFile { sha256, size };
        let mut there: FileProgress = self.ask_manager(command::BEGIN_FILE, &begin).await?;
        while !there.whole {
            progress(there.there);
            let from = usize::try_from(there.there).unwrap_or(usize::MAX).min(content.len());
            if from == content.len() {
                there = self.ask_manager(command::BEGIN_FILE, &begin).await?;
                continue;
            }
            let piece = Bytes::copy_from_slice(&content[from..content.len().min(from + PIECE_MAX)]);
            let add = AddToFile { sha256, offset: from as u64, piece };
            there = self.ask_manager(command::ADD_TO_FILE, &add).await?;
        }
        progress(size);
        Ok(sha256)
    }

    /// As other questions to the manager, but with bytes as bytes.
    async fn ask_manager<Q: Serialize, R: DeserializeOwned>(&self, command: &str, request: &Q) -> Result<R, AskError> {
        self.handle().ask(Address::Manager, command, Encoding::Bincode, request, self.timeout()).await
    }

    async fn ask_station<Q: Serialize>(
        &self,
        station: &Name,
        command: &str,
        request: &Q,
    ) -> Result<Vec<PluginView>, AskError> {
        let to = Address::Station(station.clone());
        self.handle().ask(to, command, Encoding::Json, request, self.timeout()).await
    }
}
