//! Attention: bitwise equality between training and cached runs in any composition, and a scalar f64 reference.

mod common;

use common::{Rng, assert_close, bits, host, tensor};
use temper_tensor::{AttnSaved, AttnShape, CacheSlot, Cpu, KvCache, Ops, Segment, Segments, Tensor, attention_weights};

/// q, k and v rows of one sequence.
#[derive(Clone)]
struct Rows {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn widths(s: &AttnShape) -> [usize; 3] {
    [s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim]
}

fn shapes() -> Vec<AttnShape> {
    let shape = |heads, kv_heads, head_dim| AttnShape { heads, kv_heads, head_dim, scale: 0.21, bf16: false };
    let whole =
        [shape(2, 2, 16), shape(4, 2, 32), shape(3, 1, 64), shape(5, 1, 48), shape(26, 1, 16), shape(2, 1, 128)];
    // Heads that do not fill the kernel's 16 columns: one short panel, full ones and a short one, odd and even counts.
    let short = [shape(4, 2, 2), shape(6, 3, 8), shape(3, 1, 20), shape(2, 2, 24), shape(13, 1, 4), shape(2, 1, 100)];
    let f32 = [whole, short].concat();
    let bf16 = f32.iter().map(|s| both(*s)[1]).collect();
    [f32, bf16].concat()
}

/// In f32 and in bf16.
fn both(s: AttnShape) -> [AttnShape; 2] {
    [false, true].map(|bf16| AttnShape { bf16, ..s })
}

impl Rows {
    fn random(seed: u64, len: usize, s: &AttnShape) -> Self {
        let [q, k, v] = widths(s);
        let mut rng = Rng(seed);
        Self { q: rng.normals(len * q, 1.5), k: rng.normals(len * k, 1.0), v: rng.normals(len * v, 1.0) }
    }

    fn part(&self, rows: std::ops::Range<usize>, s: &AttnShape) -> Self {
        let [q, k, v] = widths(s);
        let cut = |x: &[f32], w: usize| x[rows.start * w..rows.end * w].to_vec();
        Self { q: cut(&self.q, q), k: cut(&self.k, k), v: cut(&self.v, v) }
    }

    fn stack(parts: &[Self]) -> Self {
        let join = |f: fn(&Self) -> &Vec<f32>| parts.iter().flat_map(|p| f(p).clone()).collect();
        Self { q: join(|p| &p.q), k: join(|p| &p.k), v: join(|p| &p.v) }
    }

