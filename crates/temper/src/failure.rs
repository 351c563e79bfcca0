//! What went wrong, the way out, and the exit code.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use crate::args::VERSION;
use crate::hints;
use crate::output::{label, say};

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All is done.
    Done = 0,
    /// The user can mend it.
    User = 1,
    /// A fault of Temper.
    Unexpected = 2,
    /// Stopped on request, after a checkpoint.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A way out that a command adds to an error from below, as its outermost context.
#[derive(Debug)]
pub(crate) struct Hint(pub(crate) String);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An error that the user can mend, with the way out.
pub(crate) fn user(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    temper_train::Error::user(message, hint).into()
}

/// Prints an error with all its causes and hints, and says how to exit.
pub(crate) fn explain(error: &anyhow::Error) -> Exit {
    if reader_went_away(error) {
        return Exit::Done;
    }
    let messages = messages(error);
    say(&format!("{} {}", label("error"), messages[0]));
    for cause in &messages[1..] {
        say(&format!("  caused by: {cause}"));
    }
    let exit = exit(error);
    for hint in hints(error, exit) {
        say(&format!("{} {hint}", label("hint")));
    }
    exit
}

/// Prints clap's message: help and version are data, everything else is a mistake in the command line.
pub(crate) fn usage(usage: &clap::Error) -> Exit {
    let _ = usage.print();
    if usage.use_stderr() { Exit::User } else { Exit::Done }
}

/// From now on a panic prints a short message that asks for a report.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into());
        let place = panic.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        say(&format!("{} temper {VERSION} stopped unexpectedly: {text}{place}", label("error")));
        say(&format!("{} {}", label("hint"), please_report()));
    }));
}

/// What the program ends with: the command's own exit, or the one of a panic.
pub(crate) fn guarded(command: impl FnOnce() -> Exit) -> Exit {
    catch_unwind(AssertUnwindSafe(command)).unwrap_or(Exit::Unexpected)
}

fn please_report() -> String {
    format!(
        "this is a fault of temper; please report it with the command line and this message at {}/issues",
        env!("CARGO_PKG_REPOSITORY")
    )
}

/// The chain of messages, outermost first. Some errors quote their source; what was said already is left out.
fn messages(error: &anyhow::Error) -> Vec<String> {
    let skip = usize::from(error.downcast_ref::<Hint>().is_some());
    let mut said: Vec<String> = vec![];
    for cause in error.chain().skip(skip) {
        let text = cause.to_string();
        if !said.iter().any(|s| s.contains(&text)) {
            said.push(text);
        }
    }
    if said.is_empty() { vec!["no message".into()] } else { said }
}

/// One way out from below, that of the cause that knows best, and one of the command.
fn hints(error: &anyhow::Error, exit: Exit) -> Vec<String> {
    let mut hints: Vec<String> = error.chain().find_map(hints::of).into_iter().collect();
    hints.extend(error.downcast_ref::<Hint>().map(|hint| hint.0.clone()));
    if exit == Exit::Unexpected {
        hints.push(please_report());
    }
    hints
}

/// Only the engine refuses for reasons that no user made.
fn exit(error: &anyhow::Error) -> Exit {
    let unexpected = |error: &temper_tensor::Error| !matches!(error, temper_tensor::Error::Isa { .. });
    if error.chain().filter_map(of_engine).any(unexpected) { Exit::Unexpected } else { Exit::User }
}

fn of_engine<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a temper_tensor::Error> {
    use temper_model::Error as Model;
    use temper_train::Error as Train;
    let train = cause.downcast_ref();
    let model = cause.downcast_ref().or(match train {
        Some(Train::Model(model)) => Some(model),
        _ => None,
    });
    match (train, model) {
        (Some(Train::Tensor(tensor)), _) | (_, Some(Model::Tensor(tensor))) => Some(tensor),
        _ => cause.downcast_ref(),
    }
}

fn reader_went_away(error: &anyhow::Error) -> bool {
    let io = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    };
    // Only our own writing to stdout arrives bare; a broken pipe to a reward command comes wrapped with its story.
    error.root_cause().downcast_ref::<std::io::Error>().is_some() && error.chain().count() == 1 && error.chain().any(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_that_were_quoted_are_not_repeated() {
        let io = || std::io::Error::other("no luck");
        let quoted = temper_train::Error::io(std::path::Path::new("x"), io());
        assert_eq!(messages(&quoted.into()), ["`x`: no luck"]);
        let plain = anyhow::Error::from(io()).context("cannot do it");
        assert_eq!(messages(&plain), ["cannot do it", "no luck"]);
    }

    #[test]
    fn hints_of_commands_come_after_those_from_below() {
        let error = user("bad", "do this").context(Hint("then that".into()));
        assert_eq!(messages(&error), ["bad"]);
        assert_eq!(hints(&error, Exit::User), ["do this", "then that"]);
        assert_eq!(exit(&error), Exit::User);
    }

    /// Run by the test below in a process of its own: a hook belongs to the whole process.
    #[test]
    #[ignore = "panics"]
    fn a_panic() {
        report_panics();
        panic!("the row {} is missing", 7);
    }

    #[test]
    fn a_panic_asks_for_a_report() {
        let this = std::env::current_exe().unwrap();
        let args = ["--exact", "failure::tests::a_panic", "--ignored", "--nocapture"];
        let said = std::process::Command::new(this).args(args).output().unwrap();
        let err = String::from_utf8(said.stderr).unwrap();
        assert!(
            err.contains("error: temper") && err.contains("the row 7 is missing (crates/temper/src/failure.rs:"),
            "{err}"
        );
        assert!(err.contains("hint: this is a fault of temper; please report it"), "{err}");
    }

    #[test]
    fn a_panic_exits_with_2() {
        assert_eq!(guarded(|| panic!("no exit code of its own")), Exit::Unexpected);
        assert_eq!(guarded(|| Exit::Interrupted), Exit::Interrupted);
    }

    #[test]
    fn only_faults_of_the_engine_are_unexpected() {
        let shape = || temper_tensor::Error::NotRecorded;
        assert_eq!(exit(&temper_train::Error::from(shape()).into()), Exit::Unexpected);
        let isa = temper_tensor::Error::Isa { value: "x".into(), expected: "avx2".into() };
        assert_eq!(exit(&temper_train::Error::from(isa).into()), Exit::User);
        assert!(reader_went_away(&std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()));
    }
}
