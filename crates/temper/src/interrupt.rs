//! Ctrl-C: the first asks the run to stop after a checkpoint, the second aborts.

use anyhow::Context as _;
use temper_train::watch::Stop;

use crate::failure::Exit;
use crate::output::{say, stderr_is_live};

static STOP: Stop = Stop::new();

/// Listens for Ctrl-C from now on; the wish is what a run looks at between its rounds.
pub(crate) fn listen() -> anyhow::Result<&'static Stop> {
    ctrlc::set_handler(|| {
        if STOP.requested() {
            abort();
        }
        STOP.request();
        let clear = if stderr_is_live() { "\r\x1b[2K" } else { "" };
        say(&format!("{clear}stopping after this round or measurement (Ctrl-C again aborts at once)"));
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(&STOP)
}

// Files are written aside and renamed, so there is nothing to tidy up that could not wait for the next run, but for the
// reward commands: nothing is dropped on this way out.
#[expect(clippy::exit, reason = "the second Ctrl-C must end the program wherever it is")]
fn abort() -> ! {
    temper_env::kill_children();
    std::process::exit(Exit::Interrupted as i32)
}
