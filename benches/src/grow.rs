//! What a station costs its manager as there are more of them.

use std::time::Duration;

use quilt_client::Client;

use crate::all::All;
use crate::fleet::{self, TIME};
use crate::part::Part;
use crate::row::{Bound, Row};

/// What a station comes to.
struct Costs {
    /// CPU of its registration, in microseconds.
    register: f64,
    /// CPU of a push that changes nothing, in microseconds.
    push: f64,
    /// Memory while it is idle, in KiB.
    memory: f64,
}

type Of = fn(&Costs) -> f64;

/// The costs of one of so many stations, each beside the same of one of the fewest.
pub(crate) async fn rows(all: &All) -> anyhow::Result<Vec<Row>> {
    let sizes: &[usize] = if all.quick { &[50, 100] } else { &[1000, 2500, 5000, 10_000, 15_000] };
    let mut measured: Vec<Vec<Costs>> = sizes.iter().map(|_| Vec::new()).collect();
    for _ in 0..all.runs().min(3) {
        for (size, measured) in sizes.iter().zip(&mut measured) {
            measured.push(measure(*size).await?);
        }
    }
    let what: [(&str, &str, &'static str, Of); 3] = [
        ("grow-register", "CPU of the manager for the registration of one of", "us", |costs| costs.register),
        ("grow-push", "CPU of the manager for a push that changes nothing to one of", "us", |costs| costs.push),
        ("grow-memory", "memory of the manager for one idle station of", "KiB", |costs| costs.memory),
    ];
    let mut rows = Vec::new();
    for (row, name, unit, of) in what {
        let of = |measured: &Vec<Costs>| measured.iter().map(of).collect::<Vec<f64>>();
        let fewest = of(&measured[0]);
        for (size, measured) in sizes.iter().zip(&measured) {
            let base = ("one of the fewest", &fewest[..]);
            rows.push(Row::new(
                format!("{row}-{size}"),
                format!("{name} {size}"),
                unit,
                &of(measured),
                base,
                Bound::None,
            ));
        }
    }
    Ok(rows)
}

async fn measure(size: usize) -> anyhow::Result<Costs> {
    let mut manager = Part::start(&["manager"])?;
    let address = manager.line().await?;
    let each = |time: Duration| time.as_secs_f64() * 1e6 / size as f64;
    let (cpu, memory) = (manager.cpu()?, manager.memory_kib()?);
    let mut swarm = fleet::swarm(&address, size, &[]).await?;
    let register = each(manager.cpu()? - cpu);
    let memory = (manager.memory_kib()? - memory) / size as f64;
    let client = Client::connect_within(&address, "bench", TIME).await?;
    fleet::apply(&client, fleet::fleet(1), Some(fleet::settled())).await?;
    swarm.until("answered").await?;
    let mut push = 0.0;
    // The first warms both sides up.
    for _ in 0..2 {
        let cpu = manager.cpu()?;
        fleet::apply(&client, fleet::fleet(1), None).await?;
        swarm.until("answered").await?;
        push = each(manager.cpu()? - cpu);
    }
    Ok(Costs { register, push, memory })
}
