//! Sessions, stopping and the errors of generation.

mod common;

use common::{ids, small};
use std::cell::RefCell;
use temper_model::{
    Author, Batch, Config, Engine, Error, Model, Request, Sampling, ScoredSequence, Session, Stop, Turn, generate,
};
use temper_tensor::{Cpu, HeadSpec, ParamId};

fn no_stops(_: &[u32]) -> bool {
    false
}

fn one(prompt: Vec<u32>) -> Vec<Request> {
    vec![Request { prompt, seeds: vec![7] }]
}

fn rules(max_tokens: usize) -> Sampling {
    Sampling { max_tokens, ..Sampling::default() }
}

#[test]
fn completions_end_for_the_first_reason_that_holds() {
    let (ops, model) = (Cpu::new(), small(1));
    let run = |rules: &Sampling, prompt, stops: &(dyn Fn(&[u32]) -> bool + Sync)| {
        generate(&ops, &model, &one(prompt), rules, 4, stops, &mut |_, _| ()).unwrap().remove(0).remove(0)
    };
    let free = run(&rules(20), ids(0, 4), &no_stops);
    assert_eq!((free.tokens.len(), free.stop), (20, Stop::MaxTokens));
    assert!([&free.logp_gen, &free.entropy, &free.lost_mass].iter().all(|v| v.len() == 20));
    assert!(free.stop.truncated());

    let end = free.tokens[9];
    let at = free.tokens.iter().position(|&t| t == end).unwrap();
    let stopped = run(&Sampling { stop_ids: vec![end], ..rules(20) }, ids(0, 4), &no_stops);
    assert_eq!((stopped.tokens.as_slice(), stopped.stop), (&free.tokens[..=at], Stop::Eos));

    let cut = run(&rules(20), ids(0, 4), &|tokens: &[u32]| tokens.len() == 6);
    assert_eq!((cut.tokens.as_slice(), cut.stop), (&free.tokens[..6], Stop::StopString));

    // The caller's wish is named where the last token is an end of its own too.
    let both = Sampling { stop_ids: vec![free.tokens[at]], ..rules(20) };
    let both = run(&both, ids(0, 4), &|tokens: &[u32]| tokens.last() == Some(&end));
    assert_eq!((both.tokens.as_slice(), both.stop), (&free.tokens[..=at], Stop::StopString));

    let full = run(&rules(500), ids(0, 190), &no_stops);
    assert_eq!((full.tokens.len(), full.stop), (10, Stop::ContextFull));
}

#[test]
fn progress_counts_to_the_end() {
    let (ops, model, rules) = (Cpu::new(), small(1), rules(5));
    let requests: Vec<Request> = (0..7).map(|i| Request { prompt: ids(i, 3), seeds: vec![i, i + 1] }).collect();
    let seen = RefCell::new(Vec::new());
    let engine = Engine::new(&ops, &model, &rules).unwrap().max_batch(3).unwrap();
    engine.generate(&requests, &mut |p| seen.borrow_mut().push(p)).unwrap();
    let seen = seen.into_inner();
    assert!(seen.windows(2).all(|w| w[0].finished <= w[1].finished && w[0].tokens <= w[1].tokens));
    let last = seen.last().unwrap();
    assert_eq!((last.finished, last.total, last.tokens), (14, 14, 70));
}

#[test]
fn turns_of_a_session_continue_it_bitwise() {
    let (ops, model, rules) = (Cpu::new(), small(2), rules(9));
    let engine = Engine::new(&ops, &model, &rules).unwrap();
    let mut session = Session::new(&model);
    session.push(&ids(3, 6), Author::User);
    let turn =
        |session: Session| engine.sample(vec![Turn { session, seeds: vec![5, 6] }], &mut |_| ()).unwrap().remove(0);
    let mut first = turn(session.clone());
    assert_ne!(first[0].completion.tokens, first[1].completion.tokens);

    let mut session = first.remove(0).session;
    assert_eq!((session.len(), session.drawn()), (15, 9));
    session.push(&ids(4, 70), Author::Environment);
    let mut stale = session.fork();
    stale.forget();
    let second = turn(session).remove(0);
    assert_eq!(turn(stale)[0].completion, second.completion);

    let s = &second.session;
    let model_tokens = s.authors().iter().filter(|&&a| a == Author::Model).count();
    assert_eq!((s.len(), model_tokens), (6 + 9 + 70 + 9, 18));
    let scored: Vec<f64> = s.authors().iter().map(|&a| f64::from(u8::from(a == Author::Model))).collect();
    let (batch, _) = Batch::sequences(&[ScoredSequence { ids: s.tokens(), scored: &scored }]).unwrap();
    let logp_gen: Vec<f32> = s.logp_gen().iter().zip(&scored).filter(|(_, w)| **w > 0.0).map(|(l, _)| *l).collect();
    assert_eq!(model.terms(&ops, &batch, &HeadSpec::default()).unwrap().logp, logp_gen);
}

