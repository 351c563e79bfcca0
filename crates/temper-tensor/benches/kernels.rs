//! Products (f32 and bf16), attention, head and norm at the shapes of SmolLM2-135M: `cargo bench -p temper-tensor -- gemm`.
//!
//! Elements are floating-point operations for products and the head, bytes read and written for the rest, so that
//! criterion's "elem/s" is FLOP/s or B/s. `TEMPER_ISA` and `RAYON_NUM_THREADS` choose level and threads.
#![allow(missing_docs)] // criterion's macros make public functions

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use temper_tensor::gemm::{bf16, linear, linear_dw, linear_dx};
use temper_tensor::head::{HeadCoef, HeadSpec, head_backward, head_terms};
use temper_tensor::kernels::norm::{rms_norm, rms_norm_dw, rms_norm_dx};
use temper_tensor::{AttnSaved, AttnShape, Bf16Panels, Buf, Cpu, Ops, Panels, Segments, Weight};

/// Values without structure in [-1, 1).
fn values(len: usize) -> Buf {
    let mut buf = Buf::dirty(len);
    let mut state = 1_u32;
    for x in buf.iter_mut() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *x = (state >> 8) as f32 / 8_388_608.0 - 1.0;
    }
    buf
}

fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    for (m, n, k) in [(1024, 1536, 576), (1024, 576, 1536), (1024, 576, 576), (2048, 2048, 2048)] {
        let (x, dy, w) = (values(m * k), values(m * n), Panels::from_rows(&values(n * k), n, k));
        let (mut y, mut dx, mut dw) = (values(m * n), values(m * k), Panels::zeros(n, k));
        let shape = format!("{m}x{k}->{n}");
        group.throughput(Throughput::Elements((2 * m * n * k) as u64));
        group.bench_function(BenchmarkId::new("y", &shape), |b| b.iter(|| linear(&x, m, &w, &mut y, false)));
        group.bench_function(BenchmarkId::new("dx", &shape), |b| b.iter(|| linear_dx(&dy, m, &w, &mut dx, false)));
        group.bench_function(BenchmarkId::new("dw", &shape), |b| b.iter(|| linear_dw(&dy, &x, m, &mut dw)));
        let w = Bf16Panels::round(&w);
        group.bench_function(BenchmarkId::new("bf16 y", &shape), |b| b.iter(|| bf16::linear(&x, m, &w, &mut y, false)));
        let id = BenchmarkId::new("bf16 dx", &shape);
        group.bench_function(id, |b| b.iter(|| bf16::linear_dx(&dy, m, &w, &mut dx, false)));
        group.bench_function(BenchmarkId::new("bf16 dw", &shape), |b| b.iter(|| bf16::linear_dw(&dy, &x, m, &mut dw)));
    }
    group.finish();
}

/// Few rows: the weights' bytes count.
fn decoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    let (n, k) = (49_152, 576);
    let w = Panels::from_rows(&values(n * k), n, k);
    group.throughput(Throughput::Elements((4 * n * k) as u64));
    for m in [1, 4, 16, 64] {
        let (x, mut y) = (values(m * k), values(m * n));
        group.bench_function(BenchmarkId::new("rows", m), |b| b.iter(|| linear(&x, m, &w, &mut y, false)));
    }
    let w = Bf16Panels::round(&w);
    group.throughput(Throughput::Elements((2 * n * k) as u64));
    for m in [1, 4, 16] {
        let (x, mut y) = (values(m * k), values(m * n));
        group.bench_function(BenchmarkId::new("bf16 rows", m), |b| b.iter(|| bf16::linear(&x, m, &w, &mut y, false)));
    }
    group.finish();
}

fn head(c: &mut Criterion) {
    let mut group = c.benchmark_group("head");
    let (m, v, k) = (256, 49_152, 576);
    let (hidden, f32) = (values(m * k), Weight::from_rows(&values(v * k), v, k));
    let targets: Vec<u32> = (0..m as u32).map(|i| i * 191 % v as u32).collect();
    let spec = HeadSpec { entropy: true, ..HeadSpec::default() };
    let (mut d_hidden, mut dw) = (values(m * k), Panels::zeros(v, k));
    for (name, w) in [("f32", f32.clone()), ("bf16", f32.in_bf16())] {
        group.throughput(Throughput::Elements((2 * m * v * k) as u64));
        let id = BenchmarkId::new("terms", name);
        group.bench_function(id, |b| b.iter(|| black_box(head_terms(&hidden, m, &w, &targets, &spec, None))));
        group.throughput(Throughput::Elements((6 * m * v * k) as u64));
        group.bench_function(BenchmarkId::new("backward", name), |b| {
            b.iter(|| {
                let mut coef = |rows: std::ops::Range<usize>, _: &_| HeadCoef {
                    d_logp: vec![-1.0 / m as f32; rows.len()],
                    ..HeadCoef::default()
                };
                black_box(head_backward(&hidden, m, &w, &targets, &spec, None, &mut coef, &mut d_hidden, Some(&mut dw)))
            });
        });
    }
    group.finish();
}

fn norm(c: &mut Criterion) {
    let mut group = c.benchmark_group("rms_norm");
    let (m, width) = (1024, 576);
    let (x, dy, w) = (values(m * width), values(m * width), values(width));
    let (mut y, mut inv, mut dw) = (values(m * width), values(m), values(width));
    group.throughput(Throughput::Elements((8 * m * width) as u64));
    group.bench_function("y", |b| b.iter(|| rms_norm(&x, &w, 1e-5, &mut y, &mut inv)));
    group.throughput(Throughput::Elements((12 * m * width) as u64));
    group.bench_function("dx", |b| b.iter(|| rms_norm_dx(&dy, &x, &w, &inv, &mut y)));
    group.bench_function("dw", |b| b.iter(|| rms_norm_dw(&dy, &x, &inv, &mut dw)));
    group.finish();
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
}

/// Eight sequences of 256 tokens; operations are those that causality leaves, five products backward.
fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    let (sequences, len, ops) = (8, 256, Cpu::new());
    let f32 = AttnShape { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, bf16: false };
    let segments = Segments::sequences(&vec![len; sequences]).expect("valid");
    let rows = |heads: usize| {
        let (n, width) = (sequences * len, heads * f32.head_dim);
        ops.upload(n, width, &values(n * width)).expect("fits")
    };
    let (q, k, v, dy) = (rows(f32.heads), rows(f32.kv_heads), rows(f32.kv_heads), rows(f32.heads));
    let product = (2 * sequences * len * (len + 1) / 2 * f32.heads * f32.head_dim) as u64;
    for (name, s) in [("f32", f32), ("bf16", AttnShape { bf16: true, ..f32 })] {
        group.throughput(Throughput::Elements(2 * product));
        group.bench_function(BenchmarkId::new("y", name), |b| b.iter(|| ops.attention(&q, &k, &v, &segments, &s)));
        let (out, lse) = ops.attention(&q, &k, &v, &segments, &s).expect("fits");
        let saved = AttnSaved { q: &q, k: &k, v: &v, out: &out, lse: &lse };
        group.throughput(Throughput::Elements(5 * product));
        let id = BenchmarkId::new("backward", name);
        group.bench_function(id, |b| b.iter(|| ops.attention_backward(&dy, &saved, &segments, &s)));
    }
    group.finish();
}

criterion_group! { name = benches; config = settings(); targets = products, decoding, attention, head, norm }
criterion_main!(benches);
