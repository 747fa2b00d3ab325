//! The contract between a station and a plugin, in C's terms: what crosses is bytes, numbers and functions, so that both
//! sides may be built with any compiler and any libraries.
//!
//! A plugin is a shared library with one exported datum, [`ENTRY_SYMBOL`], an [`Entry`]. Its `open` takes the station's
//! functions ([`Host`]) and gives the plugin's ([`Plugin`]). Rust authors never see any of this:
//! `quilt_plugin_api::export_plugin!` writes it. Authors in other languages use `include/quilt_plugin.h`, which is
//! generated from this file.
//!
//! # Rules
//!
//! - Structures only grow at their end. A reader looks at `size` before it uses what an older writer may not have, and takes
//!   a function that is null for one that is absent. What is written down here does not change its meaning within a major
//!   version.
//! - [`Slice`] is lent for the duration of a call. [`Buf`] changes hands: whoever has it releases it, exactly once, on any
//!   thread. A null pointer with a length of 0 is an empty one.
//! - A [`Completion`] is called exactly once, on any thread, also before the function that took it returns. A second call is
//!   ignored and counted.
//! - Tokens (`instance`, `stream`, `ctx`) are numbers with a generation in them. One that is over is answered with
//!   [`STALE`], and nothing else happens.
//! - Every function returns soon and may be called on any thread, unless its first line says *control*: then it may take its
//!   time, and is called for one instance at a time.
//! - No panic or exception may cross. A plugin changes neither signal handlers, working directory, environment nor locale, and
//!   does not fork without exec.
#![no_std]
#![allow(unsafe_code, reason = "this is the boundary: constant tables of functions are shared between threads")]

use core::ffi::c_void;

/// The name of the exported datum.
pub const ENTRY_SYMBOL: &str = "quilt_plugin_v1";
/// What [`Entry::magic`] holds.
pub const MAGIC: [u8; 8] = *b"QUILTPL\x01";
/// Of the contract: another major version is another contract.
pub const MAJOR: u32 = 1;
/// Of the contract: a higher one has more.
pub const MINOR: u32 = 0;

/// The plugin aborts the process when it panics: it must not run inside a station.
pub const FLAG_ABORTS: u32 = 1;
/// The plugin asks for a process of its own for other reasons.
pub const FLAG_NEEDS_PROCESS: u32 = 2;

/// Done; the body is the result.
pub const OK: u32 = 0;
/// The command's own error; the body is that error.
pub const APP_ERROR: u32 = 1;
/// The body that was given does not decode; the body is a text.
pub const SCHEMA_MISMATCH: u32 = 2;
/// There is no such role or command; the body is a text.
pub const NOT_FOUND: u32 = 3;
/// The plugin panicked; the body is a text.
pub const PANICKED: u32 = 4;
/// It was cancelled.
pub const CANCELLED: u32 = 5;
/// Whoever should have answered is gone.
pub const DROPPED: u32 = 6;
/// It took too long.
pub const TIMED_OUT: u32 = 7;
/// The token is over.
pub const STALE: u32 = 8;
/// This side cannot do that.
pub const UNSUPPORTED: u32 = 9;
/// Too much at once.
pub const BUSY: u32 = 10;
/// Declined; the body is a text.
pub const REFUSED: u32 = 11;
/// The configuration is wrong; the body is JSON, a list of `{"key": .. | null, "expected": "..", "got": ".."}`.
pub const INVALID: u32 = 12;
/// The instance must be restarted to take this configuration.
pub const NEEDS_RESTART: u32 = 13;
/// It failed; the body is a text.
pub const FAILED: u32 = 14;

/// Bodies in JSON.
pub const JSON: u32 = 0;
/// Bodies in bincode 2, standard configuration.
pub const BINCODE: u32 = 1;

/// A person must act.
pub const LOG_ERROR: u32 = 1;
/// Degraded, heals itself.
pub const LOG_WARN: u32 = 2;
/// The story an operator tells.
pub const LOG_INFO: u32 = 3;
/// For whoever debugs the role.
pub const LOG_DEBUG: u32 = 4;
/// Every step.
pub const LOG_TRACE: u32 = 5;

