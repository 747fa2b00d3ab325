//! Expressions over stations: `room=a and role=process`, `name=cam-* and not (room=b or room=c)`.
//!
//! A term is `KEY=PATTERN`, or `KEY!=PATTERN` for its contrary; `*` in a pattern stands for any text. Keys are `name`, `id`, `hostname`, `mac`, `ip`,
//! `role` (a role the station can run), `state`, and otherwise labels. `not` binds closest, then `and`, then `or`. Quotes, `"` or `'`,
//! go around a whole pattern, which may then hold spaces and parentheses as well.

use quilt_protocol::control::StationState;
use winnow::ascii::multispace0;
use winnow::combinator::{alt, cut_err, delimited, eof, fail, not, peek, preceded, repeat, terminated};
use winnow::error::{ContextError, ErrMode, StrContext, StrContextValue};
use winnow::prelude::*;
use winnow::token::{one_of, take_while};

/// A parsed expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Selector {
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

/// How deep parentheses and `not`s may nest: an expression comes from outside.
const DEPTH_MAX: usize = 32;
/// How long an expression may be, in bytes.
const LENGTH_MAX: usize = 4096;

impl Selector {
    /// Whether it holds of what `has` these values.
    pub(crate) fn matches(&self, has: &Has<'_>) -> bool {
        match self {
            Self::Term { key, pattern } => has(key, &|value| glob(pattern, value)),
            Self::Not(inner) => !inner.matches(has),
            Self::And(all) => all.iter().all(|one| one.matches(has)),
            Self::Or(any) => any.iter().any(|one| one.matches(has)),
        }
    }

    /// Whether a term has this key.
    pub(crate) fn mentions(&self, wanted: &str) -> bool {
        match self {
            Self::Term { key, .. } => key == wanted,
            Self::Not(inner) => inner.mentions(wanted),
            Self::And(all) | Self::Or(all) => all.iter().any(|one| one.mentions(wanted)),
        }
    }

    /// The role that every match must have, if the expression says so: it then means that role's instances only.
    pub(crate) fn role_pattern(&self) -> Option<&str> {
        match self {
            Self::Term { key, pattern } if key == "role" => Some(pattern),
            Self::And(all) => all.iter().find_map(Self::role_pattern),
            _ => None,
        }
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for any text.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
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
        term,
        fail.context(expected("KEY=VALUE, `not` or `(`")),
    ))
    .parse_next(input)
}

fn expected(what: &'static str) -> StrContext {
    StrContext::Expected(StrContextValue::Description(what))
}

/// Whether a character can be part of a key or of a value without quotes.
fn is_plain(c: char) -> bool {
    !c.is_whitespace() && !"=()\"'".contains(c)
}

fn term(input: &mut &str) -> Parsed<Selector> {
    let key: &str = take_while(1.., |c| is_plain(c) && c != '!').parse_next(input)?;
    let equals = alt(("=", "!=")).context(expected("`=` or `!=` right after the key"));
    let is = cut_err(equals).parse_next(input)?;
    let pattern = cut_err(pattern(key)).parse_next(input)?;
    let term = Selector::Term { key: key.into(), pattern: pattern.into() };
    Ok(if is == "=" { term } else { Selector::Not(Box::new(term)) })
}

/// The text behind `=`, without its quotes.
fn pattern<'i>(key: &str) -> impl Parser<&'i str, &'i str, ErrMode<ContextError>> {
    let is_state = key == "state";
    let quoted = |quote: char| {
        delimited(quote, take_while(0.., move |c| c != quote), cut_err(quote).context(expected("the closing quote")))
    };
    let bare = take_while(1.., is_plain);
    let text = alt((quoted('"'), quoted('\''), bare, fail.context(expected("a value right after the `=`"))));
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
        ] {
            assert!(!matches(no), "{no}");
        }
    }

    #[test]
    fn an_error_says_where_what_was_expected_and_what_is_there() {
        for (bad, at, expected) in [
            ("", 1, "KEY=VALUE, `not` or `(`, found the end"),
            ("room", 5, "`=` or `!=` right after the key, found the end"),
            ("room=", 6, "a value right after the `=`, found the end"),
            ("room = a", 5, "`=` or `!=` right after the key, found ` `"),
            ("room==a", 6, "a value right after the `=`, found `=`"),
            ("room=a and", 11, "KEY=VALUE, `not` or `(`, found the end"),
            ("room=a or ", 11, "KEY=VALUE, `not` or `(`, found the end"),
            ("not", 4, "KEY=VALUE, `not` or `(`, found the end"),
            ("room=ä and (", 13, "KEY=VALUE, `not` or `(`, found the end"),
            ("(room=a", 8, "`and`, `or` or `)`, found the end"),
            ("room=a room=b", 8, "`and`, `or` or the end, found `r`"),
            ("room=a)", 7, "`and`, `or` or the end, found `)`"),
            ("room=a AND role=b", 8, "`and`, `or` or the end, found `A`"),
            ("room=\"a", 8, "the closing quote, found the end"),
            ("room=a\"b\"", 7, "the end of the value: quotes go around all of it, found `\"`"),
            ("room='a'\"b\"", 9, "the end of the value: quotes go around all of it, found `\"`"),
            ("\"room\"=a", 1, "KEY=VALUE, `not` or `(`, found `\"`"),
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
    fn a_role_term_narrows_to_that_roles_instances() {
        let role = |text: &str| text.parse::<Selector>().unwrap().role_pattern().map(str::to_owned);
        assert_eq!(role("room=a and role=process"), Some("process".into()));
        assert_eq!(role("role=process or room=a"), None);
        assert_eq!(role("not role=process"), None);
    }
}
