//! The command line of Temper: the only crate that prints.
//!
//! `main` does three things: it runs the command, prints what went wrong with the way out, and chooses the exit code
//! (0 done, 1 the user can mend it, 2 unexpected, 130 interrupted after a checkpoint).

mod args;
mod commands;
mod failure;
mod hints;
mod interrupt;
mod machine;
mod measured;
mod output;
mod progress;
mod report;
mod table;
mod tasks;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    failure::report_panics();
    let command = || match args::Args::try_parse() {
        Ok(args) => commands::run(&args.command).unwrap_or_else(|error| failure::explain(&error)),
        Err(usage) => failure::usage(&usage),
    };
    failure::guarded(command).into()
}
