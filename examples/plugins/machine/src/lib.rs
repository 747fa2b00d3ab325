//! A role that tells how its machine does: load, memory, and how full a disk is.

use std::path::PathBuf;
use std::time::Duration;

use quilt_plugin_api::{Command, Items, NoError, RoleContext, RoleError, Streaming, Work, role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an instance is told.
#[derive(Deserialize, JsonSchema, Clone)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Where the kernel tells; another folder for tests.
    #[serde(default = "proc")]
    pub proc: PathBuf,
    /// How often the load is published, in milliseconds.
    #[serde(default = "every_ms")]
    pub every_ms: u64,
}

fn proc() -> PathBuf {
    "/proc".into()
}

fn every_ms() -> u64 {
    1000
}

/// Asks for the load.
#[derive(Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Machine", reply = Load, error = MachineError)]
pub struct ReadLoad {}

/// Mean numbers of processes that ran or wanted to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, PartialEq, Debug)]
pub struct Load {
    /// Over one minute.
    pub one: f64,
    /// Over five.
    pub five: f64,
    /// Over fifteen.
    pub fifteen: f64,
}

/// Asks for one value of `/proc/meminfo`.
#[derive(Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Machine", reply = u64, error = MachineError)]
pub struct ReadMemory {
    /// Such as `MemAvailable`.
    pub key: String,
}

/// Asks for the load again and again.
#[derive(Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Machine", reply = Load)]
pub struct Watch {
    /// How many times.
    pub items: u32,
    /// How often, in milliseconds.
    pub every_ms: u64,
}

/// Why it cannot be told.
#[derive(Serialize, Deserialize, JsonSchema, Debug, PartialEq, thiserror::Error)]
pub enum MachineError {
    /// The file cannot be read.
    #[error("{file}: {reason}")]
    Unreadable {
        /// Which.
        file: String,
        /// Why.
        reason: String,
    },
    /// The kernel does not tell that.
    #[error("there is no {0} in meminfo")]
    NoSuchKey(String),
}

/// A machine that is watched.
pub struct Machine {
    config: MachineConfig,
    cx: RoleContext,
}

/// Tells how its machine does.
#[role(name = "machine")]
impl Machine {
    fn validate(config: &MachineConfig) -> Result<(), RoleError> {
        if !config.proc.is_dir() {
            return Err(RoleError::invalid("proc", "a folder that exists", format!("{:?}", config.proc)));
        }
        if config.every_ms == 0 {
            return Err(RoleError::invalid("every_ms", "at least 1", "0"));
        }
        Ok(())
    }

    async fn start(config: MachineConfig, cx: &RoleContext) -> Result<Self, RoleError> {
        let load = load(&config.proc).map_err(|error| RoleError::failed(error.to_string()))?;
        cx.set_attribute("load", &load.one);
        tracing::info!(load = load.one, "watching");
        Ok(Self { config, cx: cx.clone() })
    }

    async fn update(&mut self, config: MachineConfig, _: &RoleContext) -> Result<(), RoleError> {
        if config.every_ms != self.config.every_ms {
            return Err(RoleError::NeedsRestart);
        }
        self.config = config;
        Ok(())
    }

    fn run(&mut self, cx: &RoleContext) -> Option<Work> {
        let (cx, config) = (cx.clone(), self.config.clone());
        Some(Box::pin(async move {
            loop {
                cx.sleep(Duration::from_millis(config.every_ms)).await;
                let load = load(&config.proc).map_err(|error| RoleError::failed(error.to_string()))?;
                cx.set_attribute("load", &load.one);
            }
        }))
    }

    /// Replies the load of the machine.
    #[command(read)]
    async fn read_load(&self, _: ReadLoad) -> Result<Load, MachineError> {
        load(&self.config.proc)
    }

    /// Replies how much memory there is of a kind, in bytes.
    #[command(read)]
    async fn read_memory(&self, request: ReadMemory) -> Result<u64, MachineError> {
        let path = self.config.proc.join("meminfo");
        // Files may be slow: not on a thread that others wait for.
        let text = self.cx.blocking(move || read(&path)).await;
        let text = text.unwrap_or_else(|| Err(unreadable("meminfo", "its reader panicked")))?;
        let line = text.lines().find_map(|line| line.strip_prefix(&request.key)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.map(|kib| kib * 1024).ok_or(MachineError::NoSuchKey(request.key))
    }

    /// Sends the load again and again.
    #[command(read, stream)]
    fn watch(&self, request: Watch, mut items: Items<Load>) -> Streaming<NoError> {
        let (cx, proc) = (self.cx.clone(), self.config.proc.clone());
        Box::pin(async move {
            for number in 0..request.items {
                if number > 0 {
                    cx.sleep(Duration::from_millis(request.every_ms)).await;
                }
                let Ok(load) = load(&proc) else { break };
                if items.send(&load).await.is_err() {
                    break;
                }
            }
            Ok(())
        })
    }
}

fn unreadable(file: &str, reason: impl ToString) -> MachineError {
    MachineError::Unreadable { file: file.into(), reason: reason.to_string() }
}

fn read(path: &std::path::Path) -> Result<String, MachineError> {
    std::fs::read_to_string(path).map_err(|error| unreadable(&path.display().to_string(), error))
}

fn load(proc: &std::path::Path) -> Result<Load, MachineError> {
    let text = read(&proc.join("loadavg"))?;
    let mut numbers = text.split_whitespace().map_while(|number| number.parse::<f64>().ok());
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(one), Some(five), Some(fifteen)) => Ok(Load { one, five, fifteen }),
        _ => Err(unreadable("loadavg", format!("{text:?} is not three numbers"))),
    }
}

quilt_plugin_api::export_plugin!(Machine);

#[cfg(test)]
mod tests {
    use quilt_plugin_api::testing::{Harness, Outcome};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn it_reads_what_the_kernel_tells_and_says_what_it_cannot() {
        let folder = std::env::temp_dir().join(format!("machine-test-{}", std::process::id()));
        let machine = Harness::start::<Machine>(json!({}), &folder).await.unwrap();
        let Outcome::Reply(load) = machine.call(ReadLoad {}).await else { panic!("no load") };
        assert!(load.one >= 0.0);
        let Outcome::Reply(bytes) = machine.call(ReadMemory { key: "MemTotal".into() }).await else { panic!() };
        assert!(bytes > 1 << 20);
        let error = MachineError::NoSuchKey("Nonsense".into());
        assert_eq!(machine.call(ReadMemory { key: "Nonsense".into() }).await, Outcome::Error(error));
        assert_eq!(machine.items(Watch { items: 3, every_ms: 1 }, 9).await.len(), 3);
        assert!(machine.stop().await.attributes.contains_key("load"));
        let refused = Harness::start::<Machine>(json!({ "proc": "/nowhere" }), &folder).await.err().unwrap();
        assert_eq!(refused.to_string(), "key `proc`: expected a folder that exists, got \"/nowhere\"");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
