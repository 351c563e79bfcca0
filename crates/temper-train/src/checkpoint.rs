//! Checkpoints: whole or not there.
//!
//! A checkpoint is a directory `checkpoints/<stage>-<round>` written aside, fsynced and renamed into place. It holds
//! `state.json`, and inside a stage `params.safetensors` and `optimizer.safetensors` (f32, row-major), of a critic
//! `critic.safetensors` and `critic_optimizer.safetensors`, of copies that a stage keeps `average.safetensors` and `slow.safetensors`, and of a
//! reference that moves `reference.safetensors`; between stages the parameters are those of `stages/<id>/`. `manifest.json`, written last, lists the files with their sizes. The newest
//! whole checkpoint is the one that counts; the one before it is kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use temper_format::atomic::DirWriter;
use temper_format::{ArrayData, ArrayInfo, ArraySource, DType, SafetensorsFile, SafetensorsWriter};
use temper_tensor::{AdamState, Grads, Ops, Param, ParamId, Params};

use crate::adapter::Reference;
use crate::error::{Error, Result};
use crate::learner::Learner;
use crate::rundir::RunDir;
use crate::state::State;

const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";
const AVERAGE: &str = "average.safetensors";
const SLOW: &str = "slow.safetensors";
const REFERENCE: &str = "reference.safetensors";
const KEEP: usize = 2;

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    files: BTreeMap<String, u64>,
    optimizer_steps: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    critic_steps: Option<u64>,
}

/// Whose parameters and moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The model that the stage trains.
    Policy,
    /// The critic beside it.
    Critic,
}

impl Role {
    fn params(self) -> &'static str {
        match self {
            Self::Policy => "params.safetensors",
            Self::Critic => "critic.safetensors",
        }
    }

    fn moments(self) -> &'static str {
        match self {
            Self::Policy => "optimizer.safetensors",
            Self::Critic => "critic_optimizer.safetensors",
        }
    }
}

/// A checkpoint that was found whole.
#[derive(Debug)]
pub struct Found {
    path: PathBuf,
    /// Everything small.
    pub state: State,
    /// Newer checkpoints that are damaged, by name.
    pub damaged: Vec<String>,
    optimizer_steps: u64,
    critic_steps: Option<u64>,
}

/// Writes a checkpoint and removes all but the newest ones. Inside a stage the parameters and moments of what is trained go with it.
pub fn write<'a>(
    dir: &RunDir,
    state: &State,
    ops: &dyn Ops,
    learners: impl Iterator<Item = (Role, &'a Learner)>,
    reference: Option<&Reference>,
) -> Result<()> {
    let name = format!("{:04}-{:08}", state.stage, state.progress.step);
    let aside = DirWriter::create(dir.checkpoints().join(&name))?;
    aside.write(STATE, &serde_json::to_vec(state).expect("our own types serialise"))?;
    let (mut optimizer_steps, mut critic_steps) = (0, None);
    for (role, learner) in learners {
        write_params(&aside.path().join(role.params()), ops, &learner.model.params)?;
        write_moments(&aside.path().join(role.moments()), ops, &learner.model.params, &learner.adam)?;
        match role {
            Role::Policy => {
                optimizer_steps = learner.adam.step();
                for (name, copy) in [(AVERAGE, &learner.kept.average), (SLOW, &learner.kept.slow)] {
                    if let Some(copy) = copy {
                        write_copy(&aside.path().join(name), ops, &learner.model.params, copy)?;
                    }
                }
            }
            Role::Critic => critic_steps = Some(learner.adam.step()),
        }
    }
    if let Some(Reference::Model(model)) = reference {
        write_all(&aside.path().join(REFERENCE), ops, &model.params)?;
    }
    let manifest = Manifest { version: 1, files: sizes(aside.path())?, optimizer_steps, critic_steps };
    aside.write(MANIFEST, &serde_json::to_vec_pretty(&manifest).expect("our own types serialise"))?;
    aside.commit()?;
    prune(dir, &name)
}

