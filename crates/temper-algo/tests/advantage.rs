//! The battery of the advantages, and independent transcriptions of verl's and the papers' formulas.

mod support;

use proptest::prelude::*;
use support::every_advantage;
use temper_algo::seed::SplitMix64;
use temper_algo::{
    Advantage, AdvantageState, Error, GpgCount, GroupRewards, Needs, Round, RoundAdvantages, StepReward, Whiten, gae,
    returns_to_go,
};

/// A random ragged round with everything that an advantage may read.
#[derive(Clone, Debug)]
struct Case {
    rewards: Vec<Vec<f64>>,
    parts: Vec<Vec<Vec<f64>>>,
    part_weights: Vec<f64>,
    lengths: Vec<Vec<usize>>,
    greedy: Vec<f64>,
    values: Vec<Vec<Vec<f64>>>,
    steps: Vec<Vec<Vec<StepReward>>>,
}

fn case(seed: u64, prompts: usize, size: usize) -> Case {
    let mut rng = SplitMix64::new(seed);
    let parts: Vec<Vec<Vec<f64>>> = (0..prompts)
        .map(|_| (0..size).map(|_| vec![rng.below(2) as f64, rng.below(3) as f64 / 2.0]).collect())
        .collect();
    let part_weights = vec![1.0, 0.5];
    let total = |p: &Vec<f64>| p.iter().zip(&part_weights).map(|(v, w)| v * w).sum::<f64>();
    let lengths: Vec<Vec<usize>> = (0..prompts).map(|_| (0..size).map(|_| rng.below(7)).collect()).collect();
    let mut draw = |n: usize| (0..n).map(|_| 2.0 * rng.next_f64() - 1.0).collect::<Vec<f64>>();
    let values = lengths.iter().map(|g| g.iter().map(|n| draw(*n)).collect()).collect();
    let greedy = draw(prompts);
    let step = |end: usize, reward: f64| StepReward { end, reward };
    let steps = lengths
        .iter()
        .map(|g| g.iter().map(|n| (0..*n).step_by(2).map(|end| step(end, draw(1)[0])).collect()).collect())
        .collect();
    let rewards = parts.iter().map(|g| g.iter().map(total).collect()).collect();
    Case { rewards, parts, part_weights, lengths, greedy, values, steps }
}

impl Case {
    fn groups(&self) -> Vec<GroupRewards<'_>> {
        let group = |i: usize| GroupRewards {
            rewards: &self.rewards[i],
            parts: &self.parts[i],
            lengths: &self.lengths[i],
            greedy: Some(self.greedy[i]),
            values: &self.values[i],
            steps: &self.steps[i],
        };
        (0..self.rewards.len()).map(group).collect()
    }

    fn tokens(&self, advantage: Advantage) -> Vec<Vec<Vec<f64>>> {
        let groups = self.groups();
        let round = Round { groups: &groups, part_weights: &self.part_weights, state: AdvantageState::default() };
        let all = advantage.advantages(&round).unwrap();
        let of =
            |g: usize| self.lengths[g].iter().enumerate().map(|(i, n)| all.tokens(g, i, *n)).collect::<Vec<Vec<f64>>>();
        (0..groups.len()).map(of).collect()
    }

    fn rollouts(&self, advantage: Advantage) -> Vec<Vec<f64>> {
        let groups = self.groups();
        let round = Round { groups: &groups, part_weights: &self.part_weights, state: AdvantageState::default() };
        match advantage.advantages(&round).unwrap() {
            RoundAdvantages::Rollouts(all) => all,
            RoundAdvantages::Tokens(_) => panic!("{advantage:?} is per token"),
        }
    }

    /// The same round with its groups in another order.
    fn reversed(&self) -> Self {
        let mut other = self.clone();
        other.rewards.reverse();
        other.parts.reverse();
        other.lengths.reverse();
        other.greedy.reverse();
        other.values.reverse();
        other.steps.reverse();
        other
    }
}

fn close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * b.abs().max(1.0))
}

