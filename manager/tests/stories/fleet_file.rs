//! Fleet files as tests write them, and how they are applied.

use quilt_client::control::{Apply, FleetFile, Share, Wait};

/// A fleet file in TOML, to be applied without waiting.
pub(crate) fn file(text: &str) -> File {
    let fleet: FleetFile = toml::from_str(text).unwrap();
    File(Apply { source: "fleet.toml".into(), fleet, dry_run: false, force: false, wait: None, batch: None })
}

/// One counter on one station, which counts in steps of `step`.
pub(crate) fn counter(station: &str, step: u32) -> File {
    file(&format!("[station.{station}.roles.counter.main]\nstep = {step}"))
}

/// One counter on every station whose name begins with `cam-`.
pub(crate) fn cameras(step: u32) -> File {
    file(&format!("[group.cameras]\nmatch = \"name=cam-*\"\n[group.cameras.roles.counter.main]\nstep = {step}"))
}

/// A fleet file and how it is applied.
#[derive(Clone)]
pub(crate) struct File(pub(crate) Apply);

impl File {
    /// Another file with another source.
    pub(crate) fn source(mut self, source: &str) -> Self {
        self.0.source = source.into();
        self
    }

    /// Waits at most half a minute until everything has run well for two seconds.
    pub(crate) fn wait(mut self) -> Self {
        self.0.wait = Some(Wait { within_ms: 30_000, settle_ms: 2000, rollback: false });
        self
    }

    /// Waits, and is taken back if it fails.
    pub(crate) fn rollback(self) -> Self {
        let mut this = self.wait();
        this.0.wait.as_mut().unwrap().rollback = true;
        this
    }

    pub(crate) fn batch(mut self, stations: u32) -> Self {
        self.0.batch = Some(Share::Count(stations));
        self
    }

    pub(crate) fn force(mut self) -> Self {
        self.0.force = true;
        self
    }

    pub(crate) fn dry_run(mut self) -> Self {
        self.0.dry_run = true;
        self
    }
}
