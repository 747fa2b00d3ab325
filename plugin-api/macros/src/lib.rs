//! The macros of `quilt-plugin-api`. Use them through that crate; it documents them.

mod command;
mod role;

use proc_macro::TokenStream;

/// Makes an inherent `impl` block a role. See `quilt_plugin_api::role`.
#[proc_macro_attribute]
pub fn role(arguments: TokenStream, item: TokenStream) -> TokenStream {
    role::expand(arguments.into(), item.into()).unwrap_or_else(|error| error.into_compile_error()).into()
}

/// Makes a request type a command. See `quilt_plugin_api::Command`.
#[proc_macro_derive(Command, attributes(command))]
pub fn command(item: TokenStream) -> TokenStream {
    command::expand(item.into()).unwrap_or_else(|error| error.into_compile_error()).into()
}