#[test]
fn every_advantage_is_finite_in_shape_and_repeatable() {
    for advantage in every_advantage() {
        assert!(advantage.check().is_empty() && advantage.check_round(4, 4).is_empty(), "{advantage:?}");
        for seed in 0..20 {
            let c = case(seed, 4, 4);
            let tokens = c.tokens(advantage);
            for (g, lengths) in c.lengths.iter().enumerate() {
                assert_eq!(tokens[g].iter().map(Vec::len).collect::<Vec<_>>(), *lengths);
            }
            assert!(tokens.iter().flatten().flatten().all(|a| a.is_finite()), "{advantage:?}");
            assert_eq!(tokens, c.tokens(advantage));
        }
        let nothing = advantage.advantages(&Round::default()).unwrap();
        assert!(matches!(nothing, RoundAdvantages::Rollouts(g) if g.is_empty()) || advantage.per_token());
    }
}

#[test]
fn the_order_of_groups_changes_nothing() {
    for advantage in every_advantage() {
        // Bundles are neighbours; reversing four groups keeps the pairs, so that even they agree.
        let c = case(11, 4, 4);
        let mut other = c.reversed().tokens(advantage);
        other.reverse();
        assert!(close(&other.concat().concat(), &c.tokens(advantage).concat().concat(), 1e-12), "{advantage:?}");
    }
}

/// Within a group nothing can be learnt from equal rewards; what compares with something else says so here.
#[test]
fn constant_groups_give_exact_zeros_where_claimed() {
    for advantage in every_advantage() {
        let mut c = case(3, 4, 4);
        c.rewards[1].fill(0.1 + 0.2);
        c.parts[1].iter_mut().for_each(|p| p.fill(0.1));
        c.steps[1].iter_mut().flatten().for_each(|s| s.reward = 0.1 + 0.2);
        c.lengths[1].iter_mut().zip(&mut c.steps[1]).zip(&mut c.values[1]).for_each(|((n, s), v)| {
            (*n, *s, *v) = (3, vec![StepReward { end: 2, reward: 0.1 + 0.2 }], vec![0.4; 3]);
        });
        let zeros = c.tokens(advantage)[1].iter().flatten().all(|a| *a == 0.0);
        let claimed = match advantage {
            Advantage::GroupZScore { .. }
            | Advantage::GroupMean {}
            | Advantage::BatchZScore { .. }
            | Advantage::Rloo { whiten: Whiten::None }
            | Advantage::Opo {}
            | Advantage::Gpg { .. }
            | Advantage::MaxRl {}
            | Advantage::PassAtK { .. }
            | Advantage::GrpoPassk { .. }
            | Advantage::Process { .. }
            // None of these rewards is right.
            | Advantage::Trice { .. } => true,
            // Equal groups have round means of 0, up to rounding.
            Advantage::Rloo { whiten: Whiten::Rollout } => zeros,
            // Whitened over the round, compared with a greedy rollout, a constant, values, quantiles; or a choice of the best.
            Advantage::Rloo { .. }
            | Advantage::ReinforcePlusPlus { .. }
            | Advantage::Remax { .. }
            | Advantage::Gdpo { .. }
            | Advantage::BestOf { .. }
            | Advantage::Returns { .. }
            | Advantage::Gae { .. }
            | Advantage::Risk { .. } => false,
        };
        assert_eq!(zeros, claimed, "{advantage:?}");
    }
}

