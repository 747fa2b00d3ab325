//! What a station lists of its roles and commands: in pages, since there is no bound to the number of instances. All of it takes its
//! time; call it where that keeps nobody waiting.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use quilt_plugin_api::CommandRecord;
use quilt_protocol::control::{
    CommandView, Discover, PAGE_MAX, Page, RoleView, schema_reference, schema_reference_to, schema_text,
};
use quilt_protocol::{Digest, Name};

use crate::commands::{Commands, Record, Schema};
use crate::role_table::RoleTable;

/// About how long the rest of a view is, in bytes.
const VIEW: usize = 512;

/// A command that is offered, or would be by an instance of its role.
enum Source {
    Offered(Arc<Record>),
    Described(CommandRecord),
}

/// A page of what can be called, and what could be if there were an instance.
pub(crate) fn commands(commands: &Commands, roles: &RoleTable, ask: &Discover) -> Page<CommandView> {
    let place = |role: &Name, instance: Option<&Name>, group: &str, name: &str| {
        // In the order of their parts: nothing sorts before a zero.
        format!("{role}\0{}\0{group}\0{name}", instance.map_or("", |instance| instance.as_str()))
    };
    let (mut all, mut running) = (BTreeMap::new(), BTreeSet::new());
    for (key, record) in commands.all() {
        let at = place(&key.role, Some(&key.instance), &record.group, &record.name);
        running.insert(key.role.clone());
        all.insert(at, (key.role, Some(key.instance), Source::Offered(record)));
    }
    for (role, records) in roles.commands() {
        for record in records.into_iter().filter(|_| !running.contains(&role)) {
            let at = place(&role, None, &record.group, &record.name);
            all.insert(at, (role.clone(), None, Source::Described(record)));
        }
    }
    page(&all, ask.after.as_deref(), |(role, instance, source)| {
        let record = match source {
            Source::Offered(record) => record.clone(),
            Source::Described(record) => Arc::new(Record::new(record)),
        };
        let shown = |schema: &Schema| match ask.by_hash {
            true => schema_reference_to(schema.digest),
            false => serde_json::from_str(&schema.text).unwrap_or_default(),
        };
        let [request, reply, error] = &record.schemas;
        let length = |schema: &Schema| if ask.by_hash { 0 } else { schema.text.len() };
        let length = VIEW + record.doc.len() + length(request) + length(reply) + length(error);
        let view = CommandView {
            role: role.clone(),
            instance: instance.clone(),
            group: record.group.clone(),
            command: record.name.clone(),
            doc: record.doc.clone(),
            read: record.read,
            streaming: record.streaming,
            request_schema: shown(request),
            reply_schema: shown(reply),
            error_schema: shown(error),
        };
        (length, view)
    })
}

/// A page of the roles.
pub(crate) fn roles(roles: &RoleTable, ask: &Discover) -> Page<RoleView> {
    let all = roles.views().into_iter().map(|view| (view.role.to_string(), view)).collect();
    page(&all, ask.after.as_deref(), |view| {
        let mut view = view.clone();
        let mut length = VIEW + view.doc.len();
        if ask.by_hash {
            view.config_schema = schema_reference(&view.config_schema);
        } else {
            length += schema_text(&view.config_schema).len();
        }
        (length, view)
    })
}

/// The texts of schemas, in the order in which they are wanted and as many as fit; what is not here is left out.
pub(crate) fn schemas(commands: &Commands, roles: &RoleTable, wanted: &[Digest]) -> Vec<String> {
    let sought: BTreeSet<&Digest> = wanted.iter().collect();
    let mut found = HashMap::<Digest, String>::new();
    let mut find = |schema: &Schema| {
        if sought.contains(&schema.digest) {
            found.entry(schema.digest).or_insert_with(|| schema.text.clone());
        }
    };
    for (_, record) in commands.all() {
        record.schemas.iter().for_each(&mut find);
    }
    for (_, records) in roles.commands() {
        records.iter().for_each(|record| Record::new(record).schemas.iter().for_each(&mut find));
    }
    for view in roles.views() {
        find(&Schema::new(&view.config_schema));
    }
    let (mut texts, mut bytes) = (Vec::new(), 0);
    for text in wanted.iter().filter_map(|digest| found.remove(digest)) {
        bytes += text.len();
        if bytes > PAGE_MAX && !texts.is_empty() {
            break;
        }
        texts.push(text);
    }
    texts
}

/// What comes behind a place, as much of it as fits and at least one.
fn page<S, T>(all: &BTreeMap<String, S>, after: Option<&str>, show: impl Fn(&S) -> (usize, T)) -> Page<T> {
    let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
    let (mut page, mut bytes, mut last) = (Page { items: Vec::new(), next: None }, 0, None::<&String>);
    for (place, source) in all.range::<str, _>((behind, Bound::Unbounded)) {
        let (length, item) = show(source);
        bytes += length;
        if bytes > PAGE_MAX && last.is_some() {
            page.next = last.cloned();
            break;
        }
        page.items.push(item);
        last = Some(place);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_that_is_too_long_for_a_page_comes_in_several_whatever_comes_and_goes_meanwhile() {
        let length = PAGE_MAX / 3;
        let mut all: BTreeMap<String, u32> = (0..10).map(|number| (format!("{number}"), number)).collect();
        // One is longer than a page.
        let show = |number: &u32| (if *number == 4 { 2 * PAGE_MAX } else { length }, *number);
        let first = page(&all, None, show);
        assert_eq!((&first.items[..], first.next.as_deref()), (&[0, 1, 2][..], Some("2")));
        // What it ended with is gone, and something new is before it.
        all.remove("2");
        all.insert("1x".into(), 99);
        let (mut got, mut next) = (Vec::new(), first.next);
        while let Some(after) = next {
            let page = page(&all, Some(&after), show);
            assert!(!page.items.is_empty());
            got.extend(page.items);
            next = page.next;
        }
        assert_eq!(got, [3, 4, 5, 6, 7, 8, 9]);
    }
}
