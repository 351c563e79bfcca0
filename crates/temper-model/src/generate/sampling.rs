//! Sampling rules, and drawing one token from a row of logits.

use crate::error::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};
use temper_tensor::head::{RowStats, row_stats};
use temper_tensor::kernels::{math::exp_slice, reduce::argmax};

/// How completions are drawn and when they end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the most likely token, and its log-probability is given at temperature 1.
    pub temperature: f32,
    /// Draw among the `k` most likely tokens only.
    pub top_k: Option<usize>,
    /// Draw among the fewest most likely tokens whose probability reaches this (after `top_k`).
    pub top_p: Option<f32>,
    /// Draw among the tokens at least this times as likely as the most likely one.
    pub min_p: Option<f32>,
    /// Longest completion.
    pub max_tokens: usize,
    /// Tokens that end a completion; they are part of it.
    pub stop_ids: Vec<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None, min_p: None, max_tokens: 256, stop_ids: Vec::new() }
    }
}

impl Sampling {
    /// The most likely token each time.
    pub fn greedy(max_tokens: usize) -> Self {
        Self { temperature: 0.0, max_tokens, ..Self::default() }
    }

    /// Checks every rule's range.
    pub fn validate(&self) -> Result<()> {
        let fail = |field, found: String, expected| Err(Error::Sampling { field, found, expected });
        let t = self.temperature;
        // Below, logits divided by the temperature would leave the range of f32.
        if !(t == 0.0 || (t >= 1e-4 && t.is_finite())) {
            return fail("temperature", t.to_string(), "0 (greedy) or a number of at least 0.0001");
        }
        if self.top_k == Some(0) {
            return fail("top_k", "0".into(), "at least 1, or none for the whole vocabulary");
        }
        if let Some(p) = self.top_p.filter(|&p| !(p > 0.0 && p <= 1.0)) {
            return fail("top_p", p.to_string(), "a number above 0 and at most 1");
        }
        if let Some(p) = self.min_p.filter(|&p| !(0.0..=1.0).contains(&p)) {
            return fail("min_p", p.to_string(), "a number from 0 to 1");
        }
        if self.max_tokens == 0 {
            return fail("max_tokens", "0".into(), "at least 1");
        }
        if t == 0.0 && self.truncates() {
            return fail(
                "temperature",
                "0".into(),
                "above 0 where `top_k`, `top_p` or `min_p` is set, or none of them",
            );
        }
        Ok(())
    }

    /// Whether a rule cuts part of the distribution away.
    pub fn truncates(&self) -> bool {
        self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some()
    }

    /// The temperature of the log-probabilities: the sampling temperature, 1 where sampling is greedy. The trainer scores
    /// at this one.
    pub fn logp_temperature(&self) -> f32 {
        if self.temperature == 0.0 { 1.0 } else { self.temperature }
    }
}

/// A drawn token and what the distribution said of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Draw {
    pub(crate) token: u32,
    /// Over the whole vocabulary, whatever was cut away.
    pub(crate) logp: f32,
    pub(crate) entropy: f32,
    /// Probability that truncating rules cut away.
    pub(crate) lost_mass: f32,
}

/// Draws from a row of logits with the uniform number `u` in `[0, 1)`. `None` when the logits are not finite.
pub(crate) fn draw(logits: &[f32], rules: &Sampling, u: f64) -> Option<Draw> {
    let inv_t = 1.0 / rules.logp_temperature();
    let stats = row_stats(logits, inv_t);
    if !(stats.max.is_finite() && stats.ln_sum.is_finite()) {
        return None;
    }
    let (token, lost_mass) = match (rules.temperature == 0.0, rules.truncates()) {
        (true, _) => (argmax(logits), 0.0),
        (false, false) => (draw_whole(logits, &stats, inv_t, u), 0.0),
        (false, true) => Row::new(logits, &stats, inv_t).draw_cut(rules, u),
    };
    Some(Draw { token, logp: stats.logp(logits[token as usize]), entropy: stats.entropy, lost_mass })
}

