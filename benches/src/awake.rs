//! Cores kept awake: on a virtual machine a core that sleeps takes tens of microseconds to come back, whoever is measured.

use std::process::Stdio;

use tokio::process::{Child, Command};

/// Keeps every core awake until it is dropped, with work that gives way to any other.
pub(crate) struct Awake {
    _spinners: Vec<Child>,
}

impl Awake {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let spinner = || {
            // The idle class of the scheduler: `chrt` is in util-linux.
            let mut command = Command::new("chrt");
            command.args(["--idle", "0"]).arg(std::env::current_exe()?).arg("spin");
            command.stdin(Stdio::null()).kill_on_drop(true).spawn()
        };
        Ok(Self { _spinners: (0..cores).map(|_| spinner()).collect::<Result<_, _>>()? })
    }
}

/// Be a spinner, as long as whoever started it lives.
pub(crate) fn spin() {
    let parent = std::os::unix::process::parent_id();
    while std::os::unix::process::parent_id() == parent {
        for _ in 0..1_000_000 {
            std::hint::spin_loop();
        }
    }
}
