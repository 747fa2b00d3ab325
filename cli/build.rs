//! Lists the sources of the plugin SDK, which `quiltctl plugin new` writes beside a new plugin: quilt's crates are not
//! published, and a plugin's author needs nothing else of quilt. For the plugin itself that is `plugin-api`; for tools that
//! call it, `client`.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..");
    let mut files = Vec::new();
    for krate in ["plugin-api", "plugin-api/abi", "plugin-api/macros", "client", "net", "protocol"] {
        let folder = root.join(krate);
        files.push(folder.join("Cargo.toml"));
        sources(&folder.join("src"), &mut files);
    }
    sources(&root.join("plugin-api/abi/include"), &mut files);
    files.sort();
    for krate in ["plugin-api", "client", "net", "protocol"] {
        println!("cargo::rerun-if-changed=../{krate}");
    }
    let entry = |file: &PathBuf| {
        let name = file.strip_prefix(&root).expect("it was found below");
        format!("    ({:?}, include_str!({:?})),\n", name.display().to_string(), file.display().to_string())
    };
    let list: String = files.iter().map(entry).collect();
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("sdk.rs");
    fs::write(out, format!("&[\n{list}]\n")).expect("cargo made the folder");
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())).flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, files);
        } else {
            files.push(path);
        }
    }
}
