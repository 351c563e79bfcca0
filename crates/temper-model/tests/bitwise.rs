//! The log-probabilities that the sampler records are, bit for bit, those that the trainer computes.

mod common;

use common::{accumulate, gradients, ids, relative, short_heads, small, values};
use temper_model::{Batch, Completion, Engine, Model, Request, Sampling, ScoredSequence};
use temper_tensor::{Cpu, Grads, HeadSpec};

const TEMPERATURE: f32 = 0.8;

fn requests() -> Vec<Request> {
    // Prompts end inside, at and after a page of 64 positions.
    let prompt = |(i, len): (usize, &usize)| Request {
        prompt: ids(i as u64, *len),
        seeds: (0..3 + i as u64 % 2).map(|s| 1000 * i as u64 + s).collect(),
    };
    [5, 64, 1, 70, 23].iter().enumerate().map(prompt).collect()
}

fn rules() -> Sampling {
    Sampling { temperature: TEMPERATURE, max_tokens: 70, stop_ids: vec![11, 50], ..Sampling::default() }
}

fn sample(model: &Model, requests: &[Request], max_batch: usize, prefill_rows: usize) -> Vec<Vec<Completion>> {
    let (ops, rules) = (Cpu::new(), rules());
    let engine = Engine::new(&ops, model, &rules).unwrap().max_batch(max_batch).unwrap();
    engine.prefill_rows(prefill_rows).unwrap().generate(requests, &mut |_| ()).unwrap()
}

fn spec() -> HeadSpec {
    HeadSpec { temperature: TEMPERATURE, ..HeadSpec::default() }
}

fn bits(logp: &[f32]) -> Vec<u32> {
    logp.iter().map(|l| l.to_bits()).collect()
}

fn all_logp(completions: &[Vec<Completion>]) -> Vec<u32> {
    completions.iter().flatten().flat_map(|c| bits(&c.logp_gen)).collect()
}

fn group_batch(requests: &[Request], completions: &[Vec<Completion>]) -> Batch {
    let groups: Vec<(&[u32], Vec<&[u32]>)> = requests
        .iter()
        .zip(completions)
        .map(|(r, group)| (r.prompt.as_slice(), group.iter().map(|c| c.tokens.as_slice()).collect()))
        .collect();
    Batch::groups(&groups).unwrap()
}

/// Every completion as a sequence of its own, with 1 for each of its tokens.
fn own_sequences(requests: &[Request], completions: &[Vec<Completion>]) -> Vec<(Vec<u32>, Vec<f64>)> {
    let whole = |prompt: &[u32], c: &Completion| {
        let mut weight = vec![0.0; prompt.len()];
        weight.resize(prompt.len() + c.tokens.len(), 1.0);
        ([prompt, &c.tokens].concat(), weight)
    };
    requests.iter().zip(completions).flat_map(|(r, group)| group.iter().map(move |c| whole(&r.prompt, c))).collect()
}

fn sequence_batch(sequences: &[(Vec<u32>, Vec<f64>)]) -> (Batch, Vec<f64>) {
    let scored: Vec<ScoredSequence> = sequences.iter().map(|(ids, scored)| ScoredSequence { ids, scored }).collect();
    Batch::sequences(&scored).unwrap()
}

fn with_threads<T: Send>(n: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(work)
}

#[test]
fn sampled_logp_is_the_trainers_in_any_batch() {
    sampled_equals_trained(&small(1));
}

#[test]
fn sampled_logp_is_the_trainers_for_heads_that_fill_no_vector() {
    short_heads(1).iter().for_each(sampled_equals_trained);
}

#[test]
fn sampled_logp_is_the_trainers_in_bf16() {
    sampled_equals_trained(&small(1).in_bf16());
    for model in short_heads(1) {
        sampled_equals_trained(&model.in_bf16());
    }
}

fn sampled_equals_trained(model: &Model) {
    let requests = requests();
    let sampled = sample(model, &requests, 8, 16);
    assert!(sampled.iter().flatten().any(|c| c.tokens.len() > 64), "some completion should cross a page");
    let expected = all_logp(&sampled);

    let batch = group_batch(&requests, &sampled);
    let ones = vec![1.0; batch.scored()];
    for recompute in [false, true] {
        let (terms, _) = gradients(model, &batch, &ones, &spec(), recompute);
        assert_eq!(bits(&terms.logp), expected, "groups, recompute {recompute}");
    }
    assert_eq!(bits(&model.terms(&Cpu::new(), &batch, &spec()).unwrap().logp), expected, "without recording");

    let sequences = own_sequences(&requests, &sampled);
    let (packed, ones) = sequence_batch(&sequences);
    assert_eq!(bits(&gradients(model, &packed, &ones, &spec(), false).0.logp), expected, "packed sequences");
    for size in [1, 2, 5] {
        let parts = sequences.chunks(size).flat_map(|part| {
            let (batch, _) = sequence_batch(part);
            bits(&model.terms(&Cpu::new(), &batch, &spec()).unwrap().logp)
        });
        assert_eq!(parts.collect::<Vec<_>>(), expected, "micro-batches of {size}");
    }
}