#[test]
fn a_session_scores_continuations_without_growing() {
    let (ops, model) = (Cpu::new(), small(3));
    let mut session = Session::new(&model);
    session.push(&ids(1, 65), Author::User);
    for len in [1, 2, 40] {
        let continuation = ids(9, len);
        let whole = [session.tokens(), &continuation].concat();
        let weight: Vec<f64> = (0..whole.len()).map(|t| f64::from(u8::from(t >= 65))).collect();
        let expected = model.score(&ops, &[ScoredSequence { ids: &whole, scored: &weight }], 0.7, 64).unwrap();
        assert_eq!(session.score(&ops, &model, &continuation, 0.7).unwrap(), expected[0].logp);
        assert_eq!(session.len(), 65);
    }
    assert_eq!(session.score(&ops, &model, &[], 1.0).unwrap(), Vec::<f32>::new());
}

#[test]
fn scoring_does_not_depend_on_the_packing() {
    let (ops, model) = (Cpu::new(), small(3));
    let rows: Vec<(Vec<u32>, Vec<f64>)> = [5, 1, 90, 33, 2].iter().map(|&n| (ids(n as u64, n), vec![0.5; n])).collect();
    let sequences: Vec<ScoredSequence> = rows.iter().map(|(ids, scored)| ScoredSequence { ids, scored }).collect();
    let expected = model.score(&ops, &sequences, 1.0, 1).unwrap();
    assert_eq!(expected.iter().map(|s| s.logp.len()).collect::<Vec<_>>(), [4, 0, 89, 32, 1]);
    assert_eq!(model.score(&ops, &sequences, 1.0, 100).unwrap(), expected);
    assert_eq!(model.score(&ops, &sequences, 1.0, 100_000).unwrap(), expected);
    assert!((expected[0].total() - 0.5 * expected[0].logp.iter().map(|&l| f64::from(l)).sum::<f64>()).abs() < 1e-12);
}

#[test]
fn bad_requests_are_errors_that_name_the_numbers() {
    let (ops, model) = (Cpu::new(), small(1));
    let fails = |prompt: Vec<u32>, rules: &Sampling, max_batch| {
        generate(&ops, &model, &one(prompt), rules, max_batch, &no_stops, &mut |_, _| ()).unwrap_err().to_string()
    };
    let long = fails(ids(0, 200), &rules(5), 4);
    assert!(long.contains("201 tokens") && long.contains("200") && long.contains("prompt 0"), "{long}");
    assert!(fails(vec![], &rules(5), 4).contains("bos"));
    assert!(fails(vec![97], &rules(5), 4).contains("token id 97 is outside the model's vocabulary of 97"));
    assert!(fails(ids(0, 3), &rules(0), 4).contains("`max_tokens` is 0"));
    assert!(fails(ids(0, 3), &rules(5), 0).contains("`max_batch` is 0"));
    assert!(fails(ids(0, 3), &Sampling { stop_ids: vec![500], ..rules(5) }, 4).contains("500"));

    let other = Model::init(&ops, &Config::llama(97, 64, 3, 4), 1).unwrap();
    let mut session = Session::new(&other);
    session.push(&[1], Author::User);
    let rules = rules(3);
    let engine = Engine::new(&ops, &model, &rules).unwrap();
    let error = engine.sample(vec![Turn { session, seeds: vec![1] }], &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::OtherModel { .. }), "{error}");
}

#[test]
fn diverged_weights_are_told_not_sampled() {
    let (ops, mut model) = (Cpu::new(), small(1));
    let norm: ParamId = model.params.by_name("model.norm.weight").unwrap();
    model.params.set_values(&ops, norm, &[f32::NAN; 64]).unwrap();
    let error = generate(&ops, &model, &one(ids(0, 3)), &rules(5), 4, &no_stops, &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("logits hold NaN at token 3"), "{error}");
}

#[test]
fn greedy_takes_the_argmax_of_the_full_forward_pass() {
    let (ops, model) = (Cpu::new(), small(4));
    let done = generate(&ops, &model, &one(ids(5, 10)), &Sampling::greedy(30), 2, &no_stops, &mut |_, _| ()).unwrap();
    let c = &done[0][0];
    let batch = Batch::groups(&[(&ids(5, 10), vec![&c.tokens])]).unwrap();
    let terms = model.terms(&ops, &batch, &HeadSpec { argmax: true, entropy: true, ..HeadSpec::default() }).unwrap();
    assert_eq!(terms.argmax.as_ref(), Some(&c.tokens));
    assert_eq!((terms.logp, terms.entropy.as_ref()), (c.logp_gen.clone(), Some(&c.entropy)));
}
