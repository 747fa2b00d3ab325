//! What a station that only is there costs its manager.

use crate::all::All;
use crate::part::Part;
use crate::row::{Bound, Row};

/// The manager's memory for each idle registered station, everything included: at several sizes, since it must not grow.
pub(crate) async fn rows(all: &All) -> anyhow::Result<Vec<Row>> {
    let sizes: &[usize] = if all.quick { &[100] } else { &[1000, 10_000, 15_000] };
    let mut rows = Vec::new();
    for count in sizes {
        let (mut ours, mut bare) = (vec![], vec![]);
        for _ in 0..all.runs().min(3) {
            bare.push(of(&["echo"], "idle", *count).await?);
            ours.push(of(&["manager"], "swarm", *count).await?);
        }
        let name = format!("manager memory for each of {count} idle registered stations");
        let must = Row::absolute(format!("memory-{count}"), &name, "KiB", &ours, 4.0, 2.5);
        rows.push(must);
        let row = format!("memory-{count}/bare");
        rows.push(Row::new(row, name, "KiB", &ours, ("an idle bare connection", &bare), Bound::None));
    }
    Ok(rows)
}

/// How much a server grows for each of so many peers, in KiB.
async fn of(server: &[&str], peers: &str, count: usize) -> anyhow::Result<f64> {
    let mut server = Part::start(server)?;
    let address = server.line().await?;
    server.until_calm().await?;
    let before = server.memory_kib()?;
    let mut peers = Part::start(&[peers, &address, &count.to_string()])?;
    peers.line().await?;
    server.until_calm().await?;
    Ok((server.memory_kib()? - before) / count as f64)
}