/// The uniform number of draw `index` of a sequence: a function of the two alone, so that neither the batch nor its
/// order matters.
pub(crate) fn uniform(seed: u64, index: usize) -> f64 {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(index as u64);
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Tokens whose weights are made and added at a time.
const BLOCK: usize = 1024;

/// Inverse of the distribution function, tokens in the order of their ids. No more weights are made than lie before the token.
fn draw_whole(logits: &[f32], stats: &RowStats, inv_t: f32, u: f64) -> u32 {
    let mut left = u * stats.sum();
    let mut weights = [0.0; BLOCK];
    // Stands in where rounding leaves a remainder: the last token before which some mass is left.
    let mut last = 0;
    for (b, logits) in logits.chunks(BLOCK).enumerate() {
        let weights = &mut weights[..logits.len()];
        weights.iter_mut().zip(logits).for_each(|(w, l)| *w = l * inv_t - stats.max);
        exp_slice(weights);
        let sum = sum(weights);
        if let Some(possible) = weights.iter().rposition(|&w| w > 0.0) {
            last = b * BLOCK + possible;
        }
        if left < sum {
            let hit = weights.iter().position(|&w| {
                left -= f64::from(w);
                left < 0.0
            });
            return hit.map_or(last, |i| b * BLOCK + i) as u32;
        }
        left -= sum;
    }
    last as u32
}

/// In f64, several sums side by side.
fn sum(weights: &[f32]) -> f64 {
    let (mut lanes, (chunks, rest)) = ([0.0; 8], weights.as_chunks::<8>());
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, w)| *lane += f64::from(*w));
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&w| f64::from(w)).sum::<f64>()
}

/// The weight `e^(z - max)` of every token, `z` the tempered logits; the largest is 1.
struct Row<'a> {
    logits: &'a [f32],
    weights: Vec<f32>,
    total: f64,
}

impl<'a> Row<'a> {
    fn new(logits: &'a [f32], stats: &RowStats, inv_t: f32) -> Self {
        let mut weights: Vec<f32> = logits.iter().map(|l| l * inv_t - stats.max).collect();
        exp_slice(&mut weights);
        let total = sum(&weights);
        Self { logits, weights, total }
    }

    /// Inverse of the distribution function of the kept tokens, the most likely first; also the probability of the others.
    fn draw_cut(&self, rules: &Sampling, u: f64) -> (u32, f32) {
        let kept = self.kept(rules);
        let mass: f64 = kept.iter().map(|k| k.1).sum();
        let mut left = u * mass;
        let hit = kept.iter().find(|k| {
            left -= k.1;
            left < 0.0
        });
        let token = hit.or(kept.last()).map_or(0, |k| k.0);
        (token, (1.0 - mass / self.total).max(0.0) as f32)
    }

    /// The tokens that the rules keep with their weights, the most likely first, equal ones by id. At least one.
    fn kept(&self, rules: &Sampling) -> Vec<(u32, f64)> {
        let mut kept = self.candidates(rules);
        let by_rank = |a: &(u32, f64), b: &(u32, f64)| {
            let (x, y) = (self.logits[a.0 as usize], self.logits[b.0 as usize]);
            y.total_cmp(&x).then(a.0.cmp(&b.0))
        };
        if let Some(k) = rules.top_k.filter(|&k| k < kept.len()) {
            kept.select_nth_unstable_by(k - 1, by_rank);
            kept.truncate(k);
        }
        kept.sort_unstable_by(by_rank);
        if let Some(p) = rules.top_p {
            let mass = if rules.top_k.is_some() { kept.iter().map(|k| k.1).sum() } else { self.total };
            kept.truncate(prefix(&kept, f64::from(p) * mass));
        }
        if let Some(p) = rules.min_p {
            let most = kept.first().map_or(0.0, |k| k.1);
            kept.retain(|k| k.1 >= f64::from(p) * most);
        }
        kept
    }

    /// Leaves out what `top_p` alone is sure to cut: the tokens below `(1 - p) / V` have less than `1 - p` together.
    fn candidates(&self, rules: &Sampling) -> Vec<(u32, f64)> {
        let floor = match (rules.top_p, rules.top_k) {
            (Some(p), None) => (1.0 - f64::from(p)) * self.total / self.weights.len() as f64,
            _ => 0.0,
        };
        let weighted = self.weights.iter().enumerate().map(|(i, &w)| (i as u32, f64::from(w)));
        weighted.filter(|k| k.1 >= floor).collect()
    }
}

