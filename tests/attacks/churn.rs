//! Tools and stations that come and go.

use nix::sys::signal::Signal;
use quilt_client::Client;
use quilt_role_counter::api::Increment;
use quilt_tests::{Fleet, World};
use tokio::runtime::Builder;

/// How much the manager's memory may grow in the second half. It keeps nothing of a tool that is gone; what still grows is the
/// allocator's, the store's page cache and the last events.
const GROWTH_MAX_KIB: u64 = 1024;
/// A station comes and goes once for so many tools.
const TOOLS_PER_STATION: usize = 200;

/// Lets so many tools come, ask and go, and stations beside them. The manager's memory stays flat.
pub(crate) async fn run(tools: usize) -> String {
    let mut world = World::new().await;
    world.station("s0", &[]).await;
    world.apply(Fleet::new().with("s0/counter/main", "").text()).await.with_code(0);
    let pid = world.manager().pid();
    let mut sizes = Vec::new();
    for number in 0..tools {
        if number % (tools / 4) == 0 {
            sizes.push(resident_kib(pid));
        }
        match number % 3 {
            0 => come(&world.address).await.close(),
            1 => drop(come(&world.address).await),
            _ => vanish(&world.address).await,
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
    sizes.push(resident_kib(pid));
    let left = world.client().await.clients().await.unwrap().len();
    assert!(left < 20, "{left} tools are still there");
    assert!(sizes[4] < sizes[2] + GROWTH_MAX_KIB, "the manager's memory after each quarter, in KiB: {sizes:?}");
    format!("{tools} tools came and went, the manager's memory after each quarter, in KiB: {sizes:?}")
}

async fn come(address: &str) -> Client {
    let client = Client::connect(address, "churn").await.unwrap();
    client.call("s0/counter/main", &Increment { by: 1 }).await.unwrap();
    client.stations("").await.unwrap();
    client
}

/// A tool that is gone without a word, as one that was killed: its runtime ends, and its sockets with it.
async fn vanish(address: &str) {
    let address = address.to_owned();
    let vanishing = move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let _client = runtime.block_on(come(&address));
        drop(runtime);
    };
    tokio::task::spawn_blocking(vanishing).await.unwrap();
}

/// The memory that a process has now.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
