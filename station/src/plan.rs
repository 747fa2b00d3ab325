//! What would become of a configuration: pure, complete, and before anything changes.

mod rules;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quilt_plugin_api::{Invalid, RoleError, RoleFactory};
use quilt_protocol::Digest;
use quilt_protocol::control::{Document, Owner, Problem, ProblemCode, Rejection, instance_digest};
use tokio::task::JoinSet;

pub(crate) use self::rules::{TAKEN_BY_DROP_IN, lost_needs};
use self::rules::{clashes, over_limit, wrong_needs};
use crate::catch::catch;
use crate::role_table::RoleTable;
use crate::spec::{Isolation, KEYS, Key, Spec};

/// How long a role may take to judge a configuration.
const VALIDATE: Duration = Duration::from_secs(6);

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
                if isolation.is_some() && roles.is_linked(role) {
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
    while let Some(Ok((at, judged))) = judging.join_next().await {
        let Read { key, spec, problems } = &mut read[at];
        let (code, wrong) = match judged {
            Ok(wrong) => (ProblemCode::InvalidConfiguration, wrong),
            Err(why) => {
                let plugin = spec.as_ref().and_then(|spec| spec.carrier.as_ref()).map(|carrier| &*carrier.plugin);
                (ProblemCode::StationFault, vec![not_judged(plugin, why)])
            }
        };
        problems.extend(wrong.into_iter().map(|wrong| Problem {
            code,
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
///
/// # Errors
///
/// Why it could not say: that is no verdict.
async fn judge(factory: Arc<dyn RoleFactory>, config: &[u8]) -> Result<Vec<Invalid>, String> {
    let judging = catch(async { factory.validate(config).await });
    match tokio::time::timeout(VALIDATE, judging).await {
        Ok(Ok(Ok(()))) => Ok(Vec::new()),
        Ok(Ok(Err(RoleError::Rejected(wrong)))) => Ok(wrong),
        Ok(Ok(Err(error))) => Err(error.to_string()),
        // The role was asked, and this is how it takes what it was told.
        Ok(Err(panic)) => {
            Ok(vec![Invalid { key: None, expected: "a role that can judge its configuration".into(), got: panic }])
        }
        Err(_) => Err(format!("no answer within {VALIDATE:?}")),
    }
}

/// Nobody knows whether something is wrong with it.
fn not_judged(plugin: Option<&str>, why: String) -> Invalid {
    let judge = plugin.map_or_else(|| "its role".to_owned(), |plugin| format!("plugin `{plugin}`"));
    let expected =
        format!("{judge} to judge it, which it could not; it is asked again when this is offered or applied again");
    Invalid { key: None, expected, got: why }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use quilt_plugin_api::{BoxFuture, Instance, RoleContext, RoleDescription, RoleError, factory, role};

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

    /// A role whose process does not judge what it is told: it ends, or says nothing.
    struct Silent {
        described: Arc<dyn RoleFactory>,
        ends: bool,
    }

    impl RoleFactory for Silent {
        fn description(&self) -> &RoleDescription {
            self.described.description()
        }
        fn validate(&self, _: &[u8]) -> BoxFuture<'static, Result<(), RoleError>> {
            if self.ends {
                return Box::pin(async { Err(RoleError::failed("its process ended")) });
            }
            Box::pin(std::future::pending())
        }
        fn start(&self, config: &[u8], cx: RoleContext) -> BoxFuture<'static, Result<Box<dyn Instance>, RoleError>> {
            self.described.start(config, cx)
        }
        fn abandon(&self, cx: RoleContext) -> BoxFuture<'static, ()> {
            self.described.abandon(cx)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_role_that_cannot_judge_a_configuration_is_trouble_of_the_station_unless_there_are_mistakes_too() {
        for (ends, text) in [(true, "its process ended"), (false, "no answer within 6s")] {
            let roles = RoleTable::new(vec![Arc::new(Silent { described: factory::<one::Twin>(), ends })], Vec::new());
            let planned = async |document: &str| {
                plan("s", document, Owner::Fleet, &[], &roles, &BTreeMap::new()).await.err().unwrap()
            };
            let rejection = planned(DOCUMENT).await;
            assert_eq!(rejection.code, ProblemCode::StationFault);
            assert!(
                rejection.message.contains("it is asked again") && rejection.message.ends_with(text),
                "{rejection:?}"
            );
            let rejection = planned(r#"{"roles":{"twin":{"a":{"stop_timeout":"soon"}}}}"#).await;
            assert_eq!(rejection.code, ProblemCode::InvalidConfiguration);
            assert_eq!(rejection.problems.last().unwrap().code, ProblemCode::StationFault);
        }
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
