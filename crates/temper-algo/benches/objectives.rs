//! What an objective costs a token: `cargo bench -p temper-algo`. A token of a 135M-parameter training step is about 0.82 GFLOP
//! (some milliseconds on two cores), so that 2% of it are tens of microseconds.
#![allow(missing_docs)] // criterion's macros make public functions

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use temper_algo::seed::SplitMix64;
use temper_algo::{Needs, PolicyObjective, Rows};

/// Groups of a step, completions of a group, tokens of a completion.
const SHAPE: (usize, usize, usize) = (4, 8, 128);

fn column(seed: u64, low: f64, high: f64) -> Vec<f64> {
    let mut random = SplitMix64::new(seed);
    (0..SHAPE.0 * SHAPE.1 * SHAPE.2).map(|_| low + (high - low) * random.next_f64()).collect()
}

fn policy_objectives(c: &mut Criterion) {
    let [logp, logp_old, logp_ref, logp_gen] = [1, 2, 3, 4].map(|seed| column(seed, -3.0, -0.01));
    let (entropy, success) = (column(5, 0.0, 4.0), vec![0.5; logp.len()]);
    let (adv, weight) = (column(6, -1.0, 1.0), vec![1.0 / logp.len() as f64; logp.len()]);
    let (sequences, groups) = (vec![SHAPE.2; SHAPE.0 * SHAPE.1], vec![SHAPE.1; SHAPE.0]);
    let mut group = c.benchmark_group("policy");
    group.throughput(Throughput::Elements(logp.len() as u64));
    for (i, surrogate) in support::every_surrogate().into_iter().enumerate() {
        let value = serde_json::to_value(surrogate).unwrap_or_default();
        // Some kinds come with several settings.
        let name = format!("{i}-{}", value["kind"].as_str().unwrap_or_default());
        let objective = PolicyObjective { surrogate, ..PolicyObjective::default() };
        let rows = Rows {
            logp: &logp,
            logp_old: Some(&logp_old),
            logp_ref: Some(&logp_ref),
            logp_gen: objective.needs().contains(Needs::LOGP_GEN).then_some(&logp_gen),
            entropy: Some(&entropy),
            success: Some(&success),
            kl_factor: None,
            adv: &adv,
            weight: &weight,
            sequences: &sequences,
            groups: &groups,
        };
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| black_box(objective.token_terms(black_box(&rows))).is_ok());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
    targets = policy_objectives
}
criterion_main!(benches);
