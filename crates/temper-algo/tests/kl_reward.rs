//! KL in the reward: RLOO as TRL 1.16 has it (tests/golden/rloo.py made the numbers), and by token a scalar transcription of verl.

use serde::Deserialize;
use temper_algo::seed::SplitMix64;
use temper_algo::{
    Advantage, GroupRewards, KlEstimator, KlReward, Level, PolicyObjective, Ratio, Round, RoundAdvantages, Rows,
    SequenceMask, StepReward, Surrogate, Weighting, Whiten,
};

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    beta: f64,
    normalize: bool,
    size: usize,
    rewards: Vec<f64>,
    logp: Vec<Vec<f64>>,
    logp_old: Vec<Vec<f64>>,
    logp_ref: Vec<Vec<f64>>,
    adv: Vec<f64>,
    loss: f64,
    d_logp: Vec<Vec<f64>>,
    clipped: f64,
}

impl Case {
    fn objective(&self) -> PolicyObjective {
        let level = Level::Sequence;
        PolicyObjective {
            advantage: Advantage::Rloo { whiten: if self.normalize { Whiten::Rollout } else { Whiten::None } },
            ratio: Ratio::Product {},
            surrogate: Surrogate::Clip { clip_low: 0.2, clip_high: 0.2, delta: None },
            kl_reward: (self.beta > 0.0).then_some(KlReward { estimator: KlEstimator::K1 {}, beta: self.beta, level }),
            weighting: Weighting::Sequence {},
            ..PolicyObjective::default()
        }
    }

    /// Rewards less the KL.
    fn charged(&self, objective: &PolicyObjective) -> Vec<f64> {
        let cost = |i: usize| {
            objective.kl_reward.map_or(0.0, |kl| kl.costs(&kl.estimates(&self.logp_old[i], &self.logp_ref[i])).0)
        };
        (0..self.rewards.len()).map(|i| self.rewards[i] - cost(i)).collect()
    }
}

fn close(got: f64, expected: f64, what: &str) {
    assert!((got - expected).abs() <= 1e-12 + 1e-10 * expected.abs(), "{what}: {got} {expected}");
}

#[test]
fn rloo_agrees_with_trl() {
    let file: File = serde_json::from_str(include_str!("../../../tests/golden/algo/rloo.json")).unwrap();
    assert_eq!(file.cases.len(), 6);
    for (i, c) in file.cases.iter().enumerate() {
        let objective = c.objective();
        assert!(objective.check(c.size).is_empty(), "{:?}", objective.check(c.size));
        let rewards = c.charged(&objective);
        let groups: Vec<GroupRewards> = rewards.chunks(c.size).map(GroupRewards::new).collect();
        let round = Round { groups: &groups, ..Round::default() };
        let RoundAdvantages::Rollouts(adv) = objective.advantage.advantages(&round).unwrap() else { panic!() };
        let adv = adv.concat();
        adv.iter().zip(&c.adv).for_each(|(a, b)| assert!((a - b).abs() < 1e-11, "case {i}: {a} {b}"));

        let masks: Vec<Vec<f32>> = c.logp.iter().map(|row| vec![1.0; row.len()]).collect();
        let step: Vec<SequenceMask> = masks.iter().map(|mask| SequenceMask::new(0, mask)).collect();
        let (logp, old) = (c.logp.concat(), c.logp_old.concat());
        let terms = objective
            .token_terms(&Rows {
                logp: &logp,
                logp_old: Some(&old),
                adv: &adv.iter().zip(&masks).flat_map(|(a, m)| vec![*a; m.len()]).collect::<Vec<_>>(),
                weight: &objective.weighting.weights(&step).unwrap().concat(),
                sequences: &masks.iter().map(Vec::len).collect::<Vec<_>>(),
                ..Rows::EMPTY
            })
            .unwrap();
        close(terms.loss, c.loss, &format!("case {i}: loss"));
        for (got, expected) in terms.d_logp.iter().zip(c.d_logp.concat()) {
            close(*got, expected, &format!("case {i}: slope"));
        }
    }
    assert!(file.cases.iter().any(|c| c.clipped > 0.2), "some sequences are clipped");
}

