//! The critic: a model of its own that tells the value of every state, trained beside the policy.

use temper_model::{Attend, Batch, Model};
use temper_tensor::{GradSink, Ops, ParamId, Tape};

use crate::error::Result;
use crate::learner::Learner;

/// The value head's parameter, `[1, C]`: Hugging Face's name for the head of a sequence classifier.
const HEAD: &str = "score.weight";

/// A model with a value head, and the state of its optimiser.
#[derive(Debug)]
pub struct Critic {
    /// Model, gradients and moments. The language head is not trained, unless it is the embedding.
    pub learner: Learner,
    head: ParamId,
}

impl Critic {
    /// A critic with the body of a language model. Its value head is zero, and so is every value at first.
    pub fn new(ops: &dyn Ops, mut model: Model) -> Result<Self> {
        let (width, language) = (model.config.hidden_size, model.head());
        if language != model.embedding() {
            model.params.get_mut(language).trainable = false;
        }
        let head = model.params.add_matrix(HEAD, 1, width, &vec![0.0; width])?;
        Ok(Self { learner: Learner::new(ops, model)?, head })
    }

    /// The values of the states before a batch's scored tokens, `[M]`: of the hidden rows that predict these tokens.
    pub fn values(&self, ops: &dyn Ops, batch: &Batch) -> Result<Vec<f64>> {
        if batch.scored() == 0 {
            return Ok(vec![]);
        }
        let model = &self.learner.model;
        let tape = Tape::new(ops, &model.params, false);
        let hidden = model.hidden(&tape, &batch.ids, Attend::Segments(&batch.segments), false)?;
        let value = tape.linear(&tape.gather_rows(&hidden, &batch.src)?, self.head)?;
        Ok(ops.to_host(value.tensor())?.into_iter().map(f64::from).collect())
    }

