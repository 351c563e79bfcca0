use std::collections::BTreeSet;

use super::*;

fn world(family: Family, level: u8, split: Split) -> TinyWorld {
    TinyWorld::new(&[family], &[level], split, 0, true).unwrap()
}

fn cells() -> impl Iterator<Item = (Family, u8)> {
    Family::ALL.into_iter().flat_map(|family| (1..=7).map(move |level| (family, level)))
}

/// Solves a problem from its prompt alone, by other code than the one that made it.
fn solve(family: Family, prompt: &str) -> String {
    let after = |mark: &str| prompt.split_once(mark).unwrap().1;
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
    };
    let all = numbers(prompt);
    match family {
        Family::Addition => (all[0] + all[1]).to_string(),
        Family::Subtraction => (all[0] - all[1]).to_string(),
        Family::Comparison => all[0].max(all[1]).to_string(),
        Family::Modular => (all[0] % all[1]).to_string(),
        Family::Sorting => {
            let mut words: Vec<&str> = after(": ").split(' ').collect();
            words.sort_unstable();
            words.join(" ")
        }
        Family::Reversing => after(": ").chars().rev().collect(),
        Family::Copying => after(": ").to_owned(),
        Family::Counting => {
            let (letter, word) = after("count ").split_once(": ").unwrap();
            word.matches(letter).count().to_string()
        }
        Family::Chains => solve_chain(prompt),
        Family::Booleans => solve_boolean(prompt.trim_end_matches('=')),
        Family::Brackets => solve_brackets(after(": ")),
        Family::Rewriting => {
            let (rules, word) = prompt.split_once(": ").unwrap();
            let mut word = word.to_owned();
            for rule in rules.split(' ') {
                let (left, right) = rule.split_once("->").unwrap();
                word = word.replace(left, right);
            }
            word
        }
        Family::WordProblems => solve_story(prompt),
        Family::Picking => solve_picking(all[0] as u32, all[1], &all[2..]),
    }
}

fn solve_chain(prompt: &str) -> String {
    let mut value: u64 = 0;
    for definition in prompt.split(' ').filter(|part| part.contains('=')) {
        let right = definition.split_once('=').unwrap().1;
        let n = |text: &str| text.parse::<u64>().unwrap();
        value = match (&right[..1], right.get(1..2)) {
            (_, Some("+")) => value + n(&right[2..]),
            (_, Some("-")) => value - n(&right[2..]),
            (_, Some("*")) => value * n(&right[2..]),
            _ => n(right),
        };
    }
    value.to_string()
}

/// Rewrites the text until one letter is left.
fn solve_boolean(text: &str) -> String {
    let mut text = text.to_owned();
    while text.len() > 1 {
        let before = text.clone();
        for (from, to) in [("not T", "F"), ("not F", "T"), ("(T)", "T"), ("(F)", "F")] {
            text = text.replace(from, to);
        }
        for (a, b) in [("T", "T"), ("T", "F"), ("F", "T"), ("F", "F")] {
            let and = if a == "T" && b == "T" { "T" } else { "F" };
            let or = if a == "T" || b == "T" { "T" } else { "F" };
            for (operation, value) in [(format!("{a} and {b}"), and), (format!("{a} or {b}"), or)] {
                text = text.replace(&format!("({operation})"), value);
                if text == operation {
                    value.clone_into(&mut text);
                }
            }
        }
        assert_ne!(before, text, "stuck");
    }
    text
}

fn solve_brackets(text: &str) -> String {
    let pairs = ["()", "[]", "{}", "<>"];
    let mut text = text.to_owned();
    while pairs.iter().any(|pair| text.contains(pair)) {
        for pair in pairs {
            text = text.replace(pair, "");
        }
    }
    let close = |open: char| pairs.iter().find(|pair| pair.starts_with(open)).unwrap().chars().nth(1).unwrap();
    text.chars().rev().map(close).collect()
}

