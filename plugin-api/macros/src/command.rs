//! `#[derive(Command)]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{DeriveInput, LitStr, Type};

pub(crate) fn expand(item: TokenStream) -> syn::Result<TokenStream> {
    let input: DeriveInput = syn::parse2(item)?;
    let (mut group, mut name, mut reply, mut error) = (None, None, None, None);
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("command")) {
        attribute.parse_nested_meta(|meta| {
            let known = if meta.path.is_ident("group") {
                group = Some(meta.value()?.parse::<LitStr>()?);
                true
            } else if meta.path.is_ident("name") {
                name = Some(meta.value()?.parse::<LitStr>()?);
                true
            } else if meta.path.is_ident("reply") {
                reply = Some(meta.value()?.parse::<Type>()?);
                true
            } else if meta.path.is_ident("error") {
                error = Some(meta.value()?.parse::<Type>()?);
                true
            } else {
                false
            };
            if known { Ok(()) } else { Err(meta.error("expected `group`, `name`, `reply` or `error`")) }
        })?;
    }
    let ident = &input.ident;
    let Some(group) = group else {
        let text = "name the command's group: #[command(group = \"Some descriptive name\")]";
        return Err(syn::Error::new_spanned(ident, text));
    };
    let name = match name {
        Some(name) => {
            if !is_snake_case(&name.value()) {
                return Err(syn::Error::new_spanned(name, "a command's name is lower_snake_case"));
            }
            name.value()
        }
        None => snake_case(&ident.to_string()),
    };
    let reply = reply.map_or_else(|| quote!(()), |reply| quote!(#reply));
    let error = error.map_or_else(|| quote!(::quilt_plugin_api::NoError), |error| quote!(#error));
    let (generics, type_generics, clause) = input.generics.split_for_impl();
    Ok(quote! {
        impl #generics ::quilt_plugin_api::Command for #ident #type_generics #clause {
            const GROUP: &'static str = #group;
            const NAME: &'static str = #name;
            type Reply = #reply;
            type Error = #error;
        }
    })
}

fn is_snake_case(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for (at, c) in name.char_indices() {
        if c.is_uppercase() && at > 0 {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
}
