//! The supervised objective: token objectives as a weighted list.

use serde::{Deserialize, Serialize};

use crate::token_objective::Tokens;
use crate::{Coupling, Error, Needs, Problem, TokenObjective, TokenTerm, TokenValues};

/// `x = objective + sum(weight * term)`, summed with the weights of [`Weighting`](crate::Weighting).
///
/// Alone: NLL, DFT and their kin. Together: ASFT is `dft` with a `vocabulary_kl` term of weight 0.1, SFT with a KL penalty `nll`
/// with the same term.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SupervisedObjective {
    /// The first term, of weight 1.
    pub objective: TokenObjective,
    /// Further terms; none unless given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<WeightedTerm>,
}

/// One further term.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedTerm {
    /// Its coefficient, above 0.
    pub weight: f64,
    /// The term.
    pub objective: TokenObjective,
}

/// Scored tokens of a micro-batch, or of any row range when the coupling is [`Coupling::Token`]. All arrays are `[M]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct SupervisedRows<'a> {
    /// Log-probs now.
    pub logp: &'a [f64],
    /// Log-probs under the reference.
    pub logp_ref: Option<&'a [f64]>,
    /// Entropies of the next-token distributions.
    pub entropy: Option<&'a [f64]>,
    /// Means of the log-probs of the whole vocabulary.
    pub mean_logp: Option<&'a [f64]>,
    /// KL divergences of the reference's distributions to these, over the vocabulary.
    pub kl_ref: Option<&'a [f64]>,
    /// Weights of the step. A token of weight 0 is not there: it enters no term and no coefficient.
    pub weight: &'a [f64],
    /// Lengths of the sequences, in order, adding up to M. Not read when the coupling is [`Coupling::Token`].
    pub sequences: &'a [usize],
}

/// Loss and derivatives of some scored tokens, weights included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SupervisedTerms {
    /// `sum(weight * x)`: this part's share of the step's loss.
    pub loss: f64,
    /// d(loss)/d(logp) `[M]`.
    pub d_logp: Vec<f64>,
    /// d(loss)/d(entropy) `[M]`; `None` when no term reads the entropy.
    pub d_entropy: Option<Vec<f64>>,
    /// d(loss)/d(mean_logp) `[M]`; `None` when no term reads it.
    pub d_mean_logp: Option<Vec<f64>>,
    /// d(loss)/d(kl_ref) `[M]`; `None` when no term reads it.
    pub d_kl_ref: Option<Vec<f64>>,
    /// Each term's own `sum(weight * x)`, before its coefficient.
    pub parts: Vec<f64>,
}

impl From<TokenObjective> for SupervisedObjective {
    fn from(objective: TokenObjective) -> Self {
        Self { objective, terms: vec![] }
    }
}

impl SupervisedObjective {
    /// All terms with their coefficients.
    pub fn weighted(&self) -> impl Iterator<Item = (f64, &TokenObjective)> {
        std::iter::once((1.0, &self.objective)).chain(self.terms.iter().map(|t| (t.weight, &t.objective)))
    }

    /// The inputs that it reads beside `logp`.
    pub fn needs(&self) -> Needs {
        self.weighted().map(|(_, o)| o.needs()).collect()
    }

    /// How far its terms are coupled: the maximum of its parts.
    pub fn coupling(&self) -> Coupling {
        self.weighted().map(|(_, o)| o.coupling()).max().unwrap_or_default()
    }

