//! Verifiers: what a completion says, compared with the gold answer.
//!
//! A verifier never fails because of what the model wrote: a text with no readable answer is
//! [`Verdict::Failed`], counted apart from a wrong one. A gold answer that the verifier cannot use is an [`Error`], found
//! when the data is loaded.

pub(crate) mod choice;
pub(crate) mod form;
pub(crate) mod number;

use std::borrow::Cow;

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::task::shorten;
use crate::{Error, Verdict};
pub use form::Form;

/// How a completion is compared with the gold answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Verifier {
    /// The whole text equals the answer.
    Exact {
        /// Ignore space at both ends.
        #[serde(default = "yes")]
        trim: bool,
        /// Ignore upper and lower case.
        #[serde(default)]
        ignore_case: bool,
        /// Any run of white space equals one space; implies `trim`.
        #[serde(default)]
        collapse_spaces: bool,
    },
    /// The last number in the text has the answer's value, however it is written (`1,200`, `$1200.00`, `1.2e3`).
    Numeric {
        /// Largest `|found - answer|` that is right, times `max(1, |answer|)`; 0 compares exact values.
        #[serde(default)]
        tolerance: f64,
    },
    /// GSM8K: the number after the last `####`, or else the last number in the text.
    Gsm8k {
        /// Without `####` there is no answer.
        #[serde(default)]
        strict: bool,
    },
    /// The letter of one of the options: `B`, `(B)`, `B. ...`, `the answer is B`, or the option's own words.
    MultipleChoice {
        /// The options' words, in order from A.
        choices: Vec<String>,
    },
    /// One of a few words, such as yes and no, wherever the text states it.
    Label {
        /// The words.
        labels: Vec<String>,
    },
    /// The last match of a pattern. With a group, the group's text must equal the answer; without one, a match is enough.
    Regex {
        /// The pattern, in the syntax of the Rust crate `regex`.
        pattern: Pattern,
    },
    /// The tiny world's: what follows the last `=>` (or the whole text, if there is none) has the given form and is right.
    Final {
        /// What an answer looks like.
        form: Form,
    },
}

fn yes() -> bool {
    true
}

impl Verifier {
    /// Numbers compared by exact value.
    pub const NUMERIC: Self = Self::Numeric { tolerance: 0.0 };

    /// Compares `text` with `answer`: reward 1 or 0, or [`Verdict::Failed`] if the text holds no answer.
    ///
    /// # Errors
    /// [`Error::Gold`] if the answer itself cannot be used; [`check`](Self::check) finds that beforehand.
    pub fn verify(&self, answer: &str, text: &str) -> Result<Verdict, Error> {
        let verdict = match self {
            Self::Exact { .. } if text.trim().is_empty() => Verdict::failed("the text is empty"),
            Self::Exact { .. } => {
                let said = self.normal(text);
                Verdict::of_answer(said == self.normal(answer), said)
            }
            Self::Numeric { tolerance } => {
                number_verdict(number::last_number(text), gold_number(answer)?, *tolerance, text)
            }
            Self::Gsm8k { strict } => number_verdict(gsm8k_number(text, *strict), gsm8k_gold(answer)?, 0.0, text),
            Self::MultipleChoice { choices } => {
                let gold = gold_choice(answer, choices)?;
                let letter = |index| choice::letter_of(index).to_string();
                index_verdict(choice::chosen(text, choices), gold, letter, "the letter of an option", text)
            }
            Self::Label { labels } => {
                let gold = gold_label(answer, labels)?;
                let label = |index: usize| labels[index].clone();
                let expected = format!("one of {}", labels.join(", "));
                index_verdict(choice::stated_label(text, labels), gold, label, &expected, text)
            }
            Self::Regex { pattern } => pattern_verdict(&pattern.0, answer, text),
            Self::Final { form } => form.verify(answer, form::final_part(text))?,
        };
        Ok(verdict)
    }

