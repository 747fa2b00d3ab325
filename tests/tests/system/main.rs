//! The whole system: real binaries, real sockets, real programs. Each module is one chapter of what quilt promises.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

// The plugin that is built from this file, for its types, and as a role that is linked in.
#[path = "../../fixtures/imp/src/role.rs"]
mod imp;

mod clean_start;
mod commands;
mod conformance;
mod convergence;
mod first_steps;
mod folders;
mod hostile;
mod identity;
mod keeper_shortages;
mod keepers;
mod manager_crash;
mod nobody_reads;
mod outcomes;
mod plugin_author;
mod plugin_faults;
mod plugin_files;
mod plugin_hangs;
mod plugin_limits;
mod plugin_rollbacks;
mod plugin_upgrades;
mod plugins;
mod process;
mod readme;
mod refusal;
mod size;
mod station_crash;
mod station_pressure;
mod store_faults;
mod wall_clock;
