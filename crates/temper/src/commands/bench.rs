//! `temper bench`: what this machine can do, and what a model's work reaches of it.

use temper_model::Model;
use temper_train::bench::{self, Report};
use temper_train::hub;

use crate::args::{Bench, Compute};
use crate::failure::{Exit, user};
use crate::machine;
use crate::output::{data, say};
use crate::table::{Side, Table};

/// Runs the command.
pub(crate) fn run(args: &Bench) -> anyhow::Result<Exit> {
    let device = machine::device(args.threads)?;
    let model = match (&args.model, args.dtype) {
        (Some(path), Compute::Quantised) => Model::load_quantised(&device, hub::local(path)?),
        (Some(path), _) => Model::load(&device, hub::local(path)?),
        (None, Compute::Quantised) => {
            return Err(user(
                "there is no model whose blocks could be measured",
                "name a .gguf file with quantised matrices",
            ));
        }
        (None, _) => Model::init(&device, &bench::default_shape(), 0),
    };
    let model = model.map_err(temper_train::Error::from)?;
    let dtype = args.dtype.as_asked();
    // As a run does: an operation then forks from inside the pool.
    let report = rayon::scope(|_| bench::bench(&device, model, dtype, &mut |next| say(&format!("measuring {next}"))))?;
    data(&if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { shown(&report) })?;
    Ok(Exit::Done)
}

fn shown(report: &Report) -> String {
    let mut machine = Table::new([("machine", Side::Left), ("GFLOP/s", Side::Right), ("GB/s", Side::Right)]);
    let number = |x: f64| format!("{x:.0}");
    machine.row([format!("f32 products ({})", report.isa), number(report.f32_gflops), String::new()]);
    machine.row([format!("bf16 products ({})", report.bf16), number(report.bf16_gflops), String::new()]);
    machine.row(["reading memory".into(), String::new(), number(report.read_gbytes)]);
    machine.row(["copying memory".into(), String::new(), number(report.copy_gbytes)]);
    let columns = ["seconds", "tokens/s", "GFLOP/s", "GB/s", "of the ceiling"].map(|name| (name, Side::Right));
    let mut work = Table::new([("work", Side::Left), ("", Side::Left)].into_iter().chain(columns));
    for w in &report.work {
        work.row([
            w.part.to_owned(),
            w.what.clone(),
            format!("{:.4}", w.seconds),
            w.tokens.map_or_else(String::new, |n| number(n as f64 / w.seconds)),
            number(w.gflops),
            format!("{:.1}", w.gbytes),
            format!("{:.0}%", 100.0 * w.reach),
        ]);
    }
    format!("{} threads\n\n{}\n{}", report.threads, machine.text(), work.text())
}
