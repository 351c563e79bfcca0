//! Rewards that compare the rollouts of a group: majorities and diversity.

/// Self-consistency: 1 for the rollouts that give the most frequent answer of the group (of equally frequent ones the one that came
/// first), 0 for the others. `answers` `[G]`, `None` where there is no answer, which never wins. Source: MM-UPT, arXiv 2505.22453
/// (B030); TTRL, arXiv 2504.16084.
pub fn majority_rewards<T: PartialEq>(answers: &[Option<T>]) -> Vec<f64> {
    let count = |answer: &T| answers.iter().flatten().filter(|a| *a == answer).count();
    let mut winner: Option<(&T, usize)> = None;
    for answer in answers.iter().flatten() {
        let n = count(answer);
        if winner.is_none_or(|(_, most)| n > most) {
            winner = Some((answer, n));
        }
    }
    let wins = |a: &Option<T>| a.as_ref().is_some_and(|a| winner.is_some_and(|(w, _)| a == w));
    answers.iter().map(|a| f64::from(u8::from(wins(a)))).collect()
}

/// Quality times diversity: each reward is multiplied by the share of the other counted rollouts that say something else,
/// `max(floor, (n - size of its class) / (n - 1))`. `classes` `[G]`: equal numbers for equivalent rollouts, `None` for one that is not
/// compared (a wrong answer of a verifiable task) and keeps its reward. Source: DARLING, arXiv 2509.02534, section 3.2 (B128);
/// released floor 0.1.
pub fn diversity_rewards<T: PartialEq>(rewards: &[f64], classes: &[Option<T>], floor: f64) -> Vec<f64> {
    let n = classes.iter().flatten().count();
    let factor = |class: &Option<T>| match class {
        Some(_) if n > 1 => {
            let same = classes.iter().filter(|c| *c == class).count();
            ((n - same) as f64 / (n - 1) as f64).max(floor)
        }
        _ => 1.0,
    };
    rewards.iter().zip(classes).map(|(r, class)| r * factor(class)).collect()
}
