//! The end of instances: in the order of their needs, with a time-out; also of those that an earlier station left.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use quilt_core::disk;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Stopping, Supervisor, lock};
use crate::instance::{self, Ended, Order, Surroundings};
use crate::spec::Key;

/// How much longer than its stop time-out an instance may take to hear that it is to end: it may be starting.
const ENDING_GRACE: Duration = Duration::from_secs(10);
/// How long what an earlier station left of a forgotten instance may take to stop.
pub(crate) const FORGOTTEN_STOP: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Instances in the order in which they end: those that need others before those they need.
    pub(super) fn levels(&self, keys: &BTreeSet<Key>) -> Vec<BTreeSet<Key>> {
        let (mut levels, mut left) = (Vec::new(), keys.clone());
        while !left.is_empty() {
            let needs = left.iter().flat_map(|key| self.instances[key].spec.settings.needs.iter());
            let needed: BTreeSet<Key> = needs.map(|need| need.key.clone()).collect();
            let mut level: BTreeSet<Key> = left.difference(&needed).cloned().collect();
            if level.is_empty() {
                // A circle cannot be planned, but must not hang a shutdown either.
                level.clone_from(&left);
            }
            left = left.difference(&level).cloned().collect();
            levels.push(level);
        }
        levels
    }

    pub(super) async fn tell_to_end(&mut self, keys: &BTreeSet<Key>, detach: bool) {
        for key in keys {
            let Some(entry) = self.instances.remove(key) else { continue };
            lock(&self.orders).remove(key);
            let (done, answer) = oneshot::channel();
            let _ = entry.orders.send(Order::End { detach, done }).await;
            self.ending.push((key.clone(), entry.spec.settings.stop_timeout, answer));
        }
    }

    pub(super) async fn wait_until_ended(&mut self) -> Result<(), Stopping> {
        let stopping = self.stopping.clone();
        if self.ended(false, Some(stopping)).await { Ok(()) } else { Err(Stopping) }
    }

    /// Waits for all that were told to end; false if it was not worth waiting any more.
    pub(super) async fn ended(&mut self, detach: bool, unless: Option<CancellationToken>) -> bool {
        let unless = unless.unwrap_or_default();
        let longest = self.ending.iter().map(|(_, time, _)| *time).max().unwrap_or_default();
        let until = tokio::time::Instant::now() + longest.saturating_add(ENDING_GRACE);
        while let Some((key, _, answer)) = self.ending.last_mut() {
            let answer = tokio::select! {
                answer = tokio::time::timeout_at(until, answer) => answer,
                () = unless.cancelled() => return false,
            };
            let survivor = match &answer {
                Ok(Ok(Ended::Survives(why))) => Some(why.clone()),
                // Its task has not come to it.
                Err(_) => Some("it did not end in time".to_owned()),
                Ok(Ok(Ended::InTime | Ended::Late) | Err(_)) => None,
            };
            if survivor.is_some() || answer == Ok(Ok(Ended::Late)) {
                self.late.push(key.to_string());
            }
            let (key, time, _) = self.ending.pop().expect("it was looked at above");
            match survivor {
                Some(why) if !detach => self.survivors.end(&self.around, &key, time, why),
                _ if !detach => self.around.board.remove(&key),
                _ => {}
            }
        }
        true
    }
}

/// Ends what an earlier station left of instances other than these. Names those of which something still runs, and what.
pub(super) async fn sweep(around: Surroundings, keep: BTreeSet<Key>) -> Vec<(Key, String)> {
    let mut ending = tokio::task::JoinSet::new();
    let folder = around.folder.clone();
    let (mut keys, error) = disk::run(move || left(&folder)).await;
    keys.retain(|key| !keep.contains(key));
    for key in keys {
        let around = around.clone();
        ending.spawn(async move {
            let ended = instance::abandon(&around, &key, FORGOTTEN_STOP).await;
            ended.err().map(|why| (key, why))
        });
    }
    if let Some(error) = error {
        tracing::error!(%error, "not all programs that an earlier station left can be seen");
    }
    ending.join_all().await.into_iter().flatten().collect()
}

/// The instances that have a folder here, or a program although their folder is gone; and why not all can be seen.
fn left(instances: &Path) -> (BTreeSet<Key>, Option<std::io::Error>) {
    let folders = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let all = folders(instances).flat_map(|role| folders(&role).collect::<Vec<_>>());
    let with_folder = all.map(|instance| [instance.parent().map(name).unwrap_or_default(), name(&instance)]);
    let key = |[role, instance]: [String; 2]| format!("{role}/{instance}").parse::<Key>().ok();
    let mut keys: BTreeSet<Key> = with_folder.filter_map(key).collect();
    match quilt_role_process::keeper::instances_with_keepers(instances) {
        Ok(kept) => {
            keys.extend(kept.into_iter().filter_map(key));
            (keys, None)
        }
        Err(error) => (keys, Some(error)),
    }
}