fn solve_story(prompt: &str) -> String {
    let mut value: u64 = 0;
    for (at, event) in prompt.split(". ").next().unwrap().split(", ").enumerate() {
        let n = event.split(' ').find_map(|word| word.parse::<u64>().ok());
        let has = |words: &[&str]| words.iter().any(|word| event.contains(word));
        value = match n {
            Some(n) if at == 0 => n,
            Some(n) if has(&["buys", "finds", "gets", "more"]) => value + n,
            Some(n) => value - n,
            None if has(&["double"]) => value * 2,
            None => value * 3,
        };
    }
    value.to_string()
}

fn solve_picking(count: u32, sum: u64, numbers: &[u64]) -> String {
    let chosen =
        |mask: u32| numbers.iter().enumerate().filter(move |(at, _)| mask >> at & 1 == 1).map(|(_, &number)| number);
    let fits = |mask: &u32| mask.count_ones() == count && chosen(*mask).sum::<u64>() == sum;
    let mask = (0..1 << numbers.len()).find(fits).unwrap();
    chosen(mask).map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn an_independent_solver_agrees() {
    for (family, level) in cells() {
        for split in [Split::Train, Split::Test] {
            for index in 0..40 {
                let mut cell = world(family, 1, split);
                cell.levels = vec![level];
                let task = cell.task(index);
                let solved = solve(family, &task.prompt[0].content);
                let verdict = task.verifier.verify(&task.answer, &solved).unwrap();
                assert!(verdict.is_right(), "{} {solved}", serde_json::to_string(&task).unwrap());
                let shown = task.demonstration.as_ref().unwrap();
                assert!(task.verifier.verify(&task.answer, shown).unwrap().is_right(), "{shown}");
                assert!(shown.is_ascii() && task.prompt[0].content.is_ascii());
                assert_eq!(shown.matches(MARK).count(), 1);
                assert!(!task.prompt[0].content.contains(MARK) && !task.answer.contains(MARK));
            }
        }
    }
}

/// The canonical texts of a cell's first problems.
fn canonical(seed: u64, family: Family, level: u8, split: Split, n: u64) -> BTreeSet<String> {
    (0..n).map(|index| problem(seed, split, family, level, index).canonical).collect()
}

#[test]
fn train_and_test_are_disjoint_over_seeds_levels_and_splits() {
    for family in Family::ALL {
        let mut train = BTreeSet::new();
        let mut held = BTreeSet::new();
        for level in 1..=7 {
            for seed in 0..3 {
                train.extend(canonical(seed, family, level, Split::Train, 60));
                held.extend(canonical(seed + 1, family, level, Split::Test, 20));
                held.extend(canonical(seed, family, level, Split::Ood, 20));
            }
        }
        assert!(train.is_disjoint(&held), "{family:?}");
    }
}

#[test]
fn the_order_of_a_sum_does_not_matter() {
    for index in 0..200 {
        let one = problem(0, Split::Train, Family::Addition, 1, index);
        let (a, b) = one.prompt.trim_end_matches('=').split_once('+').unwrap();
        let (a, b): (u64, u64) = (a.parse().unwrap(), b.parse().unwrap());
        assert_eq!(one.canonical, format!("{}+{}", a.min(b), a.max(b)));
    }
}

#[test]
fn every_cell_has_many_problems_on_both_sides() {
    for (family, level) in cells() {
        for (split, least) in [(Split::Train, 100), (Split::Test, 10)] {
            let found = canonical(0, family, level, split, 600).len();
            assert!(found >= least, "{family:?} level {level} {split:?}: {found}");
        }
    }
}

#[test]
fn levels_get_longer() {
    for family in Family::ALL {
        let length = |level: u8| -> usize {
            (0..60)
                .map(|index| problem(0, Split::Train, family, level, index))
                .map(|one| one.prompt.len() + one.work.len())
                .sum()
        };
        let lengths: Vec<usize> = (1..=7).map(length).collect();
        assert!(lengths.windows(2).all(|pair| pair[0] < pair[1]), "{family:?}: {lengths:?}");
    }
}

#[test]
fn prompts_are_short() {
    for (family, level) in cells().filter(|&(_, level)| level <= 5) {
        let limit = if level <= 3 { 68 } else { 112 };
        for index in 0..60 {
            let one = problem(0, Split::Train, family, level, index);
            assert!(one.prompt.len() + one.answer.len() <= limit, "{} {}", one.prompt, one.answer);
        }
    }
}

/// Truth values are balanced; no other family can be guessed half of the time.
#[test]
fn answers_cannot_be_guessed() {
    for (family, level) in cells() {
        let mut answers: Vec<String> =
            (0..400).map(|index| problem(0, Split::Train, family, level, index).answer).collect();
        answers.sort_unstable();
        let most = answers.chunk_by(|a, b| a == b).map(<[String]>::len).max().unwrap();
        assert!(most <= 240, "{family:?} level {level}: {most} of 400 answers are equal");
    }
}

#[test]
fn tasks_are_pinned() {
    let mut digests = Vec::new();
    for family in Family::ALL {
        let mut text = String::new();
        for level in 1..=5 {
            for split in Split::ALL {
                let world = TinyWorld::new(&[family], &[level], split, 7, true).unwrap();
                (0..8).for_each(|index| text.push_str(&serde_json::to_string(&world.task(index)).unwrap()));
            }
        }
        digests.push(format!("{} {:016x}", family.name(), hash_text(&text)));
    }
    assert_eq!(digests, PINNED, "tasks changed: models, runs and claims that used the tiny world no longer compare");
}

const PINNED: [&str; 14] = [
    "addition 3bbc42c5be409b2f",
    "subtraction 47e7b78d2fe218ff",
    "comparison 88458a115c5ee303",
    "sorting ca19c51768c3c762",
    "reversing dd9101bf817ead2c",
    "copying 2ec8616139493cda",
    "counting 9851d3a4454b1af5",
    "modular f5339ea8782dfefb",
    "chains e43f7ea31ef4ca06",
    "booleans 03b3c8308b039cfd",
    "brackets ce9f01b2b8031f46",
    "rewriting 9ee3d3b56a34721e",
    "word_problems 26d2f93885fcf0ed",
    "picking f68c16050720e564",
];

#[test]
fn order_is_balanced_and_ood_is_above() {
    let world = TinyWorld::new(&[Family::Chains, Family::Copying], &[1, 3], Split::Train, 0, false).unwrap();
    let cells: Vec<String> = (0..5).map(|index| world.task(index).id).collect();
    let expected = [
        "chains/L1/train/s0/0",
        "copying/L1/train/s0/0",
        "chains/L3/train/s0/0",
        "copying/L3/train/s0/0",
        "chains/L1/train/s0/1",
    ];
    assert_eq!(cells, expected);
    let ood = TinyWorld::new(&[Family::Chains], &[1, 3], Split::Ood, 0, false).unwrap();
    assert_eq!(ood.levels(), [4, 5]);
    assert_eq!(ood.task(0).tag("level"), Some("4"));
    assert_eq!(world.task(0).demonstration.unwrap(), world.task(0).answer);
    let cot = TinyWorld::new(&[Family::Chains], &[1], Split::Train, 0, true).unwrap();
    assert_eq!(cot.task(0).prompt, world.task(0).prompt);
    assert_ne!(cot.task(0).demonstration, world.task(0).demonstration);
}

#[test]
fn nonsense_is_refused() {
    for (families, levels) in [(vec![], vec![1]), (vec![Family::Chains], vec![]), (vec![Family::Chains; 2], vec![1])] {
        assert!(TinyWorld::new(&families, &levels, Split::Train, 0, false).is_err());
    }
    for level in [0, 6, 255] {
        assert!(TinyWorld::new(&[Family::Chains], &[level], Split::Ood, 0, false).is_err());
    }
}
