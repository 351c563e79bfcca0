//! The command line, tested through the binary in fresh directories.

mod adapters;
mod check;
mod environments;
mod faults;
mod help;
mod methods;
mod models;
mod quantised;
mod resume;
mod runs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// The recipe that most tests vary.
const SMALL: &str = include_str!("small.toml");

/// A directory of a test's own, in which the binary runs.
struct Place(TempDir);

/// What a command did.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    /// With `small.toml` in it.
    fn with_recipe() -> Self {
        let place = Self::new();
        place.write("small.toml", SMALL);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_temper"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        // No test sees the Hub's cache of the machine, nor the network.
        command.env("HF_HOME", self.path("hub")).env("HF_ENDPOINT", "http://127.0.0.1:9");
        command
    }

    fn temper(&self, args: &[&str]) -> Said {
        let output = self.command(args).output().expect("the binary starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// A command that must succeed; returns its stdout.
    fn good(&self, args: &[&str]) -> String {
        let said = self.temper(args);
        assert_eq!(said.code, Some(0), "temper {}\n{}{}", args.join(" "), said.out, said.err);
        said.out
    }

    /// A command that must fail as a user's mistake does: exit code 1, `error:`, a way out, and all `parts` in its message.
    fn bad(&self, args: &[&str], parts: &[&str]) -> Said {
        let said = self.temper(args);
        let all = format!("temper {}\n{}{}", args.join(" "), said.out, said.err);
        assert_eq!(said.code, Some(1), "{all}");
        assert!(said.err.contains("error:") || said.out.contains("error:"), "{all}");
        // The way out stands in a hint, in the message behind a semicolon, or in clap's last line.
        let way_out =
            ["hint:", "; ", "--help", "(name "].iter().any(|mark| said.err.contains(mark) || said.out.contains(mark));
        assert!(way_out, "no way out: {all}");
        assert!(!said.err.contains("panicked") && !said.err.contains("unexpectedly"), "{all}");
        for part in parts {
            assert!(said.err.contains(part) || said.out.contains(part), "`{part}` is not in\n{all}");
        }
        said
    }
}

/// A finished run of the small recipe, made once: its `model` is what other tests load.
fn finished() -> &'static Place {
    static RUN: OnceLock<Place> = OnceLock::new();
    RUN.get_or_init(|| {
        let place = Place::with_recipe();
        place.good(&["run", "small.toml", "--out", "done"]);
        place
    })
}

/// A copy of the finished run's model under `name`.
fn model_copy(place: &Place, name: &str) -> PathBuf {
    let target = place.path(name);
    copy_files(&finished().path("done/model"), &target);
    target
}

/// The files of a directory, without its folders.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
    }
}
