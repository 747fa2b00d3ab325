//! `quilt-bench`: how fast and how large quilt is, as ratios to bare frames, tarpc and NATS measured in the same run.
//!
//! ```sh
//! cargo run --release -p quilt-bench -- all            # a table
//! cargo run --release -p quilt-bench -- all --json     # one JSON line a row
//! cargo run --release -p quilt-bench -- all --only hop --quick
//! ```
//!
//! Server and client are processes of their own: this program starts itself for each part. Quilt and baseline take
//! turns, and medians are shown, so that what the machine does meanwhile hits both.

mod all;
mod awake;
mod baseline;
mod calls;
mod echo;
#[path = "../../tests/fixtures/imp/src/role.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod imp;
mod kills;
mod memory;
mod micro;
mod part;
mod plugins;
mod push;
mod row;
mod start;
mod swarm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures quilt beside a bare framed TCP echo.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure
    All(all::All),
    /// Count the instructions of small pieces with callgrind
    Micro(micro::Micro),
    /// Do one of them (started by `micro`)
    #[command(hide = true)]
    Piece { name: String },
    /// Be the baseline's server (started by `all`)
    #[command(hide = true)]
    Echo,
    /// Be a manager with its data in a folder that goes away (started by `all`)
    #[command(hide = true)]
    Manager,
    /// Be real stations (started by `all`)
    #[command(hide = true)]
    Station {
        manager: String,
        #[arg(long, default_value_t = 1)]
        count: usize,
        #[arg(long)]
        plugin_dir: Vec<PathBuf>,
    },
    /// Be many light stations (started by `all`)
    #[command(hide = true)]
    Swarm { manager: String, count: usize },
    /// Be many idle connections to the baseline (started by `all`)
    #[command(hide = true)]
    Idle { echo: String, count: usize },
    /// Be the baseline of a plugin's child (started by `all`)
    #[command(hide = true)]
    Pong,
    /// Keep a core awake (started by `all`)
    #[command(hide = true)]
    Spin,
}

fn main() -> ExitCode {
    quilt_station::become_plugin_host_if_asked();
    run(Cli::parse().verb)
}

#[tokio::main(flavor = "current_thread")]
async fn run(verb: Verb) -> ExitCode {
    let done = match verb {
        Verb::All(all) => all.run().await,
        Verb::Micro(micro) => micro.run(),
        Verb::Piece { name } => micro::piece(&name),
        Verb::Echo => baseline::serve().await,
        Verb::Manager => part::manager().await,
        Verb::Station { manager, count, plugin_dir } => part::stations(&manager, count, plugin_dir).await,
        Verb::Swarm { manager, count } => swarm::run(&manager, count).await,
        Verb::Spin => {
            awake::spin();
            Ok(())
        }
        Verb::Pong => plugins::pong().await,
        Verb::Idle { echo, count } => baseline::idle(&echo, count).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quilt-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
