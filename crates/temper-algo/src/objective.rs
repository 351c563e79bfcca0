//! The policy objective: advantage, ratio, surrogate, KL, entropy and weighting as one value.

use serde::{Deserialize, Serialize};

use crate::{Advantage, ClipSide, Coupling, Error, KlEstimator, Needs, Problem, Ratio, Surrogate, Weighting};

/// `x = surrogate(ratio, adv) + beta * kl - coef * entropy`, summed with the weights of [`Weighting`].
///
/// The default is GRPO with DAPO's token weighting and no KL term (TRL's defaults). GRPO as published: weighting `Sequence`, KL
/// `k3` with `beta` 0.04. Dr. GRPO: advantage `GroupMean`, weighting `Constant`. GSPO: ratio `Sequence`, weighting `Sequence`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyObjective {
    /// Rewards of a group to advantages.
    pub advantage: Advantage,
    /// Unit of the importance ratio.
    pub ratio: Ratio,
    /// The policy-gradient term.
    pub surrogate: Surrogate,
    /// KL penalty to the reference role in the loss; none unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<KlPenalty>,
    /// Entropy bonus; none unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyBonus>,
    /// Averaging over the optimiser step.
    pub weighting: Weighting,
}

/// `beta * kl` a token, weighted as the surrogate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KlPenalty {
    /// The estimator.
    #[serde(default)]
    pub estimator: KlEstimator,
    /// Its coefficient, above 0.
    pub beta: f64,
}

/// `-coef * entropy` a token, weighted as the surrogate (verl's convention; TRL takes the token mean whatever the loss type).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EntropyBonus {
    /// Its coefficient, above 0 for more entropy.
    pub coef: f64,
}

/// Scored tokens of a micro-batch, or of any row range when the coupling is [`Coupling::Token`]. All arrays are `[M]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rows<'a> {
    /// Log-probs now.
    pub logp: &'a [f64],
    /// Log-probs before the update; `None` = the same as now (the first update after sampling), ratio exactly 1.
    pub logp_old: Option<&'a [f64]>,
    /// Log-probs under the reference.
    pub logp_ref: Option<&'a [f64]>,
    /// Entropies of the next-token distributions.
    pub entropy: Option<&'a [f64]>,
    /// Advantages, one a token.
    pub adv: &'a [f64],
    /// Weights of the step from [`Weighting::weights`]. A token of weight 0 is not there: it enters no term, mean or metric.
    pub weight: &'a [f64],
    /// Lengths of the sequences, in order, adding up to M. Not read when the coupling is [`Coupling::Token`].
    pub sequences: &'a [usize],
}

/// Loss and derivatives of some scored tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyTerms {
    /// `sum(weight * x)`: this part's share of the step's loss.
    pub loss: f64,
    /// d(loss)/d(logp) `[M]`, weights included.
    pub d_logp: Vec<f64>,
    /// d(loss)/d(entropy) `[M]`, weights included; `None` without an entropy bonus.
    pub d_entropy: Option<Vec<f64>>,
    /// Sums for the metrics.
    pub metrics: PolicyMetrics,
}

impl PolicyObjective {
    /// The inputs that it reads beside `logp`.
    pub fn needs(&self) -> Needs {
        let kl = self.kl.map_or(Needs::NONE, |_| Needs::LOGP_REF);
        let entropy = self.entropy.map_or(Needs::NONE, |_| Needs::ENTROPY);
        self.advantage.needs() | self.surrogate.needs() | kl | entropy
    }

    /// How far its terms are coupled: the maximum of its parts.
    pub fn coupling(&self) -> Coupling {
        if self.surrogate.uses_ratio() { self.ratio.coupling() } else { Coupling::Token }
    }

    /// Everything that is wrong with the settings, for groups of `group_size` rollouts.
    pub fn check(&self, group_size: usize) -> Vec<Problem> {
        let within = |field: &'static str, found: Vec<Problem>| found.into_iter().map(move |p| p.within(field));
        let mut problems: Vec<Problem> = within("advantage", self.advantage.check())
            .chain(within("surrogate", self.surrogate.check()))
            .chain(within("weighting", self.weighting.check()))
            .collect();
        if self.ratio != Ratio::default() && !self.surrogate.uses_ratio() {
            problems.push(Problem::new(
                "ratio",
                "a ratio over sequences has no effect on the surrogate `reinforce`",
                "remove `ratio`, or use the surrogate `clip`",
            ));
        }
        if self.needs().contains(Needs::GROUP) && group_size < 2 {
            problems.push(Problem::new(
                "advantage",
                format!("the advantage compares the rollouts of a group, and a group has {group_size}"),
                "sample at least 2 rollouts a prompt",
            ));
        }
        problems.extend(self.kl.and_then(|kl| coefficient("kl.beta", kl.beta, "kl")));
        problems.extend(self.entropy.and_then(|bonus| coefficient("entropy.coef", bonus.coef, "entropy")));
        problems
    }

