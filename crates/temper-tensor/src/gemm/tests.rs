//! Products against f64, and bitwise independence of everything but the reduction.

use super::*;
use crate::isa::levels;

/// Uniform values in [-1, 1), reproducible.
pub(crate) fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / f32::from(1_u16 << 12) / f32::from(1_u16 << 11) - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Relative L2 distance of `got` from `want`.
pub(crate) fn distance(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let diff: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    (diff / norm.max(1e-30)).sqrt()
}

const SHAPES: [(usize, usize); 12] = [
    (1, 1),
    (1, 576),
    (16, 576),
    (16, 1536),
    (17, 33),
    (31, 5),
    (64, 1536),
    (128, 128),
    (48, 300),
    (97, 64),
    (5, 257),
    (33, 520),
];

/// Rows of the left operand lie a multiple of 4 KiB apart, in one product or the other.
const COLLIDING: [(usize, usize); 2] = [(130, 1024), (2048, 129)];

fn reference(x: &[f32], m: usize, w: &[f32], n: usize, k: usize, y: &[f32]) -> Vec<f64> {
    let dot = |r: usize, j: usize| -> f64 {
        (0..k).map(|i| f64::from(x[r * k + i]) * f64::from(w[j * k + i])).sum::<f64>() + f64::from(y[r * n + j])
    };
    (0..m * n).map(|at| dot(at / n, at % n)).collect()
}

fn transposed(w: &[f32], n: usize, k: usize) -> Vec<f32> {
    (0..n * k).map(|at| w[at % n * k + at / n]).collect()
}

#[test]
fn forward_agrees_with_f64() {
    for isa in levels() {
        for (n, k) in SHAPES {
            for m in [1, 2, 3, 5, 16, 23, 64] {
                let (x, w, old) = (random(m * k, 1), random(n * k, 2), random(m * n, 3));
                let panels = Panels::from_rows(&w, n, k);
                let mut y = vec![f32::NAN; m * n];
                linear_at(isa, &x, m, &panels, &mut y, false);
                assert!(distance(&y, &reference(&x, m, &w, n, k, &vec![0.0; m * n])) < 1e-5, "{isa:?} {m} {n} {k}");
                y.copy_from_slice(&old);
                linear_at(isa, &x, m, &panels, &mut y, true);
                assert!(distance(&y, &reference(&x, m, &w, n, k, &old)) < 1e-5, "{isa:?} {m} {n} {k}");
            }
        }
    }
}

#[test]
fn input_gradient_agrees_with_f64() {
    for isa in levels() {
        for (n, k) in SHAPES {
            for m in [1, 2, 13, 40] {
                let (dy, w, old) = (random(m * n, 1), random(n * k, 2), random(m * k, 3));
                let (panels, wt) = (Panels::from_rows(&w, n, k), transposed(&w, n, k));
                let mut dx = vec![f32::NAN; m * k];
                linear_dx_at(isa, &dy, m, &panels, &mut dx, false);
                assert!(distance(&dx, &reference(&dy, m, &wt, k, n, &vec![0.0; m * k])) < 1e-5, "{isa:?} {m} {n} {k}");
                dx.copy_from_slice(&old);
                linear_dx_at(isa, &dy, m, &panels, &mut dx, true);
                assert!(distance(&dx, &reference(&dy, m, &wt, k, n, &old)) < 1e-5, "{isa:?} {m} {n} {k}");
            }
        }
    }
}

#[test]
fn weight_gradient_agrees_with_f64_and_keeps_padding_zero() {
    for isa in levels() {
        for (n, k) in SHAPES {
            for m in [1, 2, 65, 300] {
                let (dy, x, old) = (random(m * n, 1), random(m * k, 2), random(n * k, 3));
                let mut dw = Panels::from_rows(&old, n, k);
                linear_dw_at(isa, &dy, &x, m, &mut dw);
                let want = reference(&transposed(&dy, m, n), n, &transposed(&x, m, k), k, m, &old);
                assert!(distance(&dw.to_rows(), &want) < 1e-5, "{isa:?} {m} {n} {k}");
                let nonzero = dw.data().iter().filter(|v| **v != 0.0).count();
                assert!(nonzero <= n * k, "padding was written: {isa:?} {m} {n} {k}");
            }
        }
    }
}

/// Every row of a product alone, and in batches of other sizes and places, has the same bits.
#[test]
fn rows_do_not_depend_on_their_batch() {
    let most = 65;
    for isa in levels() {
        for (n, k) in SHAPES.into_iter().chain([(960, 576), (576, 1536), (49_152 / 16, 64)]).chain(COLLIDING) {
            let (x, w) = (random(most * k, 5), random(n * k, 6));
            let panels = Panels::from_rows(&w, n, k);
            let mut whole = vec![0.0; most * n];
            linear_at(isa, &x, most, &panels, &mut whole, false);
            for m in (1..18).chain([23, 24, 36, 48, 64]) {
                for at in [0, 1, most - m] {
                    let mut y = vec![0.0; m * n];
                    linear_at(isa, &x[at * k..(at + m) * k], m, &panels, &mut y, false);
                    assert_eq!(y, whole[at * n..(at + m) * n], "{isa:?} rows {at}+{m} of [{n}, {k}]");
                }
            }
        }
    }
}