    fn tensors(&self, s: &AttnShape) -> [Tensor; 3] {
        let [q, k, v] = widths(s);
        let make = |x: &[f32], w: usize| tensor(x.len() / w, w, x);
        [make(&self.q, q), make(&self.k, k), make(&self.v, v)]
    }
}

fn train(rows: &Rows, segments: &Segments, s: &AttnShape) -> Vec<f32> {
    let [q, k, v] = rows.tensors(s);
    host(&Cpu::new().attention(&q, &k, &v, segments, s).expect("attention").0)
}

fn alone(rows: &Rows, len: usize, s: &AttnShape) -> Vec<f32> {
    train(rows, &Segments::sequences(&[len]).expect("valid"), s)
}

/// Feeds `rows` to the caches, `counts[i]` rows each.
fn feed(rows: &Rows, caches: &mut [KvCache], counts: &[usize], s: &AttnShape) -> Vec<f32> {
    let [q, k, v] = rows.tensors(s);
    let mut at = 0;
    let slots = caches.iter_mut().zip(counts).map(|(cache, n)| {
        at += n;
        CacheSlot { cache, rows: at - n..at }
    });
    let mut slots: Vec<_> = slots.collect();
    host(&Cpu::new().cached_attention(&q, &k, &v, &mut slots, 0, s).expect("attention"))
}

fn cache(s: &AttnShape) -> KvCache {
    KvCache::new(1, s)
}

#[track_caller]
fn same(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differ = bits(a).iter().zip(bits(b)).filter(|(a, b)| **a != *b).count();
    assert_eq!(differ, 0, "{what}: {differ} of {} values differ", a.len());
}

#[test]
fn packing_changes_no_bit() {
    for s in shapes() {
        let lengths = [7, 150, 1, 64, 65];
        let sequences: Vec<_> = lengths.iter().map(|&n| Rows::random(n as u64, n, &s)).collect();
        let separate: Vec<f32> = sequences.iter().zip(lengths).flat_map(|(r, n)| alone(r, n, &s)).collect();
        let packed = train(&Rows::stack(&sequences), &Segments::sequences(&lengths).expect("valid"), &s);
        same("packed", &packed, &separate);
    }
}

#[test]
fn a_shared_prompt_equals_separate_sequences_bitwise() {
    for s in shapes() {
        let width = widths(&s)[0];
        let (prompt, lens) = (75, [3, 70, 11]);
        let whole: Vec<_> = lens.iter().map(|n| Rows::random(*n as u64, *n, &s)).collect();
        let first = Rows::random(9, prompt, &s);
        let mut parts = vec![first.clone()];
        parts.extend(whole.iter().cloned());
        let grouped = train(&Rows::stack(&parts), &Segments::group(prompt, &lens).expect("valid"), &s);
        let mut at = prompt;
        for (rows, n) in whole.iter().zip(lens) {
            let separate = alone(&Rows::stack(&[first.clone(), rows.clone()]), prompt + n, &s);
            same("prompt", &grouped[..prompt * width], &separate[..prompt * width]);
            same("completion", &grouped[at * width..(at + n) * width], &separate[prompt * width..]);
            at += n;
        }
    }
}

#[test]
fn a_chain_of_segments_equals_one_sequence_bitwise() {
    for s in shapes() {
        let rows = Rows::random(3, 140, &s);
        let segment = |start, len, parent| Segment { start, len, parent };
        let chain =
            vec![segment(0, 10, None), segment(10, 70, Some(0)), segment(80, 1, Some(1)), segment(81, 59, Some(2))];
        same("chain", &train(&rows, &Segments::new(chain).expect("valid"), &s), &alone(&rows, 140, &s));
    }
}

#[test]
fn prefill_in_any_chunks_and_decoding_equal_training_bitwise() {
    for s in shapes() {
        let len = 140;
        let rows = Rows::random(5, len, &s);
        let trained = alone(&rows, len, &s);
        for chunks in [vec![len], vec![1; len], vec![64, 64, 12], vec![3, 60, 1, 1, 5, 70], vec![63, 2, 75]] {
            let (mut caches, mut at, mut out) = ([cache(&s)], 0, Vec::new());
            for n in chunks {
                out.extend(feed(&rows.part(at..at + n, &s), &mut caches, &[n], &s));
                at += n;
            }
            same("cached", &out, &trained);
            assert_eq!(caches[0].len(), len);
        }
    }
}

#[test]
fn batched_decoding_of_forks_equals_training_bitwise() {
    for s in shapes() {
        let width = widths(&s)[0];
        let (prompt, tails) = (70, [9, 3, 60]);
        let first = Rows::random(1, prompt, &s);
        let branches: Vec<_> = tails.iter().map(|n| Rows::random(*n as u64, *n, &s)).collect();
        let mut root = [cache(&s)];
        feed(&first, &mut root, &[prompt], &s);
        let mut caches: Vec<KvCache> = tails.iter().map(|_| root[0].clone()).collect();
        let mut outs = vec![Vec::new(); tails.len()];
        for t in 0..60 {
            let live: Vec<usize> = (0..tails.len()).filter(|i| t < tails[*i]).collect();
            let step = Rows::stack(&live.iter().map(|i| branches[*i].part(t..t + 1, &s)).collect::<Vec<_>>());
            let mut moved: Vec<KvCache> = live.iter().map(|i| caches[*i].clone()).collect();
            let out = feed(&step, &mut moved, &vec![1; live.len()], &s);
            for ((i, cache), out) in live.iter().zip(moved).zip(out.chunks(width)) {
                caches[*i] = cache;
                outs[*i].extend(out);
            }
        }
        for ((branch, tail), out) in branches.iter().zip(tails).zip(outs) {
            let whole = alone(&Rows::stack(&[first.clone(), branch.clone()]), prompt + tail, &s);
            same("fork", &out, &whole[prompt * width..]);
        }
        // The forks left the common prompt alone.
        let again = feed(&branches[0].part(0..1, &s), &mut root, &[1], &s);
        let whole = alone(&Rows::stack(&[first, branches[0].part(0..1, &s)]), prompt + 1, &s);
        same("root", &again, &whole[prompt * width..]);
    }
}

#[test]
fn truncated_caches_continue_bitwise() {
    for s in [shapes()[1], shapes()[8]].into_iter().flat_map(both) {
        truncated_cache_continues(&s);
    }
}

fn truncated_cache_continues(s: &AttnShape) {
    let (s, width) = (*s, widths(s)[0]);
    for keep in [3, 64, 65, 100] {
        let mut caches = [cache(&s)];
        feed(&Rows::random(2, 120, &s), &mut caches, &[120], &s);
        caches[0].truncate(keep);
        assert_eq!(caches[0].len(), keep);
        let rows = Rows::stack(&[Rows::random(2, 120, &s).part(0..keep, &s), Rows::random(8, 30, &s)]);
        let out = feed(&rows.part(keep..keep + 30, &s), &mut caches, &[30], &s);
        same("after truncation", &out, &alone(&rows, keep + 30, &s)[keep * width..]);
    }
}

fn gradients(rows: &Rows, segments: &Segments, dy: &[f32], s: &AttnShape) -> [Vec<f32>; 3] {
    let ops = Cpu::new();
    let [q, k, v] = rows.tensors(s);
    let (out, lse) = ops.attention(&q, &k, &v, segments, s).expect("attention");
    let saved = AttnSaved { q: &q, k: &k, v: &v, out: &out, lse: &lse };
    let dy = tensor(q.rows(), q.cols(), dy);
    let grads = ops.attention_backward(&dy, &saved, segments, s).expect("backward");
    [host(&grads.q), host(&grads.k), host(&grads.v)]
}

#[test]
fn thread_count_changes_no_bit() {
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("threads");
    for s in shapes() {
        let lens = [40, 90, 3, 75];
        let segments = Segments::group(80, &lens).expect("valid");
        let rows = Rows::random(6, segments.rows(), &s);
        let dy = Rng(4).normals(segments.rows() * widths(&s)[0], 1.0);
        let run = || (train(&rows, &segments, &s), gradients(&rows, &segments, &dy, &s));
        let (one, many) = (pool(1).install(run), pool(3).install(run));
        same("forward", &one.0, &many.0);
        for (a, b) in one.1.iter().zip(&many.1) {
            same("backward", a, b);
        }
    }
}

#[test]
fn a_groups_gradient_is_that_of_its_separate_sequences() {
    for s in shapes() {
        let [qw, kw, _] = widths(&s);
        let (prompt, lens) = (30, [20, 50, 2]);
        let parts: Vec<_> = std::iter::once(&prompt).chain(&lens).map(|n| Rows::random(*n as u64, *n, &s)).collect();
        let segments = Segments::group(prompt, &lens).expect("valid");
        let dy = Rng(4).normals(segments.rows() * qw, 1.0);
        let grouped = gradients(&Rows::stack(&parts), &segments, &dy, &s);
        let mut sums = [vec![0.0; grouped[0].len()], vec![0.0; grouped[1].len()], vec![0.0; grouped[2].len()]];
        let mut at = prompt;
        for (i, n) in lens.into_iter().enumerate() {
            let rows = Rows::stack(&[parts[0].clone(), parts[i + 1].clone()]);
            // The prompt rows' own gradient counts once.
            let own = if i == 0 { dy[..prompt * qw].to_vec() } else { vec![0.0; prompt * qw] };
            let dy = [own, dy[at * qw..(at + n) * qw].to_vec()].concat();
            let separate = gradients(&rows, &Segments::sequences(&[prompt + n]).expect("valid"), &dy, &s);
            for ((sum, part), w) in sums.iter_mut().zip(separate).zip([qw, kw, kw]) {
                let (head, tail) = part.split_at(prompt * w);
                sum[..prompt * w].iter_mut().zip(head).for_each(|(s, x)| *s += x);
                sum[at * w..(at + n) * w].copy_from_slice(tail);
            }
            at += n;
        }
        for (name, (a, b)) in ["dq", "dk", "dv"].iter().zip(grouped.iter().zip(&sums)) {
            assert_close(name, a, b, 2e-6);
        }
    }
}

/// Scalar f64 attention and its gradients, straight from the definition.
fn reference(rows: &Rows, segments: &Segments, dy: &[f32], s: &AttnShape) -> [Vec<f64>; 4] {
    let (d, [qw, kw, _]) = (s.head_dim, widths(s));
    let f = |x: &[f32], at: usize| -> Vec<f64> { x[at..at + d].iter().map(|x| f64::from(*x)).collect() };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let n = segments.rows();
    let [mut out, mut dq, mut dk, mut dv] = [qw, qw, kw, kw].map(|w| vec![0.0; n * w]);
    for i in 0..segments.len() {
        for row in segments.range(i) {
            let keys: Vec<usize> = segments.chain_rows(i).into_iter().flatten().filter(|r| *r <= row).collect();
            for h in 0..s.heads {
                let (at, kv) = (row * qw + h * d, h / (s.heads / s.kv_heads) * d);
                let (q, g) = (f(&rows.q, at), f(dy, at));
                let scores: Vec<f64> =
                    keys.iter().map(|r| dot(&q, &f(&rows.k, r * kw + kv)) * f64::from(s.scale)).collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|x| (x - max).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|x| (x - max).exp() / total).collect();
                let dp: Vec<f64> = keys.iter().map(|r| dot(&g, &f(&rows.v, r * kw + kv))).collect();
                let mean = dot(&p, &dp);
                for (j, r) in keys.iter().enumerate() {
                    let (key, value) = (f(&rows.k, r * kw + kv), f(&rows.v, r * kw + kv));
                    let ds = p[j] * (dp[j] - mean) * f64::from(s.scale);
                    for c in 0..d {
                        out[at + c] += p[j] * value[c];
                        dq[at + c] += ds * key[c];
                        dk[r * kw + kv + c] += ds * q[c];
                        dv[r * kw + kv + c] += p[j] * g[c];
                    }
                }
            }
        }
    }
    [out, dq, dk, dv]
}

