//! Products against a transcription of their definition, and the same bits on every way.

use half::f16;

use super::*;
use crate::gemm::tests::random;
use crate::isa::{detected, levels};
use crate::quant_panels::Blocks;

const ALL: [Blocks; 3] = [Blocks::Q4_0, Blocks::Q4_1, Blocks::Q8_0];
const SHAPES: [(usize, usize); 7] = [(1, 32), (16, 64), (17, 96), (48, 576), (31, 1536), (100, 32), (64, 320)];

fn ways() -> Vec<Way> {
    let mut ways: Vec<_> = levels().into_iter().map(Way::Plain).collect();
    #[cfg(target_arch = "x86_64")]
    if detected() >= Isa::Avx2 && is_x86_feature_detected!("f16c") {
        ways.push(Way::Avx2);
    }
    #[cfg(target_arch = "x86_64")]
    if detected() == Isa::Avx512 && is_x86_feature_detected!("avx512vnni") {
        ways.push(Way::Vnni);
    }
    ways
}

/// Blocks of random codes and scales, every code possible.
fn bytes(blocks: Blocks, n: usize, k: usize, seed: u64) -> Vec<u8> {
    let count = n * k / BLOCK;
    let mut values = random(count * 40, seed).into_iter();
    let mut next = || values.next().expect("enough values");
    let block = |_| {
        let mut block: Vec<u8> = f16::from_f32(next() * 0.1).to_le_bytes().into();
        if blocks == Blocks::Q4_1 {
            block.extend(f16::from_f32(next()).to_le_bytes());
        }
        block.resize_with(blocks.bytes(), || ((next() + 1.0) * 128.0) as u8);
        block
    };
    (0..count).flat_map(block).collect()
}

/// One value of a matrix in f64, straight from the bytes as ggml defines them: scale times code, plus minimum.
fn value(blocks: Blocks, bytes: &[u8], k: usize, i: usize, j: usize) -> f64 {
    let block = &bytes[(i * k + j) / BLOCK * blocks.bytes()..][..blocks.bytes()];
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f64();
    let j = j % BLOCK;
    let nibble = |codes: &[u8]| f64::from(if j < 16 { codes[j] & 15 } else { codes[j - 16] >> 4 });
    match blocks {
        Blocks::Q4_0 => half(0) * (nibble(&block[2..]) - 8.0),
        Blocks::Q4_1 => half(0) * nibble(&block[4..]) + half(2),
        Blocks::Q8_0 => half(0) * f64::from(block[2 + j].cast_signed()),
    }
}

/// A row as its blocks say it: the scale and what each value is rounded to, in f64.
fn rounded(x: &[f32]) -> Vec<f64> {
    let block = |x: &[f32]| {
        let d = x.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
        let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
        x.iter().map(|x| f64::from(d) * f64::from((x * inverse).round_ties_even())).collect::<Vec<_>>()
    };
    x.chunks(BLOCK).flat_map(block).collect()
}

