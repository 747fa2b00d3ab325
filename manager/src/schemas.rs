//! JSON Schemas by the hash of their text: asked of a station once, kept for whoever asks next, whichever station is meant.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quilt_protocol::control::{PAGE_MAX, ReadSchemas, SCHEMAS_MAX, command};
use quilt_protocol::{Address, Digest, Encoding, Outcome};

use crate::{Core, route};

/// How many bytes of text are kept. A fleet has hundreds of schemas of a few KiB.
const KEPT_MAX: usize = 32 << 20;
/// How long a station may take.
const STATION: Duration = Duration::from_secs(15);

/// The schemas that a manager has seen.
#[derive(Default)]
pub(crate) struct Schemas {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    texts: HashMap<Digest, String>,
    bytes: usize,
}

impl Schemas {
    fn find(&self, digest: &Digest) -> Option<String> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).texts.get(digest).cloned()
    }

    /// Keeps what a station gave under its own hash, whatever it was asked for.
    fn keep(&self, text: &str) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + text.len() > KEPT_MAX {
            // What is still used is asked for again; that costs less than knowing what is.
            *kept = Kept::default();
        }
        if text.len() <= KEPT_MAX && kept.texts.insert(Digest::of(text.as_bytes()), text.into()).is_none() {
            kept.bytes += text.len();
        }
    }
}

/// The texts of schemas that a station referred to.
pub(crate) async fn read(core: &Core, request: ReadSchemas) -> Result<Vec<String>, (Outcome, String)> {
    let ReadSchemas { station, schemas } = request;
    if schemas.len() > SCHEMAS_MAX {
        return Err((Outcome::Refused, format!("{} schemas at once; at most {SCHEMAS_MAX} are given", schemas.len())));
    }
    let (mut texts, mut bytes) = (Vec::new(), 0);
    let mut fetched = HashMap::new();
    for (at, digest) in schemas.iter().enumerate() {
        let find =
            |fetched: &HashMap<Digest, String>| fetched.get(digest).cloned().or_else(|| core.schemas.find(digest));
        let mut text = find(&fetched);
        if text.is_none() {
            // The station gives as many as fit, in this order.
            let is_missing = |digest: &&Digest| !fetched.contains_key(*digest) && core.schemas.find(digest).is_none();
            let missing: Vec<_> = schemas[at..].iter().filter(is_missing).copied().collect();
            for text in fetch(core, &station, &missing).await? {
                core.schemas.keep(&text);
                fetched.insert(Digest::of(text.as_bytes()), text);
            }
            text = find(&fetched);
        }
        let text = text.ok_or_else(|| unknown(&station, digest))?;
        bytes += text.len();
        if bytes > PAGE_MAX && !texts.is_empty() {
            break;
        }
        texts.push(text);
    }
    Ok(texts)
}

async fn fetch(
    core: &Core,
    station: &quilt_protocol::Name,
    missing: &[Digest],
) -> Result<Vec<String>, (Outcome, String)> {
    let handle = route::station_handle(core, station)?;
    let to = Address::Station(station.clone());
    let asking = handle.ask::<_, Vec<String>>(to, command::SCHEMAS, Encoding::Json, &missing, STATION);
    let texts = asking.await.map_err(|error| (error.outcome(), error.to_string()))?;
    core.metrics.schemas.inc_by(texts.len() as u64);
    Ok(texts)
}

fn unknown(station: &quilt_protocol::Name, digest: &Digest) -> (Outcome, String) {
    let text = format!("station {station} has no schema {digest} any more; ask for its commands again");
    (Outcome::Refused, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_found_by_its_hash() {
        let schemas = Schemas::default();
        schemas.keep("{}");
        schemas.keep("{}");
        assert_eq!(schemas.find(&Digest::of(b"{}")).as_deref(), Some("{}"));
        assert_eq!(schemas.kept.lock().unwrap().bytes, 2);
        schemas.keep(&"x".repeat(KEPT_MAX + 1));
        assert_eq!(schemas.kept.lock().unwrap().bytes, 0);
    }
}
