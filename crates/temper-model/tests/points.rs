//! Named points: capture, replace and inject inside the forward pass.

mod common;

use common::{ids, small};
use std::sync::Arc;
use temper_model::{Attend, Model};
use temper_tensor::{Cpu, GradSink, Grads, Hooks, Ops, Segments, Tape};

fn hidden(model: &Model, hooks: &Hooks, recompute: bool) -> Vec<f32> {
    let ops = Cpu::new();
    let segments = Arc::new(Segments::sequences(&[20]).unwrap());
    let tape = Tape::new(&ops, &model.params, recompute).with_hooks(hooks);
    let x = model.hidden(&tape, &ids(1, 20), Attend::Segments(&segments), recompute).unwrap();
    ops.to_host(x.tensor()).unwrap()
}

#[test]
fn blocks_add_what_their_points_hold() {
    let (ops, model) = (Cpu::new(), small(1));
    let names = ["embed", "layers.0.attn", "layers.0.mlp", "layers.0", "layers.1.attn", "layers.1.mlp", "layers.1"];
    for recompute in [false, true] {
        let mut hooks = Hooks::new();
        for name in names {
            hooks.capture(name);
        }
        hidden(&model, &hooks, recompute);
        let value = |name: &str| ops.to_host(&hooks.captured(name).unwrap()).unwrap();
        for (before, layer) in [("embed", "layers.0"), ("layers.0", "layers.1")] {
            let parts = [value(before), value(&format!("{layer}.attn")), value(&format!("{layer}.mlp"))];
            let sum: Vec<f32> = (0..20 * 64).map(|i| parts[0][i] + parts[1][i] + parts[2][i]).collect();
            assert_eq!(value(layer), sum, "{layer}");
        }
    }
}

#[test]
fn a_block_whose_parts_are_replaced_by_zero_passes_its_input_on() {
    let (ops, model) = (Cpu::new(), small(1));
    let mut hooks = Hooks::new();
    for name in ["layers.1.attn", "layers.1.mlp"] {
        hooks.replace(name, ops.zeros(1, 64).unwrap());
    }
    hooks.capture("layers.0");
    hooks.capture("layers.1");
    let silenced = hidden(&model, &hooks, false);
    let value = |name: &str| ops.to_host(&hooks.captured(name).unwrap()).unwrap();
    assert_eq!(value("layers.1"), value("layers.0"));
    assert_ne!(silenced, hidden(&model, &Hooks::new(), false));
}

/// A unit that is scaled by zero is as if it were zero, its gradient too: whatever the block writes there changes nothing.
#[test]
fn a_unit_that_is_left_out_has_no_gradient() {
    let (ops, model) = (Cpu::new(), small(1));
    let mut factors = vec![1.0f32; 64];
    factors[5] = 0.0;
    let gradient = |factors: &[f32], recompute: bool| {
        let mut hooks = Hooks::new();
        hooks.scale("layers.0", ops.upload(1, 64, factors).unwrap());
        hooks.capture("layers.0");
        let segments = Arc::new(Segments::sequences(&[20]).unwrap());
        let tape = Tape::new(&ops, &model.params, true).with_hooks(&hooks);
        let x = model.hidden(&tape, &ids(1, 20), Attend::Segments(&segments), recompute).unwrap();
        let ones = ops.upload(20, 64, &(0..20 * 64).map(|i| (i as f32).sin()).collect::<Vec<f32>>()).unwrap();
        let mut grads = Grads::zeros(&ops, &model.params).unwrap();
        tape.backward(&x, ones, &mut GradSink::Accumulate(&mut grads)).unwrap();
        let down = model.params.by_name("model.layers.0.mlp.down_proj.weight").unwrap();
        let gradient = grads.iter().find(|(id, _)| *id == down).unwrap().1.values(&ops).unwrap();
        (ops.to_host(&hooks.captured("layers.0").unwrap()).unwrap(), gradient)
    };
    let (seen, gradient_without) = gradient(&factors, false);
    assert!(seen.iter().skip(5).step_by(64).all(|x| *x == 0.0) && seen[6] != 0.0);
    let inputs = gradient_without.len() / 64;
    let row = |g: &[f32], unit: usize| g[unit * inputs..(unit + 1) * inputs].to_vec();
    assert!(row(&gradient_without, 5).iter().all(|d| *d == 0.0) && row(&gradient_without, 6).iter().any(|d| *d != 0.0));
    assert_eq!(gradient(&factors, true), (seen, gradient_without), "recomputed");
    assert!(row(&gradient(&[1.0; 64], false).1, 5).iter().any(|d| *d != 0.0));
}