/// How many tokens, the first ones, reach the mass together.
fn prefix(ranked: &[(u32, f64)], mass: f64) -> usize {
    let mut sum = 0.0;
    let enough = ranked.iter().position(|k| {
        sum += k.1;
        sum >= mass
    });
    enough.map_or(ranked.len(), |i| i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.5, 0.25, 0.125, 0.125 at temperature 1.
    fn logits() -> Vec<f32> {
        [0.25f32, 0.5, 0.125, 0.125].map(f32::ln).to_vec()
    }

    fn rules(change: impl FnOnce(&mut Sampling)) -> Sampling {
        let mut rules = Sampling::default();
        change(&mut rules);
        rules.validate().unwrap();
        rules
    }

    #[test]
    fn the_whole_distribution_is_drawn_in_order_of_ids() {
        let all = rules(|_| {});
        for (u, token) in [(0.0, 0), (0.2499, 0), (0.2501, 1), (0.7499, 1), (0.7501, 2), (0.8751, 3), (0.999_999, 3)] {
            assert_eq!(draw(&logits(), &all, u).unwrap().token, token, "{u}");
        }
        let d = draw(&logits(), &all, 0.5).unwrap();
        assert!((d.logp - 0.5f32.ln()).abs() < 1e-6 && (d.entropy - 1.75 * 2f32.ln()).abs() < 1e-6);
        assert_eq!(d.lost_mass, 0.0);
    }

    #[test]
    fn truncating_rules_keep_the_most_likely_first_with_ties_by_id() {
        let kept = |r: &Sampling| -> Vec<u32> {
            let mut seen: Vec<u32> = Vec::new();
            for i in 0..1000 {
                let token = draw(&logits(), r, f64::from(i) / 1000.0).unwrap().token;
                if seen.last() != Some(&token) {
                    seen.push(token);
                }
            }
            seen
        };
        assert_eq!(kept(&rules(|r| r.top_k = Some(3))), [1, 0, 2]);
        assert_eq!(kept(&rules(|r| r.top_k = Some(9))), [1, 0, 2, 3]);
        assert_eq!(kept(&rules(|r| r.top_p = Some(0.5))), [1]);
        assert_eq!(kept(&rules(|r| r.top_p = Some(0.51))), [1, 0]);
        assert_eq!(kept(&rules(|r| r.top_p = Some(1.0))), [1, 0, 2, 3]);
        assert_eq!(kept(&rules(|r| r.min_p = Some(0.4))), [1, 0]);
        assert_eq!(kept(&rules(|r| r.min_p = Some(1.0))), [1]);
        // top_p counts within what top_k left: 0.5 / 0.75 < 0.7.
        assert_eq!(kept(&rules(|r| (r.top_k, r.top_p) = (Some(2), Some(0.7)))), [1, 0]);
        let d = draw(&logits(), &rules(|r| r.top_k = Some(2)), 0.0).unwrap();
        assert!((d.lost_mass - 0.25).abs() < 1e-6 && (d.logp - 0.5f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn greedy_takes_the_first_largest_at_temperature_one() {
        let d = draw(&[1.0, 3.0, 3.0], &Sampling::greedy(1), 0.9).unwrap();
        assert_eq!(d.token, 1);
        assert!((f64::from(d.logp) + (2.0 + (-2f64).exp()).ln()).abs() < 1e-6);
    }

    #[test]
    fn impossible_tokens_are_never_drawn_and_broken_rows_are_told() {
        let row = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        assert_eq!(draw(&row, &rules(|_| {}), 0.999_999_999).unwrap().token, 1);
        assert!(draw(&[0.0, f32::NAN], &rules(|_| {}), 0.5).is_none());
        assert!(draw(&[0.0, f32::INFINITY], &rules(|_| {}), 0.5).is_none());
        assert!(draw(&[f32::NAN; 3], &rules(|_| {}), 0.5).is_none());
    }

    #[test]
    fn rules_out_of_range_are_named() {
        type Set = fn(&mut Sampling);
        let cases: [(Set, &str); 9] = [
            (|r| r.temperature = -1.0, "`temperature` is -1"),
            (|r| r.temperature = f32::NAN, "`temperature` is NaN"),
            (|r| r.temperature = f32::INFINITY, "`temperature` is inf"),
            (|r| r.temperature = 1e-5, "at least 0.0001"),
            (|r| r.top_k = Some(0), "`top_k` is 0"),
            (|r| r.top_p = Some(0.0), "`top_p` is 0"),
            (|r| r.min_p = Some(1.5), "`min_p` is 1.5"),
            (|r| r.max_tokens = 0, "`max_tokens` is 0"),
            (|r| (r.temperature, r.top_k) = (0.0, Some(3)), "above 0 where"),
        ];
        for (change, expected) in cases {
            let mut rules = Sampling::default();
            change(&mut rules);
            let message = rules.validate().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn uniform_numbers_depend_on_seed_and_index_alone() {
        assert_eq!(uniform(5, 3), uniform(5, 3));
        assert_ne!(uniform(5, 3), uniform(5, 4));
        assert_ne!(uniform(5, 3), uniform(6, 3));
        let mean = (0..4000).map(|i| uniform(1, i)).sum::<f64>() / 4000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