    /// Loss, derivatives and metric sums of some scored tokens.
    ///
    /// # Errors
    /// Arrays of other lengths, an input that [`needs`](Self::needs) names but is absent (`logp_old` excepted), and numbers
    /// that are not finite on a token of weight other than 0.
    pub fn token_terms(&self, rows: &Rows) -> Result<PolicyTerms, Error> {
        self.validate(rows)?;
        let log_ratio = self.log_ratio(rows);
        let mut terms = PolicyTerms { d_logp: vec![0.0; rows.logp.len()], ..PolicyTerms::default() };
        terms.d_entropy = self.entropy.map(|_| vec![0.0; rows.logp.len()]);
        let mut d_log_ratio = vec![0.0; rows.logp.len()];
        for row in (0..rows.logp.len()).filter(|row| rows.weight[*row] != 0.0) {
            let weight = rows.weight[row];
            let term = self.surrogate.term(log_ratio[row], rows.logp[row], rows.adv[row]);
            d_log_ratio[row] = weight * term.d_log_ratio;
            terms.d_logp[row] = weight * term.d_logp;
            let extra = self.add_penalties(rows, row, &mut terms);
            terms.loss += weight * (term.x + extra);
            terms.metrics.add_token(weight * term.x, term.clip, log_ratio[row]);
        }
        if self.surrogate.uses_ratio() {
            let through_ratio = self.ratio.backward(d_log_ratio, rows.weight, rows.sequences);
            for (d, r) in terms.d_logp.iter_mut().zip(through_ratio) {
                *d += r;
            }
        }
        Ok(terms)
    }

    /// KL and entropy at `row`: adds their derivatives and metrics and returns their share of x.
    fn add_penalties(&self, rows: &Rows, row: usize, terms: &mut PolicyTerms) -> f64 {
        let mut x = 0.0;
        if let (Some(kl), Some(logp_ref)) = (self.kl, rows.logp_ref) {
            let term = kl.estimator.term(rows.logp[row], logp_ref[row]);
            x += kl.beta * term.x;
            terms.d_logp[row] += rows.weight[row] * kl.beta * term.d_logp;
            terms.metrics.kl.get_or_insert_default().add(term.x);
        }
        if let Some(entropy) = rows.entropy {
            terms.metrics.entropy.get_or_insert_default().add(entropy[row]);
            if let (Some(bonus), Some(d)) = (self.entropy, &mut terms.d_entropy) {
                x -= bonus.coef * entropy[row];
                d[row] = -rows.weight[row] * bonus.coef;
            }
        }
        x
    }

    fn log_ratio(&self, rows: &Rows) -> Vec<f64> {
        let Some(old) = rows.logp_old else { return vec![0.0; rows.logp.len()] };
        let difference = rows.logp.iter().zip(old).map(|(now, old)| now - old).collect();
        if self.surrogate.uses_ratio() {
            self.ratio.forward(difference, rows.weight, rows.sequences)
        } else {
            Ratio::Token {}.forward(difference, rows.weight, rows.sequences)
        }
    }

    fn validate(&self, rows: &Rows) -> Result<(), Error> {
        if self.kl.is_some() && rows.logp_ref.is_none() {
            return Err(Error::Missing { name: "logp_ref", part: "kl" });
        }
        if self.entropy.is_some() && rows.entropy.is_none() {
            return Err(Error::Missing { name: "entropy", part: "entropy" });
        }
        let expected = rows.logp.len();
        let arrays = [
            ("weight", Some(rows.weight)),
            ("logp", Some(rows.logp)),
            ("adv", Some(rows.adv)),
            ("logp_old", rows.logp_old),
            ("logp_ref", rows.logp_ref),
            ("entropy", rows.entropy),
        ];
        for (name, values) in arrays.into_iter().filter_map(|(name, values)| Some((name, values?))) {
            if values.len() != expected {
                return Err(Error::Length { name, got: values.len(), expected });
            }
            let bad = |(v, w): (&f64, &f64)| *w != 0.0 && !v.is_finite();
            if let Some(row) = values.iter().zip(rows.weight).position(bad) {
                return Err(Error::NotFinite { name, row, value: values[row] });
            }
        }
        let covered: usize = rows.sequences.iter().sum();
        if self.coupling() > Coupling::Token && covered != expected {
            return Err(Error::Length { name: "sequences", got: covered, expected });
        }
        Ok(())
    }
}

