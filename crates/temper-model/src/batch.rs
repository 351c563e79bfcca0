//! Batches: sequences laid end to end as segments, and which rows predict which scored tokens.

use crate::error::{Error, Result};
use std::sync::Arc;
use temper_tensor::{Segment, Segments};

/// N rows of token ids in segments, and M scored tokens. Rows that predict nothing scored, and that nothing scored
/// attends to, are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `[N]`.
    pub ids: Vec<u32>,
    /// Which rows attend to which.
    pub segments: Arc<Segments>,
    /// The row whose hidden state predicts each scored token, `[M]`.
    pub src: Vec<u32>,
    /// The scored tokens, `[M]`, sequence by sequence in the order given.
    pub tgt: Vec<u32>,
}

/// A sequence and what its tokens count.
#[derive(Debug, Clone, Copy)]
pub struct ScoredSequence<'a> {
    /// Token ids, `[T]`.
    pub ids: &'a [u32],
    /// Weight of each token as a prediction from those before it, `[T]`; tokens of weight 0 are not scored. The first
    /// token is never scored, because nothing comes before it.
    pub scored: &'a [f64],
}

/// A completion of a group's prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Token ids, `[T]`.
    pub ids: &'a [u32],
    /// Which of them are scored, `[T]`.
    pub scored: Vec<bool>,
}

impl<'a> Reply<'a> {
    /// A completion whose tokens are all scored.
    pub fn whole(ids: &'a [u32]) -> Self {
        Self { ids, scored: vec![true; ids.len()] }
    }
}

