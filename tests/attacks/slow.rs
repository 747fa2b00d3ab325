//! Thousands of connections that send next to nothing.

use std::time::{Duration, Instant};

use quilt_client::Client;
use quilt_role_counter::api::Increment;
use quilt_tests::{Fleet, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How many there are.
const CONNECTIONS: usize = 2_000;
/// How often each sends a byte.
const DRIP: Duration = Duration::from_secs(1);
/// When all of them must have been cut: they have 5 s to greet, and twice that for a machine that is busy.
const CUT_WITHIN: Duration = Duration::from_secs(15);

/// Opens them. All are cut, and healthy calls do not wait for them.
pub(crate) async fn run() -> String {
    let mut world = World::new().await;
    world.station("s0", &[]).await;
    world.apply(Fleet::new().with("s0/counter/main", "").text()).await.with_code(0);
    let client = world.client().await;
    let before = calls(&client, Duration::from_secs(2)).await;
    let mut slow = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(&world.address).await.unwrap();
        slow.spawn(async move {
            let (began, mut ticks) = (Instant::now(), tokio::time::interval(DRIP));
            let mut byte = [0];
            loop {
                tokio::select! {
                    // Cut, in order or not.
                    _ = stream.read(&mut byte) => return began.elapsed(),
                    _ = ticks.tick() => {}
                }
                // The length of a greeting that never comes.
                if stream.write_all(&[1]).await.is_err() {
                    return began.elapsed();
                }
            }
        });
    }
    let meanwhile = calls(&client, Duration::from_secs(4)).await;
    let cut = tokio::time::timeout(CUT_WITHIN, slow.join_all()).await;
    let longest = cut.expect("all slow connections are cut").into_iter().max().unwrap_or_default();
    // The machine has other work too: a healthy call must not wait for slow peers, and that would take seconds.
    assert!(meanwhile < before.max(Duration::from_millis(50)) * 4, "p99 of calls was {before:?} and is {meanwhile:?}");
    format!(
        "{CONNECTIONS} slow connections, cut within {longest:.1?}; p99 of calls {before:.1?}, meanwhile {meanwhile:.1?}"
    )
}

/// The time that 99 of 100 calls take at most.
async fn calls(client: &Client, time: Duration) -> Duration {
    let (until, mut times) = (Instant::now() + time, Vec::new());
    while Instant::now() < until {
        let began = Instant::now();
        client.call("s0/counter/main", &Increment { by: 1 }).await.unwrap();
        times.push(began.elapsed());
    }
    times.sort();
    times[times.len() * 99 / 100]
}
