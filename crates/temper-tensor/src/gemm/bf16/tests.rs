//! bf16 products against f64, against scalar transcriptions of the instructions bit for bit, and bitwise independence of
//! everything but the reduction.

use half::bf16;

use super::*;
use crate::gemm::tests::{distance, random};
use crate::isa::dot_levels;

const SHAPES: [(usize, usize); 14] = [
    (1, 1),
    (1, 576),
    (16, 576),
    (576, 16),
    (8, 1536),
    (17, 33),
    (31, 5),
    (64, 1536),
    (128, 128),
    (48, 300),
    (97, 64),
    (5, 257),
    (33, 520),
    (700, 40),
];

fn round(values: &[f32]) -> Vec<f32> {
    values.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
}

fn transposed(w: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|at| w[at % rows * columns + at / rows]).collect()
}

fn weights(rows: &[f32], n: usize, k: usize) -> Bf16Panels {
    Bf16Panels::round(&Panels::from_rows(rows, n, k))
}

/// The instructions' definitions on rounded values, for normal numbers: `x [m, k]`, `w [n, k]`, starting from `y [m, n]`.
fn exact(dot: Dot, x: &[f32], m: usize, w: &[f32], n: usize, k: usize, y: &[f32]) -> Vec<f32> {
    let one = |r: usize, j: usize| {
        let at = |i: usize| if i < k { (x[r * k + i], w[j * k + i]) } else { (0.0, 0.0) };
        let fma = |sum: f32, (a, b): (f32, f32)| a.mul_add(b, sum);
        let mut sum = y[r * n + j];
        for start in (0..k).step_by(STEPS) {
            let pairs = (start..start + STEPS).step_by(2);
            match dot {
                Dot::Amx => {
                    let (even, odd) = pairs.fold((0.0, 0.0), |(e, o), i| (fma(e, at(i)), fma(o, at(i + 1))));
                    sum += even + odd;
                }
                _ => sum = pairs.fold(sum, |sum, i| fma(fma(sum, at(i + 1)), at(i))),
            }
        }
        sum
    };
    (0..m * n).map(|at| one(at / n, at % n)).collect()
}

fn in_f64(x: &[f32], m: usize, w: &[f32], n: usize, k: usize, y: &[f32]) -> Vec<f64> {
    let one = |r: usize, j: usize| -> f64 {
        (0..k).map(|i| f64::from(x[r * k + i]) * f64::from(w[j * k + i])).sum::<f64>() + f64::from(y[r * n + j])
    };
    (0..m * n).map(|at| one(at / n, at % n)).collect()
}

#[track_caller]
fn check(level: Level, case: &str, got: &[f32], (x, m): (&[f32], usize), (w, n): (&[f32], usize), k: usize, y: &[f32]) {
    let (x, w) = (round(x), round(w));
    assert!(distance(got, &in_f64(&x, m, &w, n, k, y)) < 2e-6, "{level:?} {case} {m} {n} {k}");
    let want = exact(level.1, &x, m, &w, n, k, y);
    let same = got.iter().zip(&want).filter(|(g, w)| g == w).count();
    assert_eq!(same, want.len(), "{level:?} {case} {m} {n} {k}: values that follow the instruction's definition");
}

#[test]
fn products_follow_the_instructions() {
    for level in dot_levels() {
        for (n, k) in SHAPES {
            for m in [1, 2, 5, 16, 23, 33, 70] {
                let (x, dy, w) = (random(m * k, 1), random(m * n, 2), random(n * k, 3));
                let (panels, old_y, old_dx) = (weights(&w, n, k), random(m * n, 4), random(m * k, 5));
                let wt = transposed(&w, n, k);
                let mut y = vec![f32::NAN; m * n];
                linear_at(level, &x[..], m, &panels, &mut y, false);
                check(level, "y", &y, (&x, m), (&w, n), k, &vec![0.0; m * n]);
                y.copy_from_slice(&old_y);
                linear_at(level, &x[..], m, &panels, &mut y, true);
                check(level, "y +", &y, (&x, m), (&w, n), k, &old_y);
                let mut dx = vec![f32::NAN; m * k];
                linear_dx_at(level, &dy[..], m, &panels, &mut dx, false);
                check(level, "dx", &dx, (&dy, m), (&wt, k), n, &vec![0.0; m * k]);
                dx.copy_from_slice(&old_dx);
                linear_dx_at(level, &dy[..], m, &panels, &mut dx, true);
                check(level, "dx +", &dx, (&dy, m), (&wt, k), n, &old_dx);
            }
        }
    }
}

