//! Steps of a text: where they end, and whether they are those of a worked solution.

use std::ops::Range;

/// The pieces of a text between separators, empty ones left out; with an empty separator every character is a piece.
///
/// ```
/// use temper_env::steps;
/// assert_eq!(steps("a=5  b=7 => 7", " "), [0..3, 5..8, 9..11, 12..13]);
/// assert_eq!(steps("16", ""), [0..1, 1..2]);
/// ```
pub fn steps(text: &str, separator: &str) -> Vec<Range<usize>> {
    if separator.is_empty() {
        return text.char_indices().map(|(at, c)| at..at + c.len_utf8()).collect();
    }
    let mut start = 0;
    let pieces = text.split(separator).map(|piece| {
        let range = start..start + piece.len();
        start = range.end + separator.len();
        range
    });
    pieces.filter(|piece| !piece.is_empty()).collect()
}

/// Whether each step of a text is, up to surrounding spaces, the step at the same place of a solution; what goes on beyond the
/// solution is not.
///
/// ```
/// use temper_env::right_steps;
/// assert_eq!(right_steps("a=5 b=6 => 6 ?", "a=5 b=7 => 7", " "), [true, false, true, false, false]);
/// ```
pub fn right_steps(text: &str, solution: &str, separator: &str) -> Vec<bool> {
    let mut right = steps(solution, separator).into_iter();
    let same = |step: Range<usize>| right.next().is_some_and(|at| solution[at].trim() == text[step].trim());
    steps(text, separator).into_iter().map(same).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_of_any_length_and_kind() {
        assert_eq!(steps("\n\none\n\ntwo", "\n\n"), [2..5, 7..10]);
        assert!(steps("", " ").is_empty() && steps("", "").is_empty() && steps("  ", " ").is_empty());
        assert_eq!(steps("öä", ""), [0..2, 2..4]);
        assert!(right_steps("a", "", " ").iter().all(|r| !r));
    }
}