/// verl, transcribed: `apply_kl_penalty` (`token_level_rewards = token_level_scores - beta * kld`, the score on the last token), then
/// `compute_reinforce_plus_plus_outcome_advantage` (reversed sums, `masked_whiten`) and `compute_gae_advantage_return`.
#[test]
fn by_token_as_verl() {
    let mut random = SplitMix64::new(7);
    for (gamma, lambda) in [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5)] {
        let lengths = [4usize, 1, 6];
        let rows: Vec<[Vec<f64>; 3]> =
            lengths.map(|n| [0; 3].map(|_| (0..n).map(|_| -random.next_f64()).collect())).to_vec();
        let rewards = [1.0, 0.0, 0.5];
        let kl = KlReward { estimator: KlEstimator::K1 {}, beta: 0.1, level: Level::Token };
        let steps: Vec<Vec<StepReward>> = rows
            .iter()
            .map(|[logp, reference, _]| {
                let (total, tokens) = kl.costs(&kl.estimates(logp, reference));
                assert_eq!(total, 0.0);
                tokens.iter().enumerate().map(|(end, cost)| StepReward { end, reward: -cost }).collect()
            })
            .collect();
        let values: Vec<Vec<f64>> = rows.iter().map(|row| row[2].clone()).collect();
        let group = GroupRewards { lengths: &lengths, values: &values, steps: &steps, ..GroupRewards::new(&rewards) };
        let ours = |advantage: Advantage| {
            let RoundAdvantages::Tokens(adv) =
                advantage.advantages(&Round { groups: &[group], ..Round::default() }).unwrap()
            else {
                panic!()
            };
            adv.concat().concat()
        };

        let (mut returns, mut estimates) = (vec![], vec![]);
        for (i, [logp, reference, value]) in rows.iter().enumerate() {
            let n = lengths[i];
            let mut token_level_rewards = vec![0.0; n];
            token_level_rewards[n - 1] = rewards[i];
            for t in 0..n {
                token_level_rewards[t] -= 0.1 * (logp[t] - reference[t]);
            }
            let (mut running, mut lastgaelam, mut nextvalue) = (0.0, 0.0, 0.0);
            let (mut ret, mut adv) = (vec![0.0; n], vec![0.0; n]);
            for t in (0..n).rev() {
                running = token_level_rewards[t] + gamma * running;
                ret[t] = running;
                let delta = token_level_rewards[t] + gamma * nextvalue - value[t];
                lastgaelam = delta + gamma * lambda * lastgaelam;
                (adv[t], nextvalue) = (lastgaelam, value[t]);
            }
            let targets = Advantage::Gae { gamma, lambda, whiten: true }.value_targets(&token_level_rewards, value);
            adv.iter().zip(value).zip(targets).for_each(|((a, v), target)| close(target, a + v, "target"));
            returns.extend(ret);
            estimates.extend(adv);
        }
        let whiten = |values: &[f64]| -> Vec<f64> {
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
            values.iter().map(|v| (v - mean) / (variance + 1e-8).sqrt()).collect()
        };
        for (advantage, expected) in [
            (Advantage::ReinforcePlusPlus { group_mean: false, gamma }, whiten(&returns)),
            (Advantage::Gae { gamma, lambda, whiten: true }, whiten(&estimates)),
            (Advantage::Gae { gamma, lambda, whiten: false }, estimates.clone()),
        ] {
            ours(advantage).iter().zip(expected).for_each(|(a, b)| close(*a, b, &format!("{advantage:?}")));
        }
    }
}

#[test]
fn costs_that_nothing_reads_are_reported() {
    let objective = |advantage, surrogate, level, beta| PolicyObjective {
        advantage,
        surrogate,
        kl_reward: Some(KlReward { estimator: KlEstimator::K1 {}, beta, level }),
        ..PolicyObjective::default()
    };
    let fields = |o: PolicyObjective| o.check(4).into_iter().map(|p| p.field).collect::<Vec<_>>();
    let returns = Advantage::Returns { baseline: 0.0, gamma: 1.0 };
    assert!(fields(objective(returns, Surrogate::Reinforce {}, Level::Token, 0.1)).is_empty());
    assert_eq!(
        fields(objective(Advantage::GroupMean {}, Surrogate::Reinforce {}, Level::Token, 0.0)),
        ["kl_reward.beta", "kl_reward.level"]
    );
    assert_eq!(fields(objective(Advantage::default(), Surrogate::Nll {}, Level::Sequence, 0.1)), ["kl_reward.beta"]);
}
