//! Whether a plugin keeps what a station expects: named checks, each in a child process of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quilt_core::words::count;
use quilt_plugin_api::testing::{Harness, Outcome};
use quilt_plugin_api::{RoleError, RoleFactory};
use serde::Serialize;
use serde_json::Value;

use super::child::{Keeper, Library};
use super::image::Image;
use super::{FoundPlugin, LoadError, Manifest, RefusedPlugin, intake};
use crate::catch::catch;

/// What came of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is as it should be.
    Passed,
    /// It is not.
    Failed,
    /// It could not be looked at.
    Skipped,
}

impl Verdict {
    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// What came of it.
    pub result: Verdict,
    /// In words.
    pub detail: String,
}

/// The roles of a plugin, in a child process or mapped into this one, as a station has them.
///
/// # Errors
///
/// Why it cannot be loaded.
pub async fn load_plugin(path: &Path, in_station: bool) -> Result<Vec<Arc<dyn RoleFactory>>, RefusedPlugin> {
    let load = async {
        let library = library(path, &intake::look(path)?);
        if !in_station {
            let keeper = Keeper::new(library, None);
            return Ok(keeper.roles(&keeper.describe().await?));
        }
        let runtime = tokio::runtime::Handle::current();
        let opening = tokio::task::spawn_blocking(move || {
            let image = Image::open(&library, &runtime, true)?;
            Ok(image.roles(&image.describe()?))
        });
        opening.await.unwrap_or_else(|error| Err(LoadError::Open(error.to_string())))
    };
    load.await.map_err(|error: LoadError| RefusedPlugin { code: error.code(), text: error.to_string() })
}

/// A library where it lies: for whoever looks at it once, and does not mind if it is changed meanwhile.
fn library(path: &Path, found: &FoundPlugin) -> Library {
    Library {
        // The child has another working folder in mind, and the loader would search for a bare name.
        path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
        sha256: found.sha256.clone(),
        name: found.name.clone(),
        aborts: found.aborts,
        printed: None,
    }
}

/// How long one check may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How often an instance is started and stopped.
const CYCLES: u32 = 100;
/// How much more memory the process may have after the last cycles than after the first half of them.
const GROWTH_MAX: u64 = 1 << 20;

/// Runs all checks on a file and tells each finding as it comes. Instances get `config`; their files go below `folder`.
pub async fn check_plugin(path: &Path, config: &Value, folder: &Path, mut tell: impl FnMut(Finding)) {
    let mut found = |check: String, result: Result<String, Problem>| {
        let (result, detail) = match result {
            Ok(detail) => (Verdict::Passed, detail),
            Err(Problem::Skipped(why)) => (Verdict::Skipped, why),
            Err(Problem::Failed(why)) => (Verdict::Failed, why),
        };
        tell(Finding { check, result, detail });
    };
    let inspected = match intake::look(path) {
        Ok(inspected) => inspected,
        Err(error) => return found("file".into(), Err(failed(&error))),
    };
    found("file".into(), Ok(format!("{} bytes, {}", inspected.size, inspected.sha256)));
    let bench = Bench { library: library(path, &inspected), inspected, folder: folder.to_owned() };
    let manifest = match bench.keeper().describe().await {
        Ok(manifest) => manifest,
        Err(error) => return found("describe".into(), Err(failed(&error))),
    };
    found("describe".into(), bench.agrees(&manifest));
    for role in &manifest.roles {
        let check = |what: &str| format!("{}: {what}", role.name);
        found(check("schema"), schema(&role.config_schema));
        found(check("bad configuration"), limited(bench.refuses_nonsense(&manifest, &role.name)).await);
        found(check("start and stop"), limited(bench.cycles(&manifest, &role.name, config)).await);
        found(check("bad calls"), limited(bench.bad_calls(&manifest, &role.name, config)).await);
    }
}

enum Problem {
    Failed(String),
    Skipped(String),
}

fn failed(error: &LoadError) -> Problem {
    Problem::Failed(format!("{}: it {error}", error.code()))
}

async fn limited(check: impl Future<Output = Result<String, Problem>>) -> Result<String, Problem> {
    let late = |_| Err(Problem::Failed(format!("not done after {} s", LIMIT.as_secs())));
    // A panic of a command arrives as one; see `Image::call`.
    let caught = catch(async { tokio::time::timeout(LIMIT, check).await.unwrap_or_else(late) }).await;
    caught.unwrap_or_else(|panic| Err(Problem::Failed(panic)))
}

fn schema(schema: &Value) -> Result<String, Problem> {
    let is_table = schema.get("type").is_some_and(|kind| kind == "object" || kind == "null");
    match is_table {
        true => Ok("a table".into()),
        false => Err(Problem::Failed(format!("expected that of a table, got {schema}"))),
    }
}

