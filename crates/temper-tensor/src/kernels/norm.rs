//! RMS normalisation, forward and backward.

/// `inv[r] = 1 / sqrt(mean(x[r]^2) + eps)` for the rows of `x [m, c]`, m being `inv.len()`.
pub fn rms_inv(x: &[f32], c: usize, eps: f32, inv: &mut [f32]) {
    for (row, inv) in x.chunks_exact(c).zip(inv) {
        let sum: f32 = row.iter().map(|v| v * v).sum();
        *inv = 1.0 / (sum / c as f32 + eps).sqrt();
    }
}

/// `y[r] = x[r] * inv[r] * w` with `inv` as [`rms_inv`] gives it; c is `w.len()`.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], inv: &mut [f32]) {
    let c = w.len();
    rms_inv(x, c, eps, inv);
    for ((row, out), inv) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(inv) {
        for i in 0..c {
            out[i] = row[i] * *inv * w[i];
        }
    }
}

/// Gradient with respect to x: `dx = inv * (dy * w - x * inv^2 * mean(dy * w * x))`.
pub fn rms_norm_dx(dy: &[f32], x: &[f32], w: &[f32], inv: &[f32], dx: &mut [f32]) {
    let c = w.len();
    for (r, inv) in inv.iter().enumerate() {
        let at = r * c;
        let dot: f32 = (0..c).map(|i| dy[at + i] * w[i] * x[at + i]).sum();
        let mean = dot / c as f32 * inv * inv;
        for i in 0..c {
            dx[at + i] = inv * (dy[at + i] * w[i] - x[at + i] * mean);
        }
    }
}

/// `dw += sum over rows of dy * x * inv`, rows in ascending order.
pub fn rms_norm_dw(dy: &[f32], x: &[f32], inv: &[f32], dw: &mut [f32]) {
    let c = dw.len();
    for (r, inv) in inv.iter().enumerate() {
        for i in 0..c {
            dw[i] += dy[r * c + i] * (x[r * c + i] * inv);
        }
    }
}
