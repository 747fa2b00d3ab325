//! The folders of instances on their stations.

use quilt_protocol::control::{Empty, InstanceFolder, PurgeFolders, command};
use quilt_protocol::{Address, Encoding, Name};

use crate::{AskError, Client};

impl Client {
    /// The folders of a station's instances, also of those that were removed.
    ///
    /// # Errors
    ///
    /// The station is unknown or away, or no answer.
    pub async fn folders(&self, station: &Name) -> Result<Vec<InstanceFolder>, AskError> {
        let to = Address::Station(station.clone());
        self.handle().ask(to, command::FOLDERS, Encoding::Json, &Empty {}, self.timeout()).await
    }

    /// Deletes folders of instances that were removed, given as role and instance. All or none.
    ///
    /// # Errors
    ///
    /// One of them is in use or is not there, the station is unknown or away, or no answer.
    pub async fn purge_folders(&self, station: &Name, instances: Vec<(Name, Name)>) -> Result<(), AskError> {
        let to = Address::Station(station.clone());
        let request = PurgeFolders { instances };
        self.handle().ask(to, command::PURGE_FOLDERS, Encoding::Json, &request, self.timeout()).await
    }
}