#[test]
fn a_shift_of_all_rewards_changes_nothing_where_claimed() {
    for advantage in every_advantage() {
        let c = case(5, 4, 4);
        let mut moved = c.clone();
        moved.rewards.iter_mut().flatten().for_each(|r| *r += 0.75);
        moved.parts.iter_mut().flatten().flatten().for_each(|p| *p += 0.5);
        for greedy in &mut moved.greedy {
            *greedy += 0.75;
        }
        let same = close(&moved.tokens(advantage).concat().concat(), &c.tokens(advantage).concat().concat(), 1e-9);
        let claimed = match advantage {
            Advantage::GroupZScore { .. }
            | Advantage::GroupMean {}
            | Advantage::BatchZScore { .. }
            | Advantage::Rloo { .. }
            | Advantage::Remax { .. }
            | Advantage::Opo {}
            | Advantage::Gpg { count: GpgCount::Informative }
            | Advantage::Gdpo { .. }
            | Advantage::GrpoPassk { .. }
            | Advantage::BestOf { .. }
            | Advantage::Process { outcome: false, .. }
            // Per-token rewards: the shift is part of the return and whitened away, unless it is discounted.
            | Advantage::ReinforcePlusPlus { group_mean: true, .. }
            | Advantage::ReinforcePlusPlus { gamma: 1.0, .. }
            | Advantage::Risk { .. } => true,
            Advantage::ReinforcePlusPlus { .. }
            | Advantage::Gpg { .. }
            | Advantage::MaxRl {}
            | Advantage::PassAtK { .. }
            | Advantage::Returns { .. }
            | Advantage::Gae { .. }
            | Advantage::Process { .. }
            | Advantage::Trice { .. } => false,
        };
        assert_eq!(same, claimed, "{advantage:?}");
    }
}

#[test]
fn missing_and_broken_inputs_are_named() {
    let c = case(2, 2, 4);
    for advantage in every_advantage() {
        let bare: Vec<GroupRewards> = c.rewards.iter().map(|r| GroupRewards::new(r)).collect();
        let got = advantage.advantages(&Round { groups: &bare, ..Round::default() });
        let needs = advantage.needs();
        let other = needs.contains(Needs::GREEDY) || needs.contains(Needs::VALUE) || needs.contains(Needs::STEPS);
        let reads = other || advantage.per_token() || matches!(advantage, Advantage::Opo {} | Advantage::Gdpo { .. });
        assert_eq!(matches!(got, Err(Error::Missing { .. })), reads, "{advantage:?}");
        let mut nan = c.clone();
        nan.rewards[1][2] = f64::NAN;
        let groups = nan.groups();
        let round = Round { groups: &groups, part_weights: &nan.part_weights, ..Round::default() };
        let error = advantage.advantages(&round).unwrap_err();
        assert!(matches!(error, Error::BadReward { name: "rewards", group: 1, rollout: 2, .. }), "{error}");
    }
    let short = [GroupRewards { lengths: &[1], ..GroupRewards::new(&[1.0, 0.0]) }];
    let error = Advantage::Opo {}.advantages(&Round { groups: &short, ..Round::default() }).unwrap_err();
    assert!(matches!(error, Error::GroupLength { name: "lengths", got: 1, expected: 2, .. }));
    let steps = [vec![StepReward { end: 4, reward: 1.0 }]];
    let late = [GroupRewards { lengths: &[4], steps: &steps, ..GroupRewards::new(&[1.0]) }];
    let advantage = Advantage::Returns { baseline: 0.0, gamma: 1.0 };
    assert!(matches!(
        advantage.advantages(&Round { groups: &late, ..Round::default() }),
        Err(Error::GroupLength { name: "end of a step", .. })
    ));
}

