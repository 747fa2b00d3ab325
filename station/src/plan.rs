//! What would become of a configuration: pure, complete, and before anything changes.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quilt_plugin_api::{CommandRecord, Invalid, RoleDescription, RoleFactory, linked_roles};
use quilt_protocol::control::bounds::{ROLES_MAX, VERSION_MAX, cut};
use quilt_protocol::control::{Document, Owner, Problem, ProblemCode, Rejection, RoleOffer, RoleView, instance_digest};
use quilt_protocol::{Digest, Name};
use tokio::task::JoinSet;

use crate::catch::catch;
use crate::plugins::{Carrier, Catalog, Offered, Plugin};
use crate::spec::{Isolation, KEYS, Key, Policy, Spec};

/// How long a role may take to judge a configuration.
const VALIDATE: Duration = Duration::from_secs(6);

/// The roles a station can run, linked in or of plugins, and those it is told to refuse.
#[derive(Clone)]
pub(crate) struct RoleTable {
    linked: BTreeMap<Name, Arc<dyn RoleFactory>>,
    plugins: Plugins,
    pub(crate) blocked: BTreeSet<Name>,
}

/// Whose roles count.
#[derive(Clone)]
enum Plugins {
    /// Those that are offered at the moment of asking.
    Now(Arc<Catalog>),
    /// These: what would be offered.
    Would(Offered),
}

impl RoleTable {
    /// All roles linked into this program and those of plugins.
    pub(crate) fn linked(plugins: Arc<Catalog>, blocked: Vec<Name>) -> Self {
        Self { plugins: Plugins::Now(plugins), ..Self::new(linked_roles(), blocked) }
    }

    /// These roles and no plugins.
    pub(crate) fn new(factories: Vec<Arc<dyn RoleFactory>>, blocked: Vec<Name>) -> Self {
        let mut linked = BTreeMap::new();
        for factory in factories {
            match factory.name().parse::<Name>() {
                Ok(name) => {
                    // The first stays; a second must not take over what others count on.
                    match linked.entry(name) {
                        Entry::Vacant(free) => {
                            free.insert(factory);
                        }
                        Entry::Occupied(taken) => {
                            tracing::error!(role = %taken.key(), "two roles of this name are linked in; the first is used");
                        }
                    }
                }
                Err(error) => tracing::error!(role = factory.name(), %error, "a role cannot be used"),
            }
        }
        Self { linked, plugins: Plugins::Would(Offered::new()), blocked: blocked.into_iter().collect() }
    }

    /// The same with these plugins.
    pub(crate) fn with(&self, offered: Offered) -> Self {
        Self { plugins: Plugins::Would(offered), ..self.clone() }
    }

    fn offered(&self) -> Offered {
        match &self.plugins {
            Plugins::Now(catalog) => catalog.offered(),
            Plugins::Would(offered) => offered.clone(),
        }
    }

    fn plugin(&self, role: &Name) -> Option<Arc<Plugin>> {
        if self.linked.contains_key(role) {
            return None;
        }
        self.offered().into_values().find(|plugin| plugin.offers(role.as_str()))
    }

    /// Which build of which plugin carries a role.
    pub(crate) fn carrier(&self, role: &Name) -> Option<Carrier> {
        self.plugin(role).map(|plugin| plugin.carrier())
    }

    /// What makes instances of a role, where the fleet file wants them.
    pub(crate) fn factory(&self, role: &Name, isolation: Option<Isolation>) -> Option<Arc<dyn RoleFactory>> {
        let linked = self.linked.get(role).cloned();
        linked.or_else(|| self.plugin(role)?.factory(role.as_str(), isolation))
    }

    /// What makes this instance: of the build that it is made for, also while another is being tried.
    pub(crate) fn factory_of(&self, spec: &Spec) -> Option<Arc<dyn RoleFactory>> {
        let (role, isolation) = (&spec.key.role, spec.settings.isolation);
        let build = spec.carrier.as_ref().and_then(|carrier| self.catalog()?.build(carrier));
        match build {
            Some(build) => build.factory(role.as_str(), isolation),
            None => self.factory(role, isolation),
        }
    }

    /// The catalog of plugins, where there is one.
    pub(crate) fn catalog(&self) -> Option<&Arc<Catalog>> {
        match &self.plugins {
            Plugins::Now(catalog) => Some(catalog),
            Plugins::Would(_) => None,
        }
    }

