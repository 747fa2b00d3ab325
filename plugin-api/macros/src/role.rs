//! `#[role]`: splits an inherent `impl` block into the `Role` implementation, the commands, and what is left.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::parse::Parser;
use syn::{Attribute, FnArg, ImplItem, ImplItemFn, ItemImpl, LitInt, LitStr, Type};

/// Methods that belong to the `Role` trait.
const LIFE_CYCLE: [&str; 8] = ["validate", "start", "update", "run", "stop", "detach", "abandon", "survives"];

pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> syn::Result<TokenStream> {
    let (name, instances) = parse_arguments(arguments)?;
    let mut block: ItemImpl = syn::parse2(item)?;
    if let Some((_, path, _)) = &block.trait_ {
        return Err(syn::Error::new_spanned(path, "#[role] goes on an inherent impl: `impl Janitor { .. }`"));
    }
    let role = block.self_ty.clone();
    let (mut life_cycle, mut commands, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    let mut config = None;
    for item in block.items {
        match item {
            ImplItem::Fn(method) if LIFE_CYCLE.contains(&method.sig.ident.to_string().as_str()) => {
                if method.sig.ident == "start" {
                    config = Some(config_type(&method)?);
                }
                life_cycle.push(method);
            }
            ImplItem::Fn(mut method) => {
                if let Some(attribute) = take_command_attribute(&mut method) {
                    commands.push(command(&method, &attribute)?);
                }
                rest.push(ImplItem::Fn(method));
            }
            other => rest.push(other),
        }
    }
    let Some(config) = config else {
        let text = "a role needs `async fn start(config: Config, cx: &RoleContext) -> Result<Self, RoleError>`";
        return Err(syn::Error::new_spanned(&role, text));
    };
    let doc = doc_text(&block.attrs);
    block.items = rest;
    let attributes = &block.attrs;
    // Life cycle methods are public through the trait whatever their own visibility says.
    for method in &mut life_cycle {
        method.vis = syn::Visibility::Inherited;
    }
    let registration = format_ident!("register");
    Ok(quote! {
        #block

        #(#attributes)*
        impl ::quilt_plugin_api::Role for #role {
            const NAME: &'static str = #name;
            const VERSION: &'static str = ::core::env!("CARGO_PKG_VERSION");
            const INSTANCES: u32 = #instances;
            const DOC: &'static str = #doc;
            type Config = #config;
            #(#life_cycle)*
            fn commands() -> ::std::vec::Vec<::quilt_plugin_api::RoleCommand<Self>> {
                ::std::vec![#(#commands),*]
            }
        }

        const _: () = {
            fn #registration() -> ::std::sync::Arc<dyn ::quilt_plugin_api::RoleFactory> {
                ::quilt_plugin_api::factory::<#role>()
            }
            ::quilt_plugin_api::inventory::submit! { ::quilt_plugin_api::StaticRole(#registration) }
        };
    })
}

fn parse_arguments(arguments: TokenStream) -> syn::Result<(LitStr, LitInt)> {
    let (mut name, mut instances) = (None, None);
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("name") {
            name = Some(meta.value()?.parse::<LitStr>()?);
            Ok(())
        } else if meta.path.is_ident("instances") {
            instances = Some(meta.value()?.parse::<LitInt>()?);
            Ok(())
        } else {
            Err(meta.error("expected `name` or `instances`"))
        }
    });
    parser.parse2(arguments.clone())?;
    let name = name.ok_or_else(|| syn::Error::new_spanned(arguments, "name the role: #[role(name = \"janitor\")]"))?;
    Ok((name, instances.unwrap_or_else(|| LitInt::new("0", proc_macro2::Span::call_site()))))
}

fn config_type(start: &ImplItemFn) -> syn::Result<Type> {
    match start.sig.inputs.first() {
        Some(FnArg::Typed(argument)) => Ok((*argument.ty).clone()),
        _ => Err(syn::Error::new_spanned(&start.sig, "`start` takes the configuration first, and no self")),
    }
}

fn take_command_attribute(method: &mut ImplItemFn) -> Option<Attribute> {
    let at = method.attrs.iter().position(|attribute| attribute.path().is_ident("command"))?;
    Some(method.attrs.remove(at))
}

fn command(method: &ImplItemFn, attribute: &Attribute) -> syn::Result<TokenStream> {
    let (mut read, mut stream, mut inline) = (false, false, false);
    if !matches!(attribute.meta, syn::Meta::Path(_)) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("read") {
                read = true;
                Ok(())
            } else if meta.path.is_ident("stream") {
                stream = true;
                Ok(())
            } else if meta.path.is_ident("inline") {
                inline = true;
                Ok(())
            } else {
                Err(meta.error("expected `read`, `stream` or `inline`"))
            }
        })?;
    }
    let doc = doc_text(&method.attrs);
    let name = &method.sig.ident;
    let mut inputs = method.sig.inputs.iter();
    let Some(FnArg::Receiver(receiver)) = inputs.next() else {
        return Err(syn::Error::new_spanned(&method.sig, "a command takes `&self` or `&mut self` first"));
    };
    let Some(FnArg::Typed(request)) = inputs.next() else {
        return Err(syn::Error::new_spanned(&method.sig, "a command takes its request second"));
    };
    let request = &request.ty;
    let inline = if inline { quote!(.inline()) } else { quote!() };
    match (stream, receiver.mutability.is_some(), method.sig.asyncness.is_some()) {
        (true, false, false) => Ok(quote! {
            ::quilt_plugin_api::RoleCommand::stream::<#request>(#doc, #read, |role, request, items| {
                Self::#name(role, request, items)
            })#inline
        }),
        (true, _, _) => Err(syn::Error::new_spanned(
            &method.sig,
            "a streaming command is `fn name(&self, request: Request, items: Items<Item>) -> Streaming<Error>`: \
             it takes what it needs from the role and returns a future that does not hold it",
        )),
        (false, true, true) => Ok(quote! {
            ::quilt_plugin_api::RoleCommand::alone::<#request>(#doc, #read, |role, request| {
                ::std::boxed::Box::pin(Self::#name(role, request))
            })#inline
        }),
        (false, false, true) => Ok(quote! {
            ::quilt_plugin_api::RoleCommand::beside::<#request>(#doc, #read, |role, request| {
                ::std::boxed::Box::pin(Self::#name(role, request))
            })#inline
        }),
        (false, _, false) => Err(syn::Error::new_spanned(&method.sig, "a command is an `async fn`")),
    }
}

/// The text of a doc comment, its lines joined as they stand.
fn doc_text(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}