    /// Forward and backward of one micro-batch, adding to the gradients. `slopes` gets the values `[M]` and returns d(loss)/d(value).
    pub fn accumulate(
        &mut self,
        ops: &dyn Ops,
        batch: &Batch,
        recompute: bool,
        slopes: &mut dyn FnMut(&[f64]) -> Vec<f64>,
    ) -> Result<()> {
        let Learner { model, grads, .. } = &mut self.learner;
        let tape = Tape::new(ops, &model.params, true);
        let hidden = model.hidden(&tape, &batch.ids, Attend::Segments(&batch.segments), recompute)?;
        let value = tape.linear(&tape.gather_rows(&hidden, &batch.src)?, self.head)?;
        drop(hidden);
        let now: Vec<f64> = ops.to_host(value.tensor())?.into_iter().map(f64::from).collect();
        let d: Vec<f32> = slopes(&now).into_iter().map(|d| d as f32).collect();
        tape.backward(&value, ops.upload(d.len(), 1, &d)?, &mut GradSink::Accumulate(grads))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use temper_format::ArraySource;
    use temper_model::Config;
    use temper_tensor::Cpu;

    use super::*;

    /// A critic whose head is not zero, with and without an own language head, and a batch of two groups.
    fn example(tied: bool) -> (Critic, Batch) {
        let config = Config {
            num_key_value_heads: 1,
            tie_word_embeddings: tied,
            initializer_range: 0.2,
            ..Config::llama(31, 24, 2, 2)
        };
        let ops = Cpu::new();
        let mut critic = Critic::new(&ops, Model::init(&ops, &config, 5).unwrap()).unwrap();
        let head: Vec<f32> = (0..24).map(|i| 0.3 * (1.7 * i as f32).sin()).collect();
        critic.learner.model.params.set_values(&ops, critic.head, &head).unwrap();
        let batch = Batch::groups(&[(&[3, 4, 5], vec![&[6, 7], &[8, 9, 1]]), (&[2], vec![&[30]])]).unwrap();
        (critic, batch)
    }

    fn gradient(critic: &mut Critic, batch: &Batch, recompute: bool, slopes: &[f64]) -> Vec<(ParamId, Vec<f32>)> {
        let ops = Cpu::new();
        critic.accumulate(&ops, batch, recompute, &mut |_| slopes.to_vec()).unwrap();
        let found = critic.learner.grads.iter().map(|(id, g)| (id, g.values(&ops).unwrap())).collect();
        critic.learner.grads.zero(&ops).unwrap();
        found
    }

    #[test]
    fn a_new_critic_values_everything_at_zero() {
        let ops = Cpu::new();
        let model = Model::init(&ops, &Config::llama(31, 24, 1, 2), 5).unwrap();
        let (_, batch) = example(true);
        assert_eq!(Critic::new(&ops, model).unwrap().values(&ops, &batch).unwrap(), [0.0; 6]);
    }

    #[test]
    fn values_are_those_of_training_and_of_a_group_alone() {
        let (mut critic, batch) = example(true);
        let ops = Cpu::new();
        let values = critic.values(&ops, &batch).unwrap();
        let mut seen = vec![];
        critic
            .accumulate(&ops, &batch, false, &mut |now| {
                seen = now.to_vec();
                vec![0.0; now.len()]
            })
            .unwrap();
        assert_eq!(seen, values);
        let alone = Batch::groups(&[(&[3, 4, 5], vec![&[8, 9, 1]])]).unwrap();
        assert_eq!(critic.values(&ops, &alone).unwrap(), values[2..5]);
        // The state before the first token of both completions is the prompt.
        assert_eq!(values[0], values[2]);
    }

    /// PPO's clipped value loss through the value head and the body of a model in PyTorch, in f64 (tests/golden/critic.py).
    #[test]
    fn loss_and_gradients_agree_with_pytorch() {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let ops = Cpu::new();
        let mut critic = Critic::new(&ops, Model::load(&ops, golden.join("model/short")).unwrap()).unwrap();
        let file = temper_format::SafetensorsFile::open(golden.join("critic.safetensors")).unwrap();
        let read = |name: &str| file.read_f32(name).unwrap();
        let ids = |name: &str| read(name).into_iter().map(|x| x as u32).collect::<Vec<u32>>();
        critic.learner.model.params.set_values(&ops, critic.head, &read("score.weight")).unwrap();
        let (prompts, completions) = ([ids("prompt.0"), ids("prompt.1")], [ids("a.0"), ids("b.0"), ids("a.1")]);
        let groups: [(&[u32], Vec<&[u32]>); 2] =
            [(&prompts[0], vec![&completions[0], &completions[1]]), (&prompts[1], vec![&completions[2]])];
        let batch = Batch::groups(&groups).unwrap();
        let (old, ret) = (read("old"), read("ret"));
        let objective = temper_algo::Critic { clip: Some(0.2), warmup_steps: 0 };
        let (mut loss, mut clipped) = (0.0, 0);
        critic
            .accumulate(&ops, &batch, false, &mut |values| {
                let close = values.iter().zip(read("values")).all(|(v, e)| (v - f64::from(e)).abs() < 1e-5);
                assert!(close && values.len() == old.len(), "{values:?}");
                let term = |(i, v): (usize, &f64)| {
                    let term = objective.term(*v, f64::from(old[i]), f64::from(ret[i]));
                    loss += term.x / values.len() as f64;
                    clipped += u32::from(term.clipped);
                    term.d_value / values.len() as f64
                };
                values.iter().enumerate().map(term).collect()
            })
            .unwrap();
        assert!((loss - f64::from(read("loss")[0])).abs() < 1e-5 * loss && clipped > 0, "{loss} {clipped}");
        let norm = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let mut count = 0;
        for (id, gradient) in critic.learner.grads.iter() {
            let (name, got) = (&critic.learner.model.params.get(id).name, gradient.values(&ops).unwrap());
            let expected = read(&format!("grad.{name}"));
            let error: Vec<f32> = got.iter().zip(&expected).map(|(a, b)| a - b).collect();
            assert!(norm(&error) < 1e-5 * norm(&expected), "{name}: {:e}", norm(&error) / norm(&expected));
            count += 1;
        }
        assert!(count > 20, "{count}");
    }

    /// d(sum c_m v_m)/d(parameter) against central differences, over every parameter of the body and the head.
    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let (mut critic, batch) = example(false);
        let ops = Cpu::new();
        let slopes = [0.5, -1.0, 0.25, 2.0, -0.75, 1.5];
        let found = gradient(&mut critic, &batch, false, &slopes);
        assert_eq!(found, gradient(&mut critic, &batch, true, &slopes), "recomputing changes no bit");
        let loss =
            |critic: &Critic| critic.values(&ops, &batch).unwrap().iter().zip(slopes).map(|(v, c)| v * c).sum::<f64>();
        assert!(found.len() > 15, "the language head has no gradient, everything else has");
        for (id, gradient) in found {
            let values = critic.learner.model.params.values(&ops, id).unwrap();
            let at = (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).unwrap();
            let mut moved = |by: f32| {
                let mut values = values.clone();
                values[at] += by;
                critic.learner.model.params.set_values(&ops, id, &values).unwrap();
                let loss = loss(&critic);
                critic.learner.model.params.set_values(&ops, id, &values).unwrap();
                loss
            };
            let numeric = (moved(2e-3) - moved(-2e-3)) / 4e-3;
            moved(0.0);
            let name = &critic.learner.model.params.get(id).name;
            let got = f64::from(gradient[at]);
            assert!((got - numeric).abs() < 5e-3 * numeric.abs().max(0.1), "{name}: {got} {numeric}");
        }
    }
}
