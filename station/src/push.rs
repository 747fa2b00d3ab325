//! Configurations that the manager offers: planned, put on disk, answered, committed.

use std::sync::Arc;

use quilt_protocol::Digest;
use quilt_protocol::control::{
    Applied, Document, Owner, Problem, ProblemCode, Rejection, UpdateConfiguration, Verdict,
};
use tokio::sync::Mutex;

use crate::local::Local;
use crate::plan::{self, Read, RoleTable};
use crate::saved::{Accepted, Saved};
use crate::session::Link;
use crate::spec::Spec;
use crate::supervisor::{self, Target};

/// The one place that decides what the station should run.
pub(crate) struct Push {
    saved: Mutex<Saved>,
    local: Local,
    roles: Arc<RoleTable>,
    supervisor: supervisor::Handle,
    link: Arc<Link>,
}

impl Push {
    /// Starts what was accepted before, and what the host configures, without waiting for a manager.
    pub(crate) async fn start(
        saved: Saved,
        local: Local,
        roles: Arc<RoleTable>,
        supervisor: supervisor::Handle,
        link: &Arc<Link>,
    ) -> Arc<Self> {
        let push = Self { saved: Mutex::new(saved), local, roles, supervisor, link: link.clone() };
        let saved = push.saved.lock().await;
        let target = push.accepted_target(&saved).await;
        push.supervisor.commit(target).await;
        drop(saved);
        Arc::new(push)
    }

    /// What the host configures and what was accepted, as far as it can run now.
    async fn accepted_target(&self, saved: &Saved) -> Target {
        let document = saved.document();
        // What was accepted holds until the next push, which would be refused for the clash.
        let mut local = self.local.document.clone();
        take_clashes(&mut local, &document);
        let mut target = self.target(&local).await;
        // Lenient: what cannot run any more is shown as failed and holds nothing up.
        self.add(&mut target, &document, Owner::Fleet).await;
        target.complete &= !saved.damaged;
        target
    }

    /// Starts what could not run until now and can: the station's roles have changed.
    pub(crate) async fn reconsider(&self) {
        let saved = self.saved.lock().await;
        let Some(place) = self.supervisor.reserve().await else { return };
        let mut target = self.accepted_target(&saved).await;
        target.resuming = false;
        place.commit(target);
    }

    async fn target(&self, local: &Document) -> Target {
        let complete = self.local.whole;
        let mut target = Target { specs: Vec::new(), impossible: Vec::new(), resuming: true, complete };
        self.add(&mut target, local, Owner::Local).await;
        target
    }

    async fn add(&self, target: &mut Target, document: &Document, owner: Owner) {
        for Read { key, spec, mut problems } in plan::read(&self.link.name(), document, owner, &self.roles).await {
            match spec.filter(|_| problems.is_empty()) {
                Some(spec) => target.specs.push(spec),
                None => {
                    let problem = problems.swap_remove(0);
                    tracing::error!(instance = %key, %problem, "cannot run");
                    let spec =
                        Spec { key, owner, digest: Digest::of(&[]), settings: Default::default(), config: Vec::new() };
                    target.impossible.push((spec, problem));
                }
            }
        }
    }

    /// The configuration accepted last.
    pub(crate) async fn applied(&self) -> Option<Applied> {
        self.saved.lock().await.accepted.as_ref().map(|accepted| accepted.applied)
    }

    /// The document accepted last, for a manager that adopts what runs here.
    pub(crate) async fn document(&self) -> String {
        let saved = self.saved.lock().await;
        saved.accepted.as_ref().map_or_else(|| Document::default().to_json(), |accepted| accepted.document.clone())
    }

    /// Says what would become of a document; changes nothing.
    pub(crate) async fn plan(&self, document: &str) -> Verdict {
        let local = self.target(&self.local.document).await;
        match plan::plan(&self.link.name(), document, Owner::Fleet, &local.specs, &self.roles).await {
            Ok(_) => Verdict::Accepted,
            Err(rejection) => Verdict::Rejected(Box::new(rejection)),
        }
    }

    /// Takes an offered configuration, or says why not. When this answers `Accepted` it is on disk.
    ///
    /// # Errors
    ///
    /// The station stops: it has no opinion.
    pub(crate) async fn update(&self, update: UpdateConfiguration) -> Result<Verdict, String> {
        let UpdateConfiguration { offer, document } = update;
        let mut saved = self.saved.lock().await;
        if let Some(wrong) = self.distrust(&offer, &document, saved.accepted.as_ref()) {
            return Ok(Verdict::Rejected(Box::new(Rejection::new(vec![wrong]))));
        }
        let known = saved.accepted.as_ref().map(|accepted| accepted.applied);
        let local = self.target(&self.local.document).await;
        let unchanged = known.is_some_and(|known| known.digest == offer.digest);
        // What runs stays, even if it could not be accepted anew.
        let specs = match unchanged {
            true => Vec::new(),
            false => match plan::plan(&self.link.name(), &document, Owner::Fleet, &local.specs, &self.roles).await {
                Ok(specs) => specs,
                Err(rejection) => return Ok(Verdict::Rejected(Box::new(rejection))),
            },
        };
        // Taken first: between the disk and the commit nothing may wait, or a session that ends there would leave the one
        // without the other.
        let Some(place) = self.supervisor.reserve().await else { return Err("the station stops".into()) };
        if known != Some(offer)
            && let Err(error) = saved.accept(Accepted { applied: offer, document })
        {
            let got = format!("{error}");
            return Ok(Verdict::Rejected(Box::new(Rejection::new(vec![Problem {
                expected: "room and permission to write it to the station's disk".into(),
                got,
                ..self.problem()
            }]))));
        }
        if unchanged {
            return Ok(Verdict::Unchanged);
        }
        tracing::info!(revision = %offer.revision, "accepted a configuration");
        let Target { specs: mut all, impossible, complete, .. } = local;
        all.extend(specs);
        // Under the lock, so that two pushes commit in the order in which they were accepted.
        place.commit(Target { specs: all, impossible, resuming: false, complete });
        Ok(Verdict::Accepted)
    }

    fn problem(&self) -> Problem {
        Problem {
            code: ProblemCode::InvalidConfiguration,
            station: self.link.name(),
            role: String::new(),
            instance: None,
            key: None,
            expected: String::new(),
            got: String::new(),
        }
    }

    /// What is wrong with an offer whatever it contains.
    fn distrust(&self, offer: &Applied, document: &str, accepted: Option<&Accepted>) -> Option<Problem> {
        let digest = Digest::of(document.as_bytes());
        if digest != offer.digest {
            let expected = format!("a document with the digest {}", offer.digest);
            return Some(Problem { expected, got: digest.to_string(), ..self.problem() });
        }
        let applied = accepted?.applied;
        if applied.fleet == offer.fleet && offer.epoch < applied.epoch {
            let expected = format!("a manager whose store has reached epoch {}", applied.epoch);
            let got = format!("epoch {}: an older store; use `quiltctl adopt`", offer.epoch);
            return Some(Problem { expected, got, ..self.problem() });
        }
        None
    }
}

/// Leaves out what the fleet configures already, and says so.
fn take_clashes(local: &mut Document, fleet: &Document) {
    for (role, instances) in &mut local.roles {
        let theirs = fleet.roles.get(role);
        instances.retain(|instance, _| {
            let clash = theirs.is_some_and(|theirs| theirs.contains_key(instance));
            if clash {
                tracing::error!(
                    "{role}/{instance} is in a drop-in file and in the fleet's configuration; the fleet's runs. Rename or \
                     remove one: the next push will be refused"
                );
            }
            !clash
        });
    }
}
