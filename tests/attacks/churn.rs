//! Tools and stations that come and go.

use nix::sys::signal::Signal;
use quilt_client::Client;
use quilt_role_counter::api::Increment;
use quilt_tests::{Fleet, World};

/// How much the manager's memory may grow in the second half: what it keeps is bounded, but not full yet.
const GROWTH_MAX_KIB: u64 = 4 * 1024;
/// A station comes and goes once for so many tools.
const TOOLS_PER_STATION: usize = 200;

/// Lets so many tools come, ask and go, and stations beside them. The manager's memory stays flat.
pub(crate) async fn run(tools: usize) -> String {
    let mut world = World::new().await;
    world.station("s0", &[]).await;
    world.apply(Fleet::new().with("s0/counter/main", "").text()).await.with_code(0);
    let pid = world.manager().pid();
    let mut before = 0;
    for number in 0..tools {
        if number == tools / 2 {
            before = resident_kib(pid);
        }
        let client = Client::connect(&world.address, "churn").await.unwrap();
        client.call("s0/counter/main", &Increment { by: 1 }).await.unwrap();
        client.stations("").await.unwrap();
        match number % 2 {
            0 => client.close(),
            // Gone without a word.
            _ => drop(client),
        }
        if number % TOOLS_PER_STATION == 0 {
            world.station("s1", &[]).await;
            world
                .end_station(
                    "s1",
                    if number % (2 * TOOLS_PER_STATION) == 0 { Signal::SIGKILL } else { Signal::SIGTERM },
                )
                .await;
        }
    }
    let after = resident_kib(pid);
    assert!(after < before + GROWTH_MAX_KIB, "memory grew from {before} to {after} KiB in the second half");
    format!("{tools} tools came and went, memory {before} then {after} KiB")
}

/// The memory that a process has now.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
