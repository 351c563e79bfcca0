//! How far the terms of an objective depend on each other.

use serde::{Deserialize, Serialize};

/// The smallest unit whose forward values have to be known before any derivative in it is.
///
/// It decides what a loop may split: `Token` terms can be differentiated row by row while the logits are at hand (single
/// pass), `Sequence` and `Group` units stay whole in a micro-batch, `Step` takes a forward pass over everything first.
/// Advantages and weights come from host data before the forward pass, so they couple nothing.
/// The coupling of a composed objective is the maximum of its parts'.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Coupling {
    /// Each token's derivative depends on that token's values alone.
    #[default]
    Token,
    /// It depends on the other tokens of the same sequence.
    Sequence,
    /// It depends on the other sequences of the same group.
    Group,
    /// It depends on everything in the optimiser step.
    Step,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wider_coupling_wins() {
        assert_eq!(Coupling::Token.max(Coupling::Sequence), Coupling::Sequence);
        assert!(Coupling::Sequence < Coupling::Group && Coupling::Group < Coupling::Step);
    }
}
