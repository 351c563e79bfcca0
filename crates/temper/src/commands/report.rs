//! `temper report`: the report of a run, made anew from its directory.

use crate::args::Report;
use crate::failure::Exit;
use crate::output::data;
use crate::report;

/// Runs the command.
pub(crate) fn run(args: &Report) -> anyhow::Result<Exit> {
    let path = report::write(&args.run_dir)?;
    data(&format!("{}\n", path.display()))?;
    Ok(Exit::Done)
}
