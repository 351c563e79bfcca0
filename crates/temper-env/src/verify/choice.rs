//! Letters of a multiple choice and words of a fixed set, as models state them.

use std::sync::LazyLock;

use regex::Regex;

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a constant pattern")
}

/// "answer is (B)", "Answer: B", "option B", "choice is **B**": the letter is group 1, what follows is group 2.
static STATED: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*[*_(\[]*([A-Z])([^A-Za-z0-9'][a-z]?|$)"));
/// "(B)" or "[b]" anywhere.
static BRACKETED: LazyLock<Regex> = LazyLock::new(|| pattern(r"[(\[]([A-Za-z])[)\]]"));
/// "B. Paris", "B) Paris" at the start.
static LEADING: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\W*([A-Z])[.):]"));
/// "... so B." at the end.
static TRAILING: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?:^|[^A-Za-z0-9'])([A-Z])\W*$"));

/// Which of the options (0 is A) the text chooses. The first rule that finds a letter in range decides: the text is
/// nothing but a letter; the last "answer is X"; the last "(X)"; the text is an option's own words; "X." at the start;
/// "X" at the end.
pub(crate) fn chosen(text: &str, choices: &[String]) -> Option<usize> {
    let n = choices.len();
    alone(text, n)
        .or_else(|| {
            STATED
                .captures_iter(text)
                .filter(|found| !article(&found[1], &found[2]))
                .filter_map(|found| letter(&found[1], n))
                .last()
        })
        .or_else(|| BRACKETED.captures_iter(text).filter_map(|found| letter(&found[1], n)).last())
        .or_else(|| words_of(text, choices))
        .or_else(|| LEADING.captures(text).and_then(|found| letter(&found[1], n)))
        .or_else(|| TRAILING.captures(text).and_then(|found| letter(&found[1], n)))
}

/// The index of a letter among `n` options.
pub(crate) fn letter(text: &str, n: usize) -> Option<usize> {
    let byte = text.bytes().next()?.to_ascii_uppercase();
    let index = usize::from(byte.checked_sub(b'A')?);
    (text.len() == 1 && index < n.min(26)).then_some(index)
}

/// The letter of an option.
pub(crate) fn letter_of(index: usize) -> char {
    char::from(b'A' + index.min(25) as u8)
}

/// "The answer is A dog": an article or pronoun, not a letter.
fn article(letter: &str, after: &str) -> bool {
    matches!(letter, "A" | "I") && after.len() == 2 && after.starts_with(' ')
}

fn alone(text: &str, n: usize) -> Option<usize> {
    letter(text.trim_matches(|c: char| !c.is_alphanumeric()), n)
}

fn words_of(text: &str, choices: &[String]) -> Option<usize> {
    let said = plain(text);
    let mut matching = choices.iter().enumerate().filter(|(_, choice)| !said.is_empty() && plain(choice) == said);
    let (index, _) = matching.next()?;
    matching.next().is_none().then_some(index)
}

fn plain(text: &str) -> String {
    text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '.' | '*' | '"' | '\'')).to_lowercase()
}

/// Which of the labels the text states, ignoring case. The first rule that finds one decides: the last "answer is X"; the
/// label that the text begins with; the last one in the text. Labels count as whole words only.
pub(crate) fn stated_label(text: &str, labels: &[String]) -> Option<usize> {
    let text = text.to_lowercase();
    let found = occurrences(&text, labels);
    let stated = found.iter().rev().find(|(at, _)| follows_answer(&text[..*at]));
    let leading = found.first().filter(|(at, _)| !text[..*at].contains(char::is_alphanumeric));
    stated.or(leading).or(found.last()).map(|&(_, label)| label)
}

/// Where each label stands as a whole word in the lower-case text, in order of place; of labels that begin at one place
/// the longest.
fn occurrences(text: &str, labels: &[String]) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize, usize)> = Vec::new();
    for (index, label) in labels.iter().enumerate() {
        let label = label.to_lowercase();
        if label.is_empty() {
            continue;
        }
        let whole = |at: usize| {
            !text[..at].ends_with(char::is_alphanumeric) && !text[at + label.len()..].starts_with(char::is_alphanumeric)
        };
        found.extend(text.match_indices(&label).filter(|(at, _)| whole(*at)).map(|(at, _)| (at, label.len(), index)));
    }
    found.sort_unstable_by_key(|&(at, len, index)| (at, std::cmp::Reverse(len), index));
    found.dedup_by_key(|found| found.0);
    found.into_iter().map(|(at, _, index)| (at, index)).collect()
}

fn follows_answer(before: &str) -> bool {
    let before = before.trim_end_matches(|c: char| !c.is_alphanumeric());
    let before = before.strip_suffix(" is").unwrap_or(before).trim_end();
    before.ends_with("answer")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options() -> Vec<String> {
        ["Paris", "Rome", "a dog"].map(String::from).to_vec()
    }

    #[test]
    fn finds_the_letter() {
        for (text, expected) in [
            ("B", Some(1)),
            (" b.\n", Some(1)),
            ("**B**", Some(1)),
            ("(C)", Some(2)),
            ("B. Rome", Some(1)),
            ("The answer is (B) because (A) is in France.", Some(1)),
            ("Answer: B", Some(1)),
            ("the correct option is B, not A", Some(1)),
            ("(A) is wrong, so (B)", Some(1)),
            ("[b]", Some(1)),
            ("rome", Some(1)),
            ("A dog.", Some(2)),
            ("The answer is A dog", None),
            ("I think it must be B.", Some(1)),
            ("B) Rome", Some(1)),
            ("(Z)", None),
            ("because", None),
            ("", None),
            ("\u{411}", None),
        ] {
            assert_eq!(chosen(text, &options()), expected, "{text}");
        }
    }

    #[test]
    fn finds_the_label() {
        let labels = ["Yes", "No"].map(String::from);
        for (text, expected) in [
            ("No", Some(1)),
            ("no.", Some(1)),
            ("Yes, because no one lies.", Some(0)),
            ("Ann lies, so Bob does not. No", Some(1)),
            ("So the answer is yes. There is no doubt.", Some(0)),
            ("Answer: **No**", Some(1)),
            ("Nobody knows", None),
            ("", None),
        ] {
            assert_eq!(stated_label(text, &labels), expected, "{text}");
        }
        let nested = ["valid", "valid not"].map(String::from);
        assert_eq!(stated_label("it is valid not", &nested), Some(1));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*", label in "\\PC{0,3}") {
            let _ = chosen(&text, &options());
            let _ = stated_label(&text, &[label.clone(), "yes".into()]);
            let _ = stated_label(&format!("{label}{text}{label}"), &[label]);
        }
    }
}
