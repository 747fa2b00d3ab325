//! Expressions over stations or their instances: `room=a and role=process`, `name=cam-* and not room in (b, c)`.
//!
//! A term is `KEY=PATTERN`, `KEY!=PATTERN` for its contrary, or `KEY in (PATTERN, PATTERN)`; `*` in a pattern stands for any text, and
//! `*` alone is what always holds. Keys are [`KEYS`], and otherwise labels. Where instances are chosen, `role` and `instance` are
//! those of each instance; where stations are chosen, `role` is a role that the station can run, and there is no `instance`. `not`
//! binds closest, then `and`, then `or`. Quotes, `"` or `'`, go around a whole pattern, which may then hold spaces, commas and
//! parentheses as well.

use std::collections::BTreeSet;

use quilt_protocol::Labels;
use quilt_protocol::control::StationState;
use winnow::ascii::multispace0;
use winnow::combinator::{alt, cut_err, delimited, eof, fail, not, peek, preceded, repeat, separated, terminated};
use winnow::error::{ContextError, ErrMode, StrContext, StrContextValue};
use winnow::prelude::*;
use winnow::token::{one_of, take_while};

/// A parsed expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Selector {
    /// What always holds.
    All,
    /// A key has a value that fits the pattern.
    Term {
        /// The key.
        key: String,
        /// Text in which `*` stands for any text.
        pattern: String,
    },
    /// The contrary.
    Not(Box<Selector>),
    /// All of them.
    And(Vec<Selector>),
    /// At least one of them.
    Or(Vec<Selector>),
}

/// Whether a key has a value that passes a test.
type Has<'a> = dyn Fn(&str, &dyn Fn(&str) -> bool) -> bool + 'a;

/// The keys that are no labels.
pub const KEYS: [&str; 8] = ["name", "id", "hostname", "mac", "ip", "role", "instance", "state"];

/// How deep parentheses and `not`s may nest: an expression comes from outside.
const DEPTH_MAX: usize = 32;
/// How long an expression may be, in bytes.
const LENGTH_MAX: usize = 4096;

impl Selector {
    /// Reads a selector of stations.
    ///
    /// # Errors
    ///
    /// It is malformed, or mentions `instance`, which a station has not.
    pub fn of_stations(text: &str) -> Result<Self, String> {
        let selector: Self = text.parse()?;
        if selector.mentions("instance") {
            return Err(format!("selector {text:?}: stations are chosen here, and `instance` chooses among instances"));
        }
        Ok(selector)
    }

    /// Whether it holds of what `has` these values.
    pub(crate) fn matches(&self, has: &Has<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Term { key, pattern } => has(key, &|value| glob(pattern, value)),
            Self::Not(inner) => !inner.matches(has),
            Self::And(all) => all.iter().all(|one| one.matches(has)),
            Self::Or(any) => any.iter().any(|one| one.matches(has)),
        }
    }

    /// The keys of its terms.
    fn keys(&self) -> BTreeSet<&str> {
        match self {
            Self::All => BTreeSet::new(),
            Self::Term { key, .. } => BTreeSet::from([key.as_str()]),
            Self::Not(inner) => inner.keys(),
            Self::And(all) | Self::Or(all) => all.iter().flat_map(Self::keys).collect(),
        }
    }

    /// Whether a term has this key.
    pub(crate) fn mentions(&self, wanted: &str) -> bool {
        self.keys().contains(wanted)
    }

    /// The labels that it mentions and that none of these stations has.
    pub(crate) fn unknown_labels<'a, L: Iterator<Item = &'a Labels>>(&self, stations: impl Fn() -> L) -> Vec<String> {
        let labels = self.keys().into_iter().filter(|key| !KEYS.contains(key));
        labels.filter(|label| stations().all(|labels| labels.get(label).is_none())).map(str::to_owned).collect()
    }
}

/// A sentence about labels that no station has; `None` if there are none. Most of them are misspelt.
pub fn tell_unknown(labels: &[String]) -> Option<String> {
    let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
    (!labels.is_empty()).then(|| format!("no station has a label {}", labels.join(" or ")))
}

