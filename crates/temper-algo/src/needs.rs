//! Which inputs a part reads beside `logp`; loops compute the union and never ask for a method's name.

use std::ops::{BitOr, BitOrAssign};

/// A set of inputs. Combine with `|`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Needs(u16);

impl Needs {
    /// Nothing beside `logp`.
    pub const NONE: Self = Self(0);
    /// Log-probs under the policy before the update. Equal to `logp` in the first update after sampling.
    pub const LOGP_OLD: Self = Self(1);
    /// Log-probs under the frozen reference role.
    pub const LOGP_REF: Self = Self(1 << 1);
    /// Entropy of the next-token distribution at each scored token.
    pub const ENTROPY: Self = Self(1 << 2);
    /// A critic's value at each scored token.
    pub const VALUE: Self = Self(1 << 3);
    /// Rewards of at least two rollouts of the same prompt.
    pub const GROUP: Self = Self(1 << 4);
    /// Log-probs as sampled, besides `logp_old`: what a correction for stale or foreign samples compares.
    pub const LOGP_GEN: Self = Self(1 << 8);
    /// Share of a group's rollouts that were right.
    pub const SUCCESS: Self = Self(1 << 9);
    /// The reward of a greedy rollout of every prompt.
    pub const GREEDY: Self = Self(1 << 10);
    /// Rewards of steps inside the rollouts.
    pub const STEPS: Self = Self(1 << 11);

    /// Mean of the log-probs of the whole vocabulary at each scored token.
    pub const MEAN_LOGP: Self = Self(1 << 12);

    /// KL divergence of the reference's distribution to the policy's, over the vocabulary, at each scored token.
    pub const KL_REF: Self = Self(1 << 13);

    const NAMES: [(Self, &'static str); 11] = [
        (Self::LOGP_OLD, "logp_old"),
        (Self::LOGP_REF, "logp_ref"),
        (Self::ENTROPY, "entropy"),
        (Self::VALUE, "value"),
        (Self::GROUP, "group"),
        (Self::LOGP_GEN, "logp_gen"),
        (Self::SUCCESS, "success"),
        (Self::GREEDY, "greedy"),
        (Self::STEPS, "steps"),
        (Self::MEAN_LOGP, "mean_logp"),
        (Self::KL_REF, "kl_ref"),
    ];

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every input of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The inputs by name, in a fixed order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(need, _)| self.contains(*need)).map(|(_, name)| name)
    }
}

impl BitOr for Needs {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl BitOrAssign for Needs {
    fn bitor_assign(&mut self, other: Self) {
        *self = self.union(other);
    }
}

impl FromIterator<Needs> for Needs {
    fn from_iter<I: IntoIterator<Item = Needs>>(parts: I) -> Self {
        parts.into_iter().fold(Self::NONE, Self::union)
    }
}

impl std::fmt::Debug for Needs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn union_and_names() {
        let both = Needs::LOGP_REF | Needs::ENTROPY;
        assert!(both.contains(Needs::ENTROPY) && !both.contains(Needs::VALUE) && both.contains(Needs::NONE));
        assert_eq!(both.names().collect::<Vec<_>>(), ["logp_ref", "entropy"]);
        assert_eq!([Needs::GROUP, both].into_iter().collect::<Needs>(), both.union(Needs::GROUP));
        assert_eq!(format!("{both:?}"), r#"{"logp_ref", "entropy"}"#);
    }
}
