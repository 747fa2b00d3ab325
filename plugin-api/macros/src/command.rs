//! `#[derive(Command)]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Attribute, Data, DeriveInput, LitStr, Type};

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
    travels_as_bincode(&input)?;
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
    // A static in a generic item is one for all its types.
    let fingerprint = input.generics.params.is_empty().then(|| {
        quote! {
            fn fingerprint() -> ::quilt_plugin_api::Fingerprint {
                static FINGERPRINT: ::std::sync::OnceLock<::quilt_plugin_api::Fingerprint> = ::std::sync::OnceLock::new();
                *FINGERPRINT.get_or_init(::quilt_plugin_api::fingerprint_of::<Self>)
            }
        }
    });
    let (generics, type_generics, clause) = input.generics.split_for_impl();
    Ok(quote! {
        impl #generics ::quilt_plugin_api::Command for #ident #type_generics #clause {
            const GROUP: &'static str = #group;
            const NAME: &'static str = #name;
            type Reply = #reply;
            type Error = #error;

            #fingerprint
        }
    })
}

/// Attributes of serde under which a value has no fixed shape. bincode writes fields in their order and nothing else: what is
/// left out or moved is read as something else, and what asks which shape comes next gets no answer.
const SHAPELESS: [&str; 7] =
    ["flatten", "untagged", "tag", "content", "skip_serializing", "skip_deserializing", "skip_serializing_if"];

/// Refuses a request that bincode cannot carry. Replies and errors are types of their own, which no macro sees; a test with
/// the harness sends them as bincode.
fn travels_as_bincode(input: &DeriveInput) -> syn::Result<()> {
    let of_fields = |fields: &syn::Fields| fields.iter().flat_map(|field| field.attrs.clone()).collect::<Vec<_>>();
    let mut attributes: Vec<Attribute> = input.attrs.clone();
    match &input.data {
        Data::Struct(data) => attributes.extend(of_fields(&data.fields)),
        Data::Enum(data) => {
            for variant in &data.variants {
                attributes.extend(variant.attrs.clone());
                attributes.extend(of_fields(&variant.fields));
            }
        }
        Data::Union(_) => {}
    }
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        attribute.parse_nested_meta(|meta| {
            if let Some(shapeless) = SHAPELESS.iter().find(|name| meta.path.is_ident(name)) {
                let text = format!(
                    "bincode, which carries requests between Rust programs, cannot carry `#[serde({shapeless})]`; use an `Option`, an enum \
                     without it, or nest the type"
                );
                return Err(meta.error(text));
            }
            // What others take is read over: a value, or a list.
            if meta.input.peek(syn::Token![=]) {
                meta.value()?.parse::<syn::Expr>()?;
            } else if meta.input.peek(syn::token::Paren) {
                meta.parse_nested_meta(|inner| {
                    if inner.input.peek(syn::Token![=]) {
                        inner.value()?.parse::<syn::Expr>()?;
                    }
                    Ok(())
                })?;
            }
            Ok(())
        })?;
    }
    Ok(())
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
