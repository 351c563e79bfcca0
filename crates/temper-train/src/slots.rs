//! What follows an optimiser step and what comes before it: copies of the parameters that a stage keeps, frozen parameters, and a reference
//! that follows the policy.

use temper_algo::seed::SplitMix64;
use temper_algo::split_seed;
use temper_model::Model;
use temper_tensor::{Grad, Grads, Ops, Params};

use crate::adapter::Reference;
use crate::error::{Error, Result};
use crate::recipe::{AfterUpdate, Freeze, GradientTransform, matches};

/// Branch of a stage's seed: which half of the parameters is frozen.
const FREEZE: u64 = 12;

/// Copies of the trained parameters beside them.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// As the stage started; what a checkpoint need not hold.
    start: Option<Grads>,
    /// The average that becomes the stage's model.
    pub average: Option<Grads>,
    /// The slow parameters of a look-ahead.
    pub slow: Option<Grads>,
}

impl Kept {
    /// What a stage with these settings keeps of the parameters that it starts with.
    pub(crate) fn new(
        ops: &dyn Ops,
        params: &Params,
        gradient: &[GradientTransform],
        after: &[AfterUpdate],
    ) -> Result<Self> {
        let copy = |wanted: bool| wanted.then(|| Grads::copy(ops, params)).transpose();
        let start = copy(gradient.iter().any(|g| matches!(g, GradientTransform::L2Sp { .. })))?;
        let average = copy(after.iter().any(|a| matches!(a, AfterUpdate::Ema { .. })))?;
        let slow = copy(after.iter().any(|a| matches!(a, AfterUpdate::LookAhead { .. })))?;
        Ok(Self { start, average, slow })
    }

    /// Changes the gradients; returns the distance of the parameters from where they are pulled to, where they are.
    pub(crate) fn pull(
        &self,
        ops: &dyn Ops,
        params: &Params,
        grads: &mut Grads,
        transforms: &[GradientTransform],
    ) -> Result<Option<f64>> {
        let Some(start) = self.start.as_ref().filter(|_| !transforms.is_empty()) else { return Ok(None) };
        let mut squares = 0.0;
        for (id, gradient) in grads.iter_mut() {
            let (param, Some(to)) = (params.get(id), start.get(id)) else { continue };
            for transform in transforms.iter().filter(|t| t.covers(&param.name)) {
                let GradientTransform::L2Sp { weight, .. } = transform;
                squares += ops.grad_pull(gradient, &param.value, to, *weight as f32)?;
            }
        }
        Ok(Some(squares.sqrt()))
    }