/// It works.
pub const REPORT_ACTIVE: u32 = 0;
/// It waits, for what the text says.
pub const REPORT_WAITING: u32 = 1;
/// The process that does its work is `number`; 0 for none.
pub const REPORT_PID: u32 = 2;
/// It found again what an earlier station left, begun `number` milliseconds after 1970.
pub const REPORT_FOUND_AGAIN: u32 = 3;
/// It cannot go on, for the reason in the text.
pub const REPORT_FAILED: u32 = 4;
/// Its work ends now, as the text says.
pub const REPORT_ENDED: u32 = 5;

/// Bytes or UTF-8 text, lent for the duration of a call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// The first byte; null only if `len` is 0.
    pub ptr: *const u8,
    /// How many.
    pub len: u64,
}

/// Bytes that change hands.
#[repr(C)]
#[derive(Debug)]
pub struct Buf {
    /// The first byte; null only if `len` is 0.
    pub ptr: *const u8,
    /// How many.
    pub len: u64,
    /// What `release` is given.
    pub owner: *mut c_void,
    /// Gives the bytes back, exactly once, on any thread. Null if there is nothing to give back.
    pub release: Option<unsafe extern "C" fn(owner: *mut c_void)>,
}

/// Who hears the result, exactly once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// What `done` is given.
    pub ctx: u64,
    /// Takes a status and a body. Never null.
    pub done: Option<unsafe extern "C" fn(ctx: u64, status: u32, body: Buf)>,
}

/// The one exported datum. Looking at it runs none of the plugin's code but its constructors.
#[repr(C)]
#[derive(Debug)]
pub struct Entry {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// Size of this structure, in bytes.
    pub size: u32,
    /// [`MAJOR`].
    pub major: u32,
    /// The lowest minor version that this plugin can do with.
    pub minor_min: u32,
    /// The highest that it knows.
    pub minor_max: u32,
    /// `FLAG_..`.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// *Control.* Takes the station's functions, which stay valid for ever, and the minor version in force; gives the
    /// plugin's, which stay valid for ever too. May be called again: the answer is the same. On failure `error` is a text.
    pub open:
        Option<unsafe extern "C" fn(host: *const Host, minor: u32, plugin: *mut *const Plugin, error: *mut Buf) -> u32>,
}

// SAFETY: an entry is constant data; its functions may be called on any thread.
unsafe impl Sync for Entry {}

/// What a plugin offers.
#[repr(C)]
#[derive(Debug)]
pub struct Plugin {
    /// Size of this structure, in bytes.
    pub size: u32,
    /// The minor version in force.
    pub minor: u32,
    /// *Control.* Gives a JSON document: `{"name", "version", "sdk", "roles": [{"name", "version", "doc", "instances",
    /// "config_schema", "commands": [..]}]}`; a command is `{"group", "name", "doc", "read", "streaming", "fingerprint",
    /// "request_schema", "reply_schema", "error_schema"}`.
    pub describe: Option<unsafe extern "C" fn(out: *mut Buf) -> u32>,
    /// Judges a configuration (JSON) and changes nothing: `OK`, `INVALID` or `NOT_FOUND`.
    pub validate: Option<unsafe extern "C" fn(role: Slice, config: Buf, done: Completion)>,
    /// Starts an instance, which is known as `instance` from here on. `place` is JSON: `{"role", "instance", "state_dir",
    /// "log_dir", "resuming"}`. `OK`, `INVALID` or `FAILED`. What was registered is callable once it is `OK`, and `run` is called
    /// if the body is `{"work": true}`.
    pub start: Option<unsafe extern "C" fn(instance: u64, role: Slice, place: Slice, config: Buf, done: Completion)>,
    /// Gives an instance another configuration; no call is under way. `OK`, `INVALID`, `NEEDS_RESTART` or `FAILED`.
    pub update: Option<unsafe extern "C" fn(instance: u64, config: Buf, done: Completion)>,
    /// Begins the instance's own work, once after a `start` that said that there is some. `OK` or `FAILED` when it ends.
    /// Gives a handle for `cancel`; 0 if it has ended already.
    pub run: Option<unsafe extern "C" fn(instance: u64, done: Completion) -> u64>,
    /// Ends an instance; the token is over once this is done. With `detach` not 0 the station restarts, and work that can
    /// outlive it may go on.
    pub stop: Option<unsafe extern "C" fn(instance: u64, detach: u32, done: Completion)>,
    /// Ends what an earlier station left of an instance that is not started again; `instance` is known during this call
    /// only.
    pub abandon: Option<unsafe extern "C" fn(instance: u64, role: Slice, place: Slice, done: Completion)>,
    /// Calls a command by the number under which the plugin registered it. `stream` is not 0 if the caller takes items:
    /// see `Host::send_item`. `OK`, `APP_ERROR`, `SCHEMA_MISMATCH`, `NOT_FOUND`, `REFUSED`, `PANICKED`, `CANCELLED` or
    /// `BUSY`. A JSON body of `APP_ERROR` may have a second document behind the error: a string for people. Gives a handle for
    /// `cancel`; 0 if it has ended already.
    pub call: Option<
        unsafe extern "C" fn(
            instance: u64,
            command: u64,
            stream: u64,
            encoding: u32,
            body: Buf,
            done: Completion,
        ) -> u64,
    >,
    /// Ends a call or work soon; its completion comes all the same. A handle that is over is ignored.
    pub cancel: Option<unsafe extern "C" fn(handle: u64)>,
    /// An extension by name, such as `quilt.example/1`; null if there is none.
    pub extension: Option<unsafe extern "C" fn(id: Slice) -> *const c_void>,
}

