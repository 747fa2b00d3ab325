//! Plugins of stations.

use quilt_protocol::control::{AllowPlugin, Empty, PluginView, command};
use quilt_protocol::{Address, Encoding, Name};
use serde::Serialize;

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
