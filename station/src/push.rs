//! Configurations that the manager offers: planned, put on disk, answered, committed.

use std::sync::Arc;

use quilt_protocol::Digest;
use quilt_protocol::control::{
    Applied, Document, Owner, Problem, ProblemCode, Rejection, UpdateConfiguration, Verdict,
};
use tokio::sync::Mutex;

use crate::local::Local;
use crate::plan::{self, RoleTable};
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
        let (document, damaged) = (saved.document(), saved.damaged);
        let push = Self { saved: Mutex::new(saved), local, roles, supervisor, link: link.clone() };
        // What was accepted holds until the next push, which would be refused for the clash.
        let mut local = push.local.document.clone();
        take_clashes(&mut local, &document);
        let mut target = push.target(&local);
        // Lenient: what cannot run any more is shown as failed and holds nothing up.
        push.add(&mut target, &document, Owner::Fleet);
        target.complete &= !damaged;
        push.supervisor.commit(target).await;
        Arc::new(push)
    }

    fn target(&self, local: &Document) -> Target {
        let complete = self.local.whole;
        let mut target = Target { specs: Vec::new(), impossible: Vec::new(), resuming: true, complete };
        self.add(&mut target, local, Owner::Local);
        target
    }

    fn add(&self, target: &mut Target, document: &Document, owner: Owner) {
        for (key, result) in plan::read(&self.link.name(), document, owner, &self.roles) {
            match result {
                Ok(spec) => target.specs.push(spec),
                Err(mut problems) => {
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
    pub(crate) fn plan(&self, document: &str) -> Verdict {
        match plan::plan(
            &self.link.name(),
            document,
            Owner::Fleet,
            &self.target(&self.local.document).specs,
            &self.roles,
        ) {
            Ok(_) => Verdict::Accepted,
            Err(rejection) => Verdict::Rejected(Box::new(rejection)),
        }
    }

    /// Takes an offered configuration, or says why not. When this answers `Accepted` it is on disk.
    pub(crate) async fn update(&self, update: UpdateConfiguration) -> Verdict {
        let UpdateConfiguration { offer, document } = update;
        let mut saved = self.saved.lock().await;
        if let Some(wrong) = self.distrust(&offer, &document, saved.accepted.as_ref()) {
            return Verdict::Rejected(Box::new(Rejection::new(vec![wrong])));
        }
        let known = saved.accepted.as_ref().map(|accepted| accepted.applied);
        let local = self.target(&self.local.document);
        let unchanged = known.is_some_and(|known| known.digest == offer.digest);
        let specs = match plan::plan(&self.link.name(), &document, Owner::Fleet, &local.specs, &self.roles) {
            // What runs stays, even if it could not be accepted anew.
            _ if unchanged => Vec::new(),
            Ok(specs) => specs,
            Err(rejection) => return Verdict::Rejected(Box::new(rejection)),
        };
        // Taken first: between the disk and the commit nothing may wait, or a session that ends there would leave the one
        // without the other.
        let Some(place) = self.supervisor.reserve().await else {
            let (expected, got) = ("a station that goes on".into(), "one that stops".into());
            return Verdict::Rejected(Box::new(Rejection::new(vec![Problem { expected, got, ..self.problem() }])));
        };
        if known != Some(offer)
            && let Err(error) = saved.accept(Accepted { applied: offer, document })
        {
            let got = format!("{error}");
            return Verdict::Rejected(Box::new(Rejection::new(vec![Problem {
                expected: "room and permission to write it to the station's disk".into(),
                got,
                ..self.problem()
            }])));
        }
        if unchanged {
            return Verdict::Unchanged;
        }
        tracing::info!(revision = %offer.revision, "accepted a configuration");
        let Target { specs: mut all, impossible, complete, .. } = local;
        all.extend(specs);
        // Under the lock, so that two pushes commit in the order in which they were accepted.
        place.commit(Target { specs: all, impossible, resuming: false, complete });
        Verdict::Accepted
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
