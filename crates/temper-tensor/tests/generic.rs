//! Every generic operation: values where they are easy to state, gradients against central differences.

mod common;

use common::{Rng, check_inputs, host, tensor};
use temper_tensor::{Cpu, Params, Tape};

fn input(rng: &mut Rng, rows: usize, cols: usize) -> (usize, usize, Vec<f32>) {
    (rows, cols, rng.normals(rows * cols, 1.0))
}

/// Positive and away from zero.
fn positive(rng: &mut Rng, rows: usize, cols: usize) -> (usize, usize, Vec<f32>) {
    (rows, cols, rng.normals(rows * cols, 1.0).iter().map(|x| x.abs() + 0.5).collect())
}

/// Away from the kinks at -1, 0 and 1.
fn kinkless(rng: &mut Rng, rows: usize, cols: usize) -> (usize, usize, Vec<f32>) {
    let off = |x: f32| if (x * 2.0 - (x * 2.0).round()).abs() < 0.1 { x + 0.13 } else { x };
    (rows, cols, rng.normals(rows * cols, 1.0).into_iter().map(off).collect())
}

#[test]
fn unary_gradients() {
    let mut rng = Rng(1);
    let x = [input(&mut rng, 3, 5)];
    check_inputs("scale", &x, |t, v| t.scale(&v[0], -1.7));
    check_inputs("add_scalar", &x, |t, v| t.add_scalar(&v[0], 0.3));
    check_inputs("neg", &x, |t, v| t.neg(&v[0]));
    check_inputs("exp", &x, |t, v| t.exp(&v[0]));
    check_inputs("tanh", &x, |t, v| t.tanh(&v[0]));
    check_inputs("sigmoid", &x, |t, v| t.sigmoid(&v[0]));
    check_inputs("log_sigmoid", &x, |t, v| t.log_sigmoid(&v[0]));
    check_inputs("square", &x, |t, v| t.square(&v[0]));
    let x = [positive(&mut rng, 3, 5)];
    check_inputs("log", &x, |t, v| t.log(&v[0]));
    check_inputs("sqrt", &x, |t, v| t.sqrt(&v[0]));
    let x = [kinkless(&mut rng, 3, 5)];
    check_inputs("relu", &x, |t, v| t.relu(&v[0]));
    check_inputs("clamp", &x, |t, v| t.clamp(&v[0], -1.0, 0.5));
}

#[test]
fn binary_gradients_with_every_broadcast() {
    let mut rng = Rng(2);
    for (rows, cols) in [(3, 4), (1, 4), (3, 1), (1, 1)] {
        let pair = [input(&mut rng, 3, 4), positive(&mut rng, rows, cols)];
        check_inputs("add", &pair, |t, v| t.add(&v[0], &v[1]));
        check_inputs("sub", &pair, |t, v| t.sub(&v[0], &v[1]));
        check_inputs("mul", &pair, |t, v| t.mul(&v[0], &v[1]));
        check_inputs("div", &pair, |t, v| t.div(&v[0], &v[1]));
        check_inputs("minimum", &pair, |t, v| t.minimum(&v[0], &v[1]));
    }
}

#[test]
fn the_same_value_may_be_both_operands() {
    let mut rng = Rng(3);
    let x = [input(&mut rng, 2, 3)];
    check_inputs("x + x", &x, |t, v| t.add(&v[0], &v[0]));
    check_inputs("x * x", &x, |t, v| t.mul(&v[0], &v[0]));
    check_inputs("x x^T", &x, |t, v| t.matmul_nt(&v[0], &v[0]));
}

#[test]
fn product_gradients() {
    let mut rng = Rng(4);
    check_inputs("matmul", &[input(&mut rng, 3, 5), input(&mut rng, 5, 2)], |t, v| t.matmul(&v[0], &v[1]));
    check_inputs("matmul_nt", &[input(&mut rng, 3, 5), input(&mut rng, 4, 5)], |t, v| t.matmul_nt(&v[0], &v[1]));
}

