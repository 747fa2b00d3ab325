//! Attacks that quilt holds against, each in a short and a long form, with the real binaries.
//!
//! ```sh
//! tests/attacks/run                            # all of them, short: in CI
//! tests/attacks/run long                       # hours, with the fuzz targets and 1,000 rounds of pressure
//! target/debug/quilt-attacks partitions        # one of them
//! ```
//!
//! Kills of stations are rounds of `tests/pressure` that take nothing and only kill. An attack that does not hold panics and says
//! what was expected; the exit code is then not 0.
#![allow(clippy::unwrap_used, reason = "an attack that cannot go on should stop")]

mod churn;
mod frames;
mod manager_kills;
mod partitions;
mod slow;

use std::process::Command;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use nix::sched::{CloneFlags, unshare};

#[derive(Parser)]
#[command(name = "quilt-attacks", about = "Attacks that quilt holds against")]
struct Cli {
    /// Which; all of them if none is given
    attacks: Vec<Attack>,
    /// The long form
    #[arg(long)]
    long: bool,
    /// What decides everything that is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Attack {
    /// Kills of the manager under writes: no acknowledged one is lost
    ManagerKills,
    /// Valid messages with flipped, missing and repeated bytes
    Frames,
    /// Networks that let nothing through, in one direction or both
    Partitions,
    /// Thousands of connections that send next to nothing
    Slow,
    /// Tools and stations that come and go: memory stays flat
    Churn,
}

fn main() {
    let Cli { attacks, long, seed } = Cli::parse();
    let attacks = if attacks.is_empty() { Attack::value_variants().to_vec() } else { attacks };
    // A network of its own, before there is another thread: nobody else's ports, and links that can be cut.
    let is_apart = unshare(CloneFlags::CLONE_NEWNET).is_ok()
        && Command::new("ip").args(["link", "set", "lo", "up"]).status().is_ok_and(|status| status.success());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for attack in attacks {
        if attack == Attack::Partitions && !is_apart {
            println!("partitions: left out, because a network of its own takes root and `ip`");
            continue;
        }
        let began = Instant::now();
        let text = runtime.block_on(async {
            match attack {
                Attack::ManagerKills => manager_kills::run(if long { 60 } else { 6 }).await,
                Attack::Frames => frames::run(seed, if long { 2_000_000 } else { 20_000 }).await,
                Attack::Partitions => partitions::run(if long { 10 } else { 1 }).await,
                Attack::Slow => slow::run().await,
                Attack::Churn => churn::run(if long { 100_000 } else { 4_000 }).await,
            }
        });
        println!("{attack:?} held in {:.0} s: {text}", began.elapsed().as_secs_f64());
    }
}
