//! Files that are no plugins, or ill ones: each is refused with a code of its own before or while it is loaded, and the
//! station that found it goes on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use nix::sys::signal::Signal;
use quilt_station::inspect_plugin;
use quilt_tests::{Fleet, World, plugins};

/// The codes of all files that a station does not use, by file name without its ending. What crashed is quarantined at once,
/// and called so when it is looked at again.
async fn refused(world: &World) -> BTreeMap<String, String> {
    let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.with_code(0).json();
    let all = list.as_array().unwrap().iter().filter_map(|plugin| {
        let file = Path::new(plugin["file"].as_str()?).file_stem()?.to_str()?.to_owned();
        Some((file, plugin["code"].as_str()?.to_owned()))
    });
    all.collect()
}

async fn until_refused(world: &World, crashed: &str, expected: &[(&str, &str)]) {
    let expected: BTreeMap<_, _> =
        expected.iter().map(|(file, code)| ((*file).to_owned(), (*code).to_owned())).collect();
    let codes = async |world: &World| {
        let mut got = refused(world).await;
        got.values_mut().filter(|code| *code == "QUARANTINED").for_each(|code| *code = crashed.into());
        got
    };
    world.eventually("as many are refused", async |world| codes(world).await.len() == expected.len()).await;
    world.eventually("each has its code", async |world| codes(world).await == expected).await;
}

#[tokio::test]
async fn files_that_are_no_plugins_are_each_refused_by_name_while_a_good_one_beside_them_is_offered() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let good = plugins::hostile(world.folder(), "good");
    let bytes = fs::read(&good).unwrap();
    let folder = world.folder().join("config/plugins");
    fs::create_dir_all(&folder).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
    put("empty.so", b"");
    // What a copying program has not finished.
    put(".half.so", &bytes[..bytes.len() / 2]);
    put("text.so", b"#!/bin/sh\necho a plugin, honestly\n");
    put("header.so", &bytes[..40]);
    put("half.so", &bytes[..bytes.len() / 2]);
    let changed = |at: usize, byte: u8| {
        let mut changed = bytes.clone();
        changed[at] = byte;
        changed
    };
    // Offsets of the ELF header: class, type, machine.
    put("small.so", &changed(4, 1));
    put("program.so", &changed(16, 2));
    put("machine.so", &changed(18, 0x28));
    fs::create_dir(folder.join("folder.so")).unwrap();
    nix::unistd::mkfifo(&folder.join("pipe.so"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    symlink(&good, folder.join("link.so")).unwrap();
    put("open.so", &bytes);
    fs::set_permissions(folder.join("open.so"), fs::Permissions::from_mode(0o666)).unwrap();
    // The system's own: no plugin, and no note.
    let libc = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6"];
    put("libm.so", &fs::read(libc.iter().find(|path| Path::new(path).exists()).unwrap()).unwrap());
    world.plug(&good, "good.so");
    // Takes three seconds to load, which is no crash.
    world.plug(&plugins::hostile(world.folder(), "slow_at_load"), "slow_at_load.so");
    world.until_offered("cam-1", "good").await;
    world.until_offered("cam-1", "slow_at_load").await;
    let expected = [
        ("empty", "NOT_ELF"),
        ("text", "NOT_ELF"),
        ("header", "TRUNCATED"),
        ("half", "TRUNCATED"),
        ("small", "WRONG_ARCHITECTURE"),
        ("program", "NOT_SHARED"),
        ("machine", "WRONG_ARCHITECTURE"),
        ("folder", "NOT_REGULAR"),
        ("pipe", "NOT_REGULAR"),
        ("link", "NOT_REGULAR"),
        ("open", "BAD_MODE"),
        ("libm", "NO_NOTE"),
    ];
    until_refused(&world, "QUARANTINED", &expected).await;
    world.apply(Fleet::new().with("cam-1/good/main", "").text()).await.with_code(0);
    // Of two with one name the younger is used.
    put("younger.so", &[&bytes[..], b"younger"].concat());
    world
        .eventually("the older is left", async |world| {
            refused(world).await.get("good").is_some_and(|code| code == "SHADOWED")
        })
        .await;
    // Whoever removes a file is told of it no more.
    fs::remove_file(folder.join("text.so")).unwrap();
    world.eventually("the text is gone", async |world| !refused(world).await.contains_key("text")).await;
}

#[test]
fn a_library_that_is_cut_anywhere_is_told_from_a_whole_one_and_flipped_bits_of_its_head_hurt_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let whole = plugins::imp("one");
    let bytes = fs::read(whole).unwrap();
    let path = folder.path().join("cut.so");
    let (mut refused, mut taken) = (0, 0);
    for length in (0..bytes.len()).step_by(4096) {
        fs::write(&path, &bytes[..length]).unwrap();
        match inspect_plugin(&path) {
            Err(error) => {
                assert!(["NOT_ELF", "TRUNCATED"].contains(&error.code), "at {length}: {} {}", error.code, error.text);
                refused += 1;
            }
            // Nothing that is mapped may be missing; what comes behind may.
            Ok(_) => taken += 1,
        }
    }
    assert!(refused > taken, "{refused} refused, {taken} taken");
    let bytes = fs::read(plugins::hostile(folder.path(), "good")).unwrap();
    // A small generator: the same flips in every run.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..2000 {
        let mut flipped = bytes.clone();
        for _ in 0..=next() % 4 {
            flipped[(next() % 1024) as usize] ^= 1 << (next() % 8);
        }
        fs::write(&path, &flipped).unwrap();
        // Whatever it answers, it answers.
        drop(inspect_plugin(&path));
    }
}

