//! `quiltctl plugin new`: a plugin that builds, tests and loads as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use quilt_protocol::Name;

use crate::exit::Failure;
use crate::output;

/// The sources of the SDK by path; see `build.rs`.
const SDK: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sdk.rs"));
const WORKSPACE: &str = include_str!("../../../Cargo.toml");
const MANIFEST: &str = include_str!("../../templates/plugin/Cargo.toml.in");
const LIBRARY: &str = include_str!("../../templates/plugin/lib.rs.in");
const CALL: &str = include_str!("../../templates/plugin/call.rs.in");
const README: &str = include_str!("../../templates/plugin/README.md.in");

/// Names that no crate can have, or that are taken by what a plugin uses or a station offers.
const TAKEN: &str = "abstract as async await become box break const continue crate do dyn else enum extern false final fn for \
    gen if impl in let loop macro match mod move mut override priv pub ref return self static struct super trait true try \
    type typeof unsafe unsized use virtual where while yield alloc core main proc_macro std test \
    schemars serde serde_json thiserror tokio tracing counter process";
/// Types that the template uses: no role can be called like one of them.
const TYPES: &str = "Box CallError Client Clone Command Debug Default Deserialize Error Greet GreetError Greeting Harness JsonSchema None Ok Option \
    Outcome PartialEq Result Role RoleContext RoleError Self Serialize Some String Vec";

/// Arguments of `plugin new`.
#[derive(Args)]
pub(crate) struct New {
    /// The name of the plugin and of its role, such as camera
    name: Name,
    /// The folder to make; the plugin's name unless given
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl New {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let name = self.name.as_str();
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(fits) {
            return Err(Failure::new(format!(
                "{name:?} cannot be a crate's name; expected small letters, digits, - and _, beginning with a letter"
            )));
        }
        let crate_name = name.replace('-', "_");
        let type_name: String = crate_name.split('_').map(capitalized).collect();
        let is_one = |words: &str, name: &str| words.split_whitespace().any(|word| word == name);
        if is_one(TAKEN, name) || is_one(TYPES, &type_name) || name.starts_with("quilt-") {
            return Err(Failure::new(format!(
                "{name:?} is a word or type of Rust or of what a plugin uses, or a role that there is; choose another name"
            )));
        }
        let folder = self.dir.unwrap_or_else(|| name.into());
        fs::create_dir(&folder).map_err(|error| {
            let hint = if folder.exists() { "; name a folder to be made with --dir" } else { "" };
            Failure::new(format!("{}: {error}{hint}", folder.display()))
        })?;
        let fill = |template: &str| {
            template.replace("{{name}}", name).replace("{{crate}}", &crate_name).replace("{{Name}}", &type_name)
        };
        let write = |path: &str, text: &str| write(&folder.join(path), text);
        write("Cargo.toml", &fill(MANIFEST))?;
        write("src/lib.rs", &fill(LIBRARY))?;
        write("examples/call.rs", &fill(CALL))?;
        write("README.md", &fill(README))?;
        write(".gitignore", "/target\n")?;
        write("quilt-sdk/Cargo.toml", &sdk_workspace())?;
        for (path, text) in SDK {
            let text = if path.ends_with("Cargo.toml") { without_tests(text) } else { (*text).to_owned() };
            write(&format!("quilt-sdk/{path}"), &text)?;
        }
        output::line(&format!("made {}; next:", folder.display()))?;
        output::line(&format!("  cd {} && cargo test && cargo build --release", folder.display()))?;
        output::line(&format!("  quiltctl plugin check target/release/lib{crate_name}.so"))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let told = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(told)?;
    }
    fs::write(path, text).map_err(told)
}

/// quilt's own workspace manifest, as far as the SDK's crates inherit from it.
fn sdk_workspace() -> String {
    let mut manifest: toml::Table = WORKSPACE.parse().expect("cargo has read it");
    manifest.retain(|key, _| key == "workspace");
    let workspace = manifest["workspace"].as_table_mut().expect("it is a table");
    workspace.remove("exclude");
    workspace.insert("members".into(), SDK_CRATES.map(toml::Value::from).to_vec().into());
    let dependencies = workspace["dependencies"].as_table_mut().expect("it is a table");
    let is_there = |path: &str| SDK_CRATES.contains(&path);
    dependencies.retain(|_, how| how.get("path").and_then(toml::Value::as_str).is_none_or(is_there));
    toml::to_string(&manifest).expect("it was read from TOML")
}

const SDK_CRATES: [&str; 6] = ["plugin-api", "plugin-api/abi", "plugin-api/macros", "client", "net", "protocol"];

/// A crate's manifest without what only quilt's own tests need.
fn without_tests(manifest: &str) -> String {
    let mut manifest: toml::Table = manifest.parse().expect("cargo has read it");
    manifest.remove("dev-dependencies");
    toml::to_string(&manifest).expect("it was read from TOML")
}