impl Batch {
    /// Independent sequences, packed without seeing each other. Returns the batch and the weights of its M scored
    /// tokens.
    ///
    /// # Errors
    /// A sequence with more or fewer weights than tokens.
    pub fn sequences(sequences: &[ScoredSequence<'_>]) -> Result<(Self, Vec<f64>)> {
        let mut layout = Layout::default();
        let mut weights = Vec::new();
        for s in sequences {
            if s.ids.len() != s.scored.len() {
                let count = (s.scored.len(), s.ids.len());
                return Err(temper_tensor::Error::Count {
                    op: "batch",
                    what: "weights",
                    got: count.0,
                    expected: count.1,
                }
                .into());
            }
            let scored = || (1..s.ids.len()).filter(|&t| s.scored[t] != 0.0);
            // Row t predicts token t + 1, so the last scored token's own row is not needed.
            let rows = scored().next_back().unwrap_or(0);
            let start = layout.segment(&s.ids[..rows], None);
            scored().for_each(|t| layout.score(start + t - 1, s.ids[t]));
            weights.extend(scored().map(|t| s.scored[t]));
        }
        Ok((layout.batch()?, weights))
    }

    /// Groups of completions that share their prompt: each prompt is computed once. All tokens of the completions are
    /// scored, group by group; the first token of each is predicted by the prompt's last row.
    ///
    /// # Errors
    /// An empty prompt.
    pub fn groups(groups: &[(&[u32], Vec<&[u32]>)]) -> Result<Self> {
        let mut replies = Vec::with_capacity(groups.len());
        for (prompt, completions) in groups {
            replies.push((*prompt, completions.iter().map(|c| Reply::whole(c)).collect()));
        }
        Self::replies(&replies)
    }

    /// The same where only some tokens of a completion are scored: several turns with an environment's words between them.
    ///
    /// # Errors
    /// An empty prompt, and a completion with more or fewer marks than tokens.
    pub fn replies(groups: &[(&[u32], Vec<Reply<'_>>)]) -> Result<Self> {
        let mut layout = Layout::default();
        for (prompt, completions) in groups {
            if prompt.is_empty() {
                return Err(Error::NothingBefore { what: "a completion with an empty prompt" });
            }
            let parent = layout.list.len();
            let start = layout.segment(prompt, None);
            for Reply { ids, scored } in completions {
                if ids.len() != scored.len() {
                    let (got, expected) = (scored.len(), ids.len());
                    return Err(temper_tensor::Error::Count { op: "batch", what: "marks", got, expected }.into());
                }
                // The last scored token's own row predicts nothing that is scored.
                let Some(last) = scored.iter().rposition(|s| *s) else { continue };
                let first = layout.segment(&ids[..last], Some(parent));
                let prompt_row = start + prompt.len() - 1;
                for t in (0..=last).filter(|t| scored[*t]) {
                    layout.score(if t == 0 { prompt_row } else { first + t - 1 }, ids[t]);
                }
            }
        }
        layout.batch()
    }

    /// N, the number of rows.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// M, the number of scored tokens.
    pub fn scored(&self) -> usize {
        self.tgt.len()
    }
}

/// A batch in the making.
#[derive(Default)]
struct Layout {
    ids: Vec<u32>,
    list: Vec<Segment>,
    src: Vec<u32>,
    tgt: Vec<u32>,
}

impl Layout {
    /// Appends rows and returns the first one's index. No rows make no segment.
    fn segment(&mut self, ids: &[u32], parent: Option<usize>) -> usize {
        let start = self.ids.len();
        if !ids.is_empty() {
            self.list.push(Segment { start, len: ids.len(), parent });
            self.ids.extend_from_slice(ids);
        }
        start
    }

    fn score(&mut self, row: usize, token: u32) {
        self.src.push(row as u32);
        self.tgt.push(token);
    }

    fn batch(self) -> Result<Batch> {
        Ok(Batch { ids: self.ids, segments: Arc::new(Segments::new(self.list)?), src: self.src, tgt: self.tgt })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: usize, len: usize, parent: Option<usize>) -> Segment {
        Segment { start, len, parent }
    }

    #[test]
    fn sequences_keep_the_rows_that_a_scored_token_needs() {
        let sequences = [
            ScoredSequence { ids: &[1, 2, 3, 4, 5], scored: &[9.0, 0.0, 0.5, 1.0, 0.0] },
            ScoredSequence { ids: &[6, 7], scored: &[0.0, 0.0] },
            ScoredSequence { ids: &[8, 9], scored: &[0.0, 2.0] },
        ];
        let (batch, weights) = Batch::sequences(&sequences).unwrap();
        assert_eq!(batch.ids, [1, 2, 3, 8]);
        assert_eq!(batch.segments.list(), [segment(0, 3, None), segment(3, 1, None)]);
        assert_eq!((batch.src, batch.tgt), (vec![1, 2, 3], vec![3, 4, 9]));
        assert_eq!(weights, [0.5, 1.0, 2.0]);
        assert!(Batch::sequences(&[ScoredSequence { ids: &[1], scored: &[] }]).is_err());
    }

    #[test]
    fn words_of_others_are_attended_to_and_not_scored() {
        let reply = |ids, scored: &[u8]| Reply { ids, scored: scored.iter().map(|s| *s == 1).collect() };
        let replies = vec![reply(&[3, 4, 5, 6], &[1, 0, 1, 0]), reply(&[7, 8], &[0, 1]), reply(&[9], &[0])];
        let batch = Batch::replies(&[(&[1, 2], replies)]).unwrap();
        assert_eq!(batch.ids, [1, 2, 3, 4, 7]);
        assert_eq!((batch.src, batch.tgt), (vec![1, 3, 4], vec![3, 5, 8]));
        assert!(Batch::replies(&[(&[1], vec![Reply { ids: &[2], scored: vec![] }])]).is_err());
    }

    #[test]
    fn groups_share_the_prompt_and_its_last_row() {
        let groups = [(&[1, 2, 3][..], vec![&[4, 5, 6][..], &[7], &[], &[8, 9]]), (&[1], vec![&[2]])];
        let batch = Batch::groups(&groups).unwrap();
        assert_eq!(batch.ids, [1, 2, 3, 4, 5, 8, 1]);
        let expected = [segment(0, 3, None), segment(3, 2, Some(0)), segment(5, 1, Some(0)), segment(6, 1, None)];
        assert_eq!(batch.segments.list(), expected);
        assert_eq!(batch.src, [2, 3, 4, 2, 2, 5, 6]);
        assert_eq!(batch.tgt, [4, 5, 6, 7, 8, 9, 2]);
        assert!(Batch::groups(&[(&[], vec![&[1]])]).unwrap_err().to_string().contains("bos"));
    }
}
