//! `quilt-bench all`: which rows there are.

use clap::Args;
use quilt_client::Client;
use quilt_client::control::{Apply, FleetFile};

use crate::part::Peers;
use crate::row::{self, Row};
use crate::{calls, fleet, grow, instances, large, memory, plugins, start, swarm};

/// Arguments of `all`.
#[derive(Args)]
pub(crate) struct All {
    /// One JSON line a row
    #[arg(long)]
    json: bool,
    /// Only these rows: hop, relay, push, storm, beat, nuisance, instances, large, million, grow, memory, start or plugins
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Fewer repetitions: a smoke test, not a measurement
    #[arg(long)]
    pub(crate) quick: bool,
    /// Without tarpc and NATS
    #[arg(long)]
    no_peers: bool,
}

impl All {
    pub(crate) fn runs(&self) -> usize {
        if self.quick { 1 } else { 5 }
    }

    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let wanted = |name: &str| self.only.is_empty() || self.only.iter().any(|only| only == name);
        let peers = match (wanted("hop") || wanted("relay")) && !self.no_peers {
            true => Some(Peers::build()?),
            false => None,
        };
        let mut rows: Vec<Row> = Vec::new();
        let mut take = |new: Vec<Row>| {
            // Each as it is measured: all take a quarter of an hour.
            let shown = if self.json { row::print(&new, true) } else { Ok(()) };
            rows.extend(new);
            shown
        };
        if wanted("hop") {
            take(calls::hop(&self, peers.as_ref()).await?)?;
        }
        if wanted("relay") {
            take(calls::relay(&self, peers.as_ref()).await?)?;
        }
        if wanted("push") {
            take(fleet::push(&self).await?)?;
        }
        if wanted("storm") {
            take(fleet::storm(&self).await?)?;
        }
        if wanted("beat") {
            take(fleet::beat(&self).await?)?;
        }
        if wanted("nuisance") {
            take(fleet::nuisance(&self).await?)?;
        }
        if wanted("instances") {
            take(instances::rows(&self).await?)?;
        }
        if wanted("large") {
            take(large::rows(&self).await?)?;
        }
        if wanted("million") {
            take(swarm::million(&self).await?)?;
        }
        if wanted("grow") {
            take(grow::rows(&self).await?)?;
        }
        if wanted("memory") {
            take(memory::rows(&self).await?)?;
        }
        if wanted("start") {
            take(start::rows(&self).await?)?;
        }
        if wanted("plugins") {
            take(plugins::rows(self.runs(), self.quick).await?)?;
        }
        if self.json { Ok(()) } else { row::print(&rows, false) }
    }
}

/// Applies a fleet file, and does not follow it.
pub(crate) async fn apply(client: &Client, fleet: serde_json::Value) -> anyhow::Result<()> {
    let fleet: FleetFile = serde_json::from_value(fleet)?;
    let source = "bench".to_owned();
    let request = Apply { source, fleet, dry_run: false, force: false, wait: None, batch: None };
    let reply = client.apply(&request).reply().await?;
    anyhow::ensure!(reply.stored, "{reply:?}");
    Ok(())
}