    /// Whether `answer` can be the gold answer of a task with this verifier.
    ///
    /// # Errors
    /// [`Error::Gold`] that says why not; [`Error::Setting`] if the verifier's own settings have no meaning.
    pub fn check(&self, answer: &str) -> Result<(), Error> {
        match self {
            Self::Exact { .. } if answer.trim().is_empty() => Err(gold(answer, "it is empty")),
            Self::Exact { .. } | Self::Regex { .. } => Ok(()),
            Self::Numeric { tolerance } if !(tolerance.is_finite() && *tolerance >= 0.0) => Err(Error::Setting {
                option: "tolerance".into(),
                why: format!("expected a number of at least 0, found {tolerance}"),
            }),
            Self::Numeric { .. } => gold_number(answer).map(drop),
            Self::Gsm8k { .. } => gsm8k_gold(answer).map(drop),
            Self::MultipleChoice { choices } => gold_choice(answer, choices).map(drop),
            Self::Label { labels } => gold_label(answer, labels).map(drop),
            Self::Final { form } => form.check(answer),
        }
    }

    /// The name of the kind, as recipes spell it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Exact { .. } => "exact",
            Self::Numeric { .. } => "numeric",
            Self::Gsm8k { .. } => "gsm8k",
            Self::MultipleChoice { .. } => "multiple_choice",
            Self::Label { .. } => "label",
            Self::Regex { .. } => "regex",
            Self::Final { .. } => "final",
        }
    }

    /// The text as an exact comparison sees it; unchanged for the other kinds.
    pub(crate) fn normal<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let Self::Exact { trim, ignore_case, collapse_spaces } = self else {
            return Cow::Borrowed(text);
        };
        let mut text = Cow::Borrowed(if *trim { text.trim() } else { text });
        if *collapse_spaces {
            text = Cow::Owned(text.split_whitespace().collect::<Vec<_>>().join(" "));
        }
        if *ignore_case { Cow::Owned(text.to_lowercase()) } else { text }
    }
}

pub(crate) fn gold(answer: &str, why: impl Into<String>) -> Error {
    Error::Gold { answer: shorten(answer, 80), why: why.into() }
}

fn gold_number(answer: &str) -> Result<number::Number, Error> {
    number::last_number(answer).ok_or_else(|| gold(answer, "it holds no number"))
}

fn gsm8k_gold(answer: &str) -> Result<number::Number, Error> {
    gsm8k_number(answer, false).ok_or_else(|| gold(answer, "it holds no number, neither after `####` nor elsewhere"))
}

/// The first number after the last `####`; unless `strict`, else the last number in the text.
pub(crate) fn gsm8k_number(text: &str, strict: bool) -> Option<number::Number> {
    let marked = text.rsplit_once("####").and_then(|(_, after)| number::first_number(after));
    if strict { marked } else { marked.or_else(|| number::last_number(text)) }
}

fn number_verdict(found: Option<number::Number>, gold: number::Number, tolerance: f64, text: &str) -> Verdict {
    match found {
        Some(found) => Verdict::of_answer(found.equals(gold, tolerance), found.spelling()),
        None => nothing("a number", text),
    }
}

fn gold_choice(answer: &str, choices: &[String]) -> Result<usize, Error> {
    if !(2..=26).contains(&choices.len()) {
        return Err(gold(answer, format!("a choice has 2 to 26 options, this one has {}", choices.len())));
    }
    let last = choice::letter_of(choices.len() - 1);
    let bare = answer.trim().trim_matches(['(', ')', '.']);
    choice::letter(bare, choices.len()).ok_or_else(|| gold(answer, format!("expected a letter from A to {last}")))
}

fn gold_label(answer: &str, labels: &[String]) -> Result<usize, Error> {
    let same = |label: &String| label.trim().to_lowercase() == answer.trim().to_lowercase();
    labels.iter().position(same).ok_or_else(|| gold(answer, format!("expected one of {}", labels.join(", "))))
}

fn index_verdict(
    found: Option<usize>,
    gold: usize,
    name: impl Fn(usize) -> String,
    expected: &str,
    text: &str,
) -> Verdict {
    found.map_or_else(|| nothing(expected, text), |index| Verdict::of_answer(index == gold, name(index)))
}

fn pattern_verdict(regex: &Regex, answer: &str, text: &str) -> Verdict {
    let Some(found) = regex.captures_iter(text).last() else {
        return if regex.captures_len() > 1 { nothing("a match of the pattern", text) } else { Verdict::of(false) };
    };
    if regex.captures_len() == 1 {
        return Verdict::of(true);
    }
    let said = found.iter().skip(1).flatten().next().map_or("", |group| group.as_str());
    Verdict::of_answer(said.trim() == answer.trim(), said.trim())
}