#[test]
fn input_gradient_rows_do_not_depend_on_their_batch() {
    let most = 65;
    for isa in levels() {
        for (n, k) in SHAPES.into_iter().chain(COLLIDING) {
            let (dy, w) = (random(most * n, 5), random(n * k, 6));
            let panels = Panels::from_rows(&w, n, k);
            let mut whole = vec![0.0; most * k];
            linear_dx_at(isa, &dy, most, &panels, &mut whole, false);
            for (at, m) in [(0, 1), (7, 1), (3, 2), (0, 12), (5, 13), (1, 64)] {
                let mut dx = vec![0.0; m * k];
                linear_dx_at(isa, &dy[at * n..(at + m) * n], m, &panels, &mut dx, false);
                assert_eq!(dx, whole[at * k..(at + m) * k], "{isa:?} rows {at}+{m} of [{n}, {k}]");
            }
        }
    }
}

#[test]
fn weight_gradient_of_parts_adds_up_to_the_same_bits() {
    let m = 700;
    for isa in levels() {
        for (n, k) in [(1, 1), (1, 576), (16, 33), (40, 50), (128, 128)] {
            let (dy, x) = (random(m * n, 7), random(m * k, 8));
            let mut whole = Panels::zeros(n, k);
            linear_dw_at(isa, &dy, &x, m, &mut whole);
            for cut in [1, 12, 255, 256, 257, 699] {
                let mut parts = Panels::zeros(n, k);
                linear_dw_at(isa, &dy[..cut * n], &x[..cut * k], cut, &mut parts);
                linear_dw_at(isa, &dy[cut * n..], &x[cut * k..], m - cut, &mut parts);
                assert_eq!(parts.data(), whole.data(), "{isa:?} cut at {cut} of [{n}, {k}]");
            }
        }
    }
}

/// The two matrices of low-rank adapters: `[rank, width]` down and `[width, rank]` up. The last width's input gradient is
/// a sum of two chains.
fn adapters() -> impl Iterator<Item = (usize, usize)> {
    let pairs = [1, 2, 4, 8, 16, 64].into_iter().flat_map(|rank| [576, 1536, 2560].map(|width| (rank, width)));
    pairs.flat_map(|(rank, width)| [(rank, width), (width, rank)])
}

#[test]
fn low_ranks_do_not_depend_on_the_batch() {
    let most = 40;
    for isa in levels() {
        for (n, k) in adapters() {
            let (x, dy, w) = (random(most * k, 5), random(most * n, 6), random(n * k, 7));
            let panels = Panels::from_rows(&w, n, k);
            let (mut y, mut dx) = (vec![0.0; most * n], vec![0.0; most * k]);
            linear_at(isa, &x, most, &panels, &mut y, false);
            linear_dx_at(isa, &dy, most, &panels, &mut dx, false);
            assert!(distance(&y, &reference(&x, most, &w, n, k, &vec![0.0; most * n])) < 1e-5, "{isa:?} [{n}, {k}]");
            let want = reference(&dy, most, &transposed(&w, n, k), k, n, &vec![0.0; most * k]);
            assert!(distance(&dx, &want) < 1e-5, "{isa:?} [{n}, {k}]");
            for (at, m) in [(0, 1), (39, 1), (3, 2), (1, 5), (7, 12), (5, 13), (2, 24), (1, 37)] {
                let (mut part_y, mut part_dx) = (vec![0.0; m * n], vec![0.0; m * k]);
                linear_at(isa, &x[at * k..(at + m) * k], m, &panels, &mut part_y, false);
                linear_dx_at(isa, &dy[at * n..(at + m) * n], m, &panels, &mut part_dx, false);
                assert_eq!(part_y, y[at * n..(at + m) * n], "{isa:?} rows {at}+{m} of [{n}, {k}]");
                assert_eq!(part_dx, dx[at * k..(at + m) * k], "{isa:?} input gradient, rows {at}+{m} of [{n}, {k}]");
            }
        }
    }
}

#[test]
fn low_rank_weight_gradients_of_parts_add_up_to_the_same_bits() {
    let m = 300;
    for isa in levels() {
        for (n, k) in adapters() {
            let (dy, x) = (random(m * n, 7), random(m * k, 8));
            let mut whole = Panels::zeros(n, k);
            linear_dw_at(isa, &dy, &x, m, &mut whole);
            for cut in [1, 13, 256, 299] {
                let mut parts = Panels::zeros(n, k);
                linear_dw_at(isa, &dy[..cut * n], &x[..cut * k], cut, &mut parts);
                linear_dw_at(isa, &dy[cut * n..], &x[cut * k..], m - cut, &mut parts);
                assert_eq!(parts.data(), whole.data(), "{isa:?} cut at {cut} of [{n}, {k}]");
            }
        }
    }
}