    /// Every role, with its limit of instances.
    fn all(&self) -> BTreeMap<Name, RoleOffer> {
        let mut all = BTreeMap::new();
        self.each_described(|role, described| {
            let (mut version, instances) = (described.version.clone(), described.instances);
            cut(&mut version, VERSION_MAX);
            all.insert(role.clone(), RoleOffer { role, version, instances });
        });
        all
    }

    /// The roles that are offered to the manager, as many as it takes.
    pub(crate) fn offers(&self) -> Vec<RoleOffer> {
        let all = self.all().into_values().filter(|offer| !self.blocked.contains(&offer.role));
        let mut offers: Vec<_> = all.collect();
        if offers.len() > ROLES_MAX {
            tracing::warn!(roles = offers.len(), "a manager takes at most {ROLES_MAX} roles; the rest is not offered");
            offers.truncate(ROLES_MAX);
        }
        offers
    }

    /// Hands over what roles say of themselves, as far as they have names that are names. Their schemas are long.
    fn each_described(&self, mut each: impl FnMut(Name, &RoleDescription)) {
        for (role, factory) in &self.linked {
            each(role.clone(), factory.description());
        }
        for plugin in self.offered().into_values() {
            for described in plugin.roles().iter().filter(|role| !self.linked.contains_key(role.name.as_str())) {
                if let Ok(role) = described.name.parse() {
                    each(role, described);
                }
            }
        }
    }

    /// The commands of roles that are not blocked.
    pub(crate) fn commands(&self) -> Vec<(Name, Vec<CommandRecord>)> {
        let mut commands = Vec::new();
        self.each_described(|role, described| {
            if !self.blocked.contains(&role) {
                commands.push((role, described.commands.clone()));
            }
        });
        commands
    }

    pub(crate) fn views(&self) -> Vec<RoleView> {
        let mut views = Vec::new();
        self.each_described(|role, described| {
            views.push(RoleView {
                blocked: self.blocked.contains(&role),
                role,
                version: described.version.clone(),
                instances: described.instances,
                doc: described.doc.clone(),
                config_schema: described.config_schema.clone(),
            });
        });
        views.sort_by(|a, b| a.role.cmp(&b.role));
        views
    }
}

/// What becomes of a configuration.
pub(crate) struct Plan {
    pub(crate) specs: Vec<Spec>,
    /// Instances that cannot run, and why.
    pub(crate) impossible: Vec<(Spec, Problem)>,
}

/// Checks a whole configuration of one owner beside what the other owner has, and finds all that is wrong with it. `impossible`
/// are instances of the configuration before it, by the digest of theirs, whose roles are not there: as long as they are
/// configured the same, that is not this configuration's doing, and does not keep the rest from being changed.
///
/// # Errors
///
/// All problems; the configuration must then be refused as a whole.
pub(crate) async fn plan(
    station: &str,
    document: &str,
    owner: Owner,
    others: &[Spec],
    roles: &RoleTable,
    impossible: &BTreeMap<Key, Digest>,
) -> Result<Plan, Rejection> {
    let document: Document = serde_json::from_str(document).map_err(|error| {
        Rejection::new(vec![Problem {
            code: ProblemCode::InvalidConfiguration,
            station: station.into(),
            role: String::new(),
            instance: None,
            key: None,
            expected: "a configuration document: { \"roles\": { ROLE: { INSTANCE: { .. } } } }".into(),
            got: error.to_string(),
        }])
    })?;
    let (mut specs, mut problems, mut still_impossible) = (Vec::new(), Vec::new(), Vec::new());
    for mut one in read(station, &document, owner, roles, |_| true).await {
        let config = document.roles.get(&one.key.role).and_then(|instances| instances.get(&one.key.instance));
        let is_as_before = impossible.get(&one.key).copied() == config.map(instance_digest);
        if one.spec.is_none() && is_as_before && !one.problems.is_empty() {
            still_impossible.push((Spec::placeholder(one.key, owner), one.problems.swap_remove(0)));
            continue;
        }
        specs.extend(one.spec);
        problems.extend(one.problems);
    }
    problems.extend(over_limit(station, &document, others, roles));
    problems.extend(clashes(station, &document, others));
    problems.extend(wrong_needs(station, &document, &specs, others));
    if !problems.is_empty() {
        return Err(Rejection::new(problems));
    }
    Ok(Plan { specs, impossible: still_impossible })
}

