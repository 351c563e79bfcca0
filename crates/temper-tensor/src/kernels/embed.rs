//! Embedding look-up in panels and its gradient.
#![allow(unsafe_code)] // threads share one matrix by disjoint columns

use super::par::{self, Shared};
use crate::panels::{LANES, Panels};
use crate::weight::Weight;

/// `y[r] = w[ids[r]]`; ids must be below `w.n()`.
pub fn embedding(w: &Weight, ids: &[u32], y: &mut [f32]) {
    let k = w.k();
    assert_eq!(y.len(), ids.len() * k, "y is [{}, {k}]", ids.len());
    if k > 0 {
        par::rows1(ids.len(), (y, k), |rows, y| {
            for (id, y) in ids[rows].iter().zip(y.chunks_exact_mut(k)) {
                w.row(*id as usize, y);
            }
        });
    }
}

/// `dw[ids[r]] += dy[r]`, rows in ascending order.
pub fn embedding_dw(dy: &[f32], ids: &[u32], dw: &mut Panels) {
    let (n, k) = (dw.n(), dw.k());
    assert_eq!(dy.len(), ids.len() * k, "dy is [{}, {k}]", ids.len());
    assert!(ids.iter().all(|id| (*id as usize) < n), "ids below {n}");
    let shared = Shared::new(dw.data_mut());
    par::columns(ids.len(), k, |columns| {
        for (r, id) in ids.iter().enumerate() {
            let (panel, lane) = (*id as usize / LANES, *id as usize % LANES);
            let span = (panel * k + columns.start) * LANES..(panel * k + columns.end) * LANES;
            // SAFETY: each task has columns of its own, and uses one panel's at a time.
            let part = unsafe { shared.part(span) };
            let values = &dy[r * k..][columns.clone()];
            for (to, value) in part.chunks_exact_mut(LANES).zip(values) {
                to[lane] += value;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::random;

    #[test]
    fn looks_up_rows_and_adds_to_them_in_order() {
        let (n, k) = (50, 150);
        let rows = random(n * k, 1);
        let w = Panels::from_rows(&rows, n, k);
        let weight = Weight::F32(w.clone());
        let ids: Vec<u32> = (0..400).map(|i| (i * i + 7) % n as u32).collect();
        let mut y = vec![0.0; ids.len() * k];
        embedding(&weight, &ids, &mut y);
        let mut want = rows.clone();
        for (id, y) in ids.iter().zip(y.chunks_exact(k)) {
            let at = *id as usize * k;
            assert_eq!(y, &rows[at..at + k]);
            want[at..at + k].iter_mut().zip(y).for_each(|(w, y)| *w += y);
        }
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            let mut dw = w.clone();
            pool.install(|| embedding_dw(&y, &ids, &mut dw));
            assert_eq!(dw.to_rows(), want);
        }
    }

    #[test]
    fn no_ids_are_fine() {
        let mut w = Panels::zeros(3, 4);
        embedding(&Weight::F32(w.clone()), &[], &mut []);
        embedding_dw(&[], &[], &mut w);
        assert!(w.data().iter().all(|x| *x == 0.0));
    }
}
