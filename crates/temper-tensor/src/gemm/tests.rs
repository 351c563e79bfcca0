//! Products against f64, and bitwise independence of everything but the reduction.

use std::ops::Range;

use super::*;
use crate::isa::{dot_levels, levels};

fn ways() -> Vec<Way> {
    let mut ways: Vec<_> = levels().into_iter().map(Way::Chain).collect();
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if dot_levels().iter().any(|(_, dot)| *dot == Dot::Amx) {
        ways.push(Way::Split);
    }
    ways
}

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

/// Where rows may be cut without a change of bits.
fn cuts(way: Way, cuts: &[usize]) -> Vec<usize> {
    let whole = |cut: &usize| matches!(way, Way::Chain(_)) || cut.is_multiple_of(bf16::STEPS);
    cuts.iter().copied().filter(whole).collect()
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
    for way in ways() {
        for (n, k) in SHAPES {
            for m in [1, 2, 3, 5, 16, 23, 64] {
                let (x, w, old) = (random(m * k, 1), random(n * k, 2), random(m * n, 3));
                let panels = Panels::from_rows(&w, n, k);
                let mut y = vec![f32::NAN; m * n];
                linear_at(way, &x, m, &panels, &mut y, false);
                assert!(distance(&y, &reference(&x, m, &w, n, k, &vec![0.0; m * n])) < 1e-5, "{way:?} {m} {n} {k}");
                y.copy_from_slice(&old);
                linear_at(way, &x, m, &panels, &mut y, true);
                assert!(distance(&y, &reference(&x, m, &w, n, k, &old)) < 1e-5, "{way:?} {m} {n} {k}");
            }
        }
    }
}

#[test]
fn input_gradient_agrees_with_f64() {
    for way in ways() {
        for (n, k) in SHAPES {
            for m in [1, 2, 13, 40] {
                let (dy, w, old) = (random(m * n, 1), random(n * k, 2), random(m * k, 3));
                let (panels, wt) = (Panels::from_rows(&w, n, k), transposed(&w, n, k));
                let mut dx = vec![f32::NAN; m * k];
                linear_dx_at(way, &dy, m, &panels, &mut dx, false);
                assert!(distance(&dx, &reference(&dy, m, &wt, k, n, &vec![0.0; m * k])) < 1e-5, "{way:?} {m} {n} {k}");
                dx.copy_from_slice(&old);
                linear_dx_at(way, &dy, m, &panels, &mut dx, true);
                assert!(distance(&dx, &reference(&dy, m, &wt, k, n, &old)) < 1e-5, "{way:?} {m} {n} {k}");
            }
        }
    }
}

#[test]
fn weight_gradient_agrees_with_f64_and_keeps_padding_zero() {
    for way in ways() {
        for (n, k) in SHAPES {
            for m in [1, 2, 65, 300] {
                let (dy, x, old) = (random(m * n, 1), random(m * k, 2), random(n * k, 3));
                let mut dw = Panels::from_rows(&old, n, k);
                linear_dw_at(way, &dy, &x, m, &mut dw);
                let want = reference(&transposed(&dy, m, n), n, &transposed(&x, m, k), k, m, &old);
                assert!(distance(&dw.to_rows(), &want) < 1e-5, "{way:?} {m} {n} {k}");
                let nonzero = dw.data().iter().filter(|v| **v != 0.0).count();
                assert!(nonzero <= n * k, "padding was written: {way:?} {m} {n} {k}");
            }
        }
    }
}

/// Every row of a product alone, and in batches of other sizes and places, has the same bits.
#[test]
fn rows_do_not_depend_on_their_batch() {
    let most = 65;
    for way in ways() {
        for (n, k) in SHAPES.into_iter().chain([(960, 576), (576, 1536), (49_152 / 16, 64)]).chain(COLLIDING) {
            let (x, w) = (random(most * k, 5), random(n * k, 6));
            let panels = Panels::from_rows(&w, n, k);
            let mut whole = vec![0.0; most * n];
            linear_at(way, &x, most, &panels, &mut whole, false);
            for m in (1..18).chain([23, 24, 36, 48, 64]) {
                for at in [0, 1, most - m] {
                    let mut y = vec![0.0; m * n];
                    linear_at(way, &x[at * k..(at + m) * k], m, &panels, &mut y, false);
                    assert_eq!(y, whole[at * n..(at + m) * n], "{way:?} rows {at}+{m} of [{n}, {k}]");
                }
            }
        }
    }
}