#[test]
fn forward_and_backward_match_the_scalar_reference() {
    let mut rng = Rng(11);
    for s in shapes() {
        for round in 0..3 {
            let mut list: Vec<Segment> = Vec::new();
            for i in 0..4 {
                let len = 1 + rng.below(if round == 2 { 80 } else { 12 });
                let parent = (i > 0 && rng.below(3) > 0).then(|| rng.below(i));
                list.push(Segment { start: list.last().map_or(0, |s| s.start + s.len), len, parent });
            }
            let segments = Segments::new(list).expect("valid");
            let rows = Rows::random(round, segments.rows(), &s);
            let dy = rng.normals(segments.rows() * widths(&s)[0], 1.0);
            let [q, k, v] = gradients(&rows, &segments, &dy, &s);
            let got = [train(&rows, &segments, &s), q, k, v];
            for (name, (got, want)) in
                ["out", "dq", "dk", "dv"].iter().zip(got.iter().zip(reference(&rows, &segments, &dy, &s)))
            {
                let want: Vec<f32> = want.iter().map(|x| *x as f32).collect();
                // In bf16 every operand is off by up to 2^-9.
                assert_close(name, got, &want, if s.bf16 { 1e-2 } else { 5e-6 });
            }
        }
    }
}

/// Other heads and other rows' values never leak through the padding, not even when they are not finite.
#[test]
fn padding_of_short_heads_holds_nothing_of_the_neighbours() {
    let s = AttnShape { heads: 4, kv_heads: 2, head_dim: 20, scale: 0.3, bf16: false };
    both(s).into_iter().for_each(neighbours_do_not_matter);
}

