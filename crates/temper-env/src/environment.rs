//! Environments: what is said to the model between its turns, and what an episode of several turns earns.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;

/// A conversation of several turns about one task. Every turn of the model is scored by the stage's rewards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Environment {
    /// The model answers, is told `prompt`, and answers again, its first answer in view. With `r1` and `r2` the rewards of the two
    /// answers the episode earns `first r1 + r2 + bonus (r2 - r1)`.
    ///
    /// Sources: SCoRe, arXiv 2409.12917 (A059): the second stage has `first = 1` and a bonus for what the second attempt
    /// gained, the first stage rewards the second attempt alone. CORY, arXiv 2410.06101 (A084): the second answer is the observer's,
    /// who sees the pioneer's; both earn the sum of the two rewards (`first = 1`, no bonus).
    SecondAttempt {
        /// What the model is told between the two attempts.
        prompt: String,
        /// Factor of the first answer's reward (default 1).
        #[serde(default = "one")]
        first: f64,
        /// Factor of the second answer's gain over the first (default 0).
        #[serde(default)]
        bonus: f64,
    },
}

fn one() -> f64 {
    1.0
}

impl Environment {
    /// Turns of the model, at most.
    pub fn turns(&self) -> usize {
        match self {
            Self::SecondAttempt { .. } => 2,
        }
    }

    /// What the model is told after its turn `done` (from 1); `None` ends the episode.
    pub fn says(&self, done: usize) -> Option<&str> {
        match self {
            Self::SecondAttempt { prompt, .. } => (done == 1).then_some(prompt),
        }
    }

    /// What an episode earns, from the rewards of its turns. An episode that ended before the second attempt, because the
    /// context was full, keeps the first one's share.
    ///
    /// ```
    /// use temper_env::Environment;
    /// let score = Environment::SecondAttempt { prompt: "Check your answer.".into(), first: 1.0, bonus: 2.0 };
    /// assert_eq!([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]].map(|turns| score.reward(&turns)), [3.0, -1.0, 2.0]);
    /// assert_eq!(score.reward(&[1.0]), 1.0);
    /// ```
    pub fn reward(&self, turns: &[f64]) -> f64 {
        match (self, turns) {
            (Self::SecondAttempt { first, bonus, .. }, [r1, r2, ..]) => first * r1 + r2 + bonus * (r2 - r1),
            (Self::SecondAttempt { first, .. }, [r1]) => first * r1,
            (Self::SecondAttempt { .. }, []) => 0.0,
        }
    }

    /// Whether the settings mean something.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the key.
    pub fn check(&self) -> Result<(), Error> {
        let no = |option: &str, why: String| Err(Error::Setting { option: option.into(), why });
        let Self::SecondAttempt { prompt, first, bonus } = self;
        if prompt.trim().is_empty() {
            return no("prompt", "expected what the model is told between its attempts, found nothing".into());
        }
        for (name, value) in [("first", *first), ("bonus", *bonus)] {
            if !(value.is_finite() && value.abs() <= 1e6) {
                return no(name, format!("expected a number from -1e6 to 1e6, found {value}"));
            }
        }
        Ok(())
    }
}
