//! Objectives over given tokens (supervised fine-tuning): from log-prob to the per-token term.

use serde::{Deserialize, Serialize};

use crate::{Coupling, Error, Needs};

/// The supervised term of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenObjective {
    /// `x = -logp`: negative log-likelihood in nats.
    Nll {},
}

impl Default for TokenObjective {
    fn default() -> Self {
        Self::Nll {}
    }
}

/// The weighted terms of some scored tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenTerms {
    /// `sum(weight * x)`.
    pub loss: f64,
    /// `weight * dx/d(logp)` `[M]`.
    pub d_logp: Vec<f64>,
}

impl TokenObjective {
    /// Value and derivative of one token's term.
    pub fn term(self, logp: f64) -> (f64, f64) {
        match self {
            Self::Nll {} => (-logp, -1.0),
        }
    }

    /// The terms of some scored tokens; tokens of weight 0 contribute exactly nothing, whatever they hold.
    ///
    /// # Shapes
    /// `logp` and `weight`: `[M]`, any part of the step (see [`Coupling::Token`]).
    ///
    /// ```
    /// use temper_algo::TokenObjective;
    /// let terms = TokenObjective::Nll {}.terms(&[-1.0, -2.0], &[0.5, 0.25]).unwrap();
    /// assert_eq!((terms.loss, terms.d_logp), (1.0, vec![-0.5, -0.25]));
    /// ```
    pub fn terms(self, logp: &[f64], weight: &[f64]) -> Result<TokenTerms, Error> {
        if weight.len() != logp.len() {
            return Err(Error::Length { name: "weight", got: weight.len(), expected: logp.len() });
        }
        let mut terms = TokenTerms { loss: 0.0, d_logp: vec![0.0; logp.len()] };
        for (row, (&logp, &weight)) in logp.iter().zip(weight).enumerate().filter(|(_, (_, w))| **w != 0.0) {
            if !logp.is_finite() {
                return Err(Error::NotFinite { name: "logp", row, value: logp });
            }
            let (x, slope) = self.term(logp);
            terms.loss += weight * x;
            terms.d_logp[row] = weight * slope;
        }
        Ok(terms)
    }

    /// What it reads beside `logp`.
    pub fn needs(self) -> Needs {
        match self {
            Self::Nll {} => Needs::NONE,
        }
    }

    /// How far its terms are coupled.
    pub fn coupling(self) -> Coupling {
        match self {
            Self::Nll {} => Coupling::Token,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_tokens_contribute_nothing_even_when_infinite() {
        let terms = TokenObjective::Nll {}.terms(&[f64::NEG_INFINITY, -1.5], &[0.0, 2.0]).unwrap();
        assert_eq!((terms.loss, terms.d_logp), (3.0, vec![0.0, -2.0]));
    }

    #[test]
    fn bad_arrays_are_named() {
        assert!(matches!(TokenObjective::Nll {}.terms(&[0.0], &[]), Err(Error::Length { got: 0, expected: 1, .. })));
        assert!(matches!(TokenObjective::Nll {}.terms(&[f64::NAN], &[1.0]), Err(Error::NotFinite { row: 0, .. })));
    }
}