pub(crate) fn nothing(expected: &str, text: &str) -> Verdict {
    Verdict::failed(format!("expected {expected}, found `{}`", shorten(text.trim(), 40)))
}

/// A regular expression that reads from and writes to a string; a bad one is refused when it is read.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Pattern(Regex);

impl Pattern {
    /// The compiled expression.
    pub fn regex(&self) -> &Regex {
        &self.0
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Regex::new(&text).map(Self).map_err(|error| format!("not a regular expression: {error}"))
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0.as_str().to_owned()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Texts that say the same have one spelling, others have another.
    #[test]
    fn answers_have_one_spelling() {
        let said = |verifier: &Verifier, answer: &str, text: &str| {
            verifier.verify(answer, text).unwrap().said().map(str::to_owned)
        };
        let numeric = |text: &str| said(&Verifier::NUMERIC, "7", text);
        assert_eq!(numeric("so $1,200.00"), numeric("1.2e3"));
        assert_eq!((numeric("it is 6/4").unwrap(), numeric("-0.50").unwrap()), ("3/2".into(), "-1/2".into()));
        assert_eq!((numeric("50%").unwrap(), numeric("nothing")), ("50%".into(), None));
        let huge = numeric(&"9".repeat(40)).unwrap();
        assert_ne!(huge, numeric(&"8".repeat(40)).unwrap());
        let gsm8k = Verifier::Gsm8k { strict: false };
        assert_eq!(said(&gsm8k, "#### 5", "2 + 2 #### 4").as_deref(), Some("4"));
        let choice = Verifier::MultipleChoice { choices: vec!["Paris".into(), "Rome".into()] };
        assert_eq!(said(&choice, "A", "rome"), said(&choice, "A", "the answer is B"));
        let label = Verifier::Label { labels: vec!["Yes".into(), "No".into()] };
        assert_eq!(said(&label, "Yes", "no.").as_deref(), Some("No"));
        let folded = exact(true, true, true);
        assert_eq!(said(&folded, "a", " The  Cat ").as_deref(), Some("the cat"));
        assert_eq!(said(&regex("x=(\\d+)"), "1", "x=2 x= 3 x=4 ").as_deref(), Some("4"));
        assert_eq!(said(&regex("cat"), "cat", "a cat"), None);
        let integers = Verifier::Final { form: Form::Integers {} };
        assert_eq!(said(&integers, "1 2", "1+1 => 02  5").as_deref(), Some("2 5"));
    }

    const RIGHT: Option<f64> = Some(1.0);
    const WRONG: Option<f64> = Some(0.0);
    const NONE: Option<f64> = None;

    /// `None` is a failure to read an answer.
    fn check(verifier: &Verifier, answer: &str, cases: &[(&str, Option<f64>)]) {
        for (text, expected) in cases {
            let verdict = verifier.verify(answer, text).unwrap();
            let got = verdict.failure().is_none().then(|| verdict.reward());
            assert_eq!(got, *expected, "{verifier:?} {answer:?} {text:?}: {verdict:?}");
        }
    }

    fn exact(trim: bool, ignore_case: bool, collapse_spaces: bool) -> Verifier {
        Verifier::Exact { trim, ignore_case, collapse_spaces }
    }

    fn regex(pattern: &str) -> Verifier {
        Verifier::Regex { pattern: Pattern::try_from(pattern.to_owned()).unwrap() }
    }

    #[test]
    fn exact_options() {
        check(&exact(true, false, false), "Paris", &[(" Paris\n", RIGHT), ("paris", WRONG), ("", NONE), (" \n", NONE)]);
        check(&exact(false, false, false), "Paris", &[("Paris", RIGHT), ("Paris ", WRONG)]);
        check(&exact(true, true, false), "Paris", &[("PARIS", RIGHT), ("Par is", WRONG)]);
        check(&exact(true, false, true), "] ]", &[("]  ]\n", RIGHT), ("]]", WRONG)]);
    }

    #[test]
    fn numeric_reads_the_last_number() {
        let cases =
            [("first 7, then $1,200.00.", RIGHT), ("1.2e3", RIGHT), ("1201", WRONG), ("-1200", WRONG), ("none", NONE)];
        check(&Verifier::NUMERIC, "1200", &cases);
        check(&Verifier::Numeric { tolerance: 0.01 }, "3.14159", &[("3.14", RIGHT), ("22/7", RIGHT), ("3.2", WRONG)]);
    }

    #[test]
    fn gsm8k_prefers_the_mark() {
        let cases = [
            ("48/2 = 24\n#### 72", RIGHT),
            ("#### 71 or 72", WRONG),
            ("#### 1\n#### $72.00 in 5 days", RIGHT),
            ("the total is 72", RIGHT),
            ("72 ####", RIGHT),
            ("I do not know", NONE),
        ];
        check(&Verifier::Gsm8k { strict: false }, "72", &cases);
        check(
            &Verifier::Gsm8k { strict: true },
            "#### 72",
            &[("#### 72", RIGHT), ("it is 72", NONE), ("72 ####", NONE)],
        );
    }

    #[test]
    fn choices_and_labels() {
        let choices = ["red", "blue", "green"].map(String::from).to_vec();
        let verifier = Verifier::MultipleChoice { choices };
        check(
            &verifier,
            "(B)",
            &[("B.", RIGHT), ("the answer is B", RIGHT), ("(C)", WRONG), ("blue", RIGHT), ("grey", NONE)],
        );
        let verifier = Verifier::Label { labels: vec!["True".into(), "False".into()] };
        check(&verifier, "False", &[("it is false", RIGHT), ("True", WRONG), ("neither", NONE)]);
    }

    #[test]
    fn patterns_with_and_without_a_group() {
        check(
            &regex(r"answer is (\d+)"),
            "7",
            &[("answer is 6, no, answer is 7", RIGHT), ("answer is 8", WRONG), ("7", NONE)],
        );
        check(&regex(r"^\s*yes"), "", &[("yes", RIGHT), ("no", WRONG)]);
        check(&regex("a(x)?|b(y)?"), "y", &[("by", RIGHT), ("ax", WRONG), ("a", WRONG)]);
    }

    #[test]
    fn unusable_answers_are_errors_not_rewards() {
        for (verifier, answer) in [
            (Verifier::NUMERIC, "many"),
            (Verifier::Numeric { tolerance: f64::NAN }, "1"),
            (Verifier::Gsm8k { strict: false }, "####"),
            (exact(true, false, false), " "),
            (Verifier::MultipleChoice { choices: vec!["a".into(), "b".into()] }, "C"),
            (Verifier::MultipleChoice { choices: vec![] }, "A"),
            (Verifier::Label { labels: vec!["yes".into()] }, "no"),
            (Verifier::Final { form: Form::Integer {} }, "x"),
        ] {
            assert!(verifier.check(answer).is_err(), "{verifier:?}");
        }
        assert!(Verifier::NUMERIC.verify("many", "many").is_err());
    }

    #[test]
    fn serde_is_strict_and_says_why() {
        let read = |text: &str| serde_json::from_str::<Verifier>(text);
        assert_eq!(read(r#"{"kind":"gsm8k"}"#).unwrap(), Verifier::Gsm8k { strict: false });
        assert!(read(r#"{"kind":"gsm8k","stict":true}"#).unwrap_err().to_string().contains("stict"));
        assert!(read(r#"{"kind":"gsm9k"}"#).unwrap_err().to_string().contains("gsm8k"));
        assert!(read(r#"{"kind":"regex","pattern":"("}"#).unwrap_err().to_string().contains("unclosed group"));
        let verifier = regex("a+");
        assert_eq!(read(&serde_json::to_string(&verifier).unwrap()).unwrap(), verifier);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*", answer in "\\PC{0,8}") {
            for verifier in [
                exact(true, true, true),
                Verifier::Numeric { tolerance: 0.1 },
                Verifier::Gsm8k { strict: false },
                Verifier::MultipleChoice { choices: vec![answer.clone(), "b".into()] },
                Verifier::Label { labels: vec![answer.clone(), "no".into()] },
                regex("(.*)x?"),
            ] {
                let _ = verifier.verify(&answer, &text);
                let _ = verifier.verify("B", &format!("{text} #### {answer}"));
                let _ = verifier.verify("7", &format!("{text} => {answer}"));
            }
        }
    }
}
