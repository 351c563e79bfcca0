//! Chains of variables, boolean expressions and brackets.

use std::fmt::Write as _;

use super::Problem;
use super::family::Size;
use crate::Form;
use crate::draw::Draw;

/// Values stay within two digits, so that a longer chain is more of the same steps and not harder ones.
const LARGEST: u64 = 99;

/// One step of a chain or of a story: what is done to the value so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Add(u64),
    Subtract(u64),
    Times(u64),
}

impl Step {
    /// A step that keeps the value within `0..=99`: add or subtract 1 to 9, or times 2 or 3.
    pub(super) fn draw(draw: &mut Draw, value: u64) -> Self {
        loop {
            let step = match draw.below(3) {
                0 => Self::Add(draw.between(1, 9)),
                1 => Self::Subtract(draw.between(1, 9)),
                _ => Self::Times(draw.between(2, 3)),
            };
            if step.apply(value).is_some_and(|next| next <= LARGEST) {
                return step;
            }
        }
    }

    pub(super) fn apply(self, value: u64) -> Option<u64> {
        match self {
            Self::Add(n) => Some(value + n),
            Self::Subtract(n) => value.checked_sub(n),
            Self::Times(n) => Some(value * n),
        }
    }

    /// `a+4`, `7*2` ...
    pub(super) fn text(self, left: impl std::fmt::Display) -> String {
        match self {
            Self::Add(n) => format!("{left}+{n}"),
            Self::Subtract(n) => format!("{left}-{n}"),
            Self::Times(n) => format!("{left}*{n}"),
        }
    }
}

pub(super) fn chains(draw: &mut Draw, size: Size) -> Problem {
    let mut value = draw.between(1, 20);
    let mut name = 'a';
    let mut given = format!("a={value}");
    let mut work = given.clone();
    for _ in 0..size.draw(draw) {
        let step = Step::draw(draw, value);
        let next = char::from(name as u8 + 1);
        let _ = write!(given, " {next}={}", step.text(name));
        let sum = step.text(value);
        value = step.apply(value).unwrap_or_default();
        let _ = write!(work, " {next}={sum}={value}");
        name = next;
    }
    Problem {
        prompt: format!("{given} {name}?"),
        canonical: given,
        answer: value.to_string(),
        work,
        form: Form::Integer {},
    }
}

enum Expr {
    Leaf { value: bool, negated: bool },
    Node { and: bool, negated: bool, left: Box<Expr>, right: Box<Expr> },
}

impl Expr {
    fn draw(draw: &mut Draw, operators: usize) -> Self {
        if operators == 0 {
            return Self::Leaf { value: draw.one_in(2), negated: draw.one_in(4) };
        }
        let left = draw.below(operators as u64) as usize;
        Self::Node {
            and: draw.one_in(2),
            negated: operators > 1 && draw.one_in(8),
            left: Box::new(Self::draw(draw, left)),
            right: Box::new(Self::draw(draw, operators - 1 - left)),
        }
    }

    fn value(&self) -> bool {
        match self {
            Self::Leaf { value, negated } => value ^ negated,
            Self::Node { and: true, negated, left, right } => (left.value() && right.value()) ^ negated,
            Self::Node { and: false, negated, left, right } => (left.value() || right.value()) ^ negated,
        }
    }

    /// As an operand; an operation gets parentheses.
    fn text(&self) -> String {
        match self {
            Self::Leaf { value, negated } => format!("{}{}", not(*negated), truth(*value)),
            Self::Node { negated, .. } => format!("{}({})", not(*negated), self.operation(Self::text)),
        }
    }

    /// The two operands, written by `show`, and the operator between.
    fn operation(&self, show: fn(&Self) -> String) -> String {
        match self {
            Self::Leaf { .. } => self.text(),
            Self::Node { and, left, right, .. } => {
                format!("{} {} {}", show(left), if *and { "and" } else { "or" }, show(right))
            }
        }
    }

    /// A leaf as it stands, an operation by its value.
    fn reduced(&self) -> String {
        match self {
            Self::Leaf { .. } => self.text(),
            Self::Node { .. } => truth(self.value()).to_owned(),
        }
    }

    fn steps(&self, steps: &mut Vec<String>) {
        if let Self::Node { negated, left, right, .. } = self {
            left.steps(steps);
            right.steps(steps);
            let inside = self.value() ^ negated;
            steps.push(format!("{}={}", self.operation(Self::reduced), truth(inside)));
            if *negated {
                steps.push(format!("not {}={}", truth(inside), truth(!inside)));
            }
        }
    }
}

fn not(negated: bool) -> &'static str {
    if negated { "not " } else { "" }
}

fn truth(value: bool) -> &'static str {
    if value { "T" } else { "F" }
}

/// Half of the answers are T.
pub(super) fn booleans(draw: &mut Draw, size: Size) -> Problem {
    let operators = size.draw(draw);
    let wanted = draw.one_in(2);
    let expr = loop {
        let expr = Expr::draw(draw, operators);
        if expr.value() == wanted {
            break expr;
        }
    };
    let text = match &expr {
        Expr::Node { negated: false, .. } => expr.operation(Expr::text),
        _ => expr.text(),
    };
    let mut steps = Vec::new();
    expr.steps(&mut steps);
    Problem {
        prompt: format!("{text}="),
        canonical: text,
        answer: truth(wanted).to_owned(),
        work: steps.join(", "),
        form: Form::Truth {},
    }
}

const OPENING: [char; 4] = ['(', '[', '{', '<'];

fn closing(open: char) -> char {
    match open {
        '(' => ')',
        '[' => ']',
        '{' => '}',
        _ => '>',
    }
}

/// Opens with probability 3/5, and always when nothing is open; at least one bracket is left open.
pub(super) fn brackets(draw: &mut Draw, size: Size) -> Problem {
    let length = size.draw(draw);
    let (mut text, mut open, mut steps) = (String::new(), Vec::new(), Vec::new());
    for place in 0..length {
        let must_open = open.is_empty() || (open.len() == 1 && place + 1 == length);
        if must_open || draw.below(5) < 3 {
            open.push(*draw.pick(&OPENING));
            text.extend(open.last());
        } else {
            text.extend(open.pop().map(closing));
        }
        steps.push(if open.is_empty() { "-".to_owned() } else { open.iter().collect() });
    }
    Problem {
        prompt: format!("close: {text}"),
        canonical: text,
        answer: open.into_iter().rev().map(closing).collect(),
        work: steps.join(" "),
        form: Form::Brackets {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(and: bool, negated: bool, left: Expr, right: Expr) -> Expr {
        Expr::Node { and, negated, left: Box::new(left), right: Box::new(right) }
    }

    #[test]
    fn boolean_steps() {
        let leaf = |value, negated| Expr::Leaf { value, negated };
        let expr = node(false, false, node(true, true, leaf(true, false), leaf(false, true)), leaf(true, false));
        assert_eq!(expr.operation(Expr::text), "not (T and not F) or T");
        assert!(expr.value());
        let mut steps = Vec::new();
        expr.steps(&mut steps);
        assert_eq!(steps, ["T and not F=T", "not T=F", "F or T=T"]);
    }

    #[test]
    fn steps_of_a_chain() {
        assert_eq!(Step::Add(4).text('a'), "a+4");
        assert_eq!(Step::Subtract(4).apply(3), None);
        assert_eq!(Step::Times(3).apply(7), Some(21));
    }
}