fn neighbours_do_not_matter(s: AttnShape) {
    let [qw, kw, _] = widths(&s);
    let (len, d) = (70, s.head_dim);
    let rows = Rows::random(7, len, &s);
    let mut spoilt = rows.clone();
    for r in 0..len {
        // Everything of kv head 1 and its two query heads.
        spoilt.q[r * qw + 2 * d..(r + 1) * qw].fill(f32::NAN);
        spoilt.k[r * kw + d..(r + 1) * kw].fill(f32::NAN);
        spoilt.v[r * kw + d..(r + 1) * kw].fill(f32::INFINITY);
    }
    let segments = Segments::sequences(&[len]).expect("valid");
    let dy = Rng(4).normals(len * qw, 1.0);
    let results = |rows: &Rows| {
        let [q, k, v] = gradients(rows, &segments, &dy, &s);
        let mut caches = [cache(&s)];
        [(train(rows, &segments, &s), qw), (feed(rows, &mut caches, &[len], &s), qw), (q, qw), (k, kw), (v, kw)]
    };
    for ((clean, width), (with_nan, _)) in results(&rows).into_iter().zip(results(&spoilt)) {
        let first = |x: &[f32]| x.chunks(width).flat_map(|r| r[..width / 2].to_vec()).collect::<Vec<_>>();
        same("heads of the first kv head", &first(&clean), &first(&with_nan));
    }
}

#[test]
fn attention_weights_give_the_output() {
    [shapes()[1], AttnShape { head_dim: 10, ..shapes()[1] }].iter().for_each(weights_give_the_output);
}