#[test]
fn a_completion_depends_on_its_prompt_and_seed_alone() {
    let (model, requests) = (small(2), requests());
    let expected = sample(&model, &requests, 8, 16);
    for (max_batch, prefill_rows) in [(1, 256), (2, 1), (3, 7), (64, 1000)] {
        let other = sample(&model, &requests, max_batch, prefill_rows);
        assert_eq!(other, expected, "max_batch {max_batch}, prefill_rows {prefill_rows}");
    }
    // One by one, and in another order.
    for (request, group) in requests.iter().zip(&expected).rev() {
        for (&seed, completion) in request.seeds.iter().zip(group) {
            let one = Request { prompt: request.prompt.clone(), seeds: vec![seed] };
            assert_eq!(sample(&model, &[one], 4, 64)[0][0], *completion);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    threads_agree(&small(3));
    threads_agree(&small(3).in_bf16());
    short_heads(3).iter().for_each(threads_agree);
}

fn threads_agree(model: &Model) {
    let requests = requests();
    let run = |threads| {
        with_threads(threads, || {
            let sampled = sample(model, &requests, 8, 32);
            let batch = group_batch(&requests, &sampled);
            let (terms, grads) = gradients(model, &batch, &vec![0.5; batch.scored()], &spec(), false);
            let grads: Vec<Vec<u32>> = model.params.iter().map(|(id, _)| bits(&values(&grads, id))).collect();
            (sampled, bits(&terms.logp), grads)
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
    assert_eq!(one.1, all_logp(&one.0));
}

#[test]
fn recomputing_blocks_gives_the_same_gradients() {
    let (model, requests) = (small(4), requests());
    let batch = group_batch(&requests, &sample(&model, &requests, 8, 32));
    let weight: Vec<f64> = (0..batch.scored()).map(|i| (i as f64 * 0.7).sin()).collect();
    let [(_, kept), (_, recomputed)] = [false, true].map(|r| gradients(&model, &batch, &weight, &spec(), r));
    for (id, param) in model.params.iter() {
        assert_eq!(bits(&values(&kept, id)), bits(&values(&recomputed, id)), "{}", param.name);
    }
}

#[test]
fn accumulated_micro_batches_equal_one_batch() {
    let (model, requests) = (small(5), requests());
    let sampled = sample(&model, &requests, 8, 32);
    let weight = |n: usize| (0..n).map(|i| 1.0 + (i % 3) as f64).collect::<Vec<_>>();
    let whole = group_batch(&requests, &sampled);
    let all = weight(whole.scored());
    let (_, expected) = gradients(&model, &whole, &all, &spec(), false);

    let mut grads = Grads::zeros(&Cpu::new(), &model.params).unwrap();
    let mut done = 0;
    for i in 0..requests.len() {
        let batch = group_batch(&requests[i..=i], &sampled[i..=i]);
        accumulate(&model, &batch, &all[done..done + batch.scored()], &spec(), false, &mut grads);
        done += batch.scored();
    }
    for (id, param) in model.params.iter() {
        let error = relative(&values(&grads, id), &values(&expected, id));
        assert!(error < 1e-6, "{}: {error:e}", param.name);
    }
}

#[test]
fn shared_prompts_and_own_sequences_have_the_same_gradient() {
    shared_and_own_agree(&small(6));
    short_heads(6).iter().for_each(shared_and_own_agree);
}

fn shared_and_own_agree(model: &Model) {
    let requests = requests();
    let sampled = sample(model, &requests, 8, 32);
    let (own, ones) = sequence_batch(&own_sequences(&requests, &sampled));
    let (_, expected) = gradients(model, &own, &ones, &spec(), false);
    let (_, shared) = gradients(model, &group_batch(&requests, &sampled), &ones, &spec(), false);
    for (id, param) in model.params.iter() {
        let error = relative(&values(&shared, id), &values(&expected, id));
        assert!(error < 2e-6, "{}: {error:e}", param.name);
    }
}
