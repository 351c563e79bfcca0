//! Wrong answers that look like right ones.
//!
//! Whether a change keeps the value is decided here by other means than the verifiers use, so that a verifier is not
//! judged by itself.

use super::stated;
use crate::draw::{Draw, hash_text};
use crate::verify::choice::letter_of;
use crate::verify::form::MARK;
use crate::{Form, Task, Verifier};

/// A text that states a wrong answer, and how that was made.
pub(crate) struct Mutant {
    pub(crate) how: &'static str,
    pub(crate) text: String,
}

type Changes = Vec<(&'static str, String)>;

/// Wrong answers of several kinds, stated alone and at the end of the demonstration; and the empty text.
pub(crate) fn mutants(task: &Task) -> Vec<Mutant> {
    // Which letter is changed to which is a function of the task's name.
    let mut draw = Draw::new(&[hash_text(&task.id)]);
    let mut found = Vec::new();
    for (how, answer) in changed(task, &mut draw) {
        found.extend(stated(task, &answer).into_iter().map(|text| Mutant { how, text }));
        found.extend(in_demonstration(task, &answer).map(|text| Mutant { how, text }));
    }
    if !matches!(task.verifier, Verifier::Regex { .. }) {
        found.push(Mutant { how: "empty", text: String::new() });
    }
    found
}

fn changed(task: &Task, draw: &mut Draw) -> Changes {
    let answer = task.answer.as_str();
    match &task.verifier {
        Verifier::Numeric { tolerance } => numbers(answer, *tolerance),
        Verifier::Gsm8k { .. } => numbers(answer, 0.0),
        Verifier::MultipleChoice { choices } => other_letters(answer, choices.len()),
        Verifier::Label { labels } => other_labels(answer, labels),
        // Without a group a pattern does not look at the answer.
        Verifier::Regex { pattern } if pattern.regex().captures_len() == 1 => Vec::new(),
        Verifier::Exact { .. } | Verifier::Regex { .. } => texts(answer, b"abcdefghijklmnopqrstuvwxyz", draw),
        Verifier::Final { form } => in_form(answer, form, draw),
    }
}

/// The demonstration with the changed answer in the place of the right one, if there is such a place.
fn in_demonstration(task: &Task, answer: &str) -> Option<String> {
    let shown = task.demonstration.as_deref().filter(|shown| *shown != task.answer)?;
    if matches!(task.verifier, Verifier::Final { .. }) {
        return shown.rsplit_once(MARK).map(|(work, _)| format!("{work}{MARK} {answer}"));
    }
    let bare = task.answer.trim_matches(['(', ')', '.', ' ']);
    let at = shown.rfind(bare).filter(|_| !bare.is_empty())?;
    let behind = &shown[at + bare.len()..];
    // Something after the place could be what the verifier reads.
    let last = !behind.contains(char::is_alphanumeric);
    last.then(|| format!("{}{}{behind}", &shown[..at], answer.trim_matches(['(', ')', '.', ' '])))
}

fn in_form(answer: &str, form: &Form, draw: &mut Draw) -> Changes {
    match form {
        Form::Integer {} => numbers(answer, 0.0).into_iter().filter(|(_, text)| !text.starts_with('-')).collect(),
        Form::Integers {} => lists(answer),
        Form::Letters {} => texts(answer, b"abcdefghijklmnopqrstuvwxyz", draw),
        Form::Brackets {} => texts(answer, b"()[]{}<>", draw),
        Form::Truth {} => vec![("other value", if answer == "T" { "F" } else { "T" }.to_owned())],
        Form::Pick { numbers, count, sum } => {
            let wrong = |text: &String| !is_pick(text, numbers, *count, *sum);
            lists(answer).into_iter().filter(|(_, text)| wrong(text)).collect()
        }
    }
}

/// Changes of the digits and the sign, without those that keep the value (or stay within the tolerance).
fn numbers(answer: &str, tolerance: f64) -> Changes {
    let digits: Vec<usize> =
        answer.bytes().enumerate().filter(|(_, byte)| byte.is_ascii_digit()).map(|(at, _)| at).collect();
    let (Some(&first), Some(&last)) = (digits.first(), digits.last()) else { return Vec::new() };
    let mut changes = vec![
        ("last digit", with_digit(answer, last, |digit| (digit + 1) % 10)),
        ("first digit", with_digit(answer, first, |digit| digit % 9 + 1)),
        ("digit added", insert(answer, last + 1, '7')),
        ("sign", flip_sign(answer)),
    ];
    if digits.len() > 1 {
        changes.push(("digit dropped", remove(answer, last)));
        changes.extend(digits.windows(2).map(|two| ("digits swapped", swap(answer, two[0], two[1]))));
    }
    let gold = plain_value(answer);
    changes.retain(|(_, text)| differs(plain_value(text), gold, tolerance));
    changes
}

fn differs(value: Option<f64>, gold: Option<f64>, tolerance: f64) -> bool {
    match (value, gold) {
        // Room for rounding at the edge of the tolerance.
        (Some(value), Some(gold)) => (value - gold).abs() > 1.001 * tolerance * gold.abs().max(1.0),
        _ => false,
    }
}

/// The value of a simply written number: signs, commas, a currency or percent sign, one fraction bar.
fn plain_value(text: &str) -> Option<f64> {
    let text: String = text.chars().filter(|c| !matches!(c, ',' | '$' | '%' | ' ')).collect();
    let (top, bottom) = text.split_once('/').unwrap_or((&text, "1"));
    let value = top.parse::<f64>().ok()? / bottom.parse::<f64>().ok()?;
    value.is_finite().then_some(value)
}

fn flip_sign(answer: &str) -> String {
    answer.trim().strip_prefix('-').map_or_else(|| format!("-{}", answer.trim()), str::to_owned)
}

/// Changes of a list of numbers with spaces between, never the same list.
fn lists(answer: &str) -> Changes {
    let words: Vec<&str> = answer.split(' ').collect();
    let mut changes: Changes = Vec::new();
    let mut add = |how, words: &[&str]| changes.push((how, words.join(" ")));
    for at in 1..words.len() {
        let mut swapped = words.clone();
        swapped.swap(at - 1, at);
        add("neighbours swapped", &swapped);
    }
    add("first dropped", &words[1..]);
    add("first repeated", &[&words[..1], &words[..]].concat());
    let raised = words[0].parse::<u64>().map_or_else(|_| "0".to_owned(), |number| (number + 1).to_string());
    add("first raised", &[&[raised.as_str()], &words[1..]].concat());
    changes.retain(|(_, text)| text != answer);
    changes
}

fn is_pick(text: &str, numbers: &[u64], count: usize, sum: u64) -> bool {
    let mut picked: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    picked.sort_unstable();
    let often = |list: &[u64], one: u64| list.iter().filter(|&&other| other == one).count();
    let there = picked.iter().all(|&one| often(&picked, one) <= often(numbers, one));
    there && picked.len() == count && picked.iter().sum::<u64>() == sum
}

/// Changes of single characters, without those that only touch case or spacing.
fn texts(answer: &str, alphabet: &[u8], draw: &mut Draw) -> Changes {
    let places: Vec<usize> = answer.char_indices().map(|(at, _)| at).collect();
    let Some(&last) = places.last() else { return Vec::new() };
    let at = *draw.pick(&places);
    let new = char::from(*draw.pick(alphabet));
    let mut changes: Changes = vec![
        ("character replaced", insert(&remove(answer, at), at, new)),
        ("character dropped", remove(answer, at)),
        ("character added", insert(answer, at, new)),
        ("character appended", format!("{answer}{new}")),
        ("last character dropped", remove(answer, last)),
        ("reversed", answer.chars().rev().collect()),
    ];
    changes.extend(places.windows(2).map(|two| ("neighbours swapped", swap(answer, two[0], two[1]))));
    let core = |text: &str| -> String { text.split_whitespace().collect::<String>().to_lowercase() };
    changes.retain(|(_, text)| core(text) != core(answer));
    changes
}

fn other_letters(answer: &str, n: usize) -> Changes {
    let bare = answer.trim_matches(['(', ')', '.', ' ']);
    let letters = (0..n).map(|index| letter_of(index).to_string());
    letters.filter(|letter| !letter.eq_ignore_ascii_case(bare)).map(|letter| ("other letter", letter)).collect()
}

fn other_labels(answer: &str, labels: &[String]) -> Changes {
    let other = |label: &&String| label.trim().to_lowercase() != answer.trim().to_lowercase();
    labels.iter().filter(other).map(|label| ("other label", label.clone())).collect()
}

fn with_digit(text: &str, at: usize, change: impl Fn(u8) -> u8) -> String {
    let digit = text.as_bytes()[at] - b'0';
    format!("{}{}{}", &text[..at], change(digit), &text[at + 1..])
}

fn insert(text: &str, at: usize, new: char) -> String {
    format!("{}{new}{}", &text[..at], &text[at..])
}

fn remove(text: &str, at: usize) -> String {
    let mut text = text.to_owned();
    text.remove(at);
    text
}

/// The characters that begin at two places, exchanged.
fn swap(text: &str, a: usize, b: usize) -> String {
    let (first, second) = (text[a..].chars().next(), text[b..].chars().next());
    let mut out = String::with_capacity(text.len());
    for (at, letter) in text.char_indices() {
        let other = if at == a {
            second
        } else if at == b {
            first
        } else {
            None
        };
        out.push(other.unwrap_or(letter));
    }
    out
}