#[test]
fn weight_gradients_follow_the_instructions_and_keep_padding_zero() {
    for level in dot_levels() {
        for (n, k) in SHAPES {
            for m in [1, 2, 32, 65, 300] {
                let (x, dy, old) = (random(m * k, 1), random(m * n, 2), random(n * k, 3));
                let mut dw = Panels::from_rows(&old, n, k);
                linear_dw_at(level, &dy, &x[..], m, &mut dw);
                let (dyt, xt) = (transposed(&dy, m, n), transposed(&x, m, k));
                check(level, "dw", &dw.to_rows(), (&dyt, n), (&xt, k), m, &old);
                let nonzero = dw.data().iter().filter(|v| **v != 0.0).count();
                assert!(nonzero <= n * k, "padding was written: {level:?} {m} {n} {k}");
            }
        }
    }
}

/// Every row of a product alone, and in batches of other sizes and places, has the same bits.
#[test]
fn rows_do_not_depend_on_their_batch() {
    let most = 70;
    for level in dot_levels() {
        for (n, k) in SHAPES.into_iter().chain([(960, 576), (576, 1536)]) {
            let (x, dy, w) = (random(most * k, 5), random(most * n, 6), weights(&random(n * k, 7), n, k));
            let (mut y, mut dx) = (vec![0.0; most * n], vec![0.0; most * k]);
            linear_at(level, &x[..], most, &w, &mut y, false);
            linear_dx_at(level, &dy[..], most, &w, &mut dx, false);
            for (at, m) in
                [(0, 1), (69, 1), (3, 2), (1, 5), (5, 8), (7, 12), (0, 16), (5, 17), (2, 32), (1, 33), (6, 64)]
            {
                let (mut part_y, mut part_dx) = (vec![0.0; m * n], vec![0.0; m * k]);
                linear_at(level, &x[at * k..(at + m) * k], m, &w, &mut part_y, false);
                linear_dx_at(level, &dy[at * n..(at + m) * n], m, &w, &mut part_dx, false);
                assert_eq!(part_y, y[at * n..(at + m) * n], "{level:?} rows {at}+{m} of [{n}, {k}]");
                assert_eq!(part_dx, dx[at * k..(at + m) * k], "{level:?} dx, rows {at}+{m} of [{n}, {k}]");
            }
        }
    }
}

#[test]
fn blocks_of_rows_do_not_change_bits() {
    let (m, n, k) = (HEIGHT * 2 + 7, 70, 90);
    let (x, dy, w) = (random(m * k, 1), random(m * n, 2), weights(&random(n * k, 3), n, k));
    let (mut y, mut dx) = (vec![0.0; m * n], vec![0.0; m * k]);
    linear(&x[..], m, &w, &mut y, false);
    linear_dx(&dy[..], m, &w, &mut dx, false);
    for r in [0, HEIGHT - 1, HEIGHT, HEIGHT + 1, m - 1] {
        let (mut y1, mut dx1) = (vec![0.0; n], vec![0.0; k]);
        linear(&x[r * k..(r + 1) * k], 1, &w, &mut y1, false);
        linear_dx(&dy[r * n..(r + 1) * n], 1, &w, &mut dx1, false);
        assert_eq!((&y1[..], &dx1[..]), (&y[r * n..(r + 1) * n], &dx[r * k..(r + 1) * k]), "row {r}");
    }
}

