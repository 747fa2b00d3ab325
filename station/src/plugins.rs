//! Roles that strangers wrote: found, checked, and run in a child process of their own or, if the fleet file says so, in
//! the station.
//!
//! ```text
//! file --- intake: private copy, sha256 --- elf: what it is, before it runs --- catalog: which roles it offers
//!                                                                               |            |
//!                                            isolation = "process" (default): child    "inproc": image
//! ```
//!
//! Whatever carries a role, the rest of the station sees a [`quilt_plugin_api::RoleFactory`].
#![allow(unsafe_code, reason = "the plugin boundary: functions of a loaded library, and a child's descriptor")]

mod catalog;
mod check;
mod child;
mod elf;
mod fetch;
mod guest;
mod image;
mod intake;
mod kept;
mod services;
mod teller;
pub(crate) mod trace;
mod wire;

use std::sync::OnceLock;

use quilt_plugin_api::RoleDescription;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

pub use check::{Finding, Verdict, check_plugin, load_plugin};
pub use elf::Inspection;
pub use guest::become_plugin_host_if_asked;

/// The runtime that serves what plugins ask from threads of their own.
static RUNTIME: OnceLock<Handle> = OnceLock::new();

fn runtime() -> Option<&'static Handle> {
    RUNTIME.get()
}

pub(crate) use services::TEXT_MAX;

pub(crate) use catalog::{Carrier, Catalog, Offered, Plugin, Prepared, Setup};

/// Which files may be plugins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Any file in the plugin folders.
    Any,
    /// Files that only root and the station's own user can change, and their folders likewise.
    #[default]
    Owner,
    /// Those too, with one of these contents.
    Sha256(Vec<String>),
}

impl Trust {
    /// Reads `any`, `owner` or hashes.
    pub(crate) fn read(words: &[String]) -> anyhow::Result<Self> {
        let is_hash = |word: &String| word.len() == 64 && word.chars().all(|c| c.is_ascii_hexdigit());
        match words {
            [] => Ok(Self::Owner),
            [word] if word == "any" => Ok(Self::Any),
            [word] if word == "owner" => Ok(Self::Owner),
            hashes if hashes.iter().all(is_hash) => {
                Ok(Self::Sha256(hashes.iter().map(|hash| hash.to_ascii_lowercase()).collect()))
            }
            _ => anyhow::bail!(
                "--plugin-trust {}: expected `any`, `owner`, or sha256 hashes of 64 hex digits",
                words.join(",")
            ),
        }
    }
}

/// What a plugin's file is.
#[derive(Clone, Debug, Serialize)]
pub struct FoundPlugin {
    /// Hash of the file.
    pub sha256: String,
    /// Its size, in bytes.
    pub size: u64,
    /// What it says of itself.
    #[serde(flatten)]
    pub inspection: Inspection,
}

impl std::ops::Deref for FoundPlugin {
    type Target = Inspection;

    fn deref(&self) -> &Inspection {
        &self.inspection
    }
}

/// Why a file cannot be a plugin of this machine.
#[derive(Clone, Debug, Serialize)]
pub struct RefusedPlugin {
    /// For scripts.
    pub code: &'static str,
    /// For people: what it is or does, and what to do.
    pub text: String,
}

/// Looks at a plugin's file; nothing of it runs.
///
/// # Errors
///
/// Why it could not be loaded here.
pub fn inspect_plugin(path: &std::path::Path) -> Result<FoundPlugin, RefusedPlugin> {
    intake::look(path).map_err(|error| RefusedPlugin { code: error.code(), text: error.to_string() })
}

/// The same for a file's content.
///
/// # Errors
///
/// Why it could not be loaded here.
pub fn inspect_plugin_bytes(data: &[u8]) -> Result<Inspection, RefusedPlugin> {
    elf::inspect(data).map_err(|error| RefusedPlugin { code: error.code(), text: error.to_string() })
}