/// Whether a target is a selector. Neither names nor the references `id:..` and `mac:..` look like one.
pub fn is_selector(target: &str) -> bool {
    target.contains(['=', '(']) || target.trim() == "*"
}

/// Whether `text` fits `pattern`, in which `*` stands for any text.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, more)) = pattern.split_once('*') else { return pattern == text };
    let (between, last) = more.rsplit_once('*').unwrap_or(("", more));
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    for part in between.split('*') {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

impl std::str::FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let nesting = text.matches('(').count() + text.split_whitespace().filter(|word| *word == "not").count();
        if text.len() > LENGTH_MAX || nesting > DEPTH_MAX {
            return Err(format!("a selector of at most {LENGTH_MAX} bytes and {DEPTH_MAX} levels is expected"));
        }
        let parsed =
            delimited(multispace0, any_of, (multispace0, eof.context(expected("`and`, `or` or the end")))).parse(text);
        parsed.map_err(|error| {
            let at = text[..error.offset()].chars().count() + 1;
            let contexts: Vec<_> = error.inner().context().collect();
            // The innermost place that says what belongs there knows best.
            let expected = contexts.iter().find_map(|context| match context {
                StrContext::Expected(expected) => Some(expected.to_string()),
                _ => None,
            });
            let expected = expected.unwrap_or_else(|| "KEY=VALUE".into());
            let found = match text[error.offset()..].chars().next() {
                Some(found) => format!("`{found}`"),
                None => "the end".into(),
            };
            format!("selector {text:?}: at character {at}: expected {expected}, found {found}")
        })
    }
}

type Parsed<T> = Result<T, ErrMode<ContextError>>;

fn word<'i>(word: &'static str) -> impl Parser<&'i str, &'i str, ErrMode<ContextError>> {
    // A word that ends the text is one as well: what must follow it is then what is missing.
    let ends = peek(alt((one_of([' ', '\t', '\n', '(']).void(), eof.void())));
    delimited(multispace0, terminated(word, ends), multispace0)
}

fn any_of(input: &mut &str) -> Parsed<Selector> {
    let first = all_of(input)?;
    let more: Vec<_> = repeat(0.., preceded(word("or"), cut_err(all_of))).parse_next(input)?;
    Ok(if more.is_empty() { first } else { Selector::Or([vec![first], more].concat()) })
}

fn all_of(input: &mut &str) -> Parsed<Selector> {
    let first = one(input)?;
    let more: Vec<_> = repeat(0.., preceded(word("and"), cut_err(one))).parse_next(input)?;
    Ok(if more.is_empty() { first } else { Selector::And([vec![first], more].concat()) })
}

fn one(input: &mut &str) -> Parsed<Selector> {
    alt((
        preceded(word("not"), cut_err(one)).map(|inner| Selector::Not(Box::new(inner))),
        delimited(
            ('(', multispace0),
            cut_err(any_of),
            (multispace0, cut_err(')').context(expected("`and`, `or` or `)`"))),
        ),
        all.map(|_| Selector::All),
        term,
        fail.context(expected("KEY=VALUE, `*`, `not` or `(`")),
    ))
    .parse_next(input)
}

fn expected(what: &'static str) -> StrContext {
    StrContext::Expected(StrContextValue::Description(what))
}

/// A `*` for itself.
fn all<'i>(input: &mut &'i str) -> Parsed<&'i str> {
    terminated("*", peek(alt((one_of([' ', '\t', '\n', ')']).void(), eof.void())))).parse_next(input)
}

/// Whether a character can be part of a key or of a value without quotes.
fn is_plain(c: char) -> bool {
    !c.is_whitespace() && !"=()\"'".contains(c)
}

