//! Training on what the text has said before.

use std::collections::BTreeSet;

use temper_data::{Dropped, Encoded, Report};

/// Takes the weight of every token that is in no stretch of `min_tokens` or more that already occurs before it, wholly to the
/// left. Rows without such a stretch are dropped, and the report counts them.
pub fn copied_spans(rows: &mut Vec<(String, Encoded)>, report: &mut Report, min_tokens: usize) {
    let mut gone = Dropped { why: format!("no {min_tokens} tokens are a copy of earlier ones"), ..Dropped::default() };
    report.supervised_tokens = 0;
    rows.retain_mut(|(id, row)| {
        let copied = copies(&row.ids, min_tokens);
        row.weights.iter_mut().zip(&copied).filter(|(_, c)| !**c).for_each(|(w, _)| *w = 0.0);
        let kept = row.supervised();
        report.supervised_tokens += kept;
        if kept == 0 {
            (report.kept, report.tokens) = (report.kept - 1, report.tokens - row.ids.len());
            gone.count += 1;
            if gone.first.len() < 5 {
                gone.first.push(id.clone());
            }
        }
        kept > 0
    });
    if gone.count > 0 {
        report.dropped.insert("nothing_copied".into(), gone);
    }
}

/// Which tokens are part of a window of `n` that occurs earlier without overlap.
fn copies(ids: &[u32], n: usize) -> Vec<bool> {
    let mut copied = vec![false; ids.len()];
    let mut seen = BTreeSet::new();
    for start in 0..(ids.len() + 1).saturating_sub(n) {
        if start >= n {
            seen.insert(&ids[start - n..start]);
        }
        if seen.contains(&ids[start..start + n]) {
            copied[start..start + n].fill(true);
        }
    }
    copied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_lie_wholly_before() {
        assert_eq!(copies(&[1, 2, 9, 1, 2, 9, 5], 2), [false, false, false, true, true, true, false]);
        assert_eq!(copies(&[7, 7, 7, 7], 2), [false, false, true, true]);
        assert_eq!(copies(&[1, 1], 3), [false, false]);
    }

    #[test]
    fn rows_without_a_copy_are_counted() {
        let row = |ids: &[u32]| Encoded { ids: ids.to_vec(), weights: vec![1.0; ids.len()], ..Encoded::default() };
        let mut rows = vec![("a".to_string(), row(&[1, 2, 1, 2])), ("b".to_string(), row(&[1, 2, 3]))];
        let mut report = Report { rows: 2, kept: 2, tokens: 7, supervised_tokens: 7, ..Report::default() };
        copied_spans(&mut rows, &mut report, 2);
        assert_eq!((rows.len(), rows[0].1.weights.as_slice()), (1, &[0.0, 0.0, 1.0, 1.0][..]));
        assert_eq!((report.kept, report.tokens, report.supervised_tokens, report.dropped_rows()), (1, 4, 2, 1));
    }
}