/// The newest whole checkpoint of a run, if it has any.
///
/// # Errors
/// Checkpoints of which none is whole: to begin afresh would overwrite what the run has.
pub fn newest(dir: &RunDir) -> Result<Option<Found>> {
    let mut damaged = vec![];
    for name in names(dir)?.into_iter().rev() {
        match open(&dir.checkpoints().join(&name))? {
            Some(found) => return Ok(Some(Found { damaged, ..found })),
            None => damaged.push(name),
        }
    }
    if damaged.is_empty() {
        return Ok(None);
    }
    Err(Error::user(
        format!("no checkpoint in `{}` is whole: {}", dir.checkpoints().display(), damaged.join(", ")),
        "restore them (a checkpoint's manifest.json lists its files with their sizes), or start afresh in another directory \
         with --out",
    ))
}

impl Found {
    /// Reads parameters and moments back; false where the checkpoint has none, as between stages.
    pub fn restore(&self, ops: &dyn Ops, role: Role, learner: &mut Learner) -> Result<bool> {
        if !self.path.join(role.params()).is_file() {
            return Ok(false);
        }
        let Learner { model, adam, kept, .. } = learner;
        let params = SafetensorsFile::open(self.path.join(role.params()))?;
        let moments = SafetensorsFile::open(self.path.join(role.moments()))?;
        let ids: Vec<(ParamId, String)> = trained(&model.params).map(|(id, p)| (id, p.name.clone())).collect();
        for (id, name) in ids {
            model.params.set_values(ops, id, &params.read_f32(&name)?)?;
            let (m, v) = (moments.read_f32(&format!("m.{name}"))?, moments.read_f32(&format!("v.{name}"))?);
            adam.set_moments(ops, &model.params, id, &m, &v)?;
        }
        if role == Role::Policy {
            for (name, copy) in [(AVERAGE, &mut kept.average), (SLOW, &mut kept.slow)] {
                if let Some(copy) = copy {
                    let file = SafetensorsFile::open(self.path.join(name))?;
                    for (id, values) in copy.iter_mut() {
                        values.set_values(ops, &file.read_f32(&model.params.get(id).name)?)?;
                    }
                }
            }
        }
        adam.set_step(match role {
            Role::Policy => self.optimizer_steps,
            Role::Critic => self.critic_steps.unwrap_or(0),
        });
        Ok(true)
    }
}

impl Found {
    /// Reads a reference that moves back.
    pub fn restore_reference(&self, ops: &dyn Ops, reference: &mut Reference) -> Result<()> {
        let Reference::Model(model) = reference else { return Ok(()) };
        let file = SafetensorsFile::open(self.path.join(REFERENCE))?;
        let ids: Vec<(ParamId, String)> = model.params.iter().map(|(id, p)| (id, p.name.clone())).collect();
        for (id, name) in ids {
            model.params.set_values(ops, id, &file.read_f32(&name)?)?;
        }
        Ok(())
    }
}

/// Every parameter is a number: what is kept can be gone on from.
pub fn all_finite(ops: &dyn Ops, params: &Params) -> Result<()> {
    params.iter().try_for_each(|(id, p)| finite(p, &params.values(ops, id)?))
}

fn finite(param: &Param, values: &[f32]) -> Result<()> {
    let Some(bad) = values.iter().find(|v| !v.is_finite()) else { return Ok(()) };
    Err(Error::user(
        format!("after the last step the parameter `{}` holds {bad}: the training has diverged", param.name),
        "start again with a lower learning rate and another --out; the last good checkpoint is kept",
    ))
}

/// What a checkpoint holds: frozen parameters are those that the stage started from.
fn trained(params: &Params) -> impl Iterator<Item = (ParamId, &Param)> {
    params.iter().filter(|(_, p)| p.trainable)
}

/// Streams the trained parameters, one at a time.
fn write_params(path: &Path, ops: &dyn Ops, params: &Params) -> Result<()> {
    let mut file = Stream::create(path, trained(params).map(|(_, p)| (p.name.clone(), p.shape())).collect())?;
    for (id, p) in trained(params) {
        let values = params.values(ops, id)?;
        finite(p, &values)?;
        file.push(&p.name, &values)?;
    }
    file.finish()
}

/// Streams all parameters, trained or not.
fn write_all(path: &Path, ops: &dyn Ops, params: &Params) -> Result<()> {
    let mut file = Stream::create(path, params.iter().map(|(_, p)| (p.name.clone(), p.shape())).collect())?;
    for (id, p) in params.iter() {
        file.push(&p.name, &params.values(ops, id)?)?;
    }
    file.finish()
}

