//! The reasoning pattern reward: phrases found, less what is said again and again.

use std::collections::BTreeMap;

/// `max(0, min(1, found / full) - repetition)`.
pub(super) fn pattern(text: &str, phrases: &[String], full: usize, repeats: usize) -> f64 {
    let text = text.to_lowercase();
    let found = phrases.iter().filter(|phrase| text.contains(&phrase.to_lowercase())).count();
    ((found as f64 / full as f64).min(1.0) - repetition(&text, repeats)).max(0.0)
}

/// Different runs of `n` words that come more than once, over all runs.
fn repetition(text: &str, n: usize) -> f64 {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut counts = BTreeMap::<&[&str], usize>::new();
    words.windows(n).for_each(|run| *counts.entry(run).or_default() += 1);
    let total = words.len().saturating_sub(n - 1);
    counts.values().filter(|count| **count > 1).count() as f64 / total.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let phrases = ["First, ", "therefore", "wait"].map(String::from);
        let of = |text: &str| pattern(text, &phrases, 2, 2);
        assert_eq!(of("first, 2. Therefore 4"), 1.0);
        assert_eq!((of("therefore therefore"), of("4")), (0.5, 0.0));
        // Words a b a b a: the runs ab, ba, ab, ba; two different ones come twice: 2 / 4.
        assert_eq!((repetition("a b a b a", 2), repetition("a b", 3)), (0.5, 0.0));
        assert_eq!((of("wait first, wait first, wait"), of("wait wait wait wait")), (0.5, 0.5 - 1.0 / 3.0));
    }
}