struct Bench {
    library: Library,
    inspected: FoundPlugin,
    folder: PathBuf,
}

impl Bench {
    /// A process of its own, as soon as it is asked something.
    fn keeper(&self) -> Arc<Keeper> {
        Keeper::new(self.library.clone(), None)
    }

    fn agrees(&self, manifest: &Manifest) -> Result<String, Problem> {
        let mut said: Vec<_> = manifest.roles.iter().map(|role| role.name.clone()).collect();
        let mut noted = self.inspected.roles.clone();
        said.sort();
        noted.sort();
        if manifest.name != self.inspected.name || said != noted {
            let told = format!("{:?} with roles {said:?}", manifest.name);
            return Err(Problem::Failed(format!(
                "expected what its note says, {:?} with roles {noted:?}, got {told}",
                self.inspected.name
            )));
        }
        Ok(format!("roles {}", said.join(", ")))
    }

    async fn refuses_nonsense(&self, manifest: &Manifest, role: &str) -> Result<String, Problem> {
        let keeper = self.keeper();
        let factory = of(&keeper, manifest, role);
        let deep = "[".repeat(100_000);
        for nonsense in ["", "not JSON", "{", "\"\\ud800\"", &deep, "{\"\u{0}\":\"\u{0}\"}"] {
            let shown = || nonsense.chars().take(20).collect::<String>();
            match factory.validate(nonsense.as_bytes()).await {
                Err(RoleError::Rejected(_)) => {}
                Ok(()) => {
                    return Err(Problem::Failed(format!("expected that {:?} is refused, it was taken", shown())));
                }
                Err(error) => {
                    return Err(Problem::Failed(format!("expected that {:?} is judged: {error}", shown())));
                }
            }
        }
        same_process(&keeper).await
    }

    /// Starts an instance, or says what is to be done for that.
    async fn start(&self, factory: &dyn RoleFactory, config: &Value) -> Result<Harness, Problem> {
        let started = Harness::start_one_of(factory, config.clone(), &self.folder).await;
        started.map_err(|error| match error {
            RoleError::Rejected(_) => {
                Problem::Skipped(format!("its configuration is refused: {error}; give another with --config"))
            }
            error => Problem::Failed(format!("start: {error}")),
        })
    }

    async fn cycles(&self, manifest: &Manifest, role: &str, config: &Value) -> Result<String, Problem> {
        let keeper = self.keeper();
        let factory = of(&keeper, manifest, role);
        let mut half = 0;
        for cycle in 0..CYCLES {
            let harness = self.start(&*factory, config).await?;
            harness.stop().await;
            if cycle == CYCLES / 2 {
                half = memory(&keeper).await;
            }
        }
        let grown = memory(&keeper).await.saturating_sub(half);
        if grown > GROWTH_MAX {
            return Err(Problem::Failed(format!(
                "its process grew by {grown} bytes over the last {} times",
                CYCLES / 2
            )));
        }
        same_process(&keeper).await.map(|_| format!("{CYCLES} times"))
    }

    async fn bad_calls(&self, manifest: &Manifest, role: &str, config: &Value) -> Result<String, Problem> {
        let keeper = self.keeper();
        let factory = of(&keeper, manifest, role);
        let harness = self.start(&*factory, config).await?;
        let commands = harness.commands();
        for (group, name) in &commands {
            // Only what is no JSON has to be refused: nothing stands for `{}`, and what else is taken is the command's matter.
            for (body, may_be_taken) in
                [("", true), ("not JSON", false), ("[1]", true), ("{\"no such key of any command\":1}", true)]
            {
                match harness.call_json(group, name, body).await {
                    Outcome::Reply(reply) if !may_be_taken => {
                        return Err(Problem::Failed(format!("{name}: expected that {body:?} is refused, got {reply}")));
                    }
                    _ => {}
                }
            }
        }
        harness.stop().await;
        same_process(&keeper).await.map(|_| count(commands.len(), "command"))
    }
}

/// The factory of one of its roles.
fn of(keeper: &Arc<Keeper>, manifest: &Manifest, role: &str) -> Arc<dyn RoleFactory> {
    let roles = keeper.roles(manifest).into_iter();
    roles.into_iter().find(|one| one.name() == role).expect("roles are those of the manifest")
}

/// Fails if the process is gone.
async fn same_process(keeper: &Keeper) -> Result<String, Problem> {
    match keeper.pid().await {
        Some(_) => Ok(String::new()),
        None => Err(Problem::Failed("its process ended".into())),
    }
}

/// Memory of the process that is its own, in bytes.
async fn memory(keeper: &Keeper) -> u64 {
    let Some(pid) = keeper.pid().await else { return 0 };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