/// One instance of a document, as far as it can be read, and what is wrong with it alone.
pub(crate) struct Read {
    pub(crate) key: Key,
    pub(crate) spec: Option<Spec>,
    pub(crate) problems: Vec<Problem>,
}

/// Every instance of a document. Roles are asked what they think of those that are to be `judged`, all at once: one that does not
/// answer takes no longer than many.
pub(crate) async fn read(
    station: &str,
    document: &Document,
    owner: Owner,
    roles: &RoleTable,
    judged: impl Fn(&Key) -> bool,
) -> Vec<Read> {
    let (mut read, mut judging) = (Vec::new(), JoinSet::new());
    for (role, instances) in &document.roles {
        for (instance, whole) in instances {
            let key = Key { role: role.clone(), instance: instance.clone() };
            let problem = |code, config_key: Option<String>, expected: String, got: String| Problem {
                code,
                station: station.into(),
                role: role.to_string(),
                instance: Some(instance.to_string()),
                key: config_key,
                expected,
                got,
            };
            let isolation = isolation_of(whole);
            let (mut spec, mut problems) = (None, Vec::new());
            if roles.blocked.contains(role) {
                let expected = "a role that this station does not block".into();
                let got = format!("`{role}`, which it is told to refuse (--block)");
                problems.push(problem(ProblemCode::RoleBlocked, None, expected, got));
            } else if let Some(factory) = roles.factory(role, isolation) {
                let (mut own, mut wrong) = Spec::read(key.clone(), owner, whole);
                own.carrier = roles.carrier(role);
                if judged(&key) {
                    let (config, at) = (own.config.clone(), read.len());
                    judging.spawn(async move { (at, judge(factory, config.as_bytes()).await) });
                }
                if isolation.is_some() && roles.linked.contains_key(role) {
                    let expected =
                        format!("no such key: `{role}` is part of the station, only a plugin's role has a choice");
                    let got = whole["isolation"].as_str().map_or_else(String::new, |text| format!("`{text}`"));
                    wrong.push(Invalid::key("isolation", expected, got));
                }
                let invalid = ProblemCode::InvalidConfiguration;
                let wrong = wrong.into_iter().map(|wrong| problem(invalid, wrong.key, wrong.expected, wrong.got));
                problems.extend(wrong);
                spec = Some(own);
            } else {
                let known: Vec<_> = roles.all().keys().map(|role| format!("`{role}`")).collect();
                let expected = format!("one of the station's roles: {}", known.join(", "));
                problems.push(problem(ProblemCode::MissingRoleFactory, None, expected, format!("`{role}`")));
            }
            read.push(Read { key, spec, problems });
        }
    }
    while let Some(Ok((at, wrong))) = judging.join_next().await {
        let Read { key, problems, .. } = &mut read[at];
        problems.extend(wrong.into_iter().map(|wrong| Problem {
            code: ProblemCode::InvalidConfiguration,
            station: station.into(),
            role: key.role.to_string(),
            instance: Some(key.instance.to_string()),
            expected: if is_unknown(&wrong) { with_our_keys(&wrong.expected) } else { wrong.expected },
            key: wrong.key,
            got: wrong.got,
        }));
    }
    read
}

/// Whether a role found a key of an instance that it does not know.
fn is_unknown(wrong: &Invalid) -> bool {
    wrong.is_unknown_key() && wrong.key.as_deref().is_some_and(|key| !key.contains(['.', '[']))
}

/// The keys that an instance can have: those of its role, in words, and quilt's own.
fn with_our_keys(of_the_role: &str) -> String {
    let ours = KEYS.map(|key| format!("`{key}`")).join(", ");
    match of_the_role {
        "no keys" => format!("one of quilt's own keys: {ours}"),
        _ => format!("{of_the_role}, or one of quilt's own keys: {ours}"),
    }
}

/// Where an instance is to run, as far as its configuration says so in words that are known.
fn isolation_of(whole: &serde_json::Map<String, serde_json::Value>) -> Option<Isolation> {
    serde_json::from_value(whole.get("isolation")?.clone()).ok()
}

/// What a role finds wrong in what it is to be told.
async fn judge(factory: Arc<dyn RoleFactory>, config: &[u8]) -> Vec<Invalid> {
    let judging = catch(async { factory.validate(config).await });
    match tokio::time::timeout(VALIDATE, judging)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {VALIDATE:?}")))
    {
        Ok(judged) => judged.err().unwrap_or_default(),
        Err(panic) => {
            vec![Invalid { key: None, expected: "a role that can judge its configuration".into(), got: panic }]
        }
    }
}

