//! String rewriting and small word problems.

use std::fmt::Write as _;

use super::Problem;
use super::family::Size;
use super::logic::Step;
use crate::Form;
use crate::draw::Draw;

/// Rules for some letters of a small alphabet; the others stay. Rules never feed each other: their right sides are
/// letters that no word has.
pub(super) fn rewriting(draw: &mut Draw, size: Size) -> Problem {
    let (length, rules) = (size.draw(draw), size.draw_extra(draw));
    let mut letters = vec!['a', 'b', 'c', 'd', 'e', 'f'];
    draw.shuffle(&mut letters);
    letters.truncate(rules + 1);
    letters[..rules].sort_unstable();
    let targets: Vec<String> = (0..rules).map(|_| target(draw)).collect();
    let mut word: Vec<char> = (0..length).map(|_| *draw.pick(&letters)).collect();
    if !word.iter().any(|letter| letters[..rules].contains(letter)) {
        word[0] = letters[0];
    }
    let becomes = |letter: char| {
        let rule = letters[..rules].iter().position(|&left| left == letter);
        rule.map_or_else(|| letter.to_string(), |rule| targets[rule].clone())
    };
    let given: Vec<String> = letters.iter().zip(&targets).map(|(left, right)| format!("{left}->{right}")).collect();
    let steps: Vec<String> = word.iter().map(|&letter| format!("{letter}:{}", becomes(letter))).collect();
    let prompt = format!("{}: {}", given.join(" "), word.iter().collect::<String>());
    Problem {
        canonical: prompt.clone(),
        prompt,
        answer: word.iter().map(|&letter| becomes(letter)).collect(),
        work: steps.join(" "),
        form: Form::Letters {},
    }
}

/// One or two letters from the end of the alphabet.
fn target(draw: &mut Draw) -> String {
    (0..draw.between(1, 2)).map(|_| *draw.pick(&['w', 'x', 'y', 'z'])).collect()
}

const NAMES: [&str; 8] = ["Ann", "Bob", "Cy", "Dee", "Eve", "Finn", "Gus", "Hal"];
const THINGS: [&str; 8] = ["pens", "cups", "eggs", "keys", "figs", "coins", "nuts", "cards"];

/// Two kinds of story over the same steps: one person's things that change, or each person's by the one before.
/// The canonical text is the calculation, so a test problem is not a train problem with other names.
pub(super) fn word_problems(draw: &mut Draw, size: Size) -> Problem {
    let first = draw.between(2, 20);
    let (mut value, mut steps, mut work, mut canonical) = (first, Vec::new(), Vec::new(), first.to_string());
    for _ in 0..size.draw(draw) {
        let step = Step::draw(draw, value);
        let next = step.apply(value).unwrap_or_default();
        work.push(format!("{}={next}", step.text(value)));
        canonical = step.text(canonical);
        steps.push(step);
        value = next;
    }
    let thing = *draw.pick(&THINGS);
    let prompt =
        if draw.one_in(2) { changes(draw, first, thing, &steps) } else { relations(draw, first, thing, &steps) };
    Problem { prompt, canonical, answer: value.to_string(), work: work.join(" "), form: Form::Integer {} }
}

/// `Ann has 5 pens, buys 3, loses 2. How many?`
fn changes(draw: &mut Draw, first: u64, thing: &str, steps: &[Step]) -> String {
    let mut story = format!("{} has {first} {thing}", draw.pick(&NAMES));
    for step in steps {
        let _ = match step {
            Step::Add(n) => write!(story, ", {} {n}", draw.pick(&["buys", "finds", "gets"])),
            Step::Subtract(n) => write!(story, ", {} {n}", draw.pick(&["sells", "loses", "uses"])),
            Step::Times(2) => write!(story, ", doubles them"),
            Step::Times(_) => write!(story, ", triples them"),
        };
    }
    format!("{story}. How many?")
}

/// `Ann has 5 pens, Bob 3 more, Cy double. Cy has?`
fn relations(draw: &mut Draw, first: u64, thing: &str, steps: &[Step]) -> String {
    let mut names = NAMES;
    draw.shuffle(&mut names);
    let mut story = format!("{} has {first} {thing}", names[0]);
    for (step, name) in steps.iter().zip(&names[1..]) {
        let _ = match step {
            Step::Add(n) => write!(story, ", {name} {n} more"),
            Step::Subtract(n) => write!(story, ", {name} {n} less"),
            Step::Times(2) => write!(story, ", {name} double"),
            Step::Times(_) => write!(story, ", {name} triple"),
        };
    }
    format!("{story}. {} has?", names[steps.len()])
}
