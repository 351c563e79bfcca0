//! Segments: packed sequences and shared prompts with no approximation.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};

/// A run of rows `[start, start + len)` of a batch. It attends to itself causally and to the whole parent chain;
/// its positions continue from the parent's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First row of the batch.
    pub start: usize,
    /// Number of rows (at least 1).
    pub len: usize,
    /// Index of the segment that precedes this one in its sequence; smaller than the own index.
    pub parent: Option<usize>,
}

/// A validated batch layout: the segments cover the rows `0..rows()` in order, without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    list: Vec<Segment>,
    /// Position of each segment's first row in its sequence.
    first: Vec<usize>,
    /// Root segment of each segment's tree.
    root: Vec<usize>,
}

impl Segments {
    /// Checks that the segments lie end to end from row 0 and that parents come before children.
    pub fn new(list: Vec<Segment>) -> Result<Self> {
        let (mut first, mut root) = (Vec::with_capacity(list.len()), Vec::with_capacity(list.len()));
        let mut next_row = 0;
        for (i, s) in list.iter().enumerate() {
            let fail = |why: String| Err(Error::Segment { segment: i, why });
            if s.start != next_row {
                return fail(format!("starts at row {}, expected row {next_row}", s.start));
            }
            if s.len == 0 {
                return fail("has no rows, expected at least 1".into());
            }
            match s.parent {
                Some(p) if p >= i => return fail(format!("has parent {p}, expected a segment before it")),
                Some(p) => {
                    first.push(first[p] + list[p].len);
                    root.push(root[p]);
                }
                None => {
                    first.push(0);
                    root.push(i);
                }
            }
            next_row += s.len;
        }
        Ok(Self { list, first, root })
    }

    /// Independent sequences of the given lengths, laid end to end (packing).
    pub fn sequences(lengths: &[usize]) -> Result<Self> {
        let mut start = 0;
        let list = lengths.iter().map(|&len| {
            let s = Segment { start, len, parent: None };
            start += len;
            s
        });
        Self::new(list.collect())
    }

    /// One prompt of `prompt` rows followed by its completions (a group that shares the prompt).
    pub fn group(prompt: usize, completions: &[usize]) -> Result<Self> {
        let mut list = vec![Segment { start: 0, len: prompt, parent: None }];
        let mut start = prompt;
        for &len in completions {
            list.push(Segment { start, len, parent: Some(0) });
            start += len;
        }
        Self::new(list)
    }

    /// The segments, in order.
    pub fn list(&self) -> &[Segment] {
        &self.list
    }

    /// Number of segments.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are no segments.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// N, the number of rows of the batch.
    pub fn rows(&self) -> usize {
        self.list.last().map_or(0, |s| s.start + s.len)
    }

    /// Rows of segment `i`.
    pub fn range(&self, i: usize) -> Range<usize> {
        self.list[i].start..self.list[i].start + self.list[i].len
    }

    /// Position (in its sequence) of the first row of segment `i`.
    pub fn first_position(&self, i: usize) -> usize {
        self.first[i]
    }

    /// Index of the root segment of segment `i`'s tree.
    pub fn root(&self, i: usize) -> usize {
        self.root[i]
    }

    /// Position of every row in its sequence, `[N]`.
    pub fn positions(&self) -> Arc<[u32]> {
        let rows = self.list.iter().zip(&self.first).flat_map(|(s, &first)| first..first + s.len);
        rows.map(|p| p as u32).collect()
    }

    /// Segment index of every row, `[N]`: the owners for per-example gradients.
    pub fn owners(&self) -> Arc<[u32]> {
        self.list.iter().enumerate().flat_map(|(i, s)| std::iter::repeat_n(i as u32, s.len)).collect()
    }

    /// Segment indices from the root down to `i` itself.
    pub fn chain(&self, i: usize) -> Vec<usize> {
        let mut chain = vec![i];
        let mut at = i;
        while let Some(p) = self.list[at].parent {
            chain.push(p);
            at = p;
        }
        chain.reverse();
        chain
    }

    /// Row ranges of the batch that hold positions `0..` of segment `i`'s sequence, root first.
    pub fn chain_rows(&self, i: usize) -> Vec<Range<usize>> {
        self.chain(i).into_iter().map(|s| self.range(s)).collect()
    }
}
