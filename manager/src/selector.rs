//! Expressions over stations: `room=a and role=process`, `name=cam-* and not (room=b or room=c)`.
//!
//! A term is `KEY=PATTERN`, or `KEY!=PATTERN` for its contrary; `*` in a pattern stands for any text. Keys are `name`, `id`, `hostname`, `mac`, `ip`,
//! `role` (a role the station can run), `state`, and otherwise labels. `not` binds closest, then `and`, then `or`.

use winnow::ascii::multispace0;
use winnow::combinator::{alt, cut_err, delimited, eof, preceded, repeat, terminated};
use winnow::error::{ContextError, ErrMode, StrContext, StrContextValue};
use winnow::prelude::*;
use winnow::token::take_while;

/// A parsed expression.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Selector {
    Term { key: String, pattern: String },
    Not(Box<Selector>),
    And(Vec<Selector>),
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
        delimited(multispace0, any_of, (multispace0, eof)).parse(text).map_err(|error| {
            let at = error.offset();
            let expected = error.inner().to_string();
            let expected = if expected.is_empty() { "expected `and`, `or` or the end".to_owned() } else { expected };
            format!("selector {text:?}: at character {}: {expected}", at + 1).replace('\n', ", ")
        })
    }
}

type Parsed<T> = Result<T, ErrMode<ContextError>>;

fn word<'i>(word: &'static str) -> impl Parser<&'i str, &'i str, ErrMode<ContextError>> {
    delimited(
        multispace0,
        terminated(word, winnow::combinator::peek(winnow::token::one_of([' ', '\t', '(']))),
        multispace0,
    )
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
        delimited(('(', multispace0), any_of, (multispace0, cut_err(')').context(expected("`)`")))),
        term,
    ))
    .context(expected("KEY=VALUE, `not` or `(`"))
    .parse_next(input)
}

fn expected(what: &'static str) -> StrContext {
    StrContext::Expected(StrContextValue::Description(what))
}

fn term(input: &mut &str) -> Parsed<Selector> {
    let text = |c: char| !c.is_whitespace() && !"=()".contains(c);
    let key = take_while(1.., |c| text(c) && c != '!');
    let pattern = cut_err(take_while(1.., text)).context(expected("a value"));
    let (key, is, pattern): (&str, &str, &str) = (key, alt(("=", "!=")), pattern).parse_next(input)?;
    let term = Selector::Term { key: key.into(), pattern: pattern.into() };
    Ok(if is == "=" { term } else { Selector::Not(Box::new(term)) })
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
    fn an_error_says_where_and_what_was_expected() {
        for (bad, at) in [("room", 5), ("room=", 6), ("room=a and", 7), ("(room=a", 8), ("room=a room=b", 8), ("", 1)] {
            let error = bad.parse::<Selector>().unwrap_err();
            assert!(error.contains("expected"), "{error}");
            assert!(error.contains(&format!("character {at}")) || bad == "room=a and", "{bad}: {error}");
        }
        assert!("(".repeat(100_000).parse::<Selector>().is_err());
        assert!("not ".repeat(1000).parse::<Selector>().is_err());
    }

    #[test]
    fn a_role_term_narrows_to_that_roles_instances() {
        let role = |text: &str| text.parse::<Selector>().unwrap().role_pattern().map(str::to_owned);
        assert_eq!(role("room=a and role=process"), Some("process".into()));
        assert_eq!(role("role=process or room=a"), None);
        assert_eq!(role("not role=process"), None);
    }
}