#[test]
fn colliding_strides_agree_with_f64() {
    for (n, k) in COLLIDING {
        let m = 37;
        let (x, dy, w) = (random(m * k, 1), random(m * n, 2), random(n * k, 3));
        let panels = Panels::from_rows(&w, n, k);
        let (mut y, mut dx) = (vec![0.0; m * n], vec![0.0; m * k]);
        linear(&x, m, &panels, &mut y, false);
        linear_dx(&dy, m, &panels, &mut dx, false);
        assert!(distance(&y, &reference(&x, m, &w, n, k, &vec![0.0; m * n])) < 1e-5, "[{n}, {k}]");
        let want = reference(&dy, m, &transposed(&w, n, k), k, n, &vec![0.0; m * k]);
        assert!(distance(&dx, &want) < 1e-5, "[{n}, {k}]");
    }
}

#[test]
fn blocks_of_rows_do_not_change_bits() {
    let (m, n, k) = (ROW_BLOCK * 2 + 7, 70, 90);
    let (x, dy, w) = (random(m * k, 1), random(m * n, 2), Panels::from_rows(&random(n * k, 3), n, k));
    let (mut y, mut dx) = (vec![0.0; m * n], vec![0.0; m * k]);
    linear(&x, m, &w, &mut y, false);
    linear_dx(&dy, m, &w, &mut dx, false);
    for r in [0, ROW_BLOCK - 1, ROW_BLOCK, ROW_BLOCK + 1, m - 1] {
        let (mut y1, mut dx1) = (vec![0.0; n], vec![0.0; k]);
        linear(&x[r * k..(r + 1) * k], 1, &w, &mut y1, false);
        linear_dx(&dy[r * n..(r + 1) * n], 1, &w, &mut dx1, false);
        assert_eq!((&y1[..], &dx1[..]), (&y[r * n..(r + 1) * n], &dx[r * k..(r + 1) * k]), "row {r}");
    }
}

#[test]
fn threads_do_not_change_bits() {
    products_agree_between_threads(530, 200, 300);
    adapters().for_each(|(n, k)| products_agree_between_threads(150, n, k));
}

fn products_agree_between_threads(m: usize, n: usize, k: usize) {
    let (x, dy, w) = (random(m * k, 1), random(m * n, 2), Panels::from_rows(&random(n * k, 3), n, k));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(|| {
            let (mut y, mut dx, mut dw) = (vec![0.0; m * n], vec![0.0; m * k], Panels::zeros(n, k));
            linear(&x, m, &w, &mut y, false);
            linear_dx(&dy, m, &w, &mut dx, false);
            linear_dw(&dy, &x, m, &mut dw);
            (y, dx, dw.to_rows())
        })
    };
    let one = run(1);
    assert!([2, 3, 5].into_iter().all(|threads| run(threads) == one), "{m} rows of [{n}, {k}]");
}

#[test]
fn empty_operands_are_fine() {
    for (m, n, k) in [(0, 3, 4), (2, 0, 4), (2, 3, 0)] {
        let mut w = Panels::zeros(n, k);
        let (mut y, mut dx) = (vec![1.0; m * n], vec![1.0; m * k]);
        linear(&vec![1.0; m * k], m, &w, &mut y, false);
        linear_dx(&vec![1.0; m * n], m, &w, &mut dx, false);
        linear_dw(&vec![1.0; m * n], &vec![1.0; m * k], m, &mut w);
        assert!(y.iter().chain(&dx).all(|v| *v == 0.0));
    }
}

#[test]
fn tiny_terms_of_a_long_reduction_are_not_swamped() {
    // A head's d_logits: one value near -1 a row, the rest of the softmax spread thin.
    let (m, n, k) = (3, 40_000, 32);
    let mut dy: Vec<f32> = (0..m * n).map(|i| (1 + i % 7) as f32 / (4 * n) as f32).collect();
    (0..m).for_each(|r| dy[r * n + 11] = -1.0);
    let w: Vec<f32> = (0..n * k).map(|i| 1.0 + ((i * 37) % 19) as f32 * 0.05).collect();
    let panels = Panels::from_rows(&w, n, k);
    for isa in Isa::ALL.into_iter().filter(|isa| *isa <= crate::isa::detected()) {
        let mut dx = vec![0.0; m * k];
        linear_dx_at(isa, &dy, m, &panels, &mut dx, false);
        for (r, line) in dx.chunks(k).enumerate() {
            for (c, got) in line.iter().enumerate() {
                let terms = || (0..n).map(|v| f64::from(dy[r * n + v]) * f64::from(w[v * k + c]));
                let (want, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                assert!((f64::from(*got) - want).abs() < 4e-6 * size, "{isa:?} {r} {c}: {got} {want} {size}");
            }
        }
    }
}