fn coefficient(field: &str, value: f64, table: &str) -> Option<Problem> {
    let hint = || format!("remove the `{table}` table to go without");
    (!(value.is_finite() && value > 0.0))
        .then(|| Problem::new(field, format!("{field} is {value}, expected a finite number above 0"), hint()))
}

/// Sums over scored tokens of weight other than 0; micro-batches add up with [`merge`](Self::merge).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PolicyMetrics {
    /// Tokens counted.
    pub tokens: u64,
    /// `sum(weight * surrogate)`: the loss without its penalties.
    pub policy_loss: f64,
    /// Tokens whose gradient the lower bound cut.
    pub clipped_low: u64,
    /// Tokens whose gradient the upper bound cut.
    pub clipped_high: u64,
    /// Sum of the ratios.
    pub ratio_sum: f64,
    /// Largest ratio (0 when no token was counted).
    pub ratio_max: f64,
    /// KL estimates, when there is a reference.
    pub kl: Option<Sum>,
    /// Entropies, when they were given.
    pub entropy: Option<Sum>,
}

/// A sum and how many numbers went into it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// The sum.
    pub sum: f64,
    /// Its terms.
    pub count: u64,
}

impl Sum {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn plus(self, other: Self) -> Self {
        Self { sum: self.sum + other.sum, count: self.count + other.count }
    }

    /// Mean (0 of nothing).
    pub fn mean(self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

impl PolicyMetrics {
    fn add_token(&mut self, weighted: f64, clip: ClipSide, log_ratio: f64) {
        let (ratio, _) = crate::ratio::bounded_exp(log_ratio);
        self.tokens += 1;
        self.policy_loss += weighted;
        self.clipped_low += u64::from(clip == ClipSide::Low);
        self.clipped_high += u64::from(clip == ClipSide::High);
        self.ratio_sum += ratio;
        self.ratio_max = self.ratio_max.max(ratio);
    }

    /// The sums of this part and another.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let both = |a: Option<Sum>, b: Option<Sum>| match (a, b) {
            (Some(a), Some(b)) => Some(a.plus(b)),
            (a, b) => a.or(b),
        };
        Self {
            tokens: self.tokens + other.tokens,
            policy_loss: self.policy_loss + other.policy_loss,
            clipped_low: self.clipped_low + other.clipped_low,
            clipped_high: self.clipped_high + other.clipped_high,
            ratio_sum: self.ratio_sum + other.ratio_sum,
            ratio_max: self.ratio_max.max(other.ratio_max),
            kl: both(self.kl, other.kl),
            entropy: both(self.entropy, other.entropy),
        }
    }

    /// The metrics by the names that users of TRL know, each a mean over trained tokens:
    ///
    /// - `policy_loss`: the weighted surrogate alone (a sum, like the loss);
    /// - `clip_ratio/low_mean`, `clip_ratio/high_mean`: share of tokens whose gradient the lower / upper bound cut;
    ///   `clip_ratio/region_mean`: either;
    /// - `ratio/mean`, `ratio/max`: of the importance ratio, exactly 1 in the first update after sampling;
    /// - `kl`: mean of the chosen estimator against the reference, in nats (only with a KL penalty);
    /// - `entropy`: mean entropy of the next-token distribution, in nats (only when given).
    pub fn entries(&self) -> Vec<(&'static str, f64)> {
        let share = |count: u64| count as f64 / self.tokens.max(1) as f64;
        let mut entries = vec![
            ("policy_loss", self.policy_loss),
            ("clip_ratio/low_mean", share(self.clipped_low)),
            ("clip_ratio/high_mean", share(self.clipped_high)),
            ("clip_ratio/region_mean", share(self.clipped_low + self.clipped_high)),
            ("ratio/mean", self.ratio_sum / self.tokens.max(1) as f64),
            ("ratio/max", self.ratio_max),
        ];
        entries.extend(self.kl.map(|kl| ("kl", kl.mean())));
        entries.extend(self.entropy.map(|entropy| ("entropy", entropy.mean())));
        entries
    }
}
