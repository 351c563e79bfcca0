//! Reading a model from a Hugging Face directory or a GGUF file.

use super::layout::{EMBED, HEAD, TensorSpec, deinterleave, tensors};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::Model;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use temper_format::{ArraySource, DType, Gguf, SafetensorsDir, atomic};
use temper_tensor::{Blocks, Ops, ParamValue, Params, QuantPanels, Weight};

/// A config.json larger than this is not one.
const MOST_CONFIG: u64 = 16 << 20;

/// An open file of weights and how it names its tensors.
enum Weights {
    Dir(SafetensorsDir),
    Gguf(Gguf),
}

/// How matrices are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// Widened to f32.
    Wide,
    /// In the file's quantised blocks, where it has them.
    InBlocks,
}

impl Model {
    /// Loads a model from a Hugging Face directory (`config.json` and `model.safetensors` or its shards) or from a
    /// `.gguf` file. Everything is computed in f32, whatever the file holds.
    ///
    /// # Errors
    /// Files that are missing or damaged, an architecture that is not supported, tensors that are missing, unexpected or
    /// of another shape than the config says, weights that are not finite, a model larger than the machine's memory.
    pub fn load(ops: &dyn Ops, path: impl AsRef<Path>) -> Result<Self> {
        Self::load_held(ops, path.as_ref(), Held::Wide)
    }

    /// Loads a model from a `.gguf` file for reading alone: matrices that the file holds as Q4_0, Q4_1 or Q8_0 stay in these blocks, and
    /// products are computed on them; the others are f32. Such a model generates and scores; it is not trained, merged or saved.
    ///
    /// # Errors
    /// As [`Model::load`], and a file without such blocks.
    pub fn load_quantised(ops: &dyn Ops, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut model = Self::load_held(ops, path, Held::InBlocks)?;
        if !model.params.any_quantised() {
            return Err(Error::NotQuantised { path: path.into() });
        }
        model.params.set_trainable(false);
        Ok(model)
    }

    fn load_held(ops: &dyn Ops, path: &Path, held: Held) -> Result<Self> {
        atomic::restore(path)?;
        let kind = fs::metadata(path).map_err(|source| Error::Unreadable { path: path.into(), source })?;
        let (config, weights) = if kind.is_dir() { open_dir(path)? } else { open_gguf(path)? };
        if held == Held::InBlocks && kind.is_dir() {
            return Err(Error::NotQuantised { path: path.into() });
        }
        let specs = tensors(&config);
        weights.check(&config, &specs)?;
        memory::check(&config, weights.bytes(&specs, held))?;
        let params = weights.read(ops, &specs, held)?;
        weights.check_tied(&config, &params)?;
        Self::new(config, params)
    }

    /// Only the configuration of what [`Model::load`] would load.
    pub fn load_config(path: impl AsRef<Path>) -> Result<Config> {
        let path = path.as_ref();
        let kind = fs::metadata(path).map_err(|source| Error::Unreadable { path: path.into(), source })?;
        if kind.is_dir() { read_config(path) } else { Ok(open_gguf(path)?.0) }
    }
}

fn open_dir(dir: &Path) -> Result<(Config, Weights)> {
    Ok((read_config(dir)?, Weights::Dir(SafetensorsDir::open(dir)?)))
}

fn open_gguf(path: &Path) -> Result<(Config, Weights)> {
    let file = Gguf::open(path)?;
    let config = Config::from_gguf(&file).map_err(Error::within(path))?;
    Ok((config, Weights::Gguf(file)))
}

fn read_config(dir: &Path) -> Result<Config> {
    let path = dir.join("config.json");
    let mut config = Config::from_json(&read_text(&path)?).map_err(Error::within(&path))?;
    let generation = dir.join("generation_config.json");
    if generation.exists() {
        let text = read_text(&generation)?;
        config.add_generation_eos(&text).map_err(|why| Error::json(&generation, &why))?;
    }
    Ok(config)
}

pub(crate) fn read_text(path: &Path) -> Result<String> {
    let unreadable = |source| Error::Unreadable { path: path.into(), source };
    let len = fs::metadata(path).map_err(unreadable)?.len();
    if len > MOST_CONFIG {
        let why = format!("{len} bytes; a model's settings have at most {MOST_CONFIG}");
        return Err(Error::json(path, &why));
    }
    fs::read_to_string(path).map_err(unreadable)
}

impl Weights {
    fn source(&self) -> &dyn ArraySource {
        match self {
            Self::Dir(dir) => dir,
            Self::Gguf(file) => file,
        }
    }