#[test]
fn products_agree_with_their_definition_in_f64_and_all_ways_with_each_other() {
    for blocks in ALL {
        for (n, k) in SHAPES {
            let raw = bytes(blocks, n, k, 1);
            let w = QuantPanels::from_bytes(blocks, n, k, &raw).unwrap();
            for m in [1, 2, 3, 8, 15] {
                let (x, old) = (random(m * k, 2), random(m * n, 3));
                let mut first: Option<[Vec<f32>; 2]> = None;
                for way in ways() {
                    let (mut y, mut more) = (vec![f32::NAN; m * n], old.clone());
                    linear_at(way, &x, m, &w, &mut y, false);
                    linear_at(way, &x, m, &w, &mut more, true);
                    let rows: Vec<Vec<f64>> = x.chunks(k).map(rounded).collect();
                    for (at, (y, more)) in y.iter().zip(&more).enumerate() {
                        let terms = || (0..k).map(|j| rows[at / n][j] * value(blocks, &raw, k, at % n, j));
                        let (want, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                        let off = [f64::from(*y) - want, f64::from(*more) - f64::from(old[at]) - want];
                        assert!(
                            off.iter().all(|e| e.abs() < 1e-6 * (size + 1.0)),
                            "{way:?} {blocks:?} {m} {n} {k}: {off:?}"
                        );
                    }
                    match &first {
                        None => first = Some([y, more]),
                        Some(first) => assert_eq!(*first, [y, more], "{way:?} {blocks:?} {m} {n} {k}"),
                    }
                }
            }
        }
    }
}

/// The chain that the module's text gives, in scalar f32.
#[test]
fn outputs_are_the_one_chain_of_their_definition() {
    let (n, k) = (19, 160);
    for blocks in ALL {
        let raw = bytes(blocks, n, k, 4);
        let (w, x) = (QuantPanels::from_bytes(blocks, n, k, &raw).unwrap(), random(k, 5));
        let mut y = vec![0.0; n];
        linear(&x, 1, &w, &mut y, false);
        for (i, y) in y.iter().enumerate() {
            let mut chain = 0.0_f32;
            for (b, x) in x.chunks(BLOCK).enumerate() {
                let block = &raw[(i * k / BLOCK + b) * blocks.bytes()..][..blocks.bytes()];
                let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
                let d = x.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
                let inverse = 1.0 / d;
                let a: Vec<i32> = x.iter().map(|x| (x * inverse).round_ties_even() as i32).collect();
                let q = |j: usize| match blocks {
                    Blocks::Q8_0 => i32::from(block[2 + j].cast_signed()),
                    Blocks::Q4_0 => i32::from(block[2 + j % 16] >> (j / 16 * 4) & 15) - 8,
                    Blocks::Q4_1 => i32::from(block[4 + j % 16] >> (j / 16 * 4) & 15),
                };
                let dot: i32 = a.iter().enumerate().map(|(j, a)| a * q(j)).sum();
                chain = (half(0) * d).mul_add(dot as f32, chain);
                if blocks == Blocks::Q4_1 {
                    chain = half(2).mul_add(d * a.iter().sum::<i32>() as f32, chain);
                }
            }
            assert_eq!(*y, chain, "{blocks:?} {i}");
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_batch_or_threads() {
    let most = 210;
    for blocks in ALL {
        for (n, k) in [(48, 576), (100, 96), (576, 64)] {
            let w = QuantPanels::from_bytes(blocks, n, k, &bytes(blocks, n, k, 6)).unwrap();
            let x = random(most * k, 7);
            let run = |threads: usize, at: usize, m: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
                let mut y = vec![0.0; m * n];
                pool.install(|| linear(&x[at * k..(at + m) * k], m, &w, &mut y, false));
                y
            };
            let whole = run(1, 0, most);
            assert!([2, 3].into_iter().all(|threads| run(threads, 0, most) == whole), "{blocks:?} [{n}, {k}]");
            for (at, m) in [(0, 1), (209, 1), (3, 2), (1, 5), (5, 8), (7, 13), (0, 193), (17, 193)] {
                for threads in [1, 2] {
                    assert_eq!(run(threads, at, m), whole[at * n..(at + m) * n], "{blocks:?} {at}+{m} of [{n}, {k}]");
                }
            }
        }
    }
}

#[test]
fn activations_are_rounded_to_the_nearest_code_ties_to_even() {
    for way in ways() {
        let code = |x: &[f32; BLOCK]| {
            let mut out = [[0; X_WORDS]];
            quantised(way, x, BLOCK, 8, &mut out);
            let codes: Vec<i8> = out[0][..8].iter().flat_map(|w| w.to_le_bytes()).map(u8::cast_signed).collect();
            let [d, offset] = [SCALE, OFFSET].map(|at| f32::from_bits(out[0][at]));
            (codes, d, offset, out[0][ZERO].cast_signed())
        };
        // The largest is 127 so that d is 1 and halves are ties.
        let mut x = [0.0; BLOCK];
        x[..9].copy_from_slice(&[127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.4, 126.6]);
        let (codes, d, offset, zero) = code(&x);
        assert_eq!((&codes[..9], d), (&[127, -127, 0, 2, 2, 0, -2, 0, 127][..], 1.0), "{way:?}");
        assert!(codes[9..].iter().all(|c| *c == 0));
        assert_eq!((offset, zero), (129.0, -8 * 129), "{way:?}");
        let (codes, d, ..) = code(&[0.0; BLOCK]);
        assert!(d == 0.0 && codes.iter().all(|c| *c == 0));
        for tiny in [1e-40, f32::MIN_POSITIVE] {
            let (codes, d, ..) = code(&[tiny; BLOCK]);
            assert!(d.is_finite() && codes.iter().all(|c| *c == 0), "{way:?} {tiny}");
        }
        let (codes, d, ..) = code(&[-f32::MAX; BLOCK]);
        assert!(d.is_finite() && codes.iter().all(|c| *c == -127), "{way:?}");
    }
}

#[test]
fn rows_that_are_not_finite_give_nan_and_spoil_no_other() {
    let (n, k) = (20, 64);
    for blocks in ALL {
        let w = QuantPanels::from_bytes(blocks, n, k, &bytes(blocks, n, k, 8)).unwrap();
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let clean = random(3 * k, 9);
            let mut x = clean.clone();
            x[k + 40] = bad;
            for way in ways() {
                let (mut y, mut want) = (vec![0.0; 3 * n], vec![0.0; 3 * n]);
                linear_at(way, &x, 3, &w, &mut y, false);
                linear_at(way, &clean, 3, &w, &mut want, false);
                assert!(y[n..2 * n].iter().all(|y| y.is_nan()), "{way:?} {blocks:?} {bad}");
                assert_eq!((&y[..n], &y[2 * n..]), (&want[..n], &want[2 * n..]), "{way:?} {blocks:?} {bad}");
            }
        }
    }
}

#[test]
fn stored_rows_are_the_dequantised_ones() {
    for blocks in ALL {
        for (n, k) in SHAPES {
            let raw = bytes(blocks, n, k, 10);
            let w = QuantPanels::from_bytes(blocks, n, k, &raw).unwrap();
            // The products of an f16 and a code are exact in f32, and so the sum with the minimum is rounded once.
            let want: Vec<f32> = (0..n * k).map(|at| value(blocks, &raw, k, at / k, at % k) as f32).collect();
            assert_eq!(w.to_rows(), want, "{blocks:?} [{n}, {k}]");
        }
    }
}

#[test]
fn subnormal_scales_are_read_by_every_way() {
    let (n, k) = (16, 32);
    for bits in [1, 0x3ff, 0x400, 0x8001, 0x7bff, 0xfbff, 0] {
        let mut raw = bytes(Blocks::Q8_0, n, k, 11);
        raw.chunks_mut(34).for_each(|block| block[..2].copy_from_slice(&u16::to_le_bytes(bits)));
        let (w, x) = (QuantPanels::from_bytes(Blocks::Q8_0, n, k, &raw).unwrap(), random(k, 12));
        let run = |way| {
            let mut y = vec![0.0; n];
            linear_at(way, &x, 1, &w, &mut y, false);
            y
        };
        let first = run(ways()[0]);
        assert!(first.iter().any(|y| *y != 0.0) == (bits != 0));
        assert!(ways().into_iter().all(|way| run(way) == first), "{bits:x}");
    }
}

/// Sums of products may have 16 bits on the way: the largest codes by the largest values, of every sign.
#[test]
fn the_largest_codes_do_not_overflow() {
    let (n, k) = (16, 64);
    for (blocks, code) in
        [(Blocks::Q4_0, 0x00), (Blocks::Q4_0, 0xff), (Blocks::Q4_1, 0xff), (Blocks::Q8_0, 0x80), (Blocks::Q8_0, 0x7f)]
    {
        let mut raw = vec![code; n * k / BLOCK * blocks.bytes()];
        for block in raw.chunks_mut(blocks.bytes()) {
            block[..2].copy_from_slice(&f16::ONE.to_le_bytes());
            if blocks.has_minimum() {
                block[2..4].copy_from_slice(&f16::ZERO.to_le_bytes());
            }
        }
        let w = QuantPanels::from_bytes(blocks, n, k, &raw).unwrap();
        for x in [127.0, -127.0] {
            let want = k as f64 * f64::from(x) * value(blocks, &raw, k, 0, 0);
            for way in ways() {
                let mut y = vec![0.0; 5 * n];
                linear_at(way, &vec![x; 5 * k], 5, &w, &mut y, false);
                assert!(
                    y.iter().all(|y| f64::from(*y) == want),
                    "{way:?} {blocks:?} {code:x} {x}: {} for {want}",
                    y[0]
                );
            }
        }
    }
}

#[test]
fn what_is_no_matrix_of_blocks_is_refused() {
    let error = |blocks, n, k, bytes: &[u8]| QuantPanels::from_bytes(blocks, n, k, bytes).unwrap_err().to_string();
    assert!(error(Blocks::Q4_0, 1, 33, &[0; 18]).contains("the width is 33, expected a multiple of 32"));
    assert!(error(Blocks::Q4_1, 2, 64, &[0; 79]).contains("79 bytes of blocks, expected 80"));
    let mut raw = bytes(Blocks::Q4_1, 3, 32, 13);
    raw[42..44].copy_from_slice(&f16::INFINITY.to_le_bytes());
    assert!(error(Blocks::Q4_1, 3, 32, &raw).contains("scale or minimum is inf"));
    assert_eq!(Blocks::Q4_1.not_finite(&raw), Some(f32::INFINITY));
}

#[test]
fn empty_operands_are_fine() {
    for (m, n, k) in [(0, 3, 32), (2, 0, 32), (2, 3, 0)] {
        let w = QuantPanels::from_bytes(Blocks::Q4_0, n, k, &vec![0; n * k / BLOCK * 18]).unwrap();
        let mut y = vec![1.0; m * n];
        linear(&vec![1.0; m * k], m, &w, &mut y, false);
        assert!(y.iter().all(|v| *v == 0.0));
    }
}
