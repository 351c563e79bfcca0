//! The table of families: what they ask and how each level grows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Problem, lists, logic, numbers, text};
use crate::draw::Draw;

/// A kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// `37+5=`
    Addition,
    /// `82-45=`
    Subtraction,
    /// `larger: 371 or 375?`
    Comparison,
    /// `sort: 5 2 9`
    Sorting,
    /// `reverse: cab`
    Reversing,
    /// `copy: cabd`
    Copying,
    /// `count a: banana`
    Counting,
    /// `37%5=`
    Modular,
    /// `a=3 b=a+4 c=b*2 c?`
    Chains,
    /// `(T and not F) or F=`
    Booleans,
    /// `close: ([{`
    Brackets,
    /// `a->x b->yy: abba`
    Rewriting,
    /// `Ann has 5 pens, buys 3, loses 2. How many?`
    WordProblems,
    /// `pick 2 with sum 12: 3 5 7 8 9`
    Picking,
}

/// What a level sets, with its range at levels 1 to 7 (6 and 7 for tasks out of distribution only).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Axis {
    /// What is counted.
    pub what: &'static str,
    /// Lowest and highest value, by level.
    pub by_level: [(u64, u64); 7],
}

/// One row of the table of families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FamilyInfo {
    /// The family.
    pub family: Family,
    /// What is asked and what the answer looks like.
    pub about: &'static str,
    /// How the worked steps go.
    pub steps: &'static str,
    /// What grows with the level.
    pub size: Axis,
    /// What else does.
    pub extra: Option<Axis>,
}

/// The ranges of one cell.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(super) main: (u64, u64),
    pub(super) extra: (u64, u64),
}

impl Size {
    pub(super) fn of(family: Family, level: u8) -> Self {
        let (row, at) = (family.info(), usize::from(level) - 1);
        Self { main: row.size.by_level[at], extra: row.extra.map_or((0, 0), |axis| axis.by_level[at]) }
    }

    pub(super) fn draw(self, draw: &mut Draw) -> usize {
        draw.between(self.main.0, self.main.1) as usize
    }

    pub(super) fn draw_extra(self, draw: &mut Draw) -> usize {
        draw.between(self.extra.0, self.extra.1) as usize
    }
}

const fn axis(what: &'static str, by_level: [(u64, u64); 7]) -> Axis {
    Axis { what, by_level }
}

/// `[n; n+6]`, one value a level.
const fn from(first: u64) -> [(u64, u64); 7] {
    let mut by_level = [(0, 0); 7];
    let mut at = 0;
    while at < 7 {
        by_level[at] = (first + at as u64, first + at as u64);
        at += 1;
    }
    by_level
}

const DIGITS: [(u64, u64); 7] = [(1, 2), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7)];