    /// Everything that is wrong with the settings.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.objective.check().into_iter().map(|p| p.within("objective")).collect();
        for (i, term) in self.terms.iter().enumerate() {
            let at = format!("terms.{i}");
            if !(term.weight > 0.0 && term.weight.is_finite()) {
                let message = format!("weight is {}, expected a finite number above 0", term.weight);
                problems.push(Problem::new("weight", message, "remove the term to go without").within(&at));
            }
            problems.extend(term.objective.check().into_iter().map(|p| p.within("objective").within(&at)));
        }
        problems
    }

    /// Loss and derivatives of some scored tokens; tokens of weight 0 contribute exactly nothing, whatever they hold.
    ///
    /// # Errors
    /// Arrays of other lengths, an input that [`needs`](Self::needs) names but is absent, and numbers that are not finite on
    /// a token of weight other than 0.
    ///
    /// ```
    /// use temper_algo::{SupervisedObjective, SupervisedRows};
    /// let rows = SupervisedRows { logp: &[-1.0, -2.0], weight: &[0.5, 0.25], ..SupervisedRows::default() };
    /// let terms = SupervisedObjective::default().token_terms(&rows).unwrap();
    /// assert_eq!((terms.loss, terms.d_logp), (1.0, vec![-0.5, -0.25]));
    /// ```
    pub fn token_terms(&self, rows: &SupervisedRows) -> Result<SupervisedTerms, Error> {
        self.validate(rows)?;
        let (needs, zeros) = (self.needs(), || vec![0.0; rows.logp.len()]);
        let mut terms = SupervisedTerms {
            d_logp: zeros(),
            d_entropy: needs.contains(Needs::ENTROPY).then(zeros),
            d_mean_logp: needs.contains(Needs::MEAN_LOGP).then(zeros),
            d_kl_ref: needs.contains(Needs::KL_REF).then(zeros),
            ..SupervisedTerms::default()
        };
        for (coefficient, objective) in self.weighted() {
            let part = match objective.sequence() {
                None => token_part(objective, coefficient, rows, &mut terms),
                Some(sequence) => {
                    let each = |at: &[usize]| gather(rows, at, |tokens| sequence.terms(tokens));
                    sequence_part(coefficient, rows, &mut terms, each)
                }
            };
            terms.loss += coefficient * part;
            terms.parts.push(part);
        }
        Ok(terms)
    }

    fn validate(&self, rows: &SupervisedRows) -> Result<(), Error> {
        for (_, objective) in self.weighted() {
            let given = [
                (Needs::LOGP_REF, "logp_ref", rows.logp_ref),
                (Needs::ENTROPY, "entropy", rows.entropy),
                (Needs::MEAN_LOGP, "mean_logp", rows.mean_logp),
                (Needs::KL_REF, "kl_ref", rows.kl_ref),
            ];
            if let Some((_, name, _)) = given.iter().find(|(n, _, v)| objective.needs().contains(*n) && v.is_none()) {
                return Err(Error::Missing { name, part: objective.name() });
            }
        }
        let expected = rows.logp.len();
        let arrays = [
            ("weight", Some(rows.weight)),
            ("logp", Some(rows.logp)),
            ("logp_ref", rows.logp_ref),
            ("entropy", rows.entropy),
            ("mean_logp", rows.mean_logp),
            ("kl_ref", rows.kl_ref),
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

/// Adds a term that is each token's own; returns its `sum(weight * x)`.
fn token_part(objective: &TokenObjective, coefficient: f64, rows: &SupervisedRows, terms: &mut SupervisedTerms) -> f64 {
    let at = |values: Option<&[f64]>, row: usize| values.map_or(0.0, |v| v[row]);
    let mut part = 0.0;
    for row in (0..rows.logp.len()).filter(|row| rows.weight[*row] != 0.0) {
        let TokenTerm { x, d_logp, d_entropy, d_mean_logp, d_kl_ref } = objective.term(&TokenValues {
            logp: rows.logp[row],
            logp_ref: at(rows.logp_ref, row),
            entropy: at(rows.entropy, row),
            mean_logp: at(rows.mean_logp, row),
            kl_ref: at(rows.kl_ref, row),
        });
        let weight = rows.weight[row];
        part += weight * x;
        terms.d_logp[row] += coefficient * weight * d_logp;
        for (d, slope) in
            [(&mut terms.d_entropy, d_entropy), (&mut terms.d_mean_logp, d_mean_logp), (&mut terms.d_kl_ref, d_kl_ref)]
        {
            if let Some(d) = d {
                d[row] += coefficient * weight * slope;
            }
        }
    }
    part
}

/// Adds a term whose coefficients belong to whole sequences; `each` gets the trained rows of one sequence and returns their
/// x and weighted slopes.
fn sequence_part(
    coefficient: f64,
    rows: &SupervisedRows,
    terms: &mut SupervisedTerms,
    each: impl Fn(&[usize]) -> (Vec<f64>, Vec<f64>),
) -> f64 {
    let (mut part, mut start) = (0.0, 0);
    for length in rows.sequences {
        let trained: Vec<usize> = (start..start + length).filter(|row| rows.weight[*row] != 0.0).collect();
        start += length;
        let (x, d) = each(&trained);
        for ((row, x), d) in trained.into_iter().zip(x).zip(d) {
            part += rows.weight[row] * x;
            terms.d_logp[row] += coefficient * d;
        }
    }
    part
}

/// The values of some rows side by side.
fn gather<T>(rows: &SupervisedRows, at: &[usize], run: impl Fn(&Tokens) -> T) -> T {
    let pick = |values: &[f64]| at.iter().map(|row| values[*row]).collect::<Vec<f64>>();
    let (logp, reference, weight) = (pick(rows.logp), rows.logp_ref.map(pick), pick(rows.weight));
    run(&Tokens { logp: &logp, logp_ref: reference.as_deref(), weight: &weight })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Direction, KlEstimator};

    fn anchored(weight: f64) -> SupervisedObjective {
        let objective = TokenObjective::ReferenceKl { estimator: KlEstimator::K2 {}, direction: Direction::Reverse };
        SupervisedObjective { objective: TokenObjective::Dft {}, terms: vec![WeightedTerm { weight, objective }] }
    }

    #[test]
    fn terms_add_up_by_hand() {
        // p = 1/2, u = ln 2: dft = ln 2 / 2 = 0.346574, k2 = ln(2)^2 / 2 = 0.240227; slopes -1/2 and ln 2.
        let logp = [0.5f64.ln()];
        let rows =
            SupervisedRows { logp: &logp, logp_ref: Some(&[0.25f64.ln()]), weight: &[2.0], ..Default::default() };
        let terms = anchored(0.1).token_terms(&rows).unwrap();
        assert!((terms.loss - 2.0 * (0.346_574 + 0.024_023)).abs() < 2e-6, "{terms:?}");
        assert!((terms.d_logp[0] - 2.0 * (-0.5 + 0.069_315)).abs() < 2e-6);
        assert!((terms.parts[1] - 0.480_453).abs() < 1e-6);
        assert_eq!((terms.d_entropy, terms.d_mean_logp), (None, None));
    }

    #[test]
    fn masked_tokens_contribute_nothing_even_when_infinite() {
        let rows = SupervisedRows { logp: &[f64::NEG_INFINITY, -1.5], weight: &[0.0, 2.0], ..Default::default() };
        let terms = SupervisedObjective::default().token_terms(&rows).unwrap();
        assert_eq!((terms.loss, terms.d_logp), (3.0, vec![0.0, -2.0]));
    }

    #[test]
    fn problems_carry_their_path() {
        let mut objective = anchored(-1.0);
        objective.objective = TokenObjective::Focal { gamma: -2.0 };
        objective.terms[0].objective = TokenObjective::LabelSmoothing { eps: 2.0 };
        let fields: Vec<String> = objective.check().into_iter().map(|p| p.field).collect();
        assert_eq!(fields, ["objective.gamma", "terms.0.weight", "terms.0.objective.eps"]);
    }
}
