//! Instances that are not to be any more and of which something still runs: shown until it is seen to be gone, and told to end again
//! and again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quilt_protocol::Digest;
use quilt_protocol::control::{Owner, State};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::handle::lock;
use crate::instance::{self, Surroundings};
use crate::spec::{Key, Spec};

/// How long to wait before an instance is told to end again.
const AGAIN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone, Default)]
pub(super) struct Survivors(Arc<Mutex<BTreeMap<Key, DropGuard>>>);

impl Survivors {
    /// Ends what is left of an instance, however long that takes.
    pub(super) fn end(&self, around: &Surroundings, key: &Key, stop_timeout: Duration, why: String) {
        let cancelled = CancellationToken::new();
        lock(&self.0).insert(key.clone(), cancelled.clone().drop_guard());
        let (all, around, key) = (self.clone(), around.clone(), key.clone());
        show(&around, &key, &why);
        let work = async move {
            loop {
                match instance::abandon(&around, &key, stop_timeout).await {
                    Ok(()) => break,
                    Err(why) => show(&around, &key, &why),
                }
                tokio::time::sleep(AGAIN).await;
            }
            // Unless it is to be again: then the board shows that one.
            if lock(&all.0).remove(&key).is_some() {
                around.board.remove(&key);
            }
        };
        #[allow(clippy::disallowed_methods, reason = "owned by its key and ended with it")]
        tokio::spawn(async move { cancelled.run_until_cancelled_owned(work).await });
    }

    /// Takes an instance that is to be again; false if nothing was left of it.
    pub(super) fn take(&self, key: &Key) -> bool {
        lock(&self.0).remove(key).is_some()
    }

    /// Leaves all of them as they are.
    pub(super) fn let_go(&self) {
        lock(&self.0).clear();
    }
}

/// Shows an instance that is to go. The manager counts it as one that is not gone yet, so that an apply waits for it.
fn show(around: &Surroundings, key: &Key, why: &str) {
    if around.board.get(key).is_none() {
        around.board.put(&Spec {
            key: key.clone(),
            owner: Owner::Fleet,
            digest: Digest::of(b""),
            settings: Default::default(),
            config: String::new(),
            carrier: None,
        });
    }
    let detail = format!("it was told to stop and still runs: {why}");
    tracing::error!(instance = %key, "{detail}");
    around.board.state(key, State::Stopping, detail);
}
