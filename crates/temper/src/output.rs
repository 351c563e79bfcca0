//! The two streams: data on stdout, everything else on stderr.

use std::io::{self, IsTerminal as _, Write as _};

/// Writes data to stdout. A reader that went away is an error of kind `BrokenPipe`, which ends the program quietly.
pub(crate) fn data(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes a line to stderr. Nobody may be there to read it, which is no reason to stop.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A label such as `error:`, bold where a person reads it on a terminal that shows colours. The word says it all: the
/// weight only helps the eye.
pub(crate) fn label(word: &str) -> String {
    if stderr_is_live() && colours() { format!("\x1b[1m{word}:\x1b[0m") } else { format!("{word}:") }
}

/// Whether stderr is a terminal on which lines can be rewritten.
pub(crate) fn stderr_is_live() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// `text` without what a terminal would obey: models and files may hold anything.
pub(crate) fn harmless(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{FFFD}' } else { c };
    text.chars().map(shown).collect()
}

/// `34 s`, `1 min 20 s`, `2 h 5 min`.
pub(crate) fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0);
    match s.round() as u64 {
        _ if s < 9.95 => format!("{s:.1} s"),
        n @ 0..60 => format!("{n} s"),
        n @ 60..3600 => format!("{} min {} s", n / 60, n % 60),
        n => format!("{} h {} min", n / 3600, n % 3600 / 60),
    }
}

/// `512 KiB`, `1.4 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit < 3 { format!("{value:.0} {}", units[unit]) } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        assert_eq!(
            [0.04, 9.94, 9.96, 80.4, 7500.0].map(duration),
            ["0.0 s", "9.9 s", "10 s", "1 min 20 s", "2 h 5 min"]
        );
        assert_eq!([512, 524_288, 1_503_238_553].map(bytes), ["512 B", "512 KiB", "1.4 GiB"]);
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(harmless("a\x1b[2J\tb\n"), "a\u{FFFD}[2J\tb\n");
    }
}