#[test]
fn reduction_gradients() {
    let mut rng = Rng(5);
    let x = [input(&mut rng, 4, 3)];
    check_inputs("sum_cols", &x, |t, v| t.sum_cols(&v[0]));
    check_inputs("sum_rows", &x, |t, v| t.sum_rows(&v[0]));
    check_inputs("sum_all", &x, |t, v| t.sum_all(&v[0]));
    check_inputs("mean_cols", &x, |t, v| t.mean_cols(&v[0]));
    check_inputs("mean_rows", &x, |t, v| t.mean_rows(&v[0]));
    check_inputs("mean_all", &x, |t, v| t.mean_all(&v[0]));
    check_inputs("softmax", &x, |t, v| t.softmax(&v[0]));
    check_inputs("log_softmax", &x, |t, v| t.log_softmax(&v[0]));
    for (rows, cols) in [(1, 3), (4, 1), (1, 1)] {
        check_inputs("expand", &[input(&mut rng, rows, cols)], |t, v| t.expand(&v[0], 4, 3));
    }
}

#[test]
fn movement_gradients() {
    let mut rng = Rng(6);
    let x = [input(&mut rng, 4, 3)];
    check_inputs("pick", &x, |t, v| t.pick(&v[0], &[2, 0, 0, 1]));
    check_inputs("gather_rows", &x, |t, v| t.gather_rows(&v[0], &[3, 0, 3]));
    check_inputs("transpose", &x, |t, v| t.transpose(&v[0]));
    check_inputs("slice_rows", &x, |t, v| t.slice_rows(&v[0], 1..3));
    check_inputs("slice_cols", &x, |t, v| t.slice_cols(&v[0], 1..3));
    check_inputs("reshape", &x, |t, v| t.reshape(&v[0], 2, 6));
    let two = [input(&mut rng, 4, 3), input(&mut rng, 2, 3)];
    check_inputs("concat_rows", &two, |t, v| t.concat_rows(&[&v[1], &v[0], &v[1]]));
    check_inputs("scatter_add_rows", &two, |t, v| t.scatter_add_rows(&v[0], &v[1], &[1, 1]));
}

#[test]
fn a_composed_loss_differentiates() {
    let mut rng = Rng(7);
    let inputs = [input(&mut rng, 5, 4), input(&mut rng, 6, 4)];
    check_inputs("clipped surrogate", &inputs, |t, v| {
        let logp = t.pick(&t.log_softmax(&t.matmul_nt(&v[0], &v[1])?)?, &[0, 5, 2, 3, 1])?;
        let old = t.input(tensor(5, 1, &[-1.6, -2.4, -1.2, -1.9, -2.0]), false);
        let ratio = t.exp(&t.sub(&logp, &old)?)?;
        let bounded = t.minimum(&t.scale(&ratio, 1.3)?, &t.clamp(&ratio, 0.01, 90.0)?)?;
        t.mean_all(&t.neg(&bounded)?)
    });
}

#[test]
fn extreme_values_stay_finite() {
    let (ops, params) = (Cpu::new(), Params::new());
    let tape = Tape::new(&ops, &params, false);
    let x = tape.input(tensor(1, 4, &[-1e4, -80.0, 80.0, 1e4]), false);
    for y in [tape.log_sigmoid(&x), tape.sigmoid(&x), tape.softmax(&x), tape.log_softmax(&x)] {
        let y = y.expect("defined");
        assert!(host(y.tensor()).iter().all(|v| v.is_finite()));
    }
    let log_sigmoid = host(tape.log_sigmoid(&x).expect("defined").tensor());
    assert_eq!((log_sigmoid[0], log_sigmoid[3]), (-1e4, 0.0));
}

#[test]
fn shapes_that_do_not_fit_are_errors_that_name_them() {
    let (ops, params) = (Cpu::new(), Params::new());
    let tape = Tape::new(&ops, &params, true);
    let a = tape.input(tensor(2, 3, &[0.0; 6]), true);
    let b = tape.input(tensor(2, 2, &[0.0; 4]), true);
    let message = |r: temper_tensor::Result<temper_tensor::Var>| r.expect_err("refused").to_string();
    assert!(message(tape.add(&a, &b)).contains("[2, 2]"));
    assert!(message(tape.matmul(&a, &b)).contains("expected [3, 2]"));
    assert!(message(tape.gather_rows(&a, &[0, 7])).contains('7'));
    assert!(message(tape.pick(&a, &[0, 3])).contains('3'));
    assert!(message(tape.slice_rows(&a, 1..5)).contains('5'));
    assert!(message(tape.reshape(&a, 4, 2)).contains("8 values"));
    assert!(message(tape.concat_rows(&[&a, &b])).contains("a part"));
}