/// What a plugin says of itself once it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) name: String,
    pub(crate) version: String,
    #[serde(default)]
    pub(crate) sdk: String,
    pub(crate) roles: Vec<RoleDescription>,
    /// How long it was as text, in bytes.
    #[serde(skip)]
    pub(crate) length: usize,
}

/// The longest manifest, in bytes.
const MANIFEST_MAX: usize = 4 << 20;
/// How long all manifests of a station may be together, in bytes.
const MANIFESTS_MAX: usize = 32 << 20;
/// The most roles of one plugin.
const ROLES_MAX: usize = 256;

impl Manifest {
    fn read(json: &[u8]) -> Result<Self, LoadError> {
        if json.len() > MANIFEST_MAX {
            return Err(LoadError::Describe(format!("{} bytes; at most {MANIFEST_MAX} are taken", json.len())));
        }
        let mut manifest: Self =
            serde_json::from_slice(json).map_err(|error| LoadError::Describe(error.to_string()))?;
        manifest.length = json.len();
        if manifest.roles.is_empty() || manifest.roles.len() > ROLES_MAX {
            let text = format!("{} roles; expected 1 to {ROLES_MAX}", manifest.roles.len());
            return Err(LoadError::Describe(text));
        }
        for role in &manifest.roles {
            let name: Result<quilt_protocol::Name, _> = role.name.parse();
            name.map_err(|error| LoadError::Describe(format!("a role's name: {error}")))?;
            if manifest.roles.iter().filter(|other| other.name == role.name).count() > 1 {
                return Err(LoadError::Describe(format!("role `{}` twice", role.name)));
            }
        }
        Ok(manifest)
    }
}

/// Why a plugin is not used. Each has a code that scripts can tell apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot be opened: {0}")]
    NotFound(String),
    #[error("is plugin `{name}`, as is {by}, which is used; remove one of the two")]
    Shadowed { name: String, by: String },
    #[error("cannot be fetched: {0}")]
    NotFetched(String),
    #[error("is being loaded")]
    Loading,
    #[error("cannot be loaded now, and is tried again by itself: {0}")]
    StationFault(String),
    #[error("is plugin `{got}`, expected `{expected}`")]
    OtherName { expected: String, got: String },
    #[error("was not taken by what runs: {0}; the version before goes on. `quiltctl plugin reload` tries again")]
    Upgrade(String),
    #[error("is {0}, expected a regular file; copy the library itself there")]
    NotRegular(String),
    #[error("belongs to user {owner}, expected {expected}; chown it")]
    BadOwner { owner: u32, expected: String },
    #[error("has mode {mode:o}: others may write to it or to its folder; chmod go-w")]
    BadMode { mode: u32 },
    #[error("its sha256 is {0}, which is not on the list of trusted ones; add it to `plugin_trust`")]
    Untrusted(String),
    #[error("is {size} bytes long; at most {limit} are taken")]
    TooLarge { size: u64, limit: u64 },
    #[error("is no ELF file; a plugin is a shared library for Linux (crate-type = [\"cdylib\"])")]
    NotElf,
    #[error("is truncated: {0}; copy it again")]
    Truncated(String),
    #[error("is built for {theirs}, this machine is {ours}; build it for {ours}")]
    WrongArchitecture { theirs: String, ours: String },
    #[error("is {0}, expected a shared library (crate-type = [\"cdylib\"])")]
    NotShared(String),
    #[error("needs glibc {need}, this machine has {have}; build it on an older system")]
    WrongLibc { need: String, have: String },
    #[error("has no quilt note: it does not say `export_plugin!`, or was stripped of its notes")]
    NoNote,
    #[error("does not export {symbol}: {0}", symbol = quilt_plugin_api::abi::ENTRY_SYMBOL)]
    NoSymbol(String),
    #[error("what it exports is no quilt plugin, or is older than version 1.0 of the contract")]
    BadMagic,
    #[error("speaks plugin contract {theirs}, this station speaks {ours}; rebuild the older of the two")]
    Major { theirs: u32, ours: u32 },
    #[error("speaks plugin contract 1.{} to 1.{}, this station speaks 1.{ours}; upgrade the station", .theirs.0, .theirs.1)]
    Minor { theirs: (u32, u32), ours: u32 },
    #[error(
        "aborts when it panics (panic = \"abort\"): it cannot run in the station; leave out isolation = \"inproc\""
    )]
    Aborts,
    #[error("asks for a process of its own; leave out isolation = \"inproc\"")]
    NeedsProcess,
    #[error("lacks `{0}`; build it against the contract that it says it speaks")]
    NullFunction(String),
    #[error("could not be opened: {0}")]
    Open(String),
    #[error("describes itself wrongly: {0}")]
    Describe(String),
    #[error(
        "describes itself with {length} bytes, for which there is no room: all plugins of a station may do so with {limit} together; \
         remove one, or shorten docs and schemas"
    )]
    DescriptionsFull { length: usize, limit: usize },
    #[error("cannot be loaded: {0}")]
    Dlopen(String),
    #[error(
        "cannot be mapped: this station has {limit} libraries already, and none can be unmapped; leave out isolation = \"inproc\", or \
         restart the station"
    )]
    ImageBudget { limit: usize },
    #[error("crashed while it was loaded: {0}; it is not loaded again before `quiltctl plugin allow`")]
    Crashed(String),
    #[error("offers role `{role}`, which {by} offers already; remove one of the two")]
    DuplicateRole { role: String, by: String },
    #[error("crashed before, and is not loaded again: {0}; `quiltctl plugin allow` lifts that")]
    Quarantined(String),
}

