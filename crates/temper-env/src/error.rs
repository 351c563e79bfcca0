//! What can go wrong in this crate. What a model wrote is never an error: that is a [`Verdict`](crate::Verdict).

use std::path::PathBuf;

/// A fault of the data, the settings or the reward command, never of the text that is scored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be opened, read or decompressed.
    #[error("cannot read {}: {why}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A row of a file does not hold a task.
    #[error("{}, {place}: {why}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// `line 3` of a jsonl file, `item 3` of a JSON list; both count from 1.
        place: String,
        /// What is wrong with the row, and what was expected.
        why: String,
    },
    /// A file holds nothing to choose from.
    #[error("{} holds no rows{hint}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// Which setting emptied it, or nothing.
        hint: String,
    },
    /// More rows are asked for than there are.
    #[error("{} has {rows} rows, but `start = {start}` and `n = {n}` ask for {}: lower one of them", path.display(), start.saturating_add(*n))]
    Subset {
        /// The file.
        path: PathBuf,
        /// Rows that may be chosen.
        rows: usize,
        /// First row asked for.
        start: usize,
        /// Rows asked for.
        n: usize,
    },
    /// A `hf:` name reached the loader, which reads local files only.
    #[error(
        "`{path}` is a name on the Hugging Face Hub, not a file here: fetch it first, or put a local path in its place"
    )]
    Unresolved {
        /// The name.
        path: String,
    },
    /// There is no task with this index.
    #[error("`{name}` has no task {index}: it holds {holds}")]
    NoTask {
        /// The set.
        name: String,
        /// What was asked for, from 0.
        index: u64,
        /// How many tasks or pairs there are.
        holds: String,
    },
    /// A setting of a task source or a reward has no meaning.
    #[error("`{option}`: {why}")]
    Setting {
        /// Which key.
        option: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The gold answer of a task cannot be used by its verifier.
    #[error("the answer `{answer}` cannot be verified: {why}")]
    Gold {
        /// The gold answer.
        answer: String,
        /// Why the verifier cannot use it.
        why: String,
    },
    /// A reward command failed; nothing was scored.
    #[error("the command `{command}` of the reward `{part}` {fault} (task `{task}`)")]
    Command {
        /// The name of the reward part.
        part: String,
        /// The command line, joined by spaces.
        command: String,
        /// The task whose completion was being scored.
        task: String,
        /// What happened.
        fault: Box<CommandFault>,
    },
}

/// How a reward command can fail.
#[derive(Debug, thiserror::Error)]
pub enum CommandFault {
    /// The program could not be started.
    #[error("could not be started: {0}")]
    Start(String),
    /// No answer within the time limit; the command was killed.
    #[error(
        "gave no answer within {timeout_s} s and was killed: raise `timeout_s`, or see why it hangs{}",
        tail(stderr)
    )]
    Hang {
        /// The limit for one answer, seconds.
        timeout_s: f64,
        /// The end of what it wrote on stderr.
        stderr: String,
    },
    /// It ended, or closed its output, before answering.
    #[error("ended before it answered ({status}){}", tail(stderr))]
    Ended {
        /// Exit status or signal.
        status: String,
        /// The end of what it wrote on stderr.
        stderr: String,
    },
    /// A line of its output is not an answer.
    #[error("answered `{line}`: {why}; expected one JSON line such as {{\"reward\": 0.5}}{}", tail(stderr))]
    Answer {
        /// The line, shortened.
        line: String,
        /// What is wrong with it.
        why: String,
        /// The end of what it wrote on stderr.
        stderr: String,
    },
    /// It wrote a line that answers no request, so that it is not known which line answers which.
    #[error(
        "wrote `{line}` beyond its answers to the {answered} requests so far: print one JSON line for each request, and \
         anything else on stderr{}",
        tail(stderr)
    )]
    Surplus {
        /// The line, shortened.
        line: String,
        /// How many requests it had been sent, all of which have an answer.
        answered: u64,
        /// The end of what it wrote on stderr.
        stderr: String,
    },
}

fn tail(stderr: &str) -> String {
    let text = stderr.trim();
    if text.is_empty() { String::new() } else { format!("; its stderr ends with:\n{text}\n") }
}