/// Every option of every variant with options does something.
#[test]
fn options_have_an_effect() {
    let c = case(7, 4, 4);
    let differ = |a: Advantage, b: Advantage| {
        assert_ne!(c.tokens(a), c.tokens(b), "{a:?} {b:?}");
    };
    differ(Advantage::GroupZScore { eps: 0.0 }, Advantage::GroupZScore { eps: 0.1 });
    differ(Advantage::BatchZScore { eps: 0.0 }, Advantage::BatchZScore { eps: 0.1 });
    differ(Advantage::Rloo { whiten: Whiten::None }, Advantage::Rloo { whiten: Whiten::Rollout });
    differ(Advantage::Rloo { whiten: Whiten::Token }, Advantage::Rloo { whiten: Whiten::Rollout });
    let plus = |group_mean, gamma| Advantage::ReinforcePlusPlus { group_mean, gamma };
    differ(plus(false, 1.0), plus(true, 1.0));
    differ(plus(false, 1.0), plus(false, 0.5));
    differ(Advantage::Remax { token_values: false }, Advantage::Remax { token_values: true });
    differ(Advantage::Gpg { count: GpgCount::Informative }, Advantage::Gpg { count: GpgCount::NonzeroReward });
    let gdpo = |eps, whiten| Advantage::Gdpo { eps, whiten };
    differ(gdpo(1e-4, Whiten::Rollout), gdpo(1e-1, Whiten::Rollout));
    differ(gdpo(1e-4, Whiten::Rollout), gdpo(1e-4, Whiten::None));
    let pass = |k, threshold, eps| Advantage::PassAtK { k, threshold, eps };
    differ(pass(1, 0.5, 0.0), pass(2, 0.5, 0.0));
    differ(pass(1, 0.5, 0.0), pass(1, 1.0, 0.0));
    differ(pass(1, 0.5, 0.0), pass(1, 0.5, 0.1));
    differ(Advantage::GrpoPassk { scale: true, eps: 0.0 }, Advantage::GrpoPassk { scale: true, eps: 0.1 });
    differ(Advantage::GrpoPassk { scale: true, eps: 0.0 }, Advantage::GrpoPassk { scale: false, eps: 0.0 });
    differ(Advantage::BestOf { keep: 1 }, Advantage::BestOf { keep: 2 });
    differ(Advantage::Trice { threshold: 0.5 }, Advantage::Trice { threshold: 1.0 });
    let returns = |baseline, gamma| Advantage::Returns { baseline, gamma };
    differ(returns(0.0, 1.0), returns(0.5, 1.0));
    differ(returns(0.0, 1.0), returns(0.0, 0.5));
    let gae = |gamma, lambda, whiten| Advantage::Gae { gamma, lambda, whiten };
    differ(gae(1.0, 1.0, false), gae(0.5, 1.0, false));
    differ(gae(1.0, 1.0, false), gae(1.0, 0.5, false));
    differ(gae(1.0, 1.0, false), gae(1.0, 1.0, true));
    differ(Advantage::Process { outcome: false, eps: 0.0 }, Advantage::Process { outcome: true, eps: 0.0 });
    differ(Advantage::Process { outcome: false, eps: 0.0 }, Advantage::Process { outcome: false, eps: 0.1 });
    let risk = |bundle, low, high, tail_weight| Advantage::Risk { bundle, low, high, tail_weight, rate: 0.1 };
    differ(risk(1, 0.2, 0.8, 1.0), risk(2, 0.2, 0.8, 1.0));
    differ(risk(1, 0.2, 0.8, 1.0), risk(1, 0.4, 0.8, 1.0));
    differ(risk(1, 0.2, 0.8, 1.0), risk(1, 0.2, 0.6, 1.0));
    differ(risk(1, 0.2, 0.8, 1.0), risk(1, 0.2, 0.8, 0.0));
}

#[test]
fn the_quantile_tracker_settles_at_the_quantiles() {
    let advantage = Advantage::Risk { bundle: 1, low: 0.2, high: 0.8, tail_weight: 0.0, rate: 0.02 };
    let mut state = AdvantageState { quantiles: Some([0.0, 0.0]) };
    let mut rng = SplitMix64::new(1);
    for _ in 0..4000 {
        let rewards: Vec<f64> = (0..8).map(|_| rng.next_f64()).collect();
        state = advantage.remember(&Round { groups: &[GroupRewards::new(&rewards)], state, ..Round::default() });
    }
    let [low, high] = state.quantiles.unwrap();
    assert!((low - 0.2).abs() < 0.05 && (high - 0.8).abs() < 0.05, "{state:?}");
    assert_eq!(Advantage::default().remember(&Round { state, ..Round::default() }), state);
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<AdvantageState>(&json).unwrap(), state);
}

// ---- transcriptions, written over padded arrays with masks and group ids as verl has them ----