impl LoadError {
    /// Whether it is trouble of the station's own, that may be over at any time.
    pub(crate) fn is_station_fault(&self) -> bool {
        matches!(self, Self::StationFault(_))
    }

    /// Whether it says something about the plugin, and not only about the station or what it is short of.
    pub(crate) fn is_of_the_plugin(&self) -> bool {
        !matches!(self, Self::StationFault(_) | Self::NotFetched(_) | Self::Loading)
    }

    /// A code for scripts.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "NOT_FOUND",
            Self::Shadowed { .. } => "SHADOWED",
            Self::NotFetched(_) => "NOT_FETCHED",
            Self::Loading => "LOADING",
            Self::StationFault(_) => "STATION_FAULT",
            Self::OtherName { .. } => "OTHER_NAME",
            Self::Upgrade(_) => "UPGRADE_FAILED",
            Self::NotRegular(_) => "NOT_REGULAR",
            Self::BadOwner { .. } => "BAD_OWNER",
            Self::BadMode { .. } => "BAD_MODE",
            Self::Untrusted(_) => "UNTRUSTED",
            Self::TooLarge { .. } => "TOO_LARGE",
            Self::NotElf => "NOT_ELF",
            Self::Truncated(_) => "TRUNCATED",
            Self::WrongArchitecture { .. } => "WRONG_ARCHITECTURE",
            Self::NotShared(_) => "NOT_SHARED",
            Self::WrongLibc { .. } => "WRONG_LIBC",
            Self::NoNote => "NO_NOTE",
            Self::NoSymbol(_) => "NO_SYMBOL",
            Self::BadMagic => "BAD_MAGIC",
            Self::Major { .. } => "ABI_MAJOR",
            Self::Minor { .. } => "ABI_MINOR",
            Self::Aborts => "PANIC_ABORT",
            Self::NeedsProcess => "NEEDS_PROCESS",
            Self::NullFunction(_) => "NULL_FUNCTION",
            Self::Open(_) => "OPEN_FAILED",
            Self::Describe(_) => "DESCRIBE_INVALID",
            Self::DescriptionsFull { .. } => "DESCRIPTIONS_FULL",
            Self::Dlopen(_) => "DLOPEN",
            Self::ImageBudget { .. } => "IMAGE_BUDGET",
            Self::Crashed(_) => "CRASHED",
            Self::DuplicateRole { .. } => "DUPLICATE_ROLE",
            Self::Quarantined(_) => "QUARANTINED",
        }
    }
}