fn term(input: &mut &str) -> Parsed<Selector> {
    let key: &str = take_while(1.., |c| is_plain(c) && c != '!').parse_next(input)?;
    let is = |pattern: &str| Selector::Term { key: key.into(), pattern: pattern.into() };
    alt((
        preceded("=", cut_err(pattern(key, is_plain))).map(is),
        preceded("!=", cut_err(pattern(key, is_plain))).map(|pattern| Selector::Not(Box::new(is(pattern)))),
        preceded(word("in"), cut_err(list(key))).map(|patterns| match &patterns[..] {
            [only] => is(only),
            several => Selector::Or(several.iter().map(|pattern| is(pattern)).collect()),
        }),
        cut_err(fail.context(expected("`=` or `!=` right after the key, or ` in (A, B)`"))),
    ))
    .parse_next(input)
}

/// The texts in parentheses behind `in`.
fn list<'i>(key: &str) -> impl Parser<&'i str, Vec<&'i str>, ErrMode<ContextError>> {
    let item = cut_err(pattern(key, |c| is_plain(c) && c != ','));
    let comma = (multispace0, ',', multispace0);
    let items = separated(1.., item, comma);
    let open = '('.context(expected("`(` after `in`"));
    let close = cut_err(')').context(expected("`,` or `)`"));
    delimited((open, multispace0), items, (multispace0, close))
}

/// The text behind `=`, without its quotes.
fn pattern<'i>(
    key: &str,
    is_plain: impl Fn(char) -> bool + Copy,
) -> impl Parser<&'i str, &'i str, ErrMode<ContextError>> {
    let is_state = key == "state";
    let quoted = |quote: char| {
        delimited(quote, take_while(0.., move |c| c != quote), cut_err(quote).context(expected("the closing quote")))
    };
    let bare = take_while(1.., is_plain);
    let value = fail.context(expected("a value right after the `=` or in the list, in quotes if it has spaces"));
    let text = alt((quoted('"'), quoted('\''), bare, value));
    let whole = not(one_of(['"', '\''])).context(expected("the end of the value: quotes go around all of it"));
    terminated(text, whole).verify(move |pattern: &str| !is_state || names_a_state(pattern)).context(expected(STATES))
}

const STATES: &str = "connected, disconnected, unknown, unadopted or quarantined as a state";

