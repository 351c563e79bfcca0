//! An episodic memory of rollouts, and the rewards that come of it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Embeddings of right and of wrong rollouts, the oldest first; part of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    right: VecDeque<Vec<f32>>,
    wrong: VecDeque<Vec<f32>>,
}

impl Memory {
    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.right.is_empty() && self.wrong.is_empty()
    }

    /// How many right and how many wrong rollouts are remembered.
    pub fn len(&self) -> [usize; 2] {
        [self.right.len(), self.wrong.len()]
    }

    /// Keeps a rollout; of more than `capacity` of its side the oldest goes.
    pub fn remember(&mut self, embedding: Vec<f32>, right: bool, capacity: usize) {
        let side = if right { &mut self.right } else { &mut self.wrong };
        side.push_back(embedding);
        while side.len() > capacity {
            side.pop_front();
        }
    }

    /// `exploit z(likeness) + explore z(distance)` of the rollouts of a round, whose embeddings are given. The likeness is the
    /// mean cosine to the `k` nearest right rollouts (0 without any), the distance 1 less the cosine to the nearest of all (1
    /// without any); `z` standardises over the round with the population deviation, and is 0 where all are equal.
    /// Source: Memory-R+, arXiv 2504.02273 (A066), re-derived from its abstract: likeness to successes, room for novelty.
    pub fn intrinsic(&self, round: &[&[f32]], k: usize, exploit: f64, explore: f64) -> Vec<f64> {
        let likeness: Vec<f64> = round.iter().map(|e| self.likeness(e, k)).collect();
        let distance: Vec<f64> = round.iter().map(|e| self.distance(e)).collect();
        let both = standard(&likeness).into_iter().zip(standard(&distance));
        both.map(|(near, far)| exploit * near + explore * far).collect()
    }

    fn likeness(&self, embedding: &[f32], k: usize) -> f64 {
        let mut all: Vec<f64> = self.right.iter().map(|e| cosine(e, embedding)).collect();
        all.sort_by(|a, b| b.total_cmp(a));
        all.truncate(k);
        all.iter().sum::<f64>() / all.len().max(1) as f64
    }

    fn distance(&self, embedding: &[f32]) -> f64 {
        let nearest = self.right.iter().chain(&self.wrong).map(|e| cosine(e, embedding)).max_by(f64::total_cmp);
        1.0 - nearest.unwrap_or(0.0)
    }
}

/// Cosine of the angle between two vectors; 0 where one has no length.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

fn standard(values: &[f64]) -> Vec<f64> {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    let even = values.windows(2).all(|w| w[0] == w[1]);
    values.iter().map(|v| if even { 0.0 } else { (v - mean) / deviation }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewards_by_hand() {
        let mut memory = Memory::default();
        let (east, north, west) = ([1.0f32, 0.0], [0.0f32, 2.0], [-3.0f32, 0.0]);
        // Nothing is remembered: all are equally new.
        assert_eq!(memory.intrinsic(&[&east, &north], 2, 1.0, 1.0), [0.0, 0.0]);
        memory.remember(east.to_vec(), true, 2);
        memory.remember(west.to_vec(), false, 2);
        // Likeness to east: 1 and 0 -> z 1 and -1. Distance: 0 (east itself) and 1 (north is at right angles to both) -> -1 and 1.
        assert_eq!(memory.intrinsic(&[&east, &north], 2, 0.5, 0.0), [0.5, -0.5]);
        assert_eq!(memory.intrinsic(&[&east, &north], 2, 0.5, 0.2), [0.3, -0.3]);
        // With north right too, k = 2 averages both: 1/2 and 1/2.
        memory.remember(north.to_vec(), true, 2);
        assert_eq!(memory.intrinsic(&[&east, &north], 2, 1.0, 0.0), [0.0, 0.0]);
        assert_eq!(cosine(&east, &[0.0, 0.0]), 0.0);
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut memory = Memory::default();
        (0..4).for_each(|i| memory.remember(vec![i as f32, 1.0], true, 3));
        assert_eq!((memory.len(), &memory.right[0]), ([3, 0], &vec![1.0, 1.0]));
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Memory>(&text).unwrap(), memory);
    }
}