fn weights_give_the_output(s: &AttnShape) {
    let s = *s;
    let segments = Segments::group(5, &[4, 70]).expect("valid");
    let rows = Rows::random(3, segments.rows(), &s);
    let [q, k, v] = rows.tensors(&s);
    let (ops, width) = (Cpu::new(), widths(&s)[0]);
    let out = train(&rows, &segments, &s);
    for (segment, head) in [(0, 0), (1, 3), (2, 2)] {
        let weights = attention_weights(&ops, &q, &k, &segments, &s, segment, head).expect("in range");
        let chain: Vec<u32> = segments.chain_rows(segment).into_iter().flatten().map(|r| r as u32).collect();
        let kv = head / 2 * s.head_dim;
        let values = ops.gather_rows(&v, &chain).expect("rows");
        let values = ops.slice(&values, 0..chain.len(), kv..kv + s.head_dim).expect("inside");
        let got = host(&ops.matmul(&weights, &values).expect("fits"));
        let at = head * s.head_dim;
        let want: Vec<f32> =
            segments.range(segment).flat_map(|r| out[r * width + at..][..s.head_dim].to_vec()).collect();
        assert_close("weights", &got, &want, 2e-6);
    }
    assert!(attention_weights(&ops, &q, &k, &segments, &s, 3, 0).is_err());
}

#[test]
fn large_scores_stay_finite() {
    for s in both(AttnShape { scale: 30.0, ..shapes()[0] }) {
        let rows = Rows::random(2, 90, &s);
        let segments = Segments::sequences(&[90]).expect("valid");
        let dy = Rng(4).normals(90 * widths(&s)[0], 1.0);
        assert!(train(&rows, &segments, &s).iter().all(|x| x.is_finite()));
        assert!(gradients(&rows, &segments, &dy, &s).iter().flatten().all(|x| x.is_finite()));
    }
}

/// A key that is seen alone has a weight of 1, whatever it is.
#[test]
fn a_single_keys_scores_have_no_gradient() {
    for s in both(shapes()[2]) {
        let rows = Rows::random(3, 5, &s);
        let dy = Rng(4).normals(5 * widths(&s)[0], 1.0);
        let [dq, dk, dv] = gradients(&rows, &Segments::sequences(&[1; 5]).expect("valid"), &dy, &s);
        assert!(dq.iter().chain(&dk).all(|x| x.abs() < 1e-5), "{dq:?} {dk:?}");
        assert!(dv.iter().all(|x| *x != 0.0));
    }
}

#[test]
fn unsupported_shapes_and_misfitting_caches_are_errors() {
    let ops = Cpu::new();
    let s = AttnShape { heads: 2, kv_heads: 1, head_dim: 516, scale: 1.0, bf16: false };
    let [q, k, v] = Rows::random(1, 2, &s).tensors(&s);
    let segments = Segments::sequences(&[2]).expect("valid");
    let message = ops.attention(&q, &k, &v, &segments, &s).expect_err("refused").to_string();
    assert!(message.contains("head_dim is 516") && message.contains("1 to 512"), "{message}");

    let s = shapes()[0];
    let [q, k, v] = Rows::random(1, 2, &s).tensors(&s);
    let mut wrong = KvCache::new(1, &AttnShape { kv_heads: 5, ..s });
    let mut slots = [CacheSlot { cache: &mut wrong, rows: 0..2 }];
    let message = ops.cached_attention(&q, &k, &v, &mut slots, 0, &s).expect_err("refused").to_string();
    assert!(message.contains("kv_heads is 5, expected 2"), "{message}");
    let mut cache = cache(&s);
    let mut slots = [CacheSlot { cache: &mut cache, rows: 0..1 }];
    assert!(ops.cached_attention(&q, &k, &v, &mut slots, 0, &s).is_err());
    let mut slots = [CacheSlot { cache: &mut cache, rows: 0..2 }];
    assert!(ops.cached_attention(&q, &k, &v, &mut slots, 1, &s).is_err());
}

#[test]
fn invalid_segments_are_errors_that_name_the_segment() {
    let segment = |start, len, parent| Segment { start, len, parent };
    for (list, expected) in [
        (vec![segment(1, 2, None)], "starts at row 1"),
        (vec![segment(0, 2, None), segment(3, 1, None)], "segment 1: starts at row 3, expected row 2"),
        (vec![segment(0, 0, None)], "no rows"),
        (vec![segment(0, 2, Some(0))], "parent 0"),
        (vec![segment(0, 2, None), segment(2, 1, Some(2))], "segment 1: has parent 2"),
    ] {
        let message = Segments::new(list).expect_err("refused").to_string();
        assert!(message.contains(expected), "{message}");
    }
    let layout =
        Segments::new(vec![segment(0, 3, None), segment(3, 2, Some(0)), segment(5, 1, Some(1))]).expect("valid");
    assert_eq!(&*layout.positions(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(&*layout.owners(), [0, 0, 0, 1, 1, 2]);
    assert_eq!(layout.chain_rows(2), [0..3, 3..5, 5..6]);
}
