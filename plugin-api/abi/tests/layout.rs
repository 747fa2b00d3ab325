//! The contract as bytes: where every field is, and the C header that says the same.

use std::fmt::Write as _;
use std::mem::{align_of, offset_of, size_of};
use std::path::Path;

use quilt_plugin_abi::{Buf, Completion, Entry, Host, Plugin, Slice};

macro_rules! layout {
    ($out:ident, $type:ident { $($field:ident),* $(,)? }) => {
        writeln!($out, "{} size {} align {}", stringify!($type), size_of::<$type>(), align_of::<$type>()).unwrap();
        $(writeln!($out, "  {} at {}", stringify!($field), offset_of!($type, $field)).unwrap();)*
    };
}

/// Compares with the file in the tree; `QUILT_GOLDEN=write` writes it anew.
fn golden(path: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("QUILT_GOLDEN").is_some_and(|mode| mode == "write") {
        std::fs::write(&path, text).expect("the golden file can be written");
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(known == text, "{} is not what the contract says now; it may only grow at its end", path.display());
}

#[test]
fn what_was_published_stays_where_it_is() {
    let mut out = String::new();
    layout!(out, Slice { ptr, len });
    layout!(out, Buf { ptr, len, owner, release });
    layout!(out, Completion { ctx, done });
    layout!(out, Entry { magic, size, major, minor_min, minor_max, flags, reserved, open });
    layout!(
        out,
        Plugin { size, minor, describe, validate, start, update, run, stop, abandon, call, cancel, extension }
    );
    layout!(
        out,
        Host {
            size,
            minor,
            log,
            report,
            attribute,
            emit,
            register,
            de_register,
            call,
            cancel,
            send_item,
            stop_timeout_ms,
            trace_enabled,
            trace,
            trace_generation,
            extension,
        }
    );
    golden("tests/layout.txt", &out);
}

#[test]
fn the_header_is_the_one_that_this_crate_says() {
    let config = cbindgen::Config {
        language: cbindgen::Language::C,
        pragma_once: true,
        header: Some("/* The contract between a quilt station and a plugin. Generated; do not edit. */".into()),
        export: cbindgen::ExportConfig {
            prefix: Some("Quilt".into()),
            include: ["Entry", "Plugin", "Host"].map(str::to_owned).to_vec(),
            ..Default::default()
        },
        constant: cbindgen::ConstantConfig { allow_static_const: false, ..Default::default() },
        documentation_style: cbindgen::DocumentationStyle::C99,
        style: cbindgen::Style::Type,
        usize_is_size_t: true,
        ..Default::default()
    };
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"))
        .generate()
        .unwrap();
    let mut header = Vec::new();
    bindings.write(&mut header);
    // Names of constants as C authors write them.
    let header = String::from_utf8(header).unwrap().replace("#define Quilt", "#define QUILT_");
    golden("include/quilt_plugin.h", &header);
}
