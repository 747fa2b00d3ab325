//! Terms that a busy session asks on again and again: said once, and by a number from then on.
//!
//! The asker decides what is kept under which number; whoever is asked keeps what it is told. Which number terms get
//! follows from what they are, so that neither side keeps a history of uses: terms that fall on the same number take
//! turns, which costs their being said again.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use rustc_hash::FxHasher;
use smol_str::SmolStr;

use crate::error::Violation;
use crate::message::{Said, Terms};

/// How many terms each side of a session keeps at most.
pub const TERMS_KEPT: usize = 64;
/// With so many requests under way the terms of the next are kept by both sides, since more of the kind will follow.
const BUSY: usize = 4;
/// And with so many asked since terms were last forgotten, or would have been if nothing had been under way.
const OFTEN: u32 = 16;

/// What this side has said.
#[derive(Default, Debug)]
pub(super) struct SaidTerms {
    kept: Vec<Option<Arc<Terms>>>,
    /// What was said last is mostly what is said next: then its number need not be found.
    last: u8,
    /// How many requests were asked since terms were last forgotten, or were to be.
    asked: u32,
}

impl SaidTerms {
    /// How to say these terms in what is written next.
    pub(super) fn say(&mut self, terms: &Arc<Terms>) -> Said {
        if let Some(Some(kept)) = self.kept.get(usize::from(self.last))
            && Arc::ptr_eq(kept, terms)
        {
            return Said::Again(self.last);
        }
        if !may_be_kept(terms) {
            return Said::Whole(terms.clone());
        }
        let number = number_of(terms);
        self.last = number;
        self.kept.resize(TERMS_KEPT, None);
        match &mut self.kept[usize::from(number)] {
            Some(kept) if Arc::ptr_eq(kept, terms) || kept == terms => Said::Again(number),
            place => {
                *place = Some(terms.clone());
                Said::Kept(number, terms.clone())
            }
        }
    }

    /// Whether the terms of the next request should be kept, with so many others under way. Who asks little says all each time:
    /// then neither side keeps anything for it.
    pub(super) fn are_worth_keeping(&mut self, under_way: usize) -> bool {
        self.asked = self.asked.saturating_add(1);
        under_way >= BUSY || self.asked > OFTEN || !self.kept.is_empty()
    }

    /// Forgets all, so that they are said again, unless much was asked since the last time.
    pub(super) fn forget(&mut self) {
        if std::mem::take(&mut self.asked) <= OFTEN {
            self.kept = Vec::new();
        }
    }
}

/// What the peer has said.
#[derive(Default, Debug)]
pub(super) struct HeardTerms {
    kept: Vec<Option<Arc<Terms>>>,
    /// Who the peer is, if that is for this side to say.
    pub(super) principal: Option<SmolStr>,
}

impl HeardTerms {
    /// What was meant.
    pub(super) fn hear(&mut self, said: Said) -> Result<Arc<Terms>, Violation> {
        match said {
            Said::Whole(terms) => Ok(self.stamped(terms)),
            Said::Kept(number, terms) if usize::from(number) < TERMS_KEPT && may_be_kept(&terms) => {
                let terms = self.stamped(terms);
                if self.kept.len() <= usize::from(number) {
                    self.kept.resize(usize::from(number) + 1, None);
                }
                self.kept[usize::from(number)] = Some(terms.clone());
                Ok(terms)
            }
            Said::Kept(number, _) => Err(Violation::TermsNotKept(number)),
            Said::Again(number) => {
                let kept = self.kept.get(usize::from(number)).cloned().flatten();
                kept.ok_or(Violation::UnknownTerms(number))
            }
        }
    }

    fn stamped(&self, mut terms: Arc<Terms>) -> Arc<Terms> {
        if self.principal.is_some() {
            Arc::make_mut(&mut terms).principal = self.principal.clone();
        }
        terms
    }
}

/// What is kept must not let a peer hold much memory.
fn may_be_kept(terms: &Terms) -> bool {
    terms.extensions.is_empty() && terms.is_small()
}

fn number_of(terms: &Terms) -> u8 {
    let mut hasher = FxHasher::default();
    terms.to.hash(&mut hasher);
    terms.command.hash(&mut hasher);
    terms.principal.hash(&mut hasher);
    hasher.write_u8(terms.encoding as u8);
    (hasher.finish() % TERMS_KEPT as u64) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Address;

    fn terms(command: &str) -> Arc<Terms> {
        Arc::new(Terms::new(Address::Manager, command))
    }

    #[test]
    fn terms_are_said_once_and_again_after_others_took_their_place() {
        let (mut ours, mut theirs) = (SaidTerms::default(), HeardTerms::default());
        assert!(matches!(ours.say(&terms("x")), Said::Kept(..)));
        assert!(matches!(ours.say(&terms("x")), Said::Again(_)), "equal terms are the same terms");
        for number in 0..1000 {
            let terms = terms(&format!("command-{}", number % 100));
            assert_eq!(theirs.hear(ours.say(&terms)).ok().as_ref(), Some(&terms));
        }
    }

    #[test]
    fn a_peer_is_not_believed_who_it_is_and_cannot_make_us_keep_much() {
        let mut theirs = HeardTerms { principal: Some("tool:a".into()), ..HeardTerms::default() };
        let claimed = Arc::new(Terms { principal: Some("tool:b".into()), ..Terms::clone(&terms("x")) });
        for said in [Said::Whole(claimed.clone()), Said::Kept(7, claimed), Said::Again(7)] {
            assert_eq!(theirs.hear(said).unwrap().principal.as_deref(), Some("tool:a"));
        }
        assert_eq!(theirs.hear(Said::Again(8)), Err(Violation::UnknownTerms(8)));
        assert_eq!(theirs.hear(Said::Kept(64, terms("x"))), Err(Violation::TermsNotKept(64)));
        let mut long = Terms::clone(&terms("x"));
        long.extensions.insert("x".into(), vec![0; 4000]);
        assert_eq!(theirs.hear(Said::Kept(1, long.into())), Err(Violation::TermsNotKept(1)));
    }
}
