//! Small products on the micro-kernel that the matrix multiplications use too.

use crate::gemm::tile;
use crate::panels::LANES;

/// Left operand: element (i, r) lies at `i * row + r * step`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left<'t> {
    data: &'t [f32],
    row: usize,
    step: usize,
}

impl<'t> Left<'t> {
    /// Rows of length `width`.
    pub(crate) fn rows(data: &'t [f32], width: usize) -> Self {
        Self { data, row: width, step: 1 }
    }

    /// The transpose of rows of length `width`, from column `from`.
    pub(crate) fn columns(data: &'t [f32], width: usize, from: usize) -> Self {
        Self { data: &data[from..], row: 1, step: width }
    }
}

/// Right operand `[depth, cols]`, read 16 columns at a time: element (r, 16 p + lane) at `p * panel + r * step + lane`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Right<'t> {
    data: &'t [f32],
    panel: usize,
    step: usize,
    panels: usize,
}

impl<'t> Right<'t> {
    /// Panels `[cols / 16][depth][16]` with at least `cols` columns.
    pub(crate) fn panels(data: &'t [f32], depth: usize, cols: usize) -> Self {
        Self { data, panel: depth * LANES, step: LANES, panels: cols.div_ceil(LANES) }
    }

    /// Rows `[depth][cols]`, `cols` a multiple of 16 (see [`wide`](crate::panels::wide)).
    pub(crate) fn rows(data: &'t [f32], cols: usize) -> Self {
        debug_assert!(cols.is_multiple_of(LANES));
        Self { data, panel: LANES, step: cols, panels: cols / LANES }
    }

    fn at(&self, panel: usize) -> *const f32 {
        self.data[panel * self.panel..].as_ptr()
    }
}

/// `c[i][j] (=|+=) sum over r < depth of left(i, r) * right(r, j)` for `rows <= 12` rows of `c`, which are `width` apart.
pub(crate) fn multiply(rows: usize, depth: usize, a: Left, b: Right, c: &mut [f32], width: usize, acc: bool) {
    if rows == 0 || depth == 0 || b.panels == 0 {
        return;
    }
    assert!(a.data.len() > (rows - 1) * a.row + (depth - 1) * a.step, "left operand holds [{rows}, {depth}]");
    assert!(b.data.len() >= (b.panels - 1) * b.panel + (depth - 1) * b.step + LANES, "right operand holds its panels");
    assert!(width >= b.panels * LANES && c.len() >= (rows - 1) * width + b.panels * LANES, "result fits");
    for p in (0..b.panels).step_by(2) {
        let pair = p + 1 < b.panels;
        let second = if pair { b.at(p + 1) } else { std::ptr::null() };
        let c0 = c[p * LANES..].as_mut_ptr();
        let c1 = if pair { c[(p + 1) * LANES..].as_mut_ptr() } else { c0 };
        // SAFETY: all three operands were checked above to cover what the strides reach.
        unsafe { tile(rows, depth, a.data.as_ptr(), a.row, a.step, b.at(p), second, b.step, c0, c1, width, acc) };
    }
}