fn over_limit(station: &str, document: &Document, others: &[Spec], roles: &RoleTable) -> Vec<Problem> {
    let (mut problems, known) = (Vec::new(), roles.all());
    for (role, instances) in &document.roles {
        let Some(limit) = known.get(role).map(|offer| offer.instances as usize) else { continue };
        let count = instances.len() + others.iter().filter(|other| other.key.role == *role).count();
        if limit > 0 && count > limit {
            problems.push(Problem {
                code: ProblemCode::InvalidConfiguration,
                station: station.into(),
                role: role.to_string(),
                instance: instances.keys().nth(limit).or(instances.keys().last()).map(ToString::to_string),
                key: None,
                expected: format!("at most {limit} instance{} of it on a station", if limit == 1 { "" } else { "s" }),
                got: count.to_string(),
            });
        }
    }
    problems
}

/// What is wrong with a name that the host configures.
pub(crate) const TAKEN_BY_DROP_IN: &str = "one that a drop-in file on its host configures";

fn clashes(station: &str, document: &Document, others: &[Spec]) -> Vec<Problem> {
    let taken = others.iter().filter(|other| {
        document.roles.get(&other.key.role).is_some_and(|instances| instances.contains_key(&other.key.instance))
    });
    let clash = |other: &Spec| Problem {
        code: ProblemCode::InvalidConfiguration,
        station: station.into(),
        role: other.key.role.to_string(),
        instance: Some(other.key.instance.to_string()),
        key: None,
        expected: "a name that is free on this station".into(),
        got: TAKEN_BY_DROP_IN.into(),
    };
    taken.map(clash).collect()
}

/// Needs that name nothing, or each other in a circle.
fn wrong_needs(station: &str, document: &Document, specs: &[Spec], others: &[Spec]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let known: BTreeMap<&Key, &Spec> = specs.iter().chain(others).map(|spec| (&spec.key, spec)).collect();
    for spec in specs {
        let problem = |expected: String, got: String| Problem {
            code: ProblemCode::InvalidConfiguration,
            station: station.into(),
            role: spec.key.role.to_string(),
            instance: Some(spec.key.instance.to_string()),
            key: Some("needs".into()),
            expected,
            got,
        };
        for need in &spec.settings.needs {
            let needed = known.get(&need.key);
            if needed.is_none() && !contains(document, &need.key) {
                let got = format!("`{}`, which this station does not have", need.key);
                problems.push(problem(instances_but(&spec.key, document, others), got));
            }
            if need.completed && needed.is_some_and(|needed| needed.settings.restart.policy == Policy::Permanent) {
                let got = format!("`{}`, which is restarted whenever it ends: its policy is `permanent`", need.key);
                problems.push(problem("an instance that can be completed".into(), got));
            }
        }
        if reaches(&spec.key, &known) {
            let needs: Vec<_> = spec.settings.needs.iter().map(|need| format!("`{}`", need.key)).collect();
            problems.push(problem("needs without a circle".into(), needs.join(", ")));
        }
    }
    problems
}

/// Whether following needs from `start` leads back to it.
fn reaches(start: &Key, known: &BTreeMap<&Key, &Spec>) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![start];
    while let Some(key) = open.pop() {
        for next in known.get(key).into_iter().flat_map(|spec| &spec.settings.needs) {
            if next.key == *start {
                return true;
            }
            if seen.insert(&next.key) {
                open.push(&next.key);
            }
        }
    }
    false
}

fn contains(document: &Document, key: &Key) -> bool {
    document.roles.get(&key.role).is_some_and(|instances| instances.contains_key(&key.instance))
}

/// The instances that one could need, in words.
fn instances_but(key: &Key, document: &Document, others: &[Spec]) -> String {
    const SHOWN_MAX: usize = 8;
    let in_document = document.roles.iter().flat_map(|(role, instances)| {
        instances.keys().map(|instance| Key { role: role.clone(), instance: instance.clone() })
    });
    let all: BTreeSet<Key> = in_document.chain(others.iter().map(|other| other.key.clone())).collect();
    let shown: Vec<_> =
        all.iter().filter(|other| *other != key).take(SHOWN_MAX).map(|key| format!("`{key}`")).collect();
    match shown.len() {
        0 => "another instance of this station, which has none".into(),
        _ => format!("another instance of this station, such as {}", shown.join(", ")),
    }
}