    /// What follows the optimiser's step number `step`, from 1.
    pub(crate) fn follow(
        &mut self,
        ops: &dyn Ops,
        params: &mut Params,
        after: &[AfterUpdate],
        step: u64,
    ) -> Result<()> {
        for after in after {
            match (after, &mut self.average, &mut self.slow) {
                (AfterUpdate::Ema { decay }, Some(average), _) => {
                    for (id, average) in average.iter_mut() {
                        ops.grad_mix(average, &params.get(id).value, (1.0 - decay) as f32)?;
                    }
                }
                (AfterUpdate::LookAhead { every, alpha }, _, Some(slow)) if step.is_multiple_of(*every) => {
                    for (id, slow) in slow.iter_mut() {
                        let value = &mut params.get_mut(id).value;
                        ops.grad_mix(slow, value, *alpha as f32)?;
                        ops.param_mix(value, slow, 1.0)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts the average, where there is one, in the parameters' place.
    pub(crate) fn settle(&self, ops: &dyn Ops, params: &mut Params) -> Result<()> {
        for (id, average) in self.average.iter().flat_map(Grads::iter) {
            ops.param_mix(&mut params.get_mut(id).value, average, 1.0)?;
        }
        Ok(())
    }
}

/// The first parameter in which a policy and the reference that follows it do not agree.
pub(crate) fn difference(policy: &Params, reference: &Params) -> Option<String> {
    let shape = |params: &Params, name: &str| match params.by_name(name).map(|id| params.get(id).shape()) {
        Some((rows, cols)) => format!("{rows} x {cols}"),
        None => "not there".to_owned(),
    };
    let names = [policy, reference].into_iter().flat_map(|params| params.iter().map(|(_, p)| p.name.as_str()));
    let shapes = names.map(|name| (name, shape(policy, name), shape(reference, name)));
    let (name, own, other) = shapes.into_iter().find(|(_, own, other)| own != other)?;
    Some(format!("`{name}` is {own} in the policy and {other} in the reference"))
}

/// Moves a reference of the policy's shape ([`difference`]) after the optimiser's step number `step`, where the stage asks for it.
pub(crate) fn sync(
    ops: &dyn Ops,
    after: &[AfterUpdate],
    step: u64,
    policy: &Model,
    reference: &mut Reference,
) -> Result<()> {
    let Reference::Model(reference) = reference else { return Ok(()) };
    for after in after {
        if let AfterUpdate::ReferenceSync { every, alpha } = after
            && step.is_multiple_of(*every)
        {
            for (id, param) in policy.params.iter().filter(|(_, p)| p.trainable) {
                let mut value = Grad::zeros_like(ops, param)?;
                ops.grad_mix(&mut value, &param.value, 1.0)?;
                ops.param_mix(&mut reference.params.get_mut(id).value, &value, *alpha as f32)?;
            }
        }
    }
    Ok(())
}

/// Freezes what the stage leaves as it is.
///
/// # Errors
/// A name that no parameter has, and settings that leave nothing to train.
pub(crate) fn freeze(params: &mut Params, freeze: &Freeze, seed: u64) -> Result<()> {
    let names: Vec<String> = params.iter().map(|(_, p)| p.name.clone()).collect();
    let frozen: Vec<String> = match freeze {
        Freeze::Names { names: patterns } => {
            if let Some(none) = patterns.iter().find(|pattern| !names.iter().any(|name| matches(pattern, name))) {
                return Err(Error::user(
                    format!("no parameter is called `{none}`"),
                    format!("the names are like `{}`", names.iter().take(3).cloned().collect::<Vec<_>>().join("`, `")),
                ));
            }
            names.into_iter().filter(|name| patterns.iter().any(|pattern| matches(pattern, name))).collect()
        }
        Freeze::Half {} => half(&names, split_seed(seed, &[FREEZE])),
    };
    for name in frozen {
        if let Some(id) = params.by_name(&name) {
            params.get_mut(id).trainable = false;
        }
    }
    if params.count(true) == 0 {
        return Err(Error::user("every parameter is frozen", "leave some to train"));
    }
    Ok(())
}

/// Half of every block's matrices and norms, by their kind, and the biases of these matrices.
fn half(names: &[String], seed: u64) -> Vec<String> {
    let mut random = SplitMix64::new(seed);
    let mut frozen = vec![];
    let blocks = names.iter().filter_map(|name| block(name)).max().map_or(0, |last| last + 1);
    let two_of_three = drawn(blocks, blocks / 2, &mut random);
    for layer in 0..blocks {
        for kind in ["self_attn", "mlp", "norm"] {
            let of_kind = |name: &&String| block(name) == Some(layer) && kind_of(name) == Some(kind);
            let of_kind: Vec<&String> = names.iter().filter(of_kind).collect();
            let more = usize::from(kind == "mlp" && two_of_three.contains(&layer));
            let drawn = drawn(of_kind.len(), of_kind.len() / 2 + more, &mut random);
            frozen.extend(drawn.into_iter().map(|i| of_kind[i].clone()));
        }
    }
    let biases = frozen.iter().filter_map(|name| Some(format!("{}.bias", name.strip_suffix(".weight")?)));
    let biases: Vec<String> = biases.filter(|bias| names.contains(bias)).collect();
    [frozen, biases].concat()
}

/// What the weight of a block is: a norm wherever it stands, or a matrix of attention or of the feed-forward part.
fn kind_of(name: &str) -> Option<&'static str> {
    let part = name.strip_suffix(".weight")?;
    ["norm", "self_attn", "mlp"].into_iter().find(|kind| part.contains(kind))
}

/// The block that a parameter belongs to.
fn block(name: &str) -> Option<usize> {
    name.split_once("layers.")?.1.split('.').next()?.parse().ok()
}

/// `n` of the first `of` numbers.
fn drawn(of: usize, n: usize, random: &mut SplitMix64) -> Vec<usize> {
    let mut all: Vec<usize> = (0..of).collect();
    for i in (1..of).rev() {
        all.swap(i, random.below(i + 1));
    }
    all.truncate(n);
    all
}

#[cfg(test)]
mod tests {
    use temper_model::Config;
    use temper_tensor::{Cpu, ParamId};

    use super::*;

    fn model() -> Model {
        Model::init(&Cpu::new(), &Config::llama(31, 24, 4, 2), 5).unwrap()
    }

    fn shift(params: &mut Params, by: f32) {
        let ids: Vec<ParamId> = params.iter().map(|(id, _)| id).collect();
        for id in ids {
            let values: Vec<f32> = params.values(&Cpu::new(), id).unwrap().iter().map(|v| v + by).collect();
            params.set_values(&Cpu::new(), id, &values).unwrap();
        }
    }

    fn first(values: &Params) -> f32 {
        let id = values.iter().next().unwrap().0;
        values.values(&Cpu::new(), id).unwrap()[0]
    }

    /// At a distance of 0.5 in every value a weight of 0.2 adds 0.1 to every gradient that it covers, and nothing at the start.
    #[test]
    fn the_pull_to_the_start_in_closed_form() {
        let (ops, mut model) = (Cpu::new(), model());
        let norms = Some(vec!["*norm*".to_owned()]);
        let pull = [GradientTransform::L2Sp { weight: 0.2, parameters: norms }];
        let kept = Kept::new(&ops, &model.params, &pull, &[]).unwrap();
        let mut grads = Grads::zeros(&ops, &model.params).unwrap();
        assert_eq!(kept.pull(&ops, &model.params, &mut grads, &pull).unwrap(), Some(0.0));
        assert!(grads.iter().all(|(_, g)| g.values(&ops).unwrap().iter().all(|v| *v == 0.0)));
        shift(&mut model.params, 0.5);
        let distance = kept.pull(&ops, &model.params, &mut grads, &pull).unwrap().unwrap();
        // Nine norms of 24 values.
        assert!((distance - 0.5 * (9.0f64 * 24.0).sqrt()).abs() < 1e-6, "{distance}");
        for (id, gradient) in grads.iter() {
            let expected = if model.params.get(id).name.contains("norm") { 0.1 } else { 0.0 };
            assert!(gradient.values(&ops).unwrap().iter().all(|g| (g - expected).abs() < 1e-6));
        }
    }

    /// Of a parameter that moves by 1 a step, the average with decay 1/2 lags by 1/2 + 1/4 + ...; the slow one is at half the way.
    #[test]
    fn averages_and_look_ahead_in_closed_form() {
        let (ops, mut model) = (Cpu::new(), model());
        let after = [AfterUpdate::Ema { decay: 0.5 }, AfterUpdate::LookAhead { every: 2, alpha: 0.5 }];
        let begin = first(&model.params);
        let mut kept = Kept::new(&ops, &model.params, &[], &after[..1]).unwrap();
        for step in 1..=3 {
            shift(&mut model.params, 1.0);
            kept.follow(&ops, &mut model.params, &after[..1], step).unwrap();
        }
        assert!((first(&model.params) - begin - 3.0).abs() < 1e-6);
        kept.settle(&ops, &mut model.params).unwrap();
        // 0.5 * (1 * 0.25 + 2 * 0.5 + 3) = 2.125.
        assert!((first(&model.params) - begin - 2.125).abs() < 1e-6);
        let begin = first(&model.params);
        let mut kept = Kept::new(&ops, &model.params, &[], &after[1..]).unwrap();
        let mut seen = vec![];
        for step in 1..=4 {
            shift(&mut model.params, 1.0);
            kept.follow(&ops, &mut model.params, &after[1..], step).unwrap();
            seen.push(first(&model.params) - begin);
        }
        for (got, expected) in seen.into_iter().zip([1.0, 1.0, 2.0, 2.0]) {
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
    }

    #[test]
    fn the_reference_goes_its_share_of_the_way() {
        for bf16 in [false, true] {
            let (ops, mut policy) = (Cpu::new(), model());
            if bf16 {
                policy = policy.in_bf16();
            }
            let begin = first(&policy.params);
            let mut reference = Reference::Model(Box::new(policy.clone()));
            shift(&mut policy.params, 1.0);
            let after = [AfterUpdate::ReferenceSync { every: 3, alpha: 0.6 }];
            let mut moved = vec![];
            for step in 1..=6 {
                sync(&ops, &after, step, &policy, &mut reference).unwrap();
                let Reference::Model(model) = &reference else { unreachable!() };
                moved.push(first(&model.params) - begin);
            }
            for (got, expected) in moved.into_iter().zip([0.0, 0.0, 0.6, 0.6, 0.6, 0.84]) {
                assert!((got - expected).abs() < 1e-6, "{got} {expected}");
            }
        }
    }

    #[test]
    fn half_of_every_block_is_frozen_and_another_half_next_time() {
        let frozen = |seed: u64| {
            let mut params = model().params;
            freeze(&mut params, &Freeze::Half {}, seed).unwrap();
            params.iter().filter(|(_, p)| !p.trainable).map(|(_, p)| p.name.clone()).collect::<Vec<_>>()
        };
        let names = frozen(1);
        let count =
            |layer: usize, kind: &str| names.iter().filter(|n| block(n) == Some(layer) && n.contains(kind)).count();
        for layer in 0..4 {
            assert_eq!((count(layer, "self_attn"), count(layer, "norm")), (2, 1), "{names:?}");
        }
        assert_eq!((0..4).map(|layer| count(layer, "mlp")).sum::<usize>(), 6, "{names:?}");
        assert!(names.iter().all(|n| block(n).is_some()) && frozen(2) != names && frozen(1) == names);
    }

    /// With biases and norms of queries and keys: half of the matrices with their biases, half of the norms.
    #[test]
    fn half_of_a_block_with_biases_and_four_norms() {
        let part = |part: &str| format!("model.layers.0.{part}");
        let biased = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let plain = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
        let norms = ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"];
        let weights = biased.iter().chain(&plain).chain(&norms).map(|name| part(name) + ".weight");
        let names: Vec<String> = weights.chain(biased.map(|name| part(name) + ".bias")).collect();
        for seed in 0..20 {
            let frozen = half(&names, seed);
            let count = |of: &[&str], end: &str| of.iter().filter(|name| frozen.contains(&(part(name) + end))).count();
            assert_eq!((count(&biased, ".weight"), count(&norms, ".weight")), (2, 2), "{frozen:?}");
            // One of three: two of three is in half of the blocks, rounded down.
            assert_eq!((count(&plain, ".weight"), frozen.len()), (1, 2 + 2 + 2 + 1), "{frozen:?}");
            let with_bias = |name: &&str| frozen.contains(&(part(name) + ".bias"));
            let with_weight = |name: &&str| frozen.contains(&(part(name) + ".weight"));
            assert!(biased.iter().all(|name| with_bias(name) == with_weight(name)), "{frozen:?}");
        }
    }

    /// Equal shapes agree, whatever the configurations say; another size, and a parameter that one of them lacks, are named.
    #[test]
    fn models_that_cannot_be_mixed_are_told_apart() {
        let of = |config: Config| Model::init(&Cpu::new(), &config, 5).unwrap().params;
        let own = of(Config::llama(31, 24, 4, 2));
        let harmless = Config { max_position_embeddings: 7, rope_theta: 3.0, ..Config::llama(31, 24, 4, 2) };
        assert_eq!(difference(&own, &of(harmless)), None);
        let wider = difference(&own, &of(Config::llama(31, 32, 4, 2))).unwrap();
        assert!(wider.contains("31 x 24 in the policy and 31 x 32"), "{wider}");
        let (deeper, shallower) = (of(Config::llama(31, 24, 5, 2)), of(Config::llama(31, 24, 3, 2)));
        assert!(difference(&own, &deeper).unwrap().contains("not there in the policy"));
        assert!(difference(&own, &shallower).unwrap().contains("not there in the reference"));
    }

    #[test]
    fn a_name_that_no_parameter_has_is_an_error() {
        let freeze = |names: &[&str]| {
            let names = names.iter().map(ToString::to_string).collect();
            super::freeze(&mut model().params, &Freeze::Names { names }, 0).map_err(|e| e.to_string())
        };
        freeze(&["*.mlp.*"]).unwrap();
        assert!(freeze(&["*.mlp.*", "model.layers.9.*"]).unwrap_err().contains("layers.9"));
        assert!(freeze(&["*"]).unwrap_err().contains("every parameter"));
    }
}