/// Streams a copy of the trained parameters.
fn write_copy(path: &Path, ops: &dyn Ops, params: &Params, copy: &Grads) -> Result<()> {
    let named = |id: ParamId| (params.get(id).name.clone(), params.get(id).shape());
    let mut file = Stream::create(path, copy.iter().map(|(id, _)| named(id)).collect())?;
    for (id, values) in copy.iter() {
        file.push(&params.get(id).name, &values.values(ops)?)?;
    }
    file.finish()
}

/// Streams both moments of every trainable parameter, one at a time.
fn write_moments(path: &Path, ops: &dyn Ops, params: &Params, adam: &AdamState) -> Result<()> {
    let named = |p: &Param, which: &str| (format!("{which}.{}", p.name), p.shape());
    let mut file = Stream::create(path, trained(params).flat_map(|(_, p)| [named(p, "m"), named(p, "v")]).collect())?;
    for (id, p) in trained(params) {
        if let Some((m, v)) = adam.moments(id) {
            file.push(&named(p, "m").0, &m.values(ops)?)?;
            file.push(&named(p, "v").0, &v.values(ops)?)?;
        }
    }
    file.finish()
}

/// A safetensors file of f32 matrices that is written array by array.
struct Stream(SafetensorsWriter);

impl Stream {
    fn create(path: &Path, arrays: Vec<(String, (usize, usize))>) -> Result<Self> {
        let infos: Vec<(String, ArrayInfo)> = arrays
            .into_iter()
            .map(|(name, (n, k))| (name, ArrayInfo { dtype: DType::F32, shape: vec![n, k] }))
            .collect();
        Ok(Self(SafetensorsWriter::create(path, infos, &BTreeMap::new())?))
    }
    fn push(&mut self, name: &str, values: &[f32]) -> Result<()> {
        Ok(self.0.push(name, ArrayData::F32(values))?)
    }
    fn finish(self) -> Result<()> {
        Ok(self.0.finish()?)
    }
}

fn sizes(path: &Path) -> Result<BTreeMap<String, u64>> {
    let io = |e| Error::io(path, e);
    let entries = fs::read_dir(path).map_err(io)?;
    entries
        .map(|entry| {
            let entry = entry.map_err(io)?;
            let length = entry.metadata().map_err(io)?.len();
            Ok((entry.file_name().to_string_lossy().into_owned(), length))
        })
        .collect()
}

/// Names of checkpoint directories, oldest first. Directories that were being written have other names.
fn names(dir: &RunDir) -> Result<Vec<String>> {
    let path = dir.checkpoints();
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::io(&path, e)),
    };
    let named = |n: &String| n.len() == 13 && n.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(named).collect();
    names.sort();
    Ok(names)
}

/// A checkpoint is whole when its manifest is there and every file has the size that the manifest says.
fn open(path: &Path) -> Result<Option<Found>> {
    let Ok(text) = fs::read(path.join(MANIFEST)) else { return Ok(None) };
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&text) else { return Ok(None) };
    let whole = |(name, size): (&String, &u64)| fs::metadata(path.join(name)).is_ok_and(|m| m.len() == *size);
    if manifest.version != 1 || !manifest.files.iter().all(whole) {
        return Ok(None);
    }
    let state = path.join(STATE);
    let text = fs::read(&state).map_err(|e| Error::io(&state, e))?;
    let state: State = serde_json::from_slice(&text).map_err(|e| {
        Error::user(
            format!("the checkpoint `{}` was written by another version of temper: {e}", path.display()),
            "resume with that version, or start afresh in another directory with --out",
        )
    })?;
    let Manifest { optimizer_steps, critic_steps, .. } = manifest;
    Ok(Some(Found { path: path.into(), state, damaged: vec![], optimizer_steps, critic_steps }))
}

fn prune(dir: &RunDir, newest: &str) -> Result<()> {
    let names = names(dir)?;
    let mut kept = 1;
    for name in names.iter().rev().filter(|n| n.as_str() != newest) {
        let path = dir.checkpoints().join(name);
        if kept < KEEP && open(&path)?.is_some() {
            kept += 1;
            continue;
        }
        fs::remove_dir_all(&path).map_err(|e| Error::io(&path, e))?;
    }
    Ok(())
}