/// What becomes of a library that is ill when it is loaded.
const ILL: [(&str, &str); 26] = [
    ("wrong_magic", "BAD_MAGIC"),
    ("size_0", "BAD_MAGIC"),
    ("major_99", "ABI_MAJOR"),
    ("minor_min_99", "ABI_MINOR"),
    ("null_open", "NULL_FUNCTION"),
    ("null_describe", "NULL_FUNCTION"),
    ("null_table", "NULL_FUNCTION"),
    ("short_table", "BAD_MAGIC"),
    ("open_fails", "OPEN_FAILED"),
    ("open_fails_nowhere", "OPEN_FAILED"),
    ("describe_64mb", "DESCRIBE_INVALID"),
    ("describe_no_json", "DESCRIBE_INVALID"),
    ("describe_no_utf8", "DESCRIBE_INVALID"),
    ("describe_nowhere", "DESCRIBE_INVALID"),
    ("describe_endless", "DESCRIBE_INVALID"),
    ("describe_deep", "DESCRIBE_INVALID"),
    ("roles_1000", "DESCRIBE_INVALID"),
    ("roles_0", "DESCRIBE_INVALID"),
    ("role_with_slash", "DESCRIBE_INVALID"),
    ("role_twice", "DESCRIBE_INVALID"),
    ("role_process", "DUPLICATE_ROLE"),
    ("other_name", "DESCRIBE_INVALID"),
    ("abort_at_load", "CRASHED"),
    ("segv_at_load", "CRASHED"),
    ("abort_at_describe", "CRASHED"),
    ("exit_at_load", "CRASHED"),
];

#[tokio::test]
async fn libraries_that_are_ill_when_they_are_loaded_are_refused_or_quarantined_and_allowed_again_by_an_operator() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    for (variant, _) in ILL {
        world.plug(&plugins::hostile(world.folder(), variant), &format!("{variant}.so"));
    }
    world.plug(&plugins::hostile(world.folder(), "good"), "good.so");
    until_refused(&world, "CRASHED", &ILL).await;
    world.until_offered("cam-1", "good").await;
    let schemaless = plugins::imp("schemaless");
    world.plug(&schemaless, "schemaless.so");
    world
        .eventually("the panic is told", async |world| {
            let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.json();
            let plugin = list.as_array().unwrap().iter().find(|plugin| plugin["name"] == "imp").cloned();
            plugin.is_some_and(|plugin| {
                let told = plugin["detail"].to_string();
                plugin["code"] == "OPEN_FAILED" && told.contains("describing panics, as it was asked to")
            })
        })
        .await;
    fs::remove_file(world.folder().join("config/plugins/schemaless.so")).unwrap();
    until_refused(&world, "CRASHED", &ILL).await;
    // Across a restart: what crashed is not even tried.
    world.end_station("cam-1", Signal::SIGTERM).await;
    world.station("cam-1", &[]).await;
    let quarantined = ILL.map(|(variant, code)| (variant, if code == "CRASHED" { "QUARANTINED" } else { code }));
    until_refused(&world, "QUARANTINED", &quarantined).await;
    // Allowed, it is tried again, and crashes again.
    world.ctl(&["plugin", "allow", "cam-1", "abort_at_load"]).await.with_code(0);
    world
        .eventually("it crashed anew", async |world| {
            refused(world).await.get("abort_at_load").is_some_and(|code| code == "CRASHED" || code == "QUARANTINED")
        })
        .await;
    let nothing = world.ctl(&["plugin", "allow", "cam-1", "good"]).await;
    assert!(nothing.code != 0 && nothing.err.contains("good"), "{}", nothing.err);
}
