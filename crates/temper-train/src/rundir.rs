//! The run directory: the API between commands.
//!
//! `recipe.toml` (resolved), `env.json`, `metrics.jsonl` (reproducible), `timing.jsonl` (not), `rollouts.jsonl`,
//! `ledger.json`, `checkpoints/`, `stages/<id>/` (the model after each stage) and `model/` (the result).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};

/// What a run may have put into its directory before its recipe was there.
const OURS: [&str; 2] = ["checkpoints", "stages"];

/// Paths inside a run directory.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// The run directory at `root`; nothing is created.
    pub fn at(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// The resolved recipe.
    pub fn recipe(&self) -> PathBuf {
        self.root.join("recipe.toml")
    }
    /// Version, commit, machine, threads, seed.
    pub fn env(&self) -> PathBuf {
        self.root.join("env.json")
    }
    /// The rollouts that are kept.
    pub fn rollouts(&self) -> PathBuf {
        self.root.join("rollouts.jsonl")
    }
    /// The retention ledger.
    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger.json")
    }
    /// Checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }
    /// Where the model after stage `id` is kept.
    pub fn stage(&self, id: &str) -> PathBuf {
        self.root.join("stages").join(id)
    }
    /// The run's result, a Hugging Face directory.
    pub fn model(&self) -> PathBuf {
        self.root.join("model")
    }
    /// The report.
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// Whether a run was begun here.
    pub fn begun(&self) -> bool {
        self.recipe().is_file()
    }

    /// Makes the directory. One that holds anything else than a begun run is refused.
    pub fn create(&self) -> Result<()> {
        if self.root.exists() && !self.root.is_dir() {
            return Err(Error::user(
                format!("`{}` is no directory", self.root.display()),
                "name another place with --out",
            ));
        }
        let ours = |e: fs::DirEntry| e.file_name().to_str().is_some_and(|n| OURS.contains(&n) || n.starts_with('.'));
        let foreign = || fs::read_dir(&self.root).is_ok_and(|d| d.flatten().any(|e| !ours(e)));
        if !self.begun() && foreign() {
            return Err(Error::user(
                format!("`{}` exists and is not empty, and no run was begun there", self.root.display()),
                "name another directory with --out",
            ));
        }
        let make = |path: PathBuf| fs::create_dir_all(&path).map_err(|e| Error::io(&path, e));
        make(self.root.clone())
    }

    /// Takes the directory for one process, until the lock is dropped, and makes what a run needs in it.
    ///
    /// # Errors
    /// A run is going on there.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.root.join(".lock");
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(Error::user(
                    format!("a run is going on in `{}`", self.root.display()),
                    "wait for it, stop it, or name another directory with --out",
                ));
            }
            // A file system without locks: nothing to be done about it.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let make = |path: PathBuf| fs::create_dir_all(&path).map_err(|e| Error::io(&path, e));
        make(self.checkpoints())?;
        self.sweep();
        make(self.root.join("stages"))?;
        Ok(Lock { _file: file })
    }

    /// Removes what a killed process left of a checkpoint in the making. Best effort: it only costs room.
    fn sweep(&self) {
        let half = |e: &fs::DirEntry| e.path().extension().is_some_and(|x| x == "aside");
        for entry in fs::read_dir(self.checkpoints()).into_iter().flatten().flatten().filter(half) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }

    /// Writes a JSON file whole or not at all.
    pub fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(value).expect("our own types serialise");
        text.push(b'\n');
        temper_format::atomic::write(path, &text)?;
        Ok(())
    }
}

/// A run directory taken by this process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The line-per-record logs of a run.
#[derive(Debug)]
pub struct Logs {
    /// One object per optimiser step; the same bits on every run.
    pub metrics: JsonLines,
    /// Wall times of the same steps.
    pub timing: JsonLines,
    /// Sample completions.
    pub rollouts: JsonLines,
}

impl Logs {
    /// Opens the logs, cut back to `lengths` (as a checkpoint recorded them): what was written after it is written again.
    pub fn open(dir: &RunDir, lengths: [u64; 3]) -> Result<Self> {
        let open = |name: &str, length| JsonLines::open(&dir.root().join(name), length);
        Ok(Self {
            metrics: open("metrics.jsonl", lengths[0])?,
            timing: open("timing.jsonl", lengths[1])?,
            rollouts: open("rollouts.jsonl", lengths[2])?,
        })
    }

    /// Makes everything written so far durable, and says how long the files are.
    pub fn sync(&mut self) -> Result<[u64; 3]> {
        Ok([self.metrics.sync()?, self.timing.sync()?, self.rollouts.sync()?])
    }
}

/// A file of JSON lines that is appended to.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
    length: u64,
}

impl JsonLines {
    fn open(path: &Path, length: u64) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(io)?;
        let found = file.metadata().map_err(io)?.len();
        if found < length {
            return Err(Error::user(
                format!("`{}` has {found} bytes, the checkpoint expects at least {length}", path.display()),
                "it was changed since: restore it, or start afresh in another directory with --out",
            ));
        }
        file.set_len(length).map_err(io)?;
        file.seek(SeekFrom::Start(length)).map_err(io)?;
        Ok(Self { path: path.into(), file, length })
    }

    /// Appends one record as one line, in one write.
    pub fn append(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(record).expect("our own types serialise");
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| Error::io(&self.path, e))?;
        self.length += line.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, e))?;
        Ok(self.length)
    }
}
