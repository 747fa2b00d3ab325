//! What roles and commands look like: listings refer to schemas by hash, and each content is fetched once.

use std::collections::{BTreeSet, HashMap};

use quilt_protocol::control::{
    CommandView, Discover, Page, ReadSchemas, RoleView, SCHEMAS_MAX, command, schema_referenced as referenced,
};
use quilt_protocol::{Address, Digest, Encoding, Name};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{AskError, Client};

/// How many schemas a client keeps.
const KEPT_MAX: usize = 4096;

/// Schemas by the hash of their text.
pub(crate) type Kept = HashMap<Digest, Value>;

impl Client {
    /// The commands that a station's instances offer.
    ///
    /// # Errors
    ///
    /// The station is unknown or away, or no answer.
    pub async fn commands(&self, station: &Name) -> Result<Vec<CommandView>, AskError> {
        let mut commands = self.discover::<CommandView>(station, command::COMMANDS).await?;
        let schemas = commands
            .iter_mut()
            .flat_map(|view| [&mut view.request_schema, &mut view.reply_schema, &mut view.error_schema]);
        self.resolve_schemas(station, schemas.collect()).await?;
        Ok(commands)
    }

    /// The roles that a station can run.
    ///
    /// # Errors
    ///
    /// The station is unknown or away, or no answer.
    pub async fn roles(&self, station: &Name) -> Result<Vec<RoleView>, AskError> {
        let mut roles = self.discover::<RoleView>(station, command::ROLES).await?;
        self.resolve_schemas(station, roles.iter_mut().map(|view| &mut view.config_schema).collect()).await?;
        Ok(roles)
    }

    async fn discover<T: DeserializeOwned>(&self, station: &Name, command: &str) -> Result<Vec<T>, AskError> {
        let (to, mut all) = (Address::Station(station.clone()), Vec::new());
        let mut ask = Discover { by_hash: true, after: None };
        loop {
            let session = self.handle();
            let page: Page<T> = session.ask(to.clone(), command, Encoding::Json, &ask, self.timeout()).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => ask.after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// Puts schemas where references to them are.
    async fn resolve_schemas(&self, station: &Name, places: Vec<&mut Value>) -> Result<(), AskError> {
        let wanted: BTreeSet<Digest> = places.iter().filter_map(|place| referenced(place)).collect();
        let missing: Vec<Digest> = {
            let mut kept = self.schemas();
            if kept.len() + wanted.len() > KEPT_MAX {
                kept.clear();
            }
            wanted.iter().filter(|digest| !kept.contains_key(digest)).copied().collect()
        };
        let mut found = Kept::new();
        let mut missing = &missing[..];
        while !missing.is_empty() {
            let schemas = missing[..missing.len().min(SCHEMAS_MAX)].to_vec();
            let texts: Vec<String> =
                self.ask(command::SCHEMAS, &ReadSchemas { station: station.clone(), schemas }).await?;
            if texts.is_empty() {
                break;
            }
            missing = &missing[texts.len().min(missing.len())..];
            for text in texts {
                if let Ok(schema) = serde_json::from_str(&text) {
                    found.insert(Digest::of(text.as_bytes()), schema);
                }
            }
        }
        let mut kept = self.schemas();
        kept.extend(found);
        for place in places {
            if let Some(schema) = referenced(place).and_then(|digest| kept.get(&digest)) {
                *place = schema.clone();
            }
        }
        Ok(())
    }
}