struct Padded {
    rewards: Vec<Vec<f64>>,
    mask: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
    index: Vec<usize>,
    greedy: Vec<f64>,
}

/// Outcome rewards on the last token, right-padded to the longest completion. Empty completions have no token to bear a reward in
/// this layout, so the cases with padding have none.
fn padded(c: &Case) -> Padded {
    let width = c.lengths.concat().into_iter().max().unwrap();
    let mut p = Padded { rewards: vec![], mask: vec![], values: vec![], index: vec![], greedy: vec![] };
    for (g, lengths) in c.lengths.iter().enumerate() {
        for (i, n) in lengths.iter().enumerate() {
            let mut rewards = vec![0.0; width];
            rewards[n - 1] = c.rewards[g][i];
            let at = |t: usize| if t < *n { 1.0 } else { 0.0 };
            p.rewards.push(rewards);
            p.mask.push((0..width).map(at).collect());
            p.values.push((0..width).map(|t| if t < *n { c.values[g][i][t] } else { 0.0 }).collect());
            p.index.push(g);
            p.greedy.push(c.greedy[g]);
        }
    }
    p
}

fn full(seed: u64) -> Case {
    let mut c = case(seed, 4, 4);
    let mut rng = SplitMix64::new(seed + 7000);
    for g in 0..4 {
        for i in 0..4 {
            c.lengths[g][i] = 1 + rng.below(6);
            c.values[g][i] = (0..c.lengths[g][i]).map(|_| rng.next_f64()).collect();
            c.steps[g][i].clear();
        }
    }
    c
}

impl Padded {
    fn score(&self, i: usize) -> f64 {
        self.rewards[i].iter().sum()
    }

    fn group(&self, i: usize) -> Vec<usize> {
        (0..self.index.len()).filter(|j| self.index[*j] == self.index[i]).collect()
    }

    fn group_scores(&self, i: usize) -> Vec<f64> {
        self.group(i).into_iter().map(|j| self.score(j)).collect()
    }

    /// `masked_whiten`, with the unbiased variance.
    fn whiten(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for (row, mask) in x.iter().zip(&self.mask) {
            for (v, m) in row.iter().zip(mask) {
                n += m;
                sum += m * v;
            }
        }
        let mean = sum / n;
        for (row, mask) in x.iter().zip(&self.mask) {
            for (v, m) in row.iter().zip(mask) {
                squares += m * (v - mean) * (v - mean);
            }
        }
        let rsqrt = (squares / n * (n / (n - 1.0)) + 1e-8).sqrt().recip();
        x.iter().map(|row| row.iter().map(|v| (v - mean) * rsqrt).collect()).collect()
    }

    fn spread(&self, scores: &[f64]) -> Vec<Vec<f64>> {
        scores.iter().zip(&self.mask).map(|(s, mask)| mask.iter().map(|m| s * m).collect()).collect()
    }

    /// The unmasked entries in order.
    fn unpadded(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let rows = x.iter().zip(&self.mask);
        rows.flat_map(|(row, mask)| row.iter().zip(mask).filter(|(_, m)| **m == 1.0).map(|(v, _)| *v)).collect()
    }
}

fn average(v: &[f64]) -> f64 {
    v.iter().sum::<f64>() / v.len() as f64
}

/// Two-pass deviation written from the definition.
fn deviation(v: &[f64]) -> f64 {
    let m = average(v);
    (v.iter().map(|x| x * x).sum::<f64>() - v.len() as f64 * m * m).max(0.0).sqrt() / ((v.len() - 1) as f64).sqrt()
}

fn choose(n: usize, k: usize) -> f64 {
    if k > n {
        0.0
    } else {
        (0..k).map(|i| (n - i) as f64).product::<f64>() / (1..=k).map(|i| i as f64).product::<f64>()
    }
}