/// Fleet instances that a document removes although instances of drop-in files need them: their next start would wait for ever.
/// `accepted` are the fleet's instances so far. A need that is not met now is the host's own affair.
pub(crate) fn lost_needs(station: &str, document: &Document, local: &[Spec], accepted: &BTreeSet<Key>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for spec in local {
        for need in &spec.settings.needs {
            if accepted.contains(&need.key) && !contains(document, &need.key) {
                problems.push(Problem {
                    code: ProblemCode::InvalidConfiguration,
                    station: station.into(),
                    role: need.key.role.to_string(),
                    instance: Some(need.key.instance.to_string()),
                    key: None,
                    expected: format!("it to stay as long as `{}` of a drop-in file on its host needs it", spec.key),
                    got: "its removal".into(),
                });
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use quilt_plugin_api::{RoleContext, RoleError, factory, role};

    use super::*;

    #[derive(serde::Deserialize)]
    struct NoConfig {}

    // What the schema says does not matter here.
    impl schemars::JsonSchema for NoConfig {
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "NoConfig".into()
        }
        fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
            true.into()
        }
    }

    mod one {
        use super::*;
        pub(super) struct Twin;
        /// The first.
        #[role(name = "twin", instances = 1)]
        impl Twin {
            async fn start(_: NoConfig, _: &RoleContext) -> Result<Self, RoleError> {
                Ok(Self)
            }
        }
    }

    mod two {
        use super::*;
        pub(super) struct Twin;
        /// The second.
        #[role(name = "twin")]
        impl Twin {
            fn validate(_: &NoConfig) -> Result<(), RoleError> {
                panic!("cannot judge")
            }
            async fn start(_: NoConfig, _: &RoleContext) -> Result<Self, RoleError> {
                Ok(Self)
            }
        }
    }

    mod many {
        use super::*;
        #[derive(serde::Deserialize, schemars::JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        #[derive(Default)]
        pub(super) struct Config {
            #[allow(dead_code, reason = "only the key counts")]
            say: String,
        }
        pub(super) struct Twin;
        /// Any number of them.
        #[role(name = "twin")]
        impl Twin {
            async fn start(_: Config, _: &RoleContext) -> Result<Self, RoleError> {
                Ok(Self)
            }
        }
    }

    const DOCUMENT: &str = r#"{"roles":{"twin":{"a":{}}}}"#;

    // Defect 19 of the original: a second factory silently replaced the first, and a bad one took the station down.
    #[tokio::test]
    async fn of_two_roles_with_one_name_the_first_stays() {
        let roles = RoleTable::new(vec![factory::<one::Twin>(), factory::<two::Twin>()], Vec::new());
        assert_eq!(roles.offers().len(), 1);
        assert_eq!(roles.views()[0].doc, "The first.");
        assert!(plan("s", DOCUMENT, Owner::Fleet, &[], &roles, &BTreeMap::new()).await.is_ok());
    }

    #[tokio::test]
    async fn a_role_that_panics_in_validate_refuses_its_own_instance_only() {
        let roles = RoleTable::new(vec![factory::<two::Twin>()], Vec::new());
        let rejection = plan("s", DOCUMENT, Owner::Fleet, &[], &roles, &BTreeMap::new()).await.err().unwrap();
        assert_eq!(rejection.problems[0].got, "panicked: cannot judge");
    }

    #[tokio::test]
    async fn local_and_fleet_instances_share_the_limit() {
        let roles = RoleTable::new(vec![factory::<one::Twin>()], Vec::new());
        let local = plan("s", r#"{"roles":{"twin":{"mine":{}}}}"#, Owner::Local, &[], &roles, &BTreeMap::new())
            .await
            .ok()
            .unwrap()
            .specs;
        let rejection = plan("s", DOCUMENT, Owner::Fleet, &local, &roles, &BTreeMap::new()).await.err().unwrap();
        assert!(rejection.message.contains("at most 1 instance"), "{}", rejection.message);
    }

    #[tokio::test]
    async fn an_instance_whose_role_was_missing_before_keeps_nothing_else_from_being_changed() {
        let roles = RoleTable::new(vec![factory::<one::Twin>()], Vec::new());
        let document = r#"{"roles":{"gone":{"old":{"x":1}},"twin":{"a":{}}}}"#;
        let old = Key { role: "gone".parse().unwrap(), instance: "old".parse().unwrap() };
        let config = |json: &str| instance_digest(&serde_json::from_str(json).unwrap());
        let planned =
            async |before: BTreeMap<Key, Digest>| plan("s", document, Owner::Fleet, &[], &roles, &before).await;
        let plan = planned(BTreeMap::from([(old.clone(), config(r#"{"x":1}"#))])).await.ok().unwrap();
        assert_eq!((plan.specs.len(), plan.impossible.len()), (1, 1));
        assert_eq!(plan.impossible[0].1.code, ProblemCode::MissingRoleFactory);
        // Asked for anew, or changed, it is refused.
        for before in [BTreeMap::new(), BTreeMap::from([(old, config(r#"{"x":2}"#))])] {
            assert_eq!(planned(before).await.err().unwrap().code, ProblemCode::MissingRoleFactory);
        }
    }

    /// What is wrong with the twins of a fleet's document, without what the host has.
    async fn wrong(twins: &str) -> Vec<String> {
        let roles = RoleTable::new(vec![factory::<many::Twin>()], Vec::new());
        let document = format!(r#"{{"roles":{{"twin":{twins}}}}}"#);
        let rejection = plan("s", &document, Owner::Fleet, &[], &roles, &BTreeMap::new()).await.err().unwrap();
        rejection.problems.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_need_that_cannot_be_met_is_refused_with_what_there_is_to_need() {
        let unknown = wrong(r#"{"a":{"needs":["twin/nope"]},"b":{}}"#).await;
        let text = "expected another instance of this station, such as `twin/b`, got `twin/nope`, which this station does not have";
        assert!(unknown[0].ends_with(text), "{unknown:?}");
        let endless = wrong(r#"{"a":{"needs":[{"completed":"twin/b"}]},"b":{"restart":{"policy":"permanent"}}}"#).await;
        assert!(endless[0].contains("expected an instance that can be completed, got `twin/b`"), "{endless:?}");
        let circle = wrong(r#"{"a":{"needs":[{"completed":"twin/b"}]},"b":{"needs":["twin/a"]}}"#).await;
        assert!(
            circle.len() == 2 && circle[0].ends_with("expected needs without a circle, got `twin/b`"),
            "{circle:?}"
        );
    }

    #[tokio::test]
    async fn an_unknown_key_is_told_with_quilts_own_keys_and_a_linked_role_has_no_isolation() {
        let unknown = wrong(r#"{"a":{"need":[]}}"#).await;
        let text = "key `need`: expected `say`, or one of quilt's own keys: `restart`, `needs`, `ready`, `start_timeout`, \
                    `stop_timeout`, `isolation`, got an unknown key";
        assert!(unknown[0].ends_with(text), "{unknown:?}");
        for place in ["inproc", "process"] {
            let refused = wrong(&format!(r#"{{"a":{{"isolation":"{place}"}}}}"#)).await;
            let text = format!("only a plugin's role has a choice, got `{place}`");
            assert!(refused[0].contains("key `isolation`") && refused[0].ends_with(&text), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn a_document_that_removes_what_a_drop_in_instance_needs_is_refused() {
        let roles = RoleTable::new(vec![factory::<many::Twin>()], Vec::new());
        let drop_in = r#"{"roles":{"twin":{"web":{"needs":["twin/db"]},"db":{}}}}"#;
        let local = plan("s", drop_in, Owner::Local, &[], &roles, &BTreeMap::new()).await.ok().unwrap().specs;
        let web: Vec<_> = local.into_iter().filter(|spec| spec.key.instance == *"web").collect();
        let db = Key { role: "twin".parse().unwrap(), instance: "db".parse().unwrap() };
        let document = |json: &str| serde_json::from_str::<Document>(json).unwrap();
        let (with, without) = (document(r#"{"roles":{"twin":{"db":{"say":"x"}}}}"#), document("{}"));
        let accepted = BTreeSet::from([db]);
        let lost = lost_needs("s", &without, &web, &accepted);
        assert_eq!(lost.len(), 1);
        assert!(lost[0].to_string().contains("twin/db: expected it to stay as long as `twin/web`"), "{}", lost[0]);
        assert_eq!(lost_needs("s", &with, &web, &accepted), []);
        // What the host needs in vain already is its own affair.
        assert_eq!(lost_needs("s", &without, &web, &BTreeSet::new()), []);
    }
}
