//! Plugins, built from the tree as their authors build them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// One build at a time in this process; a file lock keeps other test runs away.
static BUILDING: Mutex<()> = Mutex::new(());

/// The library of `tests/fixtures/imp`, a role that does what no role should. Builds tell themselves apart by `build`; that
/// of "narrow" knows fewer keys, and that of "schemaless" panics when it is to describe itself.
pub fn imp(build: &str) -> PathBuf {
    built("tests/fixtures/imp", "imp", build)
}

/// The library of `examples/plugins/machine`.
pub fn machine() -> PathBuf {
    built("examples/plugins/machine", "machine", "one")
}

/// One variant of `tests/fixtures/hostile.c`, which is also the name of the plugin and of its role.
pub fn hostile(folder: &Path, variant: &str) -> PathBuf {
    c_plugin(folder, "tests/fixtures/hostile.c", variant, &[&format!("-DVARIANT={variant}")])
}

/// Builds a C plugin of one source file into a folder.
pub fn c_plugin(folder: &Path, source: &str, name: &str, flags: &[&str]) -> PathBuf {
    c_plugin_with(&root().join("plugin-api/abi/include"), folder, source, name, flags)
}

/// As `c_plugin`, with the header of the contract from this folder.
pub fn c_plugin_with(header: &Path, folder: &Path, source: &str, name: &str, flags: &[&str]) -> PathBuf {
    let out = folder.join(format!("lib{name}.so"));
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-std=gnu11", "-pthread"])
        .arg("-I")
        .arg(header)
        .args(flags)
        .arg("-o")
        .arg(&out)
        .arg(root().join(source))
        .status()
        .unwrap();
    assert!(status.success(), "{source} does not compile");
    out
}

/// Holds off other builds, of this process and of other test runs, until it is dropped.
pub struct Building {
    _here: MutexGuard<'static, ()>,
    _lock: fs::File,
}

/// Waits for other builds to end.
pub fn building() -> Building {
    // A build that failed is told by its own test.
    let here = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let lock = fs::File::create(folder().join("lock")).unwrap();
    lock.lock().unwrap();
    Building { _here: here, _lock: lock }
}

/// quilt's own sources.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Where they are built: beside what cargo builds, so that it is cleaned with it.
pub fn folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(3).unwrap().join("plugins");
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn built(package: &str, name: &str, build: &str) -> PathBuf {
    let folder = folder();
    let out = folder.join(format!("lib{name}-{build}.so"));
    let package = root().join(package);
    let newest = [&package, &root().join("plugin-api")].map(|folder| newest(folder)).into_iter().max().unwrap();
    let is_made = || fs::metadata(&out).and_then(|file| file.modified()).is_ok_and(|made| made > newest);
    // Not behind the build of another plugin: whoever asks may be a test in which time runs.
    if is_made() {
        return out;
    }
    let _alone = building();
    if is_made() {
        return out;
    }
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--quiet", "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(folder.join(name))
        .env("IMP_BUILD", build)
        .args(if build == "narrow" { &["--features", "narrow"][..] } else { &[] })
        // What the test run was built with is not the author's.
        .env_remove("RUSTFLAGS")
        .status()
        .unwrap();
    assert!(status.success(), "{} does not build", package.display());
    // By another process: see the copy of a station's binary in `station_crash`. And renamed: it is there whole or not.
    let (made, part) = (folder.join(name).join(format!("release/lib{name}.so")), out.with_extension("part"));
    assert!(Command::new("cp").arg(made).arg(&part).status().unwrap().success());
    fs::rename(part, &out).unwrap();
    out
}

/// A plugin of one source file. It is built where `imp` is: most of what it needs is there.
pub fn from_source(name: &str, source: &str) -> PathBuf {
    let _alone = building();
    let package = folder().join(format!("{name}-source"));
    fs::create_dir_all(package.join("src")).unwrap();
    fs::write(package.join("src/lib.rs"), source).unwrap();
    let like = root().join("tests/fixtures/imp");
    let manifest = fs::read_to_string(like.join("Cargo.toml")).unwrap();
    let sdk = root().join("plugin-api");
    let manifest =
        manifest.replace("\"imp\"", &format!("{name:?}")).replace("../../../plugin-api", sdk.to_str().unwrap());
    fs::write(package.join("Cargo.toml"), manifest).unwrap();
    let lock = fs::read_to_string(like.join("Cargo.lock")).unwrap();
    fs::write(package.join("Cargo.lock"), lock.replace("\"imp\"", &format!("{name:?}"))).unwrap();
    let target = folder().join("imp");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "--target-dir"])
        .arg(&target)
        .current_dir(&package)
        .env_remove("RUSTFLAGS")
        .status()
        .unwrap();
    assert!(status.success(), "{name} does not build");
    target.join(format!("release/lib{name}.so"))
}

/// Runs cargo as an author does. In the folder that it builds in, packages of other test runs have the same name.
pub fn cargo(_alone: &Building, folder: &Path, arguments: &[&str]) {
    let status = Command::new(env!("CARGO"))
        .args(arguments)
        .arg("--quiet")
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", self::folder().join("author"))
        .env_remove("RUSTFLAGS")
        .status()
        .unwrap();
    assert!(status.success(), "cargo {arguments:?} in {}", folder.display());
}

/// Has the crate in `made` tested and built, and puts into its `target/release` what `cargo build --release` and `cargo build
/// --example call` make. A crate with the same files is built once: tests that make one each share it.
pub fn build_as_author(made: &Path, name: &str) {
    let _alone = building();
    let stored = folder().join(format!("{name}-made"));
    let is_same =
        Command::new("diff").args(["-rq", "--exclude=target", "--exclude=Cargo.lock"]).arg(made).arg(&stored).output();
    let products = [format!("lib{name}.so"), "examples/call".to_owned()];
    if !is_same.unwrap().status.success()
        || !products.iter().all(|product| stored.join("target").join(product).exists())
    {
        let _ = fs::remove_dir_all(&stored);
        crate::copy(made, &stored);
        fs::create_dir_all(stored.join("target/examples")).unwrap();
        for arguments in [&["test"][..], &["build"], &["build", "--example", "call"]] {
            cargo(&_alone, &stored, &[arguments, &["--release"]].concat());
        }
        for product in &products {
            fs::copy(folder().join("author/release").join(product), stored.join("target").join(product)).unwrap();
        }
    }
    fs::create_dir_all(made.join("target/release/examples")).unwrap();
    for product in &products {
        // By another process: a program that is open for writing here and in a child that was just forked cannot be run.
        let (from, to) = (stored.join("target").join(product), made.join("target/release").join(product));
        assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
    }
}

/// When the newest source below a folder was changed.
fn newest(folder: &Path) -> SystemTime {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let name = entry.file_name();
        if kind.is_dir() && name != "target" {
            newest = newest.max(self::newest(&path));
        } else if kind.is_file() {
            newest = newest.max(entry.metadata().and_then(|file| file.modified()).unwrap());
        }
    }
    newest
}