/// verl's estimators one by one.
fn transcription(advantage: Advantage, c: &Case) -> Option<Vec<f64>> {
    let p = padded(c);
    let n = p.index.len();
    let scores: Vec<f64> = (0..n).map(|i| p.score(i)).collect();
    let each = |f: &dyn Fn(usize) -> f64| Some(p.unpadded(&p.spread(&(0..n).map(f).collect::<Vec<_>>())));
    match advantage {
        Advantage::GroupZScore { eps } => {
            each(&|i| (scores[i] - average(&p.group_scores(i))) / (deviation(&p.group_scores(i)) + eps))
        }
        Advantage::GroupMean {} => each(&|i| scores[i] - average(&p.group_scores(i))),
        Advantage::BatchZScore { eps } => {
            each(&|i| (scores[i] - average(&p.group_scores(i))) / (deviation(&scores) + eps))
        }
        Advantage::Rloo { whiten: Whiten::None } => each(&|i| {
            let g = p.group_scores(i);
            let k = g.len() as f64;
            scores[i] * k / (k - 1.0) - average(&g) * k / (k - 1.0)
        }),
        Advantage::Opo {} => each(&|i| {
            let length = |j: usize| p.mask[j].iter().sum::<f64>();
            let group = p.group(i);
            let tokens: f64 = group.iter().map(|j| length(*j)).sum();
            scores[i] - group.iter().map(|j| length(*j) * scores[*j]).sum::<f64>() / tokens
        }),
        Advantage::Remax { token_values: false } => each(&|i| scores[i] - p.greedy[i]),
        Advantage::Gpg { count } => {
            let counted = match count {
                GpgCount::NonzeroReward => scores.iter().filter(|s| **s != 0.0).count(),
                GpgCount::Informative => {
                    (0..n).filter(|i| p.group_scores(*i).iter().any(|s| (s - scores[*i]).abs() > 1e-8)).count()
                }
            };
            each(&|i| n as f64 / counted.max(1) as f64 * (scores[i] - average(&p.group_scores(i))))
        }
        Advantage::MaxRl {} => each(&|i| {
            let mean = average(&p.group_scores(i));
            if mean <= 0.0 { 0.0 } else { (scores[i] - mean) / mean }
        }),
        Advantage::GrpoPassk { scale, eps } => each(&|i| {
            let group = p.group(i);
            let mut sorted = p.group_scores(i);
            sorted.sort_by(f64::total_cmp);
            let gap = sorted[sorted.len() - 1] - sorted[sorted.len() - 2];
            let best = group.into_iter().find(|j| scores[*j] == sorted[sorted.len() - 1]) == Some(i);
            f64::from(u8::from(best)) * gap / if scale { deviation(&sorted) + eps } else { 1.0 }
        }),
        Advantage::PassAtK { k, threshold, eps } => each(&|i| {
            let g = p.group_scores(i);
            let (all, k) = (g.len(), k as usize);
            let right = g.iter().filter(|s| **s > threshold).count();
            if right == 0 || right == all {
                return 0.0;
            }
            let rho = 1.0 - choose(all - right, k) / choose(all, k);
            let sigma = (rho * (1.0 - rho)).sqrt() + eps;
            if scores[i] > threshold {
                (1.0 - rho) / sigma
            } else {
                (1.0 - rho - choose(all - right - 1, k - 1) / choose(all - 1, k - 1)) / sigma
            }
        }),
        Advantage::ReinforcePlusPlus { group_mean: true, gamma: 1.0 } => {
            let centred: Vec<f64> = (0..n).map(|i| scores[i] - average(&p.group_scores(i))).collect();
            Some(p.unpadded(&p.whiten(&p.spread(&centred))))
        }
        Advantage::ReinforcePlusPlus { group_mean: false, gamma } => {
            let mut returns = vec![vec![0.0; p.mask[0].len()]; n];
            for (i, row) in returns.iter_mut().enumerate() {
                let mut running = 0.0;
                for t in (0..row.len()).rev() {
                    running = p.rewards[i][t] + gamma * running;
                    row[t] = running;
                    running *= p.mask[i][t];
                }
            }
            Some(p.unpadded(&p.whiten(&returns)))
        }
        Advantage::Gae { gamma, lambda, whiten } => {
            let mut adv = vec![vec![0.0; p.mask[0].len()]; n];
            for (i, row) in adv.iter_mut().enumerate() {
                let (mut next_value, mut last) = (0.0, 0.0);
                for t in (0..row.len()).rev() {
                    let m = p.mask[i][t];
                    let delta = p.rewards[i][t] + gamma * next_value - p.values[i][t];
                    let now = delta + gamma * lambda * last;
                    next_value = p.values[i][t] * m + (1.0 - m) * next_value;
                    last = now * m + (1.0 - m) * last;
                    row[t] = last;
                }
            }
            Some(p.unpadded(&if whiten { p.whiten(&adv) } else { adv }))
        }
        Advantage::Gdpo { eps, whiten: Whiten::Token } => {
            let parts: Vec<&Vec<f64>> = c.parts.iter().flatten().collect();
            let mut sums = vec![0.0; n];
            for (k, weight) in c.part_weights.iter().enumerate() {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let g: Vec<f64> = p.group(i).into_iter().map(|j| parts[j][k]).collect();
                    *sum += weight * (parts[i][k] - average(&g)) / (deviation(&g) + eps);
                }
            }
            Some(p.unpadded(&p.whiten(&p.spread(&sums))))
        }
        _ => None,
    }
}

