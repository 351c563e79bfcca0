//! What an objective reads of the scored tokens.

use std::ops::Range;

use crate::{Coupling, Error, Needs};

/// Scored tokens of a micro-batch, or of any row range when the coupling is [`Coupling::Token`]; of the whole optimiser step
/// when it is [`Coupling::Step`]. All arrays are `[M]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rows<'a> {
    /// Log-probs now.
    pub logp: &'a [f64],
    /// Log-probs before the update; `None` = the same as now (the first update after sampling), ratio exactly 1.
    pub logp_old: Option<&'a [f64]>,
    /// Log-probs as sampled, where another policy or engine sampled; read by [`Correction`](crate::Correction) alone.
    pub logp_gen: Option<&'a [f64]>,
    /// Log-probs under the reference.
    pub logp_ref: Option<&'a [f64]>,
    /// Entropies of the next-token distributions.
    pub entropy: Option<&'a [f64]>,
    /// Share of the group's rollouts that were right, the same for every token of the group.
    pub success: Option<&'a [f64]>,
    /// Factor of the KL penalty at each token; `None` = 1 everywhere.
    pub kl_factor: Option<&'a [f64]>,
    /// Advantages, one a token.
    pub adv: &'a [f64],
    /// Weights of the step from [`Weighting`](crate::Weighting). A token of weight 0 is not there: it enters no term, mean or
    /// metric.
    pub weight: &'a [f64],
    /// Lengths of the sequences, in order, adding up to M. Not read when the coupling is [`Coupling::Token`].
    pub sequences: &'a [usize],
    /// Sequences of each group, in order, adding up to the number of sequences. Read when the coupling is
    /// [`Coupling::Group`], and by a group-coupled part of a [`Coupling::Step`] objective.
    pub groups: &'a [usize],
}

impl<'a> Rows<'a> {
    /// No tokens.
    pub const EMPTY: Self = Self {
        logp: &[],
        logp_old: None,
        logp_gen: None,
        logp_ref: None,
        entropy: None,
        success: None,
        kl_factor: None,
        adv: &[],
        weight: &[],
        sequences: &[],
        groups: &[],
    };

    /// The rows of each sequence.
    pub(crate) fn sequence_ranges(&self) -> impl Iterator<Item = Range<usize>> + use<'a> {
        ranges(self.sequences)
    }

    /// The sequences of each group, as the rows of each.
    pub(crate) fn group_ranges(&self) -> impl Iterator<Item = Vec<Range<usize>>> + use<'a> {
        let sequences: Vec<Range<usize>> = self.sequence_ranges().collect();
        ranges(self.groups).map(move |group| sequences[group].to_vec())
    }

    /// The rows of weight other than 0.
    pub(crate) fn live(&self) -> impl Iterator<Item = usize> + use<'a> {
        let weight = self.weight;
        (0..weight.len()).filter(move |row| weight[*row] != 0.0)
    }

    fn arrays(&self) -> [(&'static str, Option<&'a [f64]>); 9] {
        [
            ("weight", Some(self.weight)),
            ("logp", Some(self.logp)),
            ("adv", Some(self.adv)),
            ("logp_old", self.logp_old),
            ("logp_gen", self.logp_gen),
            ("logp_ref", self.logp_ref),
            ("entropy", self.entropy),
            ("success", self.success),
            ("kl_factor", self.kl_factor),
        ]
    }

    /// Whether an input that may be absent is there, by its need (`logp_old` may always be absent).
    fn missing(&self, needs: Needs) -> Option<&'static str> {
        let optional = [
            (Needs::LOGP_REF, "logp_ref", self.logp_ref),
            (Needs::ENTROPY, "entropy", self.entropy),
            (Needs::LOGP_GEN, "logp_gen", self.logp_gen),
            (Needs::SUCCESS, "success", self.success),
        ];
        optional.into_iter().find(|(need, _, array)| needs.contains(*need) && array.is_none()).map(|(_, name, _)| name)
    }

    /// Whether everything that `parts` read is there, of the right length and finite.
    pub(crate) fn validate(
        &self,
        parts: &[(&'static str, Needs)],
        reach: Coupling,
        grouped: bool,
    ) -> Result<(), Error> {
        for (part, needs) in parts {
            if let Some(name) = self.missing(*needs) {
                return Err(Error::Missing { name, part });
            }
        }
        let expected = self.logp.len();
        for (name, values) in self.arrays().into_iter().filter_map(|(name, values)| Some((name, values?))) {
            same_length(name, values.len(), expected)?;
            let bad = |(v, w): (&f64, &f64)| *w != 0.0 && !v.is_finite();
            if let Some(row) = values.iter().zip(self.weight).position(bad) {
                return Err(Error::NotFinite { name, row, value: values[row] });
            }
        }
        if reach > Coupling::Token {
            same_length("sequences", self.sequences.iter().sum(), expected)?;
        }
        if grouped {
            same_length("groups", self.groups.iter().sum(), self.sequences.len())?;
        }
        Ok(())
    }
}

fn same_length(name: &'static str, got: usize, expected: usize) -> Result<(), Error> {
    if got == expected { Ok(()) } else { Err(Error::Length { name, got, expected }) }
}

/// Consecutive ranges of these lengths.
fn ranges(lengths: &[usize]) -> impl Iterator<Item = Range<usize>> {
    lengths.iter().scan(0, |start, length| {
        let range = *start..*start + length;
        *start = range.end;
        Some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_by_hand() {
        let rows = Rows { weight: &[0.0, 1.0, 2.0], sequences: &[1, 0, 2], groups: &[2, 1], ..Rows::EMPTY };
        assert_eq!(rows.sequence_ranges().collect::<Vec<_>>(), [0..1, 1..1, 1..3]);
        let groups: Vec<Vec<Range<usize>>> = rows.group_ranges().collect();
        assert_eq!((groups.len(), &groups[0][..], &groups[1][0]), (2, &[0..1, 1..1][..], &(1..3)));
        assert_eq!(rows.live().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn groups_have_to_cover_the_sequences() {
        let rows = Rows { logp: &[-1.0], adv: &[1.0], weight: &[1.0], sequences: &[1], groups: &[2], ..Rows::EMPTY };
        let got = rows.validate(&[], Coupling::Group, true);
        assert_eq!(got, Err(Error::Length { name: "groups", got: 2, expected: 1 }));
    }
}
