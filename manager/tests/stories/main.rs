#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

//! What a manager does, told as stories of a fleet in memory. One helper touches the manager and its wire (`world`, `station`, `link`);
//! the stories touch the helper.

mod fleet_file;
mod link;
mod station;
mod world;

mod apply;
mod events;
mod groups;
mod identities;
mod pushes;
mod random;
mod registration;
mod reports;
mod restarts;
mod rollbacks;
mod rollouts;
mod store;
