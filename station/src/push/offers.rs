//! Configurations that the manager offers: planned, put on disk, answered, committed.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use quilt_protocol::Digest;
use quilt_protocol::control::{
    Applied, Document, Owner, Problem, ProblemCode, Rejection, UpdateConfiguration, Verdict,
};

use super::Push;
use crate::plan::{self, Plan};
use crate::plugins::{Catalog, Offered, Prepared};
use crate::saved::Accepted;
use crate::spec::Key;
use crate::supervisor::{Impossible, Offering, Target};

impl Push {
    /// Says what would become of a document; changes nothing, but keeps the plugins that it asks for.
    pub(crate) async fn plan(&self, document: &str) -> Verdict {
        match self.planned(document).await {
            Ok(_) => Verdict::Accepted,
            Err(rejection) => Verdict::Rejected(Box::new(rejection)),
        }
    }

    async fn planned(&self, document: &str) -> Result<Planned, Rejection> {
        let read: Document = serde_json::from_str(document).unwrap_or_default();
        let plugins = &read.plugins;
        let local = self.local();
        let prepared = match self.roles.catalog() {
            Some(catalog) => Some(catalog.prepare(plugins, false).await),
            None => None,
        };
        let roles = match &prepared {
            Some(prepared) => self.roles.with(prepared.offered.clone()),
            None => self.roles.as_ref().clone(),
        };
        let lacking = prepared.iter().flat_map(|prepared| &prepared.lacking).map(|(plugin, error)| Problem {
            code: match error.is_of_the_plugin() {
                true => ProblemCode::InvalidConfiguration,
                false => ProblemCode::StationFault,
            },
            key: Some(format!("plugins.{plugin}")),
            expected: "a plugin that this station can load".into(),
            got: format!("{}: it {error}", error.code()),
            ..self.problem()
        });
        let mut problems: Vec<_> = lacking.collect();
        let impossible = self.impossible.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // As long as a newer build is being tried nobody knows which of the two will run.
        let tried = self.roles.catalog().map(|catalog| catalog.proven_beside_tried()).unwrap_or_default();
        let tried = tried.into_iter().filter(|(name, _)| !plugins.contains_key(name.as_str())).collect::<Offered>();
        if let Some(prepared) = prepared.as_ref().filter(|_| !tried.is_empty()) {
            let offered = prepared.offered.clone().into_iter().chain(tried).collect();
            let before = self.roles.with(offered);
            let local = self.target(&local.document, local.whole, &before).await;
            let wrong =
                plan::plan(&self.link.name(), document, Owner::Fleet, &local.specs, &before, &impossible).await.err();
            problems.extend(wrong.into_iter().flat_map(|rejection| rejection.problems));
        }
        let target = self.target(&local.document, local.whole, &roles).await;
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        problems.extend(plan::lost_needs(&self.link.name(), &read, &target.specs, &accepted));
        match plan::plan(&self.link.name(), document, Owner::Fleet, &target.specs, &roles, &impossible).await {
            Ok(plan) if problems.is_empty() => Ok(Planned { plan, local: target, prepared }),
            planned => {
                problems.extend(planned.err().into_iter().flat_map(|rejection| rejection.problems));
                for problem in &mut problems {
                    if problem.got == plan::TAKEN_BY_DROP_IN
                        && let Some(file) = key_of(problem).and_then(|key| local.file_of(&key))
                    {
                        problem.got += &format!(": {}", file.display());
                    }
                    if let Some(plugin) = self.loading(problem) {
                        problem.got += &format!(", whose plugin {plugin} is still being loaded");
                    }
                }
                Err(Rejection::new(problems))
            }
        }
    }

    /// Takes an offered configuration, or says why not. When this answers `Accepted` it is on disk.
    ///
    /// # Errors
    ///
    /// The station stops: it has no opinion.
    ///
    /// # Cancel safety
    ///
    /// It is seen through when the future is dropped: whatever reaches the disk is committed too.
    pub(crate) async fn update(self: &Arc<Self>, update: UpdateConfiguration<'static>) -> Result<Verdict, String> {
        let this = self.clone();
        #[allow(clippy::disallowed_methods, reason = "bounded by the disk, and one at a time")]
        let updating = tokio::spawn(async move { this.take(update).await });
        updating.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    async fn take(&self, update: UpdateConfiguration<'_>) -> Result<Verdict, String> {
        let UpdateConfiguration { offer, document } = update;
        let document = document.into_owned();
        let mut saved = self.saved.lock().await;
        if let Some(wrong) = self.distrust(&offer, &document, saved.accepted.as_ref()) {
            return Ok(Verdict::Rejected(Box::new(Rejection::new(vec![wrong]))));
        }
        let known = saved.accepted.as_ref().map(|accepted| accepted.applied);
        // After damage to the record more may run than is known, and only a commit ends it.
        let unchanged = !saved.damaged && known.is_some_and(|known| known.digest == offer.digest);
        // What runs stays, even if it could not be accepted anew.
        let planned = match unchanged {
            true => None,
            false => match self.planned(&document).await {
                Ok(planned) => Some(planned),
                Err(rejection) => return Ok(Verdict::Rejected(Box::new(rejection))),
            },
        };
        // Taken first: between the disk and the commit nothing may wait, or a session that ends there would leave the one
        // without the other.
        let Some(place) = self.supervisor.reserve().await else { return Err("the station stops".into()) };
        if (saved.damaged || known != Some(offer))
            && let Err(error) = saved.accept(Accepted { applied: offer, document }).await
        {
            return Ok(Verdict::Rejected(Box::new(Rejection::new(vec![Problem {
                code: ProblemCode::StationFault,
                expected: "room and permission to write it to the station's disk; it is offered again".into(),
                got: error.to_string(),
                ..self.problem()
            }]))));
        }
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner) = Some(offer);
        let Some(Planned { plan, local, prepared }) = planned else { return Ok(Verdict::Unchanged) };
        tracing::info!(revision = %offer.revision, "accepted a configuration");
        let document = if plan.impossible.is_empty() { Document::default() } else { saved.document() };
        let still_impossible = plan.impossible.into_iter().map(|(spec, problem)| {
            let loading = self.loading(&problem);
            Impossible { spec, problem, loading }
        });
        let still_impossible: Vec<_> = still_impossible.collect();
        self.note_impossible(&document, &still_impossible);
        let Target { specs: mut all, mut impossible, complete, .. } = local;
        all.extend(plan.specs);
        impossible.extend(still_impossible);
        self.note_accepted(&all, &impossible);
        // Under the lock, so that two pushes commit in the order in which they were accepted.
        let plugins = prepared.map(|prepared| Box::new(move |catalog: &Catalog| catalog.assign(prepared)) as Offering);
        let digest = Some(offer.digest);
        place.commit(Target {
            specs: all,
            impossible,
            resuming: false,
            digest,
            plugins,
            given_up: BTreeMap::new(),
            complete,
        });
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

/// The instance that a problem is about.
pub(super) fn key_of(problem: &Problem) -> Option<Key> {
    let instance = problem.instance.as_ref()?.parse().ok()?;
    Some(Key { role: problem.role.parse().ok()?, instance })
}

/// What was found fine.
struct Planned {
    plan: Plan,
    local: Target,
    prepared: Option<Prepared>,
}
