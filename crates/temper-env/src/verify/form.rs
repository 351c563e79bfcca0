//! The forms of the tiny world's answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{gold, nothing};
use crate::{Error, Verdict};

/// Stands between worked steps and the answer. No task of the tiny world has it in its prompt or answer.
pub(crate) const MARK: &str = "=>";

/// What an answer of the tiny world looks like. A text of another form holds no answer; one of this form is right or wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
pub enum Form {
    /// A whole number of at least 0.
    Integer {},
    /// Whole numbers with spaces between.
    Integers {},
    /// Lower-case letters.
    Letters {},
    /// Brackets of any kind.
    Brackets {},
    /// `T` or `F`.
    Truth {},
    /// Any `count` of the numbers, each used at most as often as it is there, that add up to `sum`: not unique, so the
    /// gold answer is only an example.
    Pick {
        /// What may be picked.
        numbers: Vec<u64>,
        /// How many to pick.
        count: usize,
        /// What they must add up to.
        sum: u64,
    },
}

/// The part of a text that states its answer.
pub(crate) fn final_part(text: &str) -> &str {
    text.rsplit_once(MARK).map_or(text, |(_, after)| after).trim()
}

impl Form {
    pub(crate) fn verify(&self, answer: &str, said: &str) -> Result<Verdict, Error> {
        self.check(answer)?;
        if !self.fits(said) {
            return Ok(nothing(self.description(), said));
        }
        let right = match self {
            Self::Integer {} | Self::Integers {} => same_numbers(said, answer),
            Self::Pick { numbers, count, sum } => picks(said, numbers, *count, *sum),
            Self::Letters {} | Self::Brackets {} | Self::Truth {} => said == answer,
        };
        Ok(Verdict::of_answer(right, self.spelling(said)))
    }

    pub(crate) fn check(&self, answer: &str) -> Result<(), Error> {
        if !self.fits(answer) {
            return Err(gold(answer, format!("expected {}", self.description())));
        }
        match self {
            Self::Pick { numbers, count, sum } if !picks(answer, numbers, *count, *sum) => {
                Err(gold(answer, format!("it is not {count} of {numbers:?} that add up to {sum}")))
            }
            _ => Ok(()),
        }
    }

    /// A text of this form in one spelling: without leading zeros and further spaces.
    fn spelling(&self, said: &str) -> String {
        match self {
            Self::Integer {} | Self::Integers {} | Self::Pick { .. } => {
                let word = |digits: &str| if digits.is_empty() { "0".to_owned() } else { digits.to_owned() };
                digits_of(said).map(word).collect::<Vec<_>>().join(" ")
            }
            Self::Letters {} | Self::Brackets {} | Self::Truth {} => said.to_owned(),
        }
    }

    fn fits(&self, text: &str) -> bool {
        let all = |inside: fn(u8) -> bool| !text.is_empty() && text.bytes().all(inside);
        match self {
            Self::Integer {} => all(|byte| byte.is_ascii_digit()),
            Self::Integers {} | Self::Pick { .. } => {
                all(|byte| byte.is_ascii_digit() || byte == b' ') && text.bytes().any(|byte| byte != b' ')
            }
            Self::Letters {} => all(|byte| byte.is_ascii_lowercase()),
            Self::Brackets {} => all(|byte| b"()[]{}<>".contains(&byte)),
            Self::Truth {} => text == "T" || text == "F",
        }
    }

    fn description(&self) -> &'static str {
        match self {
            Self::Integer {} => "a whole number",
            Self::Integers {} | Self::Pick { .. } => "whole numbers with spaces between",
            Self::Letters {} => "lower-case letters",
            Self::Brackets {} => "brackets",
            Self::Truth {} => "T or F",
        }
    }
}

/// Compared as texts without leading zeros, so that no length overflows.
fn same_numbers(a: &str, b: &str) -> bool {
    digits_of(a).eq(digits_of(b))
}

fn digits_of(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ').filter(|word| !word.is_empty()).map(|word| word.trim_start_matches('0'))
}

fn picks(said: &str, numbers: &[u64], count: usize, sum: u64) -> bool {
    let mut left = numbers.to_vec();
    let mut total: u64 = 0;
    let mut picked = 0;
    for word in said.split(' ').filter(|word| !word.is_empty()) {
        let Some(place) = word.parse().ok().and_then(|number: u64| left.iter().position(|&one| one == number)) else {
            return false;
        };
        total = total.saturating_add(left.swap_remove(place));
        picked += 1;
    }
    picked == count && total == sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verifier;
    use proptest::prelude::*;

    fn check(form: &Form, answer: &str, right: &[&str], wrong: &[&str], unread: &[&str]) {
        let verifier = Verifier::Final { form: form.clone() };
        let verdict = |text: &str| verifier.verify(answer, text).unwrap();
        for text in right {
            assert!(verdict(text).is_right(), "{form:?} {text}");
        }
        for text in wrong {
            assert!(!verdict(text).is_right() && verdict(text).said().is_some(), "{form:?} {text}");
        }
        for text in unread {
            assert!(verdict(text).failure().is_some(), "{form:?} {text}");
        }
    }

    #[test]
    fn hand_cases() {
        let huge = "9".repeat(99);
        check(
            &Form::Integer {},
            "82",
            &["82", " 82\n", "082", "7+5=12 => 82", "1=>2 => 82"],
            &["83", "82 => 8", &huge],
            &["", "-82", "82.", "8 2", "=>", "x"],
        );
        check(
            &Form::Integers {},
            "2 5 9",
            &["2 5 9", "2  5 9"],
            &["2 9 5", "2 5", "259", "2 5 9 9"],
            &["2, 5, 9", "", " "],
        );
        check(&Form::Letters {}, "bac", &["bac", "1c 2a => bac"], &["bca"], &["BAC", "b a c", ""]);
        check(&Form::Brackets {}, "}])", &["}])"], &["}]"], &["} ] )", ""]);
        check(&Form::Truth {}, "T", &["T"], &["F"], &["t", "TT", "True", ""]);
        let pick = Form::Pick { numbers: vec![3, 5, 7, 8, 9], count: 2, sum: 12 };
        check(&pick, "3 9", &["3 9", "9 3", "5 7", "3+9=12 => 7 5"], &["12", "4 8", "3 9 0", "3", &huge], &["3+9", ""]);
        let twice = Form::Pick { numbers: vec![4, 4, 5], count: 2, sum: 8 };
        check(&twice, "4 4", &["4 4"], &["4", "8"], &[]);
        let once = Form::Pick { numbers: vec![3, 4, 5], count: 2, sum: 8 };
        check(&once, "5 3", &["3 5"], &["4 4"], &[]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*", said in "[0-9 =>TFa()\\[\\]]{0,30}") {
            let pick = Form::Pick { numbers: vec![u64::MAX, u64::MAX], count: 2, sum: 1 };
            for form in [Form::Integer {}, Form::Integers {}, Form::Letters {}, Form::Brackets {}, Form::Truth {}, pick] {
                let verifier = Verifier::Final { form };
                let _ = verifier.verify("7", &text);
                let _ = verifier.verify("7", &said);
                let _ = verifier.check(&said);
            }
        }
    }
}