#[rustfmt::skip]
static TABLE: [FamilyInfo; 14] = [
    FamilyInfo { family: Family::Addition, about: "the sum of two numbers", steps: "one column a step, from the right, with the carry",
        size: axis("digits of one number", DIGITS), extra: Some(axis("digits of the other", from(1))) },
    FamilyInfo { family: Family::Subtraction, about: "the difference of two numbers, never negative", steps: "one column a step, from the right, ten borrowed where needed",
        size: axis("digits of the larger number", DIGITS), extra: Some(axis("digits of the smaller", from(1))) },
    FamilyInfo { family: Family::Comparison, about: "the larger of two different numbers", steps: "digit against digit, from the left, until they differ",
        size: axis("digits", from(2)), extra: Some(axis("leading digits that are equal, at least", [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7)])) },
    FamilyInfo { family: Family::Sorting, about: "digits in ascending order", steps: "the sorted list after each insertion",
        size: axis("digits in the list", from(3)), extra: None },
    FamilyInfo { family: Family::Reversing, about: "a word backwards", steps: "the letters numbered, then read from the last to the first",
        size: axis("letters", [(3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)]), extra: None },
    FamilyInfo { family: Family::Copying, about: "a word again", steps: "the letters numbered",
        size: axis("letters", [(4, 6), (7, 9), (10, 13), (14, 17), (18, 22), (23, 27), (28, 32)]), extra: None },
    FamilyInfo { family: Family::Counting, about: "how often a letter occurs in a word", steps: "the count after each letter",
        size: axis("letters", [(4, 5), (6, 8), (9, 12), (13, 16), (17, 20), (21, 26), (27, 32)]), extra: None },
    FamilyInfo { family: Family::Modular, about: "the remainder of a division", steps: "the remainder after each digit, from the left",
        size: axis("digits of the dividend", DIGITS), extra: Some(axis("divisor", [(2, 5), (2, 9), (2, 9), (2, 12), (2, 19), (2, 29), (2, 49)])) },
    FamilyInfo { family: Family::Chains, about: "the value of the last of several variables, each defined by the one before", steps: "each variable's value in turn",
        size: axis("definitions after the first", from(1)), extra: None },
    FamilyInfo { family: Family::Booleans, about: "the value (T or F) of an expression of and, or, not", steps: "each operation's value, innermost first",
        size: axis("operators and, or", from(2)), extra: None },
    FamilyInfo { family: Family::Brackets, about: "the brackets that close what is open, innermost first", steps: "what is open after each bracket",
        size: axis("brackets", [(3, 4), (5, 6), (7, 9), (10, 13), (14, 18), (19, 23), (24, 28)]), extra: None },
    FamilyInfo { family: Family::Rewriting, about: "a word with each letter replaced by its rule, all at once", steps: "each letter with what it becomes",
        size: axis("letters", [(3, 4), (5, 6), (7, 8), (9, 11), (12, 14), (15, 17), (18, 20)]), extra: Some(axis("rules", [(1, 1), (2, 2), (2, 2), (3, 3), (3, 3), (4, 4), (4, 4)])) },
    FamilyInfo { family: Family::WordProblems, about: "how many things someone has in the end", steps: "one calculation for each event",
        size: axis("events", from(1)), extra: None },
    FamilyInfo { family: Family::Picking, about: "some of the numbers that add up to a given sum (any that do are right)", steps: "sums tried in order until one fits",
        size: axis("numbers", [(3, 3), (4, 4), (5, 5), (6, 6), (6, 7), (7, 7), (8, 8)]), extra: Some(axis("numbers to pick", [(2, 2), (2, 2), (2, 2), (2, 2), (3, 3), (3, 3), (3, 3)])) },
];

impl Family {
    /// Every family, in the order of the table.
    pub const ALL: [Self; 14] = [
        Self::Addition,
        Self::Subtraction,
        Self::Comparison,
        Self::Sorting,
        Self::Reversing,
        Self::Copying,
        Self::Counting,
        Self::Modular,
        Self::Chains,
        Self::Booleans,
        Self::Brackets,
        Self::Rewriting,
        Self::WordProblems,
        Self::Picking,
    ];

    /// The row of the table: what is asked, and what each level sets.
    pub fn info(self) -> &'static FamilyInfo {
        &TABLE[self as usize]
    }

    /// As recipes spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Addition => "addition",
            Self::Subtraction => "subtraction",
            Self::Comparison => "comparison",
            Self::Sorting => "sorting",
            Self::Reversing => "reversing",
            Self::Copying => "copying",
            Self::Counting => "counting",
            Self::Modular => "modular",
            Self::Chains => "chains",
            Self::Booleans => "booleans",
            Self::Brackets => "brackets",
            Self::Rewriting => "rewriting",
            Self::WordProblems => "word_problems",
            Self::Picking => "picking",
        }
    }

    pub(super) fn problem(self, draw: &mut Draw, size: Size) -> Problem {
        match self {
            Self::Addition => numbers::addition(draw, size),
            Self::Subtraction => numbers::subtraction(draw, size),
            Self::Comparison => numbers::comparison(draw, size),
            Self::Sorting => lists::sorting(draw, size),
            Self::Reversing => lists::reversing(draw, size),
            Self::Copying => lists::copying(draw, size),
            Self::Counting => lists::counting(draw, size),
            Self::Modular => numbers::modular(draw, size),
            Self::Chains => logic::chains(draw, size),
            Self::Booleans => logic::booleans(draw, size),
            Self::Brackets => logic::brackets(draw, size),
            Self::Rewriting => text::rewriting(draw, size),
            Self::WordProblems => text::word_problems(draw, size),
            Self::Picking => numbers::picking(draw, size),
        }
    }
}

impl std::str::FromStr for Family {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|family| family.name() == name).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|family| family.name()).collect();
            format!("unknown family `{name}`, expected one of {}", known.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_grows() {
        for (row, family) in TABLE.iter().zip(Family::ALL) {
            assert_eq!(row.family, family);
            assert_eq!(serde_json::to_value(family).unwrap(), family.name());
            assert_eq!(family.name().parse::<Family>(), Ok(family));
            for pair in row.size.by_level.windows(2) {
                assert!(pair[0].1 <= pair[1].1 && pair[0].0 < pair[1].1, "{family:?}");
            }
        }
        assert!("sums".parse::<Family>().unwrap_err().contains("addition"));
    }
}
