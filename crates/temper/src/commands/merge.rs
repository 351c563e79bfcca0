//! `temper merge`: an adapter into its base model.

use temper_format::DType;
use temper_format::atomic::DirWriter;
use temper_train::models::Source;

use crate::args::{Dtype, Merge};
use crate::failure::{Exit, user};
use crate::machine;
use crate::output::data;

/// Runs the command.
pub(crate) fn run(args: &Merge) -> anyhow::Result<Exit> {
    if args.out.exists() {
        return Err(user(format!("`{}` exists", args.out.display()), "name a new directory with --out"));
    }
    let source = Source::find(&args.adapter, args.base.as_deref())?;
    if matches!(source, Source::Whole(_)) {
        return Err(user(
            format!("`{}` is a whole model, no adapter", args.adapter),
            "name a directory with adapter_config.json, such as a run's stages/ID",
        ));
    }
    let device = machine::device(args.threads)?;
    let (model, tokenizer) = source.load(&device)?;
    let dtype = match args.dtype {
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
    };
    let aside = DirWriter::create(&args.out)?;
    model.save_into(&device, aside.path(), dtype)?;
    tokenizer.save(aside.path())?;
    aside.commit()?;
    data(&format!("{}\n", args.out.display()))?;
    Ok(Exit::Done)
}
