//! Operands that were packed last. The products that read the same values come one behind the other (q, k and v; gate and up; a layer and its
//! adapter), so one packed operand of each kind is kept for the next of them, in place of being packed again.

use std::cell::Cell;

use crate::buf::Buf;

/// A row-major operand, and the name of its values where they have one ([`crate::Tensor`]'s change with every write).
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) name: Option<u64>,
}

impl<'a> From<&'a [f32]> for Rows<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self { values, name: None }
    }
}

impl<'a> From<&'a Buf> for Rows<'a> {
    fn from(values: &'a Buf) -> Self {
        Self::from(&values[..])
    }
}

/// How an operand is packed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// As a left operand that is reduced over its columns.
    Strips,
    /// As a left operand that is reduced over its rows.
    Turned,
}

/// Narrower operands are packed in next to no time, and would take the place of others.
const WIDE: usize = 64;

struct Packed {
    name: u64,
    shape: (usize, usize),
    words: Buf,
}

thread_local! {
    static LATEST: [Cell<Option<Packed>>; 2] = const { [Cell::new(None), Cell::new(None)] };
}

/// Calls `with` with `x [m, k]` packed: as it was last, or by `pack`.
pub(super) fn packed(
    kind: Kind,
    x: Rows,
    shape: (usize, usize),
    pack: impl FnOnce(&[f32]) -> Buf,
    with: impl FnOnce(&[u32]),
) {
    let Some(name) = x.name.filter(|_| shape.1 >= WIDE) else { return with(pack(x.values).words()) };
    // Nested products, of tasks that this thread takes over while it waits, find none.
    let latest = LATEST.with(|latest| latest[kind as usize].take()).filter(|p| p.name == name && p.shape == shape);
    let packed = latest.unwrap_or_else(|| Packed { name, shape, words: pack(x.values) });
    with(packed.words.words());
    LATEST.with(|latest| latest[kind as usize].set(Some(packed)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Ops, Weight};

    fn never(_: &[f32]) -> Buf {
        panic!("packed again")
    }

    #[test]
    fn the_same_values_are_packed_once_for_each_kind() {
        let values = vec![1.0; 4 * WIDE];
        let (x, shape) = (Rows { values: &values, name: Some(u64::MAX) }, (4, WIDE));
        let words = |of: &[f32]| Buf::from_slice(of);
        for kind in [Kind::Strips, Kind::Turned] {
            let packed_with = |x: Rows, shape, pack: fn(&[f32]) -> Buf| {
                let mut found = vec![];
                packed(kind, x, shape, pack, |words| found = words.to_vec());
                found
            };
            let first = packed_with(x, shape, words);
            assert_eq!(first, Buf::from_slice(&values).words());
            assert_eq!(packed_with(x, shape, never), first);
            // Another shape and another name are other operands.
            for (other, shape) in [(x, (2, 2 * WIDE)), (Rows { name: Some(u64::MAX - 1), ..x }, shape)] {
                let mut made = 0;
                packed(
                    kind,
                    other,
                    shape,
                    |of| {
                        made += 1;
                        words(of)
                    },
                    |_| (),
                );
                assert_eq!(made, 1);
            }
        }
    }

    #[test]
    fn a_written_tensor_is_packed_again() {
        let (ops, m, k) = (Cpu::new(), 5, 2 * WIDE);
        let weights: Vec<Weight> = (1..4)
            .map(|seed| Weight::from_rows(&crate::gemm::tests::random(WIDE * k, seed), WIDE, k).in_bf16())
            .collect();
        let mut x = ops.upload(m, k, &crate::gemm::tests::random(m * k, 9)).unwrap();
        let products = |x: &crate::Tensor| -> Vec<Vec<f32>> {
            weights.iter().map(|w| ops.linear(x, w).unwrap().host().to_vec()).collect()
        };
        let before = products(&x);
        let more = ops.upload(m, k, &vec![0.5; m * k]).unwrap();
        ops.add_scaled(&mut x, &more, 1.0).unwrap();
        let after = products(&x);
        let copy = ops.upload(m, k, x.host()).unwrap();
        assert!(before != after && after == products(&copy));
    }
}
