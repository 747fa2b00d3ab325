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

use crate::RoleFactory;

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
        #[allow(unsafe_code, non_upper_case_globals, reason = "what a plugin exports is named by the contract")]
        const _: () = {
            unsafe extern "C" fn open(
                host: *const $crate::abi::Host,
                minor: u32,
                plugin: *mut *const $crate::abi::Plugin,
                error: *mut $crate::abi::Buf,
            ) -> u32 {
                let library = $crate::export::Library {
                    name: ::core::env!("CARGO_PKG_NAME"),
                    version: ::core::env!("CARGO_PKG_VERSION"),
                    roles: || ::std::vec![$($crate::factory::<$role>()),+],
                };
                // SAFETY: the station vouches for its arguments.
                unsafe { $crate::export::open(library, host, minor, plugin, error) }
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

            #[unsafe(no_mangle)]
            static quilt_plugin_v1: $crate::abi::Entry = $crate::abi::Entry {
                magic: $crate::abi::MAGIC,
                size: ::core::mem::size_of::<$crate::abi::Entry>() as u32,
                major: $crate::abi::MAJOR,
                minor_min: 0,
                minor_max: $crate::abi::MINOR,
                flags: if ::core::cfg!(panic = "abort") { $crate::abi::FLAG_ABORTS } else { 0 },
                reserved: 0,
                open: ::core::option::Option::Some(open),
            };
        };
    };
}

/// The library's `open`.
///
/// # Safety
///
/// As [`abi::Entry::open`] says: `host` is valid for ever, `plugin` and `error` for this call.
pub unsafe fn open(
    library: Library,
    host: *const abi::Host,
    minor: u32,
    plugin: *mut *const abi::Plugin,
    error: *mut abi::Buf,
) -> u32 {
    let opened = calls::caught(|| {
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