// SAFETY: constant data; its functions may be called on any thread.
unsafe impl Sync for Plugin {}

/// What a station offers to plugins. `instance` is the token that `Plugin::start` was given.
#[repr(C)]
#[derive(Debug)]
pub struct Host {
    /// Size of this structure, in bytes.
    pub size: u32,
    /// The highest minor version that this station knows.
    pub minor: u32,
    /// Writes a line to the instance's log.
    pub log: Option<unsafe extern "C" fn(instance: u64, level: u32, text: Slice)>,
    /// Shows a state: `REPORT_..`.
    pub report: Option<unsafe extern "C" fn(instance: u64, report: u32, number: u64, text: Slice)>,
    /// Publishes an attribute as JSON; with an empty `json` takes it back.
    pub attribute: Option<unsafe extern "C" fn(instance: u64, name: Slice, json: Slice)>,
    /// Emits an event with JSON.
    pub emit: Option<unsafe extern "C" fn(instance: u64, topic: Slice, json: Slice)>,
    /// Makes a command callable; `record` is JSON as in `Plugin::describe`. `OK`, `INVALID`, `STALE`, or `BUSY` if the instance
    /// offers one of that group and name already, which then stays.
    pub register: Option<unsafe extern "C" fn(instance: u64, command: u64, record: Slice) -> u32>,
    /// Makes it not callable.
    pub de_register: Option<unsafe extern "C" fn(instance: u64, group: Slice, name: Slice)>,
    /// Calls a command of `station/role/instance` or `manager` with a JSON body. The status is `OK` and the body JSON,
    /// `{"outcome": "reply", "body": ..}`. Gives a handle for `cancel`.
    pub call: Option<
        unsafe extern "C" fn(
            instance: u64,
            target: Slice,
            command: Slice,
            body: Slice,
            time_ms: u64,
            done: Completion,
        ) -> u64,
    >,
    /// Ends a call soon; its completion comes all the same.
    pub cancel: Option<unsafe extern "C" fn(handle: u64)>,
    /// Sends one item of a streaming command. `OK` when the next may be sent, `CANCELLED` when the caller takes no more.
    /// An item counts only if it is so answered before the call's own completion.
    pub send_item: Option<unsafe extern "C" fn(stream: u64, item: Buf, done: Completion)>,
    /// How long the instance may take to stop, in milliseconds.
    pub stop_timeout_ms: Option<unsafe extern "C" fn(instance: u64) -> u64>,
    /// Whether a trace event would be taken. What was answered holds until `trace_generation` changes.
    pub trace_enabled: Option<unsafe extern "C" fn(level: u32, target: Slice) -> u32>,
    /// Takes a trace event; `fields` is a JSON object, the text under `message`. `instance` is 0 if it is nobody's.
    pub trace: Option<unsafe extern "C" fn(instance: u64, level: u32, target: Slice, fields: Slice)>,
    /// A number that changes when what is taken does.
    pub trace_generation: Option<unsafe extern "C" fn() -> u64>,
    /// An extension by name; null if there is none.
    pub extension: Option<unsafe extern "C" fn(id: Slice) -> *const c_void>,
}

// SAFETY: constant data; its functions may be called on any thread.
unsafe impl Sync for Host {}

/// The section of the note that says what a plugin is before any of it runs.
pub const NOTE_SECTION: &str = ".note.quilt";
/// The name in the note.
pub const NOTE_NAME: &str = "QUILT";
/// The type of the note.
pub const NOTE_TYPE: u32 = 1;