#[test]
fn input_gradient_rows_do_not_depend_on_their_batch() {
    let most = 65;
    for way in ways() {
        for (n, k) in SHAPES.into_iter().chain(COLLIDING) {
            let (dy, w) = (random(most * n, 5), random(n * k, 6));
            let panels = Panels::from_rows(&w, n, k);
            let mut whole = vec![0.0; most * k];
            linear_dx_at(way, &dy, most, &panels, &mut whole, false);
            for (at, m) in [(0, 1), (7, 1), (3, 2), (0, 12), (5, 13), (1, 64)] {
                let mut dx = vec![0.0; m * k];
                linear_dx_at(way, &dy[at * n..(at + m) * n], m, &panels, &mut dx, false);
                assert_eq!(dx, whole[at * k..(at + m) * k], "{way:?} rows {at}+{m} of [{n}, {k}]");
            }
        }
    }
}

#[test]
fn weight_gradient_of_parts_adds_up_to_the_same_bits() {
    let m = 700;
    for way in ways() {
        for (n, k) in [(1, 1), (1, 576), (16, 33), (40, 50), (128, 128)] {
            let (dy, x) = (random(m * n, 7), random(m * k, 8));
            let mut whole = Panels::zeros(n, k);
            linear_dw_at(way, &dy, &x, m, &mut whole);
            for cut in cuts(way, &[1, 12, 64, 255, 256, 257, 699]) {
                let mut parts = Panels::zeros(n, k);
                linear_dw_at(way, &dy[..cut * n], &x[..cut * k], cut, &mut parts);
                linear_dw_at(way, &dy[cut * n..], &x[cut * k..], m - cut, &mut parts);
                assert_eq!(parts.data(), whole.data(), "{way:?} cut at {cut} of [{n}, {k}]");
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
    for way in ways() {
        for (n, k) in adapters() {
            let (x, dy, w) = (random(most * k, 5), random(most * n, 6), random(n * k, 7));
            let panels = Panels::from_rows(&w, n, k);
            let (mut y, mut dx) = (vec![0.0; most * n], vec![0.0; most * k]);
            linear_at(way, &x, most, &panels, &mut y, false);
            linear_dx_at(way, &dy, most, &panels, &mut dx, false);
            assert!(distance(&y, &reference(&x, most, &w, n, k, &vec![0.0; most * n])) < 1e-5, "{way:?} [{n}, {k}]");
            let want = reference(&dy, most, &transposed(&w, n, k), k, n, &vec![0.0; most * k]);
            assert!(distance(&dx, &want) < 1e-5, "{way:?} [{n}, {k}]");
            for (at, m) in [(0, 1), (39, 1), (3, 2), (1, 5), (7, 12), (5, 13), (2, 24), (1, 37)] {
                let (mut part_y, mut part_dx) = (vec![0.0; m * n], vec![0.0; m * k]);
                linear_at(way, &x[at * k..(at + m) * k], m, &panels, &mut part_y, false);
                linear_dx_at(way, &dy[at * n..(at + m) * n], m, &panels, &mut part_dx, false);
                assert_eq!(part_y, y[at * n..(at + m) * n], "{way:?} rows {at}+{m} of [{n}, {k}]");
                assert_eq!(part_dx, dx[at * k..(at + m) * k], "{way:?} input gradient, rows {at}+{m} of [{n}, {k}]");
            }
        }
    }
}

#[test]
fn low_rank_weight_gradients_of_parts_add_up_to_the_same_bits() {
    let m = 300;
    for way in ways() {
        for (n, k) in adapters() {
            let (dy, x) = (random(m * n, 7), random(m * k, 8));
            let mut whole = Panels::zeros(n, k);
            linear_dw_at(way, &dy, &x, m, &mut whole);
            for cut in cuts(way, &[1, 13, 32, 256, 299]) {
                let mut parts = Panels::zeros(n, k);
                linear_dw_at(way, &dy[..cut * n], &x[..cut * k], cut, &mut parts);
                linear_dw_at(way, &dy[cut * n..], &x[cut * k..], m - cut, &mut parts);
                assert_eq!(parts.data(), whole.data(), "{way:?} cut at {cut} of [{n}, {k}]");
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
    for way in ways() {
        let mut dx = vec![0.0; m * k];
        linear_dx_at(way, &dy, m, &panels, &mut dx, false);
        for (r, line) in dx.chunks(k).enumerate() {
            for (c, got) in line.iter().enumerate() {
                let terms = || (0..n).map(|v| f64::from(dy[r * n + v]) * f64::from(w[v * k + c]));
                let (want, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                assert!((f64::from(*got) - want).abs() < 4e-6 * size, "{way:?} {r} {c}: {got} {want} {size}");
            }
        }
    }
}

/// A f32 as three bf16 values, each the nearest to what the ones before left.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn thirds(x: f32) -> [f32; 3] {
    let nearest = |x: f32| f32::from_bits(x.to_bits().wrapping_add(0x8000) & 0xffff_0000);
    let first = nearest(x);
    let second = nearest(x - first);
    [first, second, x - first - second]
}

/// What the module's text says of the order of additions, by scalar multiply-adds.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn split_products_follow_their_definition() {
    if !ways().contains(&Way::Split) {
        return;
    }
    for ((n, k), m) in SHAPES.into_iter().flat_map(|shape| [1, 3, 19, 40].map(|m| (shape, m))) {
        let (x, w) = (random(m * k, 1), random(n * k, 2));
        let mut y = vec![f32::NAN; m * n];
        linear_at(Way::Split, &x, m, &Panels::from_rows(&w, n, k), &mut y, false);
        for (at, got) in y.iter().enumerate() {
            let (a, b) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
            let mut sum = 0.0_f32;
            for (a, b) in a.chunks(bf16::STEPS).zip(b.chunks(bf16::STEPS)) {
                for (left, right) in split::ORDER {
                    let mut chains = [0.0_f32; 2];
                    for (i, (a, b)) in a.iter().zip(b).enumerate() {
                        chains[i % 2] = thirds(*a)[left].mul_add(thirds(*b)[right], chains[i % 2]);
                    }
                    sum += chains[0] + chains[1];
                }
            }
            assert_eq!(*got, sum, "[{n}, {k}] {at}");
        }
    }
}

/// Products on tiles are f32 in more than name: no further from f64 than a chain of multiply-adds where that adds up errors, at all
/// magnitudes.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn split_products_are_as_close_to_f64_as_a_chain() {
    if !ways().contains(&Way::Split) {
        return;
    }
    for (m, n, k) in [(64, 48, 576), (20, 32, 1536), (7, 16, 40)] {
        for scale in [1e-10, 1.0, 1e10] {
            let spread = |v: Vec<f32>, scale: f32, seed| -> Vec<f32> {
                v.iter().zip(random(v.len(), seed)).map(|(x, e)| x * scale * (8.0 * e).exp()).collect()
            };
            let (x, w) = (spread(random(m * k, 1), scale, 3), spread(random(n * k, 2), 1.0, 4));
            let (panels, want) = (Panels::from_rows(&w, n, k), reference(&x, m, &w, n, k, &vec![0.0; m * n]));
            let error = |way| {
                let mut y = vec![0.0; m * n];
                linear_at(way, &x, m, &panels, &mut y, false);
                distance(&y, &want)
            };
            let (split, chain) = (error(Way::Split), error(Way::Chain(isa())));
            let most = if k < 500 { 2e-7 } else { chain };
            assert!(split < most && split > 0.0, "[{m}, {n}, {k}] times {scale}: {split:e} against {chain:e}");
        }
    }
}

/// Tiles know no numbers below the normal range; neither do the multiply-adds that take their place for a few rows.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn split_products_below_the_normal_range_do_not_depend_on_the_batch() {
    if !ways().contains(&Way::Split) {
        return;
    }
    let (m, n, k) = (12, 40, 100);
    // Products of about 1e-38, so that some are normal and some are not.
    let tiny = |seed, len| random(len, seed).iter().map(|x| x * 2e-19).collect::<Vec<f32>>();
    let (x, w) = (tiny(1, m * k), Panels::from_rows(&tiny(2, n * k), n, k));
    let run = |rows: Range<usize>| {
        let mut y = vec![f32::NAN; rows.len() * n];
        linear_at(Way::Split, &x[rows.start * k..rows.end * k], rows.len(), &w, &mut y, false);
        y
    };
    let all = run(0..m);
    assert!(all.iter().all(|y| !y.is_subnormal()), "{all:?}");
    for rows in [0..1, 3..5, 6..9, 8..12, 2..8] {
        assert_eq!(run(rows.clone()), all[rows.start * n..rows.end * n], "rows {rows:?}");
    }
}
