//! The crates of two plugins in one program, as a tool has them that calls both with their types.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![allow(unsafe_code, reason = "what a station calls is called as a station does")]

use quilt_plugin_api::abi::{self, Buf};
use quilt_plugin_api::bridge::to_bytes;
use quilt_plugin_api::export::quilt_plugin_v1;

/// A plugin's crate: one that exports a role, and has a type for callers.
macro_rules! plugin {
    ($module:ident, $role:literal) => {
        mod $module {
            use quilt_plugin_api::{Command, NoError, RoleContext, RoleError, role};
            use schemars::JsonSchema;
            use serde::{Deserialize, Serialize};

            #[derive(Serialize, Deserialize, JsonSchema, Command)]
            #[command(group = "Talk", reply = String)]
            pub(super) struct Greet {}

            pub(super) struct Greeter;

            #[role(name = $role)]
            impl Greeter {
                async fn start(_: (), _: &RoleContext) -> Result<Self, RoleError> {
                    Ok(Self)
                }

                #[command(read)]
                async fn greet(&self, _: Greet) -> Result<String, NoError> {
                    Ok($role.into())
                }
            }

            quilt_plugin_api::export_plugin!(Greeter);
        }
    };
}

plugin!(camera, "camera");
plugin!(mixer, "mixer");

#[test]
fn a_program_links_two_plugins_and_a_library_that_does_is_refused_with_their_names() {
    let roles: Vec<_> = quilt_plugin_api::linked_roles().iter().map(|role| role.description().name.clone()).collect();
    assert_eq!(roles, ["camera", "mixer"]);
    let (mut plugin, mut error) = (std::ptr::null(), std::mem::MaybeUninit::<Buf>::uninit());
    // SAFETY: the places are valid for this call; without a host the library is not opened.
    let status = unsafe { quilt_plugin_v1.open.unwrap()(std::ptr::null(), 0, &raw mut plugin, error.as_mut_ptr()) };
    assert_eq!(status, abi::FAILED);
    // SAFETY: written by a call that failed, and it changes hands.
    let text = unsafe { to_bytes(error.assume_init()) }.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    assert!(text.starts_with("it exports several plugins (quilt-plugin-api, quilt-plugin-api)"), "{text}");
}