#[test]
fn advantages_agree_with_the_transcriptions() {
    let more = [
        Advantage::GroupZScore { eps: 1e-6 },
        Advantage::ReinforcePlusPlus { group_mean: true, gamma: 1.0 },
        Advantage::ReinforcePlusPlus { group_mean: false, gamma: 0.7 },
        Advantage::PassAtK { k: 3, threshold: 0.6, eps: 1e-6 },
    ];
    let mut compared = 0;
    for advantage in every_advantage().into_iter().chain(more) {
        for seed in 0..40 {
            let c = full(500 + seed);
            let Some(expected) = transcription(advantage, &c) else { continue };
            let got = c.tokens(advantage).concat().concat();
            assert!(close(&got, &expected, 1e-10), "{advantage:?} {seed}: {got:?} {expected:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 40 * 20);
}

proptest! {
    #[test]
    fn group_advantages_sum_to_zero(seed in 0u64..1000) {
        let c = case(seed, 4, 5);
        for advantage in [
            Advantage::default(),
            Advantage::GroupMean {},
            Advantage::BatchZScore { eps: 1e-4 },
            Advantage::Rloo { whiten: Whiten::None },
            Advantage::Gpg { count: GpgCount::Informative },
            Advantage::MaxRl {},
            Advantage::PassAtK { k: 3, threshold: 0.5, eps: 1e-6 },
        ] {
            for group in c.rollouts(advantage) {
                prop_assert!(group.iter().sum::<f64>().abs() < 1e-9, "{:?}", advantage);
            }
        }
    }

    #[test]
    fn leave_one_out_is_the_centred_reward_times_g_over_g_minus_one(seed in 0u64..1000, size in 2usize..9) {
        let c = case(seed, 3, size);
        let factor = size as f64 / (size - 1) as f64;
        let centred: Vec<f64> = c.rollouts(Advantage::GroupMean {}).concat().iter().map(|a| a * factor).collect();
        let got = c.rollouts(Advantage::Rloo { whiten: Whiten::None }).concat();
        prop_assert!(close(&got, &centred, 1e-12));
    }

    #[test]
    fn opo_is_the_group_mean_at_equal_lengths(seed in 0u64..1000, length in 1usize..9) {
        let mut c = case(seed, 3, 4);
        c.lengths.iter_mut().flatten().for_each(|n| *n = length);
        c.values.iter_mut().flatten().for_each(|v| *v = vec![0.0; length]);
        c.steps.iter_mut().flatten().for_each(Vec::clear);
        let (got, expected) = (c.rollouts(Advantage::Opo {}), c.rollouts(Advantage::GroupMean {}));
        prop_assert!(close(&got.concat(), &expected.concat(), 1e-12));
    }

    /// lambda = 1: returns minus values. lambda = 0: one-step differences. Targets are advantages plus values.
    #[test]
    fn gae_at_its_ends(seed in 0u64..1000, gamma in 0.0f64..1.0) {
        let c = full(seed);
        let (values, rewards) = (&c.values[0][0], vec![0.3; c.lengths[0][0]]);
        let (adv, ret) = gae(&rewards, values, gamma, 1.0);
        let returns = returns_to_go(&rewards, gamma);
        for t in 0..values.len() {
            prop_assert!((adv[t] - (returns[t] - values[t])).abs() < 1e-12 && (ret[t] - returns[t]).abs() < 1e-12);
        }
        let (adv, _) = gae(&rewards, values, gamma, 0.0);
        for t in 0..values.len() {
            let next = values.get(t + 1).copied().unwrap_or(0.0);
            prop_assert!((adv[t] - (rewards[t] + gamma * next - values[t])).abs() < 1e-12);
        }
    }

    /// With lambda below 1 and one terminal reward the mean advantage of a token falls with the length (B220).
    #[test]
    fn longer_answers_dilute_a_terminal_reward(length in 1usize..200, lambda in 0.5f64..0.99) {
        let mean = |n: usize| {
            let mut rewards = vec![0.0; n];
            rewards[n - 1] = -1.0;
            average(&gae(&rewards, &vec![0.0; n], 1.0, lambda).0)
        };
        prop_assert!(mean(length + 1) > mean(length));
        // The closed form: -(1 - lambda^T) / ((1 - lambda) T).
        let t = length as f64;
        prop_assert!((mean(length) + (1.0 - lambda.powf(t)) / ((1.0 - lambda) * t)).abs() < 1e-9);
    }

    /// Whitened advantages have mean 0 and deviation 1 over their unit.
    #[test]
    fn whitening_standardises(seed in 0u64..300) {
        let c = full(seed);
        let tokens = c.tokens(Advantage::Rloo { whiten: Whiten::Token }).concat().concat();
        prop_assert!(average(&tokens).abs() < 1e-9 && (deviation(&tokens) - 1.0).abs() < 1e-5);
        let rollouts = c.rollouts(Advantage::Gdpo { eps: 1e-4, whiten: Whiten::Rollout }).concat();
        prop_assert!(average(&rollouts).abs() < 1e-9 && (deviation(&rollouts) - 1.0).abs() < 1e-3);
    }
}

/// The gradient of GRPO's advantage on a Bernoulli policy: maximum likelihood weighs a prompt by 1/p, pass@1 by 1.
#[test]
fn max_rl_is_unbiased_for_the_truncated_likelihood() {
    // E[sum_i a_i score_i] over G draws of a Bernoulli(p) policy, scores 1/p and -1/(1-p), equals d/dp of
    // -sum_{k <= G} (1-p)^k / k less the last term's baseline: sum_{k=1}^{G-1} (1-p)^(k-1) for the mean-normalised form.
    let (g, p) = (6usize, 0.3f64);
    let mut expectation = 0.0;
    for set in 0u32..1 << g {
        let rewards: Vec<f64> = (0..g).map(|i| f64::from(set >> i & 1)).collect();
        let right = rewards.iter().sum::<f64>();
        let chance = p.powf(right) * (1.0 - p).powf(g as f64 - right);
        let round = Round { groups: &[GroupRewards::new(&rewards)], ..Round::default() };
        let RoundAdvantages::Rollouts(adv) = Advantage::MaxRl {}.advantages(&round).unwrap() else { panic!() };
        let score = |r: f64| if r == 1.0 { 1.0 / p } else { -1.0 / (1.0 - p) };
        let gradient: f64 = adv[0].iter().zip(&rewards).map(|(a, r)| a * score(*r)).sum::<f64>() / g as f64;
        expectation += chance * gradient;
    }
    let truncated: f64 = (1..g as i32).map(|k| (1.0 - p).powi(k - 1)).sum();
    assert!((expectation - truncated).abs() < 1e-12, "{expectation} {truncated}");
}
