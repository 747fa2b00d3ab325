//! What the workspace promises about itself: arrows point down, and limits are written down. `deny.toml` has the rules for dependencies.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

fn metadata() -> Metadata {
    let linux = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let options = ["--locked", "--offline", "--filter-platform", &linux].map(str::to_owned);
    MetadataCommand::new().other_options(options.to_vec()).exec().unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Levels as ARCHITECTURE.md draws them.
fn level(package: &str) -> Option<u32> {
    Some(match package {
        "quilt-plugin-api-macros" | "quilt-plugin-abi" => 0,
        "quilt-protocol" | "quilt-core" | "quilt-plugin-api" => 1,
        "quilt-net" => 2,
        "quilt-client" | "quilt-role-process" | "quilt-role-counter" => 3,
        "quilt-manager" | "quilt-station" => 4,
        "quiltctl" => 5,
        "quilt-tests" | "quilt-bench" => 6,
        _ => return None,
    })
}

#[test]
fn a_crate_uses_only_lower_levels() {
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        let own = level(&package.name).unwrap_or_else(|| panic!("{} has no level; give it one here", package.name));
        for dependency in package.dependencies.iter().filter(|one| one.kind == DependencyKind::Normal) {
            if let Some(theirs) = level(&dependency.name) {
                assert!(theirs < own, "{} may not use {}", package.name, dependency.name);
            }
        }
    }
}

#[test]
fn the_leaves_know_neither_io_nor_each_other() {
    let metadata = metadata();
    let banned: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("quilt-protocol", &["tokio", "quilt-core", "quilt-plugin-api"][..]),
        ("quilt-plugin-api", &["quilt-protocol", "quilt-core", "quilt-net"]),
        ("quilt-core", &["quilt-protocol", "quilt-plugin-api"]),
        ("quilt-manager", &["quilt-plugin-api"]),
    ]);
    for package in metadata.workspace_packages() {
        for dependency in package.dependencies.iter().filter(|one| one.kind == DependencyKind::Normal) {
            let banned = banned.get(package.name.as_str()).copied().unwrap_or_default();
            assert!(!banned.contains(&dependency.name.as_str()), "{} uses {}", package.name, dependency.name);
        }
    }
}

#[test]
fn bincode_is_named_in_two_files_only() {
    fn look(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let others = ["target", "tests", "peers"].contains(&name.as_str());
            if path.is_dir() && !others && !name.starts_with('.') {
                look(&path, found);
            } else if name.ends_with(".rs") && names_bincode(&fs::read_to_string(&path).unwrap()) {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    // What quilt is measured beside is not quilt. `from_bincode::<T>` is ours.
    fn names_bincode(text: &str) -> bool {
        text.match_indices("bincode::").any(|(at, _)| !text[..at].ends_with('_'))
    }
    let mut found = Vec::new();
    look(root(), &mut found);
    found.sort();
    assert_eq!(found, ["plugin-api/src/body.rs", "protocol/src/codec.rs"]);
}

/// The Rust files of a folder, below it too.
fn rust_files(folder: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.extension() {
            _ if path.is_dir() => rust_files(&path, files),
            Some(extension) if extension == "rs" => files.push(path),
            _ => {}
        }
    }
}

#[test]
fn every_limit_is_written_down_where_users_look_for_it() {
    let written = fs::read_to_string(root().join("docs/limits.md")).unwrap();
    let names_of = |line: &str| -> Option<String> {
        let (before, after) = line.split_once("const ")?;
        let name = after.split(':').next()?;
        let is_item = before.is_empty() || before.starts_with("pub");
        (is_item && name.ends_with("_MAX")).then(|| name.to_owned())
    };
    let mut files = Vec::new();
    for package in ["protocol", "net", "core", "client", "manager", "station", "roles", "plugin-api", "cli"] {
        rust_files(&root().join(package), &mut files);
    }
    let mut missing = Vec::new();
    for file in files {
        let path = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        // Behind a path come the names of the constants in that file.
        let sections: Vec<_> = written.split(&format!("`{path}`")).skip(1).collect();
        let named = |name: &str| {
            let until_next = |section: &&str| section.split(".rs`").next().unwrap().contains(&format!("`{name}`"));
            sections.iter().any(until_next)
        };
        let text = fs::read_to_string(&file).unwrap();
        missing
            .extend(text.lines().filter_map(names_of).filter(|name| !named(name)).map(|name| format!("{path} {name}")));
    }
    assert!(missing.is_empty(), "docs/limits.md lacks these; say there what they limit and what happens: {missing:#?}");
}
