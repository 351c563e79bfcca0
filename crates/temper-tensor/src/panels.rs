//! Weight matrices in panels: `[ceil(n / 16)][k][16]`, the one layout that forward, both backward products, decoding
//! and the optimiser read.

use rayon::prelude::*;

use crate::buf::Buf;

/// Rows of the matrix that lie side by side in one panel.
pub const LANES: usize = 16;

/// `n` rounded up to whole panels: the width of scratch rows that kernels read or write 16 columns at a time.
pub(crate) const fn wide(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// Columns of a panel that are worth a task of their own.
const TASK: usize = 1 << 12;

/// A matrix `[n, k]` (n outputs, k inputs) in 16-row panels; the lanes past row n hold zeros and stay zero.
#[derive(Debug, Clone)]
pub struct Panels {
    n: usize,
    k: usize,
    data: Buf,
}

impl Panels {
    /// All zeros.
    pub fn zeros(n: usize, k: usize) -> Self {
        Self { n, k, data: Buf::zeros(n.div_ceil(LANES) * LANES * k) }
    }

    /// From row-major `[n, k]` values; panics unless there are `n * k` of them.
    pub fn from_rows(rows: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(rows.len(), n * k, "a matrix [{n}, {k}] has {} values", n * k);
        let mut panels = Self::zeros(n, k);
        if k > 0 {
            let panels = panels.data.par_chunks_exact_mut(LANES * k).zip(rows.par_chunks(LANES * k));
            panels.with_min_len(TASK.div_ceil(k)).for_each(|(panel, rows)| {
                for (lane, row) in rows.chunks_exact(k).enumerate() {
                    panel.chunks_exact_mut(LANES).zip(row).for_each(|(lanes, x)| lanes[lane] = *x);
                }
            });
        }
        panels
    }

    /// Row-major `[n, k]` values.
    pub fn to_rows(&self) -> Vec<f32> {
        let mut rows = vec![0.0; self.n * self.k];
        if self.k > 0 {
            let tasks = rows.par_chunks_exact_mut(self.k).enumerate().with_min_len(LANES * TASK.div_ceil(self.k));
            tasks.for_each(|(i, row)| self.row(i, row));
        }
        rows
    }

    /// n, the number of rows (outputs).
    pub fn n(&self) -> usize {
        self.n
    }

    /// k, the number of columns (inputs).
    pub fn k(&self) -> usize {
        self.k
    }

    /// Number of panels.
    pub fn count(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// All panels, padding included.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All panels, padding included; elementwise updates that map 0 to 0 keep the padding zero.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Copies row `i` to `out`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        for (x, lanes) in out.iter_mut().zip(self.panel_of(i).chunks_exact(LANES)) {
            *x = lanes[i % LANES];
        }
    }

    /// Replaces row `i`.
    pub fn set_row(&mut self, i: usize, row: &[f32]) {
        for (x, lanes) in row.iter().zip(self.panel_of_mut(i).chunks_exact_mut(LANES)) {
            lanes[i % LANES] = *x;
        }
    }

    /// Adds `row` to row `i`.
    pub fn add_row(&mut self, i: usize, row: &[f32]) {
        for (x, lanes) in row.iter().zip(self.panel_of_mut(i).chunks_exact_mut(LANES)) {
            lanes[i % LANES] += *x;
        }
    }

    /// Where entry `[i, j]` lies in [`Panels::data`].
    pub fn index(&self, i: usize, j: usize) -> usize {
        (i / LANES * self.k + j) * LANES + i % LANES
    }

    fn panel_of(&self, i: usize) -> &[f32] {
        assert!(i < self.n, "row {i} of a matrix with {} rows", self.n);
        &self.data[i / LANES * LANES * self.k..][..LANES * self.k]
    }

    fn panel_of_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.n, "row {i} of a matrix with {} rows", self.n);
        &mut self.data[i / LANES * LANES * self.k..][..LANES * self.k]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(n: usize, k: usize) -> Vec<f32> {
        (0..n * k).map(|i| i as f32 + 1.0).collect()
    }

    #[test]
    fn rows_survive_the_round_trip_and_padding_is_zero() {
        for (n, k) in [(1, 1), (16, 3), (17, 5), (40, 7), (0, 4), (3, 0)] {
            let rows = numbered(n, k);
            let panels = Panels::from_rows(&rows, n, k);
            assert_eq!(panels.to_rows(), rows);
            let padding = panels.data().iter().filter(|x| **x == 0.0).count();
            assert_eq!(padding, (n.div_ceil(LANES) * LANES - n) * k);
        }
    }

    #[test]
    fn entries_lie_where_index_says() {
        let (n, k) = (21, 6);
        let rows = numbered(n, k);
        let panels = Panels::from_rows(&rows, n, k);
        for i in 0..n {
            for j in 0..k {
                assert_eq!(panels.data()[panels.index(i, j)], rows[i * k + j]);
            }
        }
    }

    #[test]
    fn rows_can_be_added_to() {
        let mut panels = Panels::from_rows(&numbered(18, 2), 18, 2);
        panels.add_row(17, &[10.0, 20.0]);
        let mut row = [0.0; 2];
        panels.row(17, &mut row);
        assert_eq!(row, [45.0, 56.0]);
        panels.row(16, &mut row);
        assert_eq!(row, [33.0, 34.0]);
    }
}
