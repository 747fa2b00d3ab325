//! From typed roles to the C contract: what `export_plugin!` puts into a shared library.
//!
//! The library has a runtime of its own; nothing of tokio, tracing or serde crosses. Every function of the contract ends up
//! in `calls`, which wraps it so that no panic crosses either.
#![allow(unsafe_code, reason = "the plugin boundary: functions that the station calls")]

mod calls;
mod host;
pub mod note;
mod state;
mod trace;

use std::sync::Arc;

use quilt_plugin_abi as abi;

pub(crate) use self::calls::caught;

use crate::RoleFactory;

/// The symbol that a station looks up in the library. This crate defines it once. If `export_plugin!` defined it, no program could
/// link the crates of two plugins for their types. The linker exports it from libraries only.
#[allow(unsafe_code, non_upper_case_globals, reason = "what a plugin exports is named by the contract")]
#[unsafe(no_mangle)]
pub static quilt_plugin_v1: abi::Entry = abi::Entry {
    magic: abi::MAGIC,
    size: size_of::<abi::Entry>() as u32,
    major: abi::MAJOR,
    minor_min: 0,
    minor_max: abi::MINOR,
    flags: if cfg!(panic = "abort") { abi::FLAG_ABORTS } else { 0 },
    reserved: 0,
    open: Some(open),
};

inventory::collect!(Library);

/// What `export_plugin!` knows of the library.
pub struct Library {
    /// Its name, as in its `Cargo.toml`.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Its roles.
    pub roles: fn() -> Vec<Arc<dyn RoleFactory>>,
}

/// Exports roles from a shared library. Once per library, in its root; not in a crate that stations link.
///
/// ```
/// # use quilt_plugin_api::{RoleContext, RoleError, role};
/// # struct Camera;
/// # /// Takes pictures.
/// # #[role(name = "camera")]
/// # impl Camera {
/// #     async fn start(_: u32, _: &RoleContext) -> Result<Self, RoleError> { Ok(Self) }
/// # }
/// quilt_plugin_api::export_plugin!(Camera);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_plugin {
    ($($role:ty),+ $(,)?) => {
        #[allow(unsafe_code, reason = "a note has a section of its own")]
        const _: () = {
            $crate::inventory::submit! {
                $crate::export::Library {
                    name: ::core::env!("CARGO_PKG_NAME"),
                    version: ::core::env!("CARGO_PKG_VERSION"),
                    roles: || ::std::vec![$($crate::factory::<$role>()),+],
                }
            }

            const NOTE_TEXT: &[&str] = &[
                "name=", ::core::env!("CARGO_PKG_NAME"), "\nversion=", ::core::env!("CARGO_PKG_VERSION"),
                "\nsdk=", $crate::export::note::SDK, "\nabi=", $crate::export::note::ABI,
                "\npanic=", if ::core::cfg!(panic = "abort") { "abort" } else { "unwind" },
                $("\nrole=", <$role as $crate::Role>::NAME,)+ "\n",
            ];

            #[used]
            #[unsafe(link_section = ".note.quilt")]
            static NOTE: $crate::export::note::Note<{ $crate::export::note::length(NOTE_TEXT) }> =
                $crate::export::note::Note::new(NOTE_TEXT);
        };
    };
}

/// The library's `open`.
///
/// # Safety
///
/// As [`abi::Entry::open`] says: `host` is valid for ever, `plugin` and `error` for this call.
unsafe extern "C" fn open(
    host: *const abi::Host,
    minor: u32,
    plugin: *mut *const abi::Plugin,
    error: *mut abi::Buf,
) -> u32 {
    let opened = calls::caught(|| {
        let library = the_library()?;
        // SAFETY: the station's table is valid for ever.
        let host = unsafe { host.as_ref() }.ok_or("the station gave no functions")?;
        state::open(library, host, minor)
    });
    let failed = |text: String| {
        // SAFETY: valid for this call.
        unsafe { error.write(crate::bridge::to_buf(text.into())) };
        abi::FAILED
    };
    match opened {
        Ok(Ok(())) => {
            // SAFETY: valid for this call.
            unsafe { plugin.write(&calls::PLUGIN) };
            abi::OK
        }
        Ok(Err(text)) => failed(text),
        Err(panic) => failed(panic),
    }
}

/// The one plugin that this library exports.
fn the_library() -> Result<&'static Library, String> {
    let mut exported = inventory::iter::<Library>();
    match (exported.next(), exported.next()) {
        (Some(library), None) => Ok(library),
        (None, _) => Err("it exports no plugin; `export_plugin!` names the roles".into()),
        (Some(_), Some(_)) => {
            let mut names: Vec<_> = inventory::iter::<Library>().map(|library| library.name).collect();
            names.sort_unstable();
            let names = names.join(", ");
            Err(format!(
                "it exports several plugins ({names}), and a library is one; move what they share into a crate without `export_plugin!`"
            ))
        }
    }
}
