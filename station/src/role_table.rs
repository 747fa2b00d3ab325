//! The roles that a station can run: those linked into it and those of plugins.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quilt_plugin_api::{CommandRecord, RoleDescription, RoleFactory, linked_roles};
use quilt_protocol::Name;
use quilt_protocol::control::bounds::{ROLES_MAX, VERSION_MAX, cut};
use quilt_protocol::control::{RoleOffer, RoleView};

use crate::plugins::{Carrier, Catalog, Offered, Plugin};
use crate::spec::{Isolation, Spec};

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

    /// Whether a role is linked in, and not a plugin's.
    pub(crate) fn is_linked(&self, role: &Name) -> bool {
        self.linked.contains_key(role)
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
    pub(crate) fn all(&self) -> BTreeMap<Name, RoleOffer> {
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