/// Whether some state fits the pattern. A pattern that fits none could never match a station.
fn names_a_state(pattern: &str) -> bool {
    use StationState::{Connected, Disconnected, Quarantined, Unadopted, Unknown};
    [Connected, Disconnected, Unknown, Unadopted, Quarantined].iter().any(|state| glob(pattern, state.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str) -> bool {
        let values = |key: &str| match key {
            "name" => vec!["cam-1"],
            "room" => vec!["a"],
            "role" => vec!["process", "counter"],
            _ => vec![],
        };
        selector.parse::<Selector>().unwrap().matches(&|key, test| values(key).into_iter().any(test))
    }

    #[test]
    fn terms_combine_as_people_expect() {
        for yes in [
            "room=a",
            "name=cam-*",
            "name=*1",
            "name=c*m*1",
            "name=c**1",
            "name=*",
            "role=counter and room=a",
            "room=b or role=process and room=a",
            "not room=b",
            "not (room=b or room=c) and name=*",
            " room=a  ",
            "not(room=b)",
            "room!=b",
            "floor!=*",
            "not room!=a",
            "*",
            "(*)",
            "* and room=a",
            "room in (b, a)",
            "room in(a)",
            "room in ( 'x' , a,b )",
            "name in (cam-*)",
            "not room in (b, c) and room=a",
        ] {
            assert!(matches(yes), "{yes}");
        }
        for no in [
            "room=b",
            "name=cam",
            "name=m-1",
            "name=cam-1*1",
            "name=*a*a*",
            "not room=a",
            "(room=a or room=b) and role=x",
            "floor=*",
            "room!=a",
            "not *",
            "room in (b, c)",
            "floor in (a, b)",
        ] {
            assert!(!matches(no), "{no}");
        }
    }

    #[test]
    fn an_error_says_where_what_was_expected_and_what_is_there() {
        for (bad, at, expected) in [
            ("", 1, "KEY=VALUE, `*`, `not` or `(`, found the end"),
            ("room", 5, "`=` or `!=` right after the key, or ` in (A, B)`, found the end"),
            ("room=", 6, "a value right after the `=` or in the list, in quotes if it has spaces, found the end"),
            ("room = a", 5, "`=` or `!=` right after the key, or ` in (A, B)`, found ` `"),
            ("room==a", 6, "a value right after the `=` or in the list, in quotes if it has spaces, found `=`"),
            ("room=a and", 11, "KEY=VALUE, `*`, `not` or `(`, found the end"),
            ("room=a or ", 11, "KEY=VALUE, `*`, `not` or `(`, found the end"),
            ("not", 4, "KEY=VALUE, `*`, `not` or `(`, found the end"),
            ("room=ä and (", 13, "KEY=VALUE, `*`, `not` or `(`, found the end"),
            ("(room=a", 8, "`and`, `or` or `)`, found the end"),
            ("room in a", 9, "`(` after `in`, found `a`"),
            ("room in (a b)", 12, "`,` or `)`, found `b`"),
            ("room in (a,)", 12, "a value right after the `=` or in the list, in quotes if it has spaces, found `)`"),
            ("**", 3, "`=` or `!=` right after the key, or ` in (A, B)`, found the end"),
            ("room=a room=b", 8, "`and`, `or` or the end, found `r`"),
            ("room=a)", 7, "`and`, `or` or the end, found `)`"),
            ("room=a AND role=b", 8, "`and`, `or` or the end, found `A`"),
            ("room=\"a", 8, "the closing quote, found the end"),
            ("room=a\"b\"", 7, "the end of the value: quotes go around all of it, found `\"`"),
            ("room='a'\"b\"", 9, "the end of the value: quotes go around all of it, found `\"`"),
            ("\"room\"=a", 1, "KEY=VALUE, `*`, `not` or `(`, found `\"`"),
            ("state=conected", 7, "connected, disconnected, unknown, unadopted or quarantined as a state, found `c`"),
        ] {
            let error = bad.parse::<Selector>().unwrap_err();
            assert_eq!(error, format!("selector {bad:?}: at character {at}: expected {expected}"));
        }
        assert!("(".repeat(100_000).parse::<Selector>().is_err());
        assert!("not ".repeat(1000).parse::<Selector>().is_err());
        assert!("state=*connected".parse::<Selector>().is_ok());
    }

    #[test]
    fn quotes_around_a_value_are_not_part_of_it() {
        let pattern = |text: &str| match text.parse() {
            Ok(Selector::Term { pattern, .. }) => pattern,
            other => panic!("{other:?}"),
        };
        assert_eq!(pattern("name=\"cam-*\""), "cam-*");
        assert_eq!(pattern("room='lecture hall (a)'"), "lecture hall (a)");
        assert_eq!(pattern("room=\"it's = 1\""), "it's = 1");
        assert!(matches("room=\"a\" and(name='cam-1')"));
    }

    #[test]
    fn a_selector_of_stations_has_no_instance_and_a_label_that_no_station_has_is_told() {
        let error = Selector::of_stations("room=a and not instance=clock").unwrap_err();
        assert!(error.ends_with("stations are chosen here, and `instance` chooses among instances"), "{error}");
        let selector = Selector::of_stations("room=a and (rom=b or role!=x or state=unknown)").unwrap();
        let stations: [Labels; 2] = [[("room", "x")].into_iter().collect(), Labels::default()];
        assert_eq!(selector.unknown_labels(|| stations.iter()), ["rom"]);
    }

    #[test]
    fn what_looks_like_a_selector_is_no_name() {
        assert!(["*", " * ", "room=a", "room in (a)", "not(a"].into_iter().all(is_selector));
        assert!(
            !["cam-1", "cam-1/process/clock", "id:1", "mac:02:00", "", "cam-*/process/clock"]
                .into_iter()
                .any(is_selector)
        );
    }
}
