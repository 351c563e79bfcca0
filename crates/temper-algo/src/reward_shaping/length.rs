//! A length budget that tightens.

/// `max(1, start decay^floor(step / every))`.
pub(super) fn budget(start: f64, decay: f64, every: u64, step: u64) -> f64 {
    (start * decay.powf((step / every.max(1)) as f64)).max(1.0)
}

/// 0 at 0, 1 at 1, 0 from 2 on.
pub(super) fn triangle(x: f64) -> f64 {
    x.min(2.0 - x).max(0.0)
}
