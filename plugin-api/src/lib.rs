//! Everything a role author needs: write a type, a configuration, and typed commands; quilt does the rest.
//!
//! A role is supervised work on a station. The author implements [`Role`] with the [`role`] attribute and never sees
//! the wire. What a role needs of the outside comes through [`RoleContext`]; nothing is ambient, so that the same role
//! can be linked into a station or loaded into it at run time.
//!
//! Absent on purpose: sockets, the protocol, the station. Read first: [`Role`], [`RoleContext`], [`Command`].
//! Modules in reading order: `role`, `context`, `command`, `group`, `factory`, `config`, `body`, `shape`, `strict`, `error`, `words`, `testing`.
//!
//! ```
//! use quilt_plugin_api::{Command, RoleContext, RoleError, role};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct GreeterConfig {
//!     greeting: String,
//! }
//!
//! #[derive(Serialize, Deserialize, JsonSchema, Command)]
//! #[command(group = "Greetings", reply = String)]
//! struct Greet {
//!     name: String,
//! }
//!
//! struct Greeter(GreeterConfig);
//!
//! /// Greets whoever asks.
//! #[role(name = "greeter", instances = 1)]
//! impl Greeter {
//!     async fn start(config: GreeterConfig, _: &RoleContext) -> Result<Self, RoleError> {
//!         Ok(Self(config))
//!     }
//!
//!     /// Says hello.
//!     #[command(read)]
//!     async fn greet(&self, request: Greet) -> Result<String, quilt_plugin_api::NoError> {
//!         Ok(format!("{}, {}!", self.0.greeting, request.name))
//!     }
//! }
//! ```

// The macros name this crate; let them do so here as well.
extern crate self as quilt_plugin_api;

mod body;
pub mod bridge;
mod command;
pub mod config;
mod context;
mod error;
pub mod export;
mod factory;
mod group;
mod role;
mod shape;
mod strict;
pub mod testing;
mod words;

use std::pin::Pin;

pub use body::{Encoding, Fingerprint, JSON_ONLY, decode, decode_error, encode, fingerprint_of, split_error};
pub use command::{
    Call, Command, CommandError, CommandRecord, Ended, Gone, Handler, Items, NoError, RawItems, Streaming,
};
pub use context::{CallAnswer, Host, LogLevel, Place, Report, RoleContext};
pub use error::{Invalid, RoleError};
pub use factory::{Instance, RoleDescription, RoleFactory, StaticRole, factory, linked_roles};
pub use group::{Answering, CommandGroup, RoleCommand, Shared, StreamMethod};
pub use role::{Role, Work};

pub use inventory;
pub use quilt_plugin_abi as abi;
pub use quilt_plugin_api_macros::{Command, role};

/// Mistakes that the compiler finds: each block must not compile.
///
/// A role without `start`:
/// ```compile_fail
/// struct Nothing;
/// #[quilt_plugin_api::role(name = "nothing")]
/// impl Nothing {}
/// ```
///
/// A role without a name:
/// ```compile_fail
/// # use quilt_plugin_api::{RoleContext, RoleError};
/// struct Nameless;
/// #[quilt_plugin_api::role]
/// impl Nameless {
///     async fn start(_: u32, _: &RoleContext) -> Result<Self, RoleError> { Ok(Self) }
/// }
/// ```
///
/// A command whose reply is not what its request says:
/// ```compile_fail
/// # use quilt_plugin_api::{Command, NoError, RoleContext, RoleError};
/// #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema, Command)]
/// #[command(group = "x", reply = u32)]
/// struct Ask {}
/// struct Wrong;
/// #[quilt_plugin_api::role(name = "wrong")]
/// impl Wrong {
///     async fn start(_: u32, _: &RoleContext) -> Result<Self, RoleError> { Ok(Self) }
///     #[command]
///     async fn ask(&self, _: Ask) -> Result<String, NoError> { Ok(String::new()) }
/// }
/// ```
///
/// A command that is not async, and a command type without a group:
/// ```compile_fail
/// # use quilt_plugin_api::{Command, NoError, RoleContext, RoleError};
/// #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema, Command)]
/// #[command(group = "x")]
/// struct Ask {}
/// struct Wrong;
/// #[quilt_plugin_api::role(name = "wrong")]
/// impl Wrong {
///     async fn start(_: u32, _: &RoleContext) -> Result<Self, RoleError> { Ok(Self) }
///     #[command]
///     fn ask(&self, _: Ask) -> Result<(), NoError> { Ok(()) }
/// }
/// ```
/// ```compile_fail
/// #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema, quilt_plugin_api::Command)]
/// struct Groupless {}
/// ```
#[cfg(doctest)]
pub struct Misuse;

/// A boxed future, as traits that are used as objects return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
