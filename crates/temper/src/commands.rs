//! One file per command.

mod check;
mod env;
mod eval;
mod generate;
mod inspect;
mod merge;
mod methods;
mod plan;
mod recipe;
mod report;
mod run;

use crate::args::Command;
use crate::failure::Exit;

/// Runs a command.
pub(crate) fn run(command: &Command) -> anyhow::Result<Exit> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => check::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Report(args) => report::run(args),
        Command::Env(args) => env::run(args),
        Command::Methods(args) => methods::run(args),
        Command::Recipe(args) => recipe::run(args),
    }
}
