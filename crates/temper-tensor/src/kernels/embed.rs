//! Embedding look-up in panels and its gradient.

use crate::panels::Panels;

/// `y[r] = w[ids[r]]`; ids must be below `w.n()`.
pub fn embedding(w: &Panels, ids: &[u32], y: &mut [f32]) {
    for (id, row) in ids.iter().zip(y.chunks_exact_mut(w.k())) {
        w.row(*id as usize, row);
    }
}

/// `dw[ids[r]] += dy[r]`, rows in ascending order.
pub fn embedding_dw(dy: &[f32], ids: &[u32], dw: &mut Panels) {
    let k = dw.k();
    for (id, row) in ids.iter().zip(dy.chunks_exact(k)) {
        dw.add_row(*id as usize, row);
    }
}