#[test]
fn weight_gradients_of_parts_of_whole_blocks_add_up_to_the_same_bits() {
    let m = 700;
    for level in dot_levels() {
        for (n, k) in [(1, 1), (1, 576), (16, 33), (40, 50), (128, 128), (8, 1536)] {
            let (dy, x) = (random(m * n, 7), random(m * k, 8));
            let mut whole = Panels::zeros(n, k);
            linear_dw_at(level, &dy, &x[..], m, &mut whole);
            for cut in [32, 256, 672] {
                let mut parts = Panels::zeros(n, k);
                linear_dw_at(level, &dy[..cut * n], &x[..cut * k], cut, &mut parts);
                linear_dw_at(level, &dy[cut * n..], &x[cut * k..], m - cut, &mut parts);
                assert_eq!(parts.data(), whole.data(), "{level:?} cut at {cut} of [{n}, {k}]");
            }
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    for (m, n, k) in [(530, 200, 300), (1100, 64, 2600), (150, 16, 1536), (150, 1536, 16)] {
        let (x, dy, w) = (random(m * k, 1), random(m * n, 2), weights(&random(n * k, 3), n, k));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            pool.install(|| {
                let (mut y, mut dx, mut dw) = (vec![0.0; m * n], vec![0.0; m * k], Panels::zeros(n, k));
                linear(&x[..], m, &w, &mut y, false);
                linear_dx(&dy[..], m, &w, &mut dx, false);
                linear_dw(&dy, &x[..], m, &mut dw);
                (y, dx, dw.to_rows())
            })
        };
        let one = run(1);
        assert!([2, 3, 5].into_iter().all(|threads| run(threads) == one), "{m} rows of [{n}, {k}]");
    }
}

#[test]
fn empty_operands_are_fine() {
    for (m, n, k) in [(0, 3, 4), (2, 0, 4), (2, 3, 0)] {
        let (w, mut dw) = (weights(&vec![1.0; n * k], n, k), Panels::zeros(n, k));
        let (mut y, mut dx) = (vec![1.0; m * n], vec![1.0; m * k]);
        linear(&vec![1.0; m * k][..], m, &w, &mut y, false);
        linear_dx(&vec![1.0; m * n][..], m, &w, &mut dx, false);
        linear_dw(&vec![1.0; m * n], &vec![1.0; m * k][..], m, &mut dw);
        assert!(y.iter().chain(&dx).all(|v| *v == 0.0));
    }
}

/// Rounding itself: ties, overflow, values that are not finite, and the flush below the normal range.
#[test]
fn rounding_is_to_nearest_even_at_every_level() {
    let mut values = random(4096, 9);
    values.extend((0..4096_u32).map(|i| f32::from_bits(i.wrapping_mul(0x9E37_79B9))));
    values.extend([0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0x8000_0000].map(f32::from_bits));
    values.extend([f32::MIN_POSITIVE, f32::MIN_POSITIVE / 2.0, -f32::MIN_POSITIVE / 4.0, f32::NAN]);
    values.resize(values.len().next_multiple_of(STEPS), 0.0);
    let want = values.iter().map(|x| if x.is_subnormal() { 0.0 * x } else { bf16::from_f32(*x).to_f32() });
    let want: Vec<u32> = want.map(f32::to_bits).collect();
    let (rows, width) = (values.len() / STEPS, STEPS);
    let rest = &values[..rows * width];
    for level in dot_levels() {
        let strips = pack::strips(level, &values, 1, values.len());
        let one_row = strips.words().chunks(WORDS).flat_map(|block| &block[..LANES]).flat_map(|pair| widen(*pair));
        // Pairs of neighbouring rows, here of single columns: what lies at (2 p + i, c) is half i of word (p, c).
        let turned = pack::paired(level, rest, rows, width, true);
        let at = |r: usize, c: usize| {
            let block = c / LANES * blocks(rows) + r / STEPS;
            widen(turned.words()[block * WORDS + c % LANES * LANES + r % STEPS / 2])[r % 2]
        };
        let columns = (0..rows * width).map(|i| at(i / width, i % width));
        for (i, (got, want)) in one_row.zip(&want).chain(columns.zip(&want)).enumerate() {
            let nan = got.is_nan() && f32::from_bits(*want).is_nan();
            assert!(nan || got.to_bits() == *want, "{level:?}: {} became {got}", values[i % values.len()]);
        }
    }
}