    /// How this file spells the tensor's name.
    fn spelled<'s>(&self, spec: &'s TensorSpec) -> &'s str {
        match self {
            Self::Dir(_) => &spec.name,
            Self::Gguf(_) => &spec.gguf,
        }
    }

    /// Names and shapes, before anything is read.
    fn check(&self, config: &Config, specs: &[TensorSpec]) -> Result<()> {
        let wanted: BTreeMap<&str, &TensorSpec> = specs.iter().map(|s| (self.spelled(s), s)).collect();
        let source = self.source();
        let unexpected: Vec<String> = source
            .names()
            .into_iter()
            .filter(|name| !wanted.contains_key(name.as_str()) && !self.ignored(config, name))
            .collect();
        let missing: Vec<String> =
            specs.iter().map(|s| self.spelled(s)).filter(|n| source.info(n).is_none()).map(String::from).collect();
        if !missing.is_empty() || !unexpected.is_empty() {
            return Err(Error::TensorNames { path: source.path().into(), missing, unexpected });
        }
        specs.iter().try_for_each(|spec| self.check_shape(self.spelled(spec), &spec.shape))
    }

    fn check_shape(&self, name: &str, expected: &[usize]) -> Result<()> {
        let found = self.source().info(name).map(|i| i.shape).unwrap_or_default();
        if found == expected {
            return Ok(());
        }
        let path = self.source().path().into();
        Err(Error::TensorShape { path, name: name.into(), found, expected: expected.to_vec() })
    }

    /// Tensors that may be there without being weights of their own.
    fn ignored(&self, config: &Config, name: &str) -> bool {
        match self {
            // A tied head is compared with the embedding after loading; old checkpoints keep the rotary frequencies.
            Self::Dir(_) => (config.tie_word_embeddings && name == HEAD) || name.ends_with(".rotary_emb.inv_freq"),
            // Read with the config.
            Self::Gguf(_) => name == "rope_freqs.weight",
        }
    }

    /// Bytes that the weights will take.
    fn bytes(&self, specs: &[TensorSpec], held: Held) -> u64 {
        let one = |spec: &TensorSpec| match self.blocks(spec, held) {
            Some(blocks) => spec.shape.iter().product::<usize>() / 32 * blocks.bytes(),
            None => 4 * spec.shape.iter().product::<usize>(),
        };
        specs.iter().map(|spec| one(spec) as u64).sum()
    }

    /// The blocks in which a tensor is to be held.
    fn blocks(&self, spec: &TensorSpec, held: Held) -> Option<Blocks> {
        let info = self.source().info(self.spelled(spec)).filter(|i| held == Held::InBlocks && i.shape.len() == 2)?;
        match info.dtype {
            DType::Q4_0 => Some(Blocks::Q4_0),
            DType::Q4_1 => Some(Blocks::Q4_1),
            DType::Q8_0 => Some(Blocks::Q8_0),
            _ => None,
        }
    }

    fn read(&self, ops: &dyn Ops, specs: &[TensorSpec], held: Held) -> Result<Params> {
        let mut params = Params::new();
        for spec in specs {
            if let (Self::Gguf(file), Some(blocks)) = (self, self.blocks(spec, held)) {
                params.add(&spec.name, ParamValue::Matrix(in_blocks(file, spec, blocks)?))?;
                continue;
            }
            let values = self.values(spec)?;
            match *spec.shape.as_slice() {
                [n, k] => params.add_matrix(&spec.name, n, k, &values)?,
                _ => params.add_vector(ops, &spec.name, &values)?,
            };
        }
        Ok(params)
    }

    fn values(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let name = self.spelled(spec);
        let values = self.source().read_f32(name)?;
        if let Some(&value) = values.iter().find(|v| !v.is_finite()) {
            return Err(Error::NotFinite { path: self.source().path().into(), name: name.into(), value });
        }
        Ok(match (self, spec.rotary_heads) {
            (Self::Gguf(_), Some(heads)) => deinterleave(&values, heads, spec.shape.get(1).copied().unwrap_or(1)),
            _ => values,
        })
    }

    /// A file may repeat the embedding as the head; a different one would be lost silently.
    fn check_tied(&self, config: &Config, params: &Params) -> Result<()> {
        let Self::Dir(dir) = self else { return Ok(()) };
        if !config.tie_word_embeddings || dir.info(HEAD).is_none() {
            return Ok(());
        }
        self.check_shape(HEAD, &[config.vocab_size, config.hidden_size])?;
        let embed = params.by_name(EMBED).map(|id| params.matrix("load", id)).transpose()?;
        if embed.is_some_and(|e| e.to_rows() == dir.read_f32(HEAD).unwrap_or_default()) {
            return Ok(());
        }
        Err(Error::TiedHeadDiffers { path: dir.path().into() })
    }
}

/// A matrix in the file's blocks; rows of whole blocks change places as rows of values do.
fn in_blocks(file: &Gguf, spec: &TensorSpec, blocks: Blocks) -> Result<Weight> {
    let bytes = file.read_bytes(&spec.gguf)?;
    if let Some(value) = blocks.not_finite(&bytes) {
        return Err(Error::NotFinite { path: file.path().into(), name: spec.gguf.clone(), value });
    }
    let (n, k) = (spec.shape[0], spec.shape[1]);
    let bytes = match spec.rotary_heads {
        Some(heads) => deinterleave(&bytes, heads, bytes.len() / n),
        None => bytes,
    };
    Ok(Weight::Quantised(QuantPanels::from_bytes(blocks, n, k, &bytes)?))
}
