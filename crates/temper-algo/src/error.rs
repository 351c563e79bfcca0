//! What can be wrong with arrays ([`Error`]) and with settings ([`Problem`]).

/// Arrays that do not fit together or do not hold what the objective reads.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two arrays over the same tokens have different lengths.
    #[error("`{name}` has {got} entries, expected {expected} (one per scored token)")]
    Length {
        /// The array.
        name: &'static str,
        /// Entries that it has.
        got: usize,
        /// Entries that it needs.
        expected: usize,
    },
    /// An input that [`Needs`](crate::Needs) names was not given.
    #[error("`{part}` reads `{name}`, which was not given")]
    Missing {
        /// The input.
        name: &'static str,
        /// The part that reads it.
        part: &'static str,
    },
    /// A token that is trained on has a value that is NaN or infinite.
    #[error("`{name}` is {value} at scored token {row}, expected a finite number")]
    NotFinite {
        /// The array.
        name: &'static str,
        /// Index of the token.
        row: usize,
        /// What it holds.
        value: f64,
    },
    /// An array of a group whose length does not fit.
    #[error("`{name}` of group {group}: {got}, expected {expected}")]
    GroupLength {
        /// The array.
        name: &'static str,
        /// Index of the group.
        group: usize,
        /// Entries that it has.
        got: usize,
        /// Entries that it needs.
        expected: usize,
    },
    /// A reward or value of a rollout that is NaN or infinite.
    #[error("`{name}` is {value} at rollout {rollout} of group {group}, expected a finite number")]
    BadReward {
        /// The array.
        name: &'static str,
        /// Index of the group.
        group: usize,
        /// Index of the rollout in it.
        rollout: usize,
        /// What it holds.
        value: f64,
    },
    /// A mask or weight that is negative, NaN or infinite.
    #[error("the weight of sequence {sequence} is {value}, expected a finite number of at least 0")]
    BadWeight {
        /// Index of the sequence.
        sequence: usize,
        /// What was given.
        value: f64,
    },
    /// A statistic over too little data, or a parameter outside its range.
    #[error("`{name}` is {value}, expected {expected}")]
    Argument {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },
}

/// One thing wrong with a setting; `check` functions report all of them at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting, as a path below the part (`kl.beta`).
    pub field: String,
    /// What is wrong: the value and what was expected.
    pub message: String,
    /// The way out.
    pub hint: String,
}

impl Problem {
    /// A problem of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), hint: hint.into() }
    }

    /// A problem of `field` unless `value` is a finite number above 0.
    pub(crate) fn unless_positive(field: &str, value: f64, hint: &str) -> Option<Self> {
        let message = || format!("{field} is {value}, expected a finite number above 0");
        (!(value.is_finite() && value > 0.0)).then(|| Self::new(field, message(), hint))
    }

    /// The same problem seen from an enclosing table: `prefix.field`.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Self {
        self.field = if self.field.is_empty() { prefix.to_owned() } else { format!("{prefix}.{}", self.field) };
        self
    }
}
