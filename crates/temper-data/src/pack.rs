//! Packing sequences into rows of bounded length.

use std::collections::{BTreeMap, BTreeSet};

/// Packs sequences into as few bins of `max_tokens` tokens as best-fit decreasing finds.
///
/// Longest first, each goes to the bin that it leaves the least room in. Sequences are never cut: one that is longer
/// than `max_tokens` has a bin of its own. The result depends on the lengths alone: indices ascend within a bin, bins
/// are in the order of their first index, every index is in one bin.
pub fn pack(lengths: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    // Bins by the room left in them, oldest first.
    let mut rooms: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for index in order {
        let length = lengths[index];
        let (bin, room) = best(&mut rooms, length).unwrap_or_else(|| {
            bins.push(Vec::new());
            (bins.len() - 1, max_tokens)
        });
        bins[bin].push(index);
        rooms.entry(room.saturating_sub(length)).or_default().insert(bin);
    }
    for bin in &mut bins {
        bin.sort_unstable();
    }
    bins.sort_unstable();
    bins
}

/// Takes the oldest of the fullest bins with room for `length`.
fn best(rooms: &mut BTreeMap<usize, BTreeSet<usize>>, length: usize) -> Option<(usize, usize)> {
    let (&room, bins) = rooms.range_mut(length.max(1)..).next()?;
    let bin = bins.pop_first()?;
    if bins.is_empty() {
        rooms.remove(&room);
    }
    Some((bin, room))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_packings() {
        assert_eq!(pack(&[5, 3, 2, 4, 6], 10), [vec![0, 1, 2], vec![3, 4]]);
        assert_eq!(pack(&[12, 1], 10), [vec![0], vec![1]]);
        assert_eq!(pack(&[], 10), Vec::<Vec<usize>>::new());
        assert_eq!(pack(&[0, 0], 0), [vec![0], vec![1]]);
    }

    proptest! {
        #[test]
        fn every_sequence_is_in_one_bin_that_holds_it(lengths in prop::collection::vec(0usize..40, 0..60), max in 1usize..50) {
            let bins = pack(&lengths, max);
            let mut all: Vec<usize> = bins.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            for bin in &bins {
                let total: usize = bin.iter().map(|index| lengths[*index]).sum();
                prop_assert!(total <= max || bin.len() == 1);
                prop_assert!(bin.is_sorted());
            }
            prop_assert!(bins.is_sorted());
            // Any two bins together exceed one row, or best fit would have joined them.
            let total: usize = lengths.iter().map(|length| (*length).min(max)).sum();
            prop_assert!(bins.len() <= 1 + 2 * total / max + lengths.iter().filter(|length| **length == 0).count());
        }
    }
}
