//! Sorting, reversing, copying and counting.

use super::Problem;
use super::family::Size;
use crate::Form;
use crate::draw::Draw;

fn word(draw: &mut Draw, letters: &[u8], length: usize) -> String {
    (0..length).map(|_| char::from(*draw.pick(letters))).collect()
}

fn numbered(word: &str) -> Vec<String> {
    word.chars().enumerate().map(|(at, letter)| format!("{}{letter}", at + 1)).collect()
}

fn join(digits: &[u64]) -> String {
    digits.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

pub(super) fn sorting(draw: &mut Draw, size: Size) -> Problem {
    let digits: Vec<u64> = (0..size.draw(draw)).map(|_| draw.below(10)).collect();
    let mut sorted = Vec::new();
    let mut steps = Vec::new();
    for &digit in &digits {
        sorted.insert(sorted.partition_point(|&other| other <= digit), digit);
        steps.push(join(&sorted));
    }
    Problem {
        prompt: format!("sort: {}", join(&digits)),
        canonical: join(&sorted),
        answer: join(&sorted),
        work: steps.join(", "),
        form: Form::Integers {},
    }
}

const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";

pub(super) fn reversing(draw: &mut Draw, size: Size) -> Problem {
    let length = size.draw(draw);
    let word = word(draw, LETTERS, length);
    let mut steps = numbered(&word);
    let forward = steps.join(" ");
    steps.reverse();
    Problem {
        prompt: format!("reverse: {word}"),
        answer: word.chars().rev().collect(),
        work: format!("{forward}, {}", steps.join(" ")),
        canonical: word,
        form: Form::Letters {},
    }
}

pub(super) fn copying(draw: &mut Draw, size: Size) -> Problem {
    let length = size.draw(draw);
    let word = word(draw, LETTERS, length);
    Problem {
        prompt: format!("copy: {word}"),
        answer: word.clone(),
        work: numbered(&word).join(" "),
        canonical: word,
        form: Form::Letters {},
    }
}

/// Words over three letters, so that the count is rarely 0.
pub(super) fn counting(draw: &mut Draw, size: Size) -> Problem {
    let length = size.draw(draw);
    let mut letters = b"abcdef".to_vec();
    draw.shuffle(&mut letters);
    letters.truncate(3);
    let (word, wanted) = (word(draw, &letters, length), char::from(letters[0]));
    let mut count = 0;
    let mut steps = Vec::new();
    for letter in word.chars() {
        count += u32::from(letter == wanted);
        steps.push(format!("{letter}{count}"));
    }
    Problem {
        prompt: format!("count {wanted}: {word}"),
        canonical: format!("{wanted} {word}"),
        answer: count.to_string(),
        work: steps.join(" "),
        form: Form::Integer {},
    }
}
