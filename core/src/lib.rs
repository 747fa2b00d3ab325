//! What every quilt daemon does, whatever its purpose: its folders, its settings, its log, its signals.
//!
//! Absent on purpose: the wire, roles, stations. Modules in reading order: [`files`], [`folder_lock`], [`slots`], [`daemon`], [`args`],
//! [`address`], [`settings`], [`log`], [`runtime`], [`disk`], [`shortage`], [`signals`], [`lines`], [`processes`], [`clean_start`], [`init`], [`time`], [`words`].

pub mod address;
mod append;
pub mod args;
pub mod clean_start;
pub mod daemon;
pub mod disk;
pub mod files;
pub mod folder_lock;
pub mod init;
pub mod lines;
pub mod log;
pub mod processes;
pub mod runtime;
pub mod settings;
pub mod shortage;
pub mod signals;
pub mod slots;
pub mod time;
pub mod words;
