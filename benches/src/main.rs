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
mod fleet;
mod grow;
#[path = "../../tests/fixtures/imp/src/role.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod imp;
mod instances;
mod kills;
mod large;
mod memory;
mod micro;
mod part;
mod plugins;
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
    /// Be a manager (started by `all`)
    #[command(hide = true)]
    Manager {
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: String,
        #[arg(long)]
        data_dir: Option<PathBuf>,
    },
    /// Be real stations (started by `all`)
    #[command(hide = true)]
    Station {
        manager: String,
        #[arg(long, default_value_t = 1)]
        count: usize,
        #[arg(long, default_value_t = 0)]
        first: usize,
        #[arg(long)]
        plugin_dir: Vec<PathBuf>,
    },
    /// Be many light stations of a manager, until standard input ends
    Swarm(swarm::Swarm),
    /// Be a manager and many stations without sockets (started by `all`)
    #[command(hide = true)]
    Million { count: usize },
    /// Be a bare server that pushes (started by `all`)
    #[command(hide = true)]
    Pusher { count: usize },
    /// Be many connections to it (started by `all`)
    #[command(hide = true)]
    Pushed { pusher: String, count: usize },
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
    match Cli::parse().verb {
        // It has a runtime of its own, if any.
        Verb::Piece { name } => done(micro::piece(&name)),
        verb => run(verb),
    }
}

fn done(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quilt-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(verb: Verb) -> ExitCode {
    done(match verb {
        Verb::All(all) => all.run().await,
        Verb::Micro(micro) => micro.run(),
        Verb::Piece { .. } => unreachable!("it is done without this runtime"),
        Verb::Echo => baseline::serve().await,
        Verb::Manager { listen, data_dir } => part::manager(&listen, data_dir).await,
        Verb::Station { manager, count, first, plugin_dir } => {
            part::stations(&manager, first..first + count, plugin_dir).await
        }
        Verb::Swarm(swarm) => swarm.run().await,
        Verb::Million { count } => swarm::be_a_million(count).await,
        Verb::Pusher { count } => baseline::pusher(count).await,
        Verb::Pushed { pusher, count } => baseline::pushed(&pusher, count).await,
        Verb::Spin => {
            awake::spin();
            Ok(())
        }
        Verb::Pong => plugins::pong().await,
        Verb::Idle { echo, count } => baseline::idle(&echo, count).await,
    })
}
