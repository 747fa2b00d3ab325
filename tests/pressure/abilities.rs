//! What this machine lets the driver do, found out once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use quilt_protocol::Digest;

use crate::draw::BUILDS;
use crate::fleet::PLUGIN;
use crate::schedule::Resource;

/// What this machine lets the driver do, and where things are.
pub(crate) struct Abilities {
    /// Where quilt's binaries are.
    binaries: PathBuf,
    /// Control groups of this driver, which limit tasks.
    pub(crate) groups: Option<PathBuf>,
    /// Whether data folders can be file systems of their own.
    pub(crate) space: bool,
    /// The library that makes the disk slow and the clock wrong.
    pub(crate) shim: Option<PathBuf>,
    /// Builds of a plugin, to be pushed.
    pub(crate) plugins: Vec<PluginBuild>,
}

/// One build of the plugin.
pub(crate) struct PluginBuild {
    pub(crate) file: PathBuf,
    pub(crate) digest: String,
}

impl Abilities {
    /// Finds out. Call it before any other thread exists: it gives this process a mount namespace of its own.
    pub(crate) fn find(folder: &Path) -> anyhow::Result<Self> {
        let binaries = std::env::current_exe()?.parent().context("a folder of binaries")?.to_owned();
        let space = unshare(CloneFlags::CLONE_NEWNS).is_ok()
            && mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).is_ok();
        let shim = compile(folder, "shim", include_str!("shim.c"))?;
        Ok(Self { binaries, groups: control_groups(), space, shim, plugins: plugin_builds(folder)? })
    }

    /// One of quilt's binaries.
    pub(crate) fn binary(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.binaries.join(name);
        anyhow::ensure!(path.exists(), "{} is not built; run `cargo build --bins`", path.display());
        Ok(path)
    }

    /// What can be taken here, and why not the rest.
    pub(crate) fn resources(&self) -> (Vec<Resource>, Vec<&'static str>) {
        let mut can = vec![Resource::Descriptors, Resource::Processor, Resource::Files, Resource::Logs];
        let mut cannot = Vec::new();
        for (resource, is_able, why) in [
            (Resource::Tasks, self.groups.is_some(), "tasks: no control group of pids can be made here"),
            (Resource::Space, self.space, "space: no mount namespace can be made here"),
            (Resource::Disk, self.shim.is_some(), "disk: there is no C compiler"),
            (Resource::Clock, self.shim.is_some(), "clock and plugins: there is no C compiler"),
        ] {
            if is_able { can.push(resource) } else { cannot.push(why) }
        }
        (can, cannot)
    }
}

/// Compiles a library; `None` if there is no compiler.
fn compile(folder: &Path, name: &str, source: &str) -> anyhow::Result<Option<PathBuf>> {
    let (file, out) = (folder.join(format!("{name}.c")), folder.join(format!("{name}.so")));
    fs::write(&file, source)?;
    let mut compiler = std::process::Command::new("cc");
    let built =
        compiler.args(["-shared", "-fPIC", "-O1", "-std=gnu11", "-pthread", "-o"]).arg(&out).arg(&file).status();
    Ok(built.is_ok_and(|status| status.success()).then_some(out))
}

/// Builds of the example in C, which tell themselves apart by a text that nobody reads.
fn plugin_builds(folder: &Path) -> anyhow::Result<Vec<PluginBuild>> {
    fs::write(folder.join("quilt_plugin.h"), include_str!("../../plugin-api/abi/include/quilt_plugin.h"))?;
    let source = include_str!("../../examples/plugins/c/hello.c");
    let mut builds = Vec::new();
    for build in 0..BUILDS {
        let source = format!("{source}\n__attribute__((used)) static const char BUILD[] = \"pressure {build}\";\n");
        let Some(file) = compile(folder, &format!("{PLUGIN}-{build}"), &source)? else { return Ok(Vec::new()) };
        let digest = Digest::of(&fs::read(&file)?).to_string();
        builds.push(PluginBuild { file, digest });
    }
    Ok(builds)
}

impl Drop for Abilities {
    fn drop(&mut self) {
        if let Some(groups) = &self.groups {
            let _ = fs::remove_dir(groups);
        }
    }
}

/// Makes a folder for control groups that limit tasks: with cgroup v1 or v2, whichever there is.
fn control_groups() -> Option<PathBuf> {
    for root in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"] {
        let groups = Path::new(root).join(format!("quilt-pressure-{}", std::process::id()));
        if fs::create_dir(&groups).is_err() {
            continue;
        }
        // Without this a group of v2 has no limit; v1 has no such file.
        let _ = fs::write(groups.join("cgroup.subtree_control"), "+pids");
        let probe = groups.join("probe");
        let is_able = fs::create_dir(&probe).is_ok() && probe.join("pids.max").exists();
        let _ = fs::remove_dir(&probe);
        if is_able {
            return Some(groups);
        }
        let _ = fs::remove_dir(&groups);
    }
    None
}
