//! Models by name: directories, GGUF files, Hub names, and adapters on their base.

use std::path::{Path, PathBuf};

use temper_data::Tokenizer;
use temper_model::{Config, Model, adapter_base, is_adapter};
use temper_tensor::Ops;

use crate::error::{Error, Result};
use crate::hub;
use crate::recipe::ModelSpec;

/// What a model that is only read is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compute {
    /// f32, whatever the file holds.
    F32,
    /// bf16: weights and what is multiplied by them are rounded.
    Bf16,
    /// The quantised blocks of a GGUF file.
    Quantised,
}

/// What a model is loaded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A Hugging Face directory or a GGUF file.
    Whole(PathBuf),
    /// An adapter's directory, and what it is merged into.
    Adapter(PathBuf, Box<Source>),
}

impl Source {
    /// Finds a model by its name in a recipe or on the command line; `base` is that of an adapter, by default the one that its
    /// `adapter_config.json` names.
    pub fn find(name: &str, base: Option<&str>) -> Result<Self> {
        let path = hub::local(name)?;
        if !path.exists() {
            return Err(Error::user(
                format!("there is no model at `{}`", path.display()),
                "give a Hugging Face directory, a .gguf file, the directory of an adapter, or a Hub name such as hf:owner/name",
            ));
        }
        if is_adapter(&path) {
            let base = base.map_or_else(|| base_name(&path), |base| Ok(base.to_owned()))?;
            return Ok(Self::Adapter(path, Box::new(Self::find(&base, None)?)));
        }
        match base {
            Some(base) => Err(Error::user(
                format!("`{name}` is no adapter, so the base model `{base}` has no effect"),
                "leave the base out",
            )),
            None => Ok(Self::Whole(path)),
        }
    }

    /// The model of a role.
    pub fn of(spec: &ModelSpec) -> Result<Option<Self>> {
        spec.path.as_ref().map(|path| Self::find(path, spec.base.as_deref())).transpose()
    }

    /// Loads the model, adapters merged into it, and its tokenizer.
    pub fn load(&self, ops: &dyn Ops) -> Result<(Model, Tokenizer)> {
        self.load_to_read(ops, Compute::F32)
    }

    /// [`Source::load`] for a model that is to be computed in `compute`, and not trained.
    pub fn load_to_read(&self, ops: &dyn Ops, compute: Compute) -> Result<(Model, Tokenizer)> {
        let model = match compute {
            Compute::F32 => self.model(ops)?,
            Compute::Bf16 => self.model(ops)?.in_bf16().frozen_copy(),
            Compute::Quantised => self.quantised(ops)?,
        };
        let tokenizer = self.tokenizer()?;
        let (own, most) = (tokenizer.vocab_size(), model.config.vocab_size);
        if own > most {
            return Err(Error::user(
                format!("the tokenizer of `{}` has {own} tokens, the model's vocabulary {most}", self.path().display()),
                "the tokenizer belongs to another model: use the one that the model was trained with",
            ));
        }
        Ok((model, tokenizer))
    }

    fn model(&self, ops: &dyn Ops) -> Result<Model> {
        match self {
            Self::Whole(path) => Ok(Model::load(ops, path)?),
            Self::Adapter(path, base) => {
                let mut model = base.model(ops)?;
                model.load_adapter(path)?;
                model.merge_adapter(ops)?;
                Ok(model)
            }
        }
    }

    /// The model in the blocks of its file.
    fn quantised(&self, ops: &dyn Ops) -> Result<Model> {
        match self {
            Self::Whole(path) => Ok(Model::load_quantised(ops, path)?),
            Self::Adapter(path, _) => Err(Error::user(
                format!("`{}` is an adapter, and nothing can be merged into quantised blocks", path.display()),
                "compute in f32 or bf16, or name a .gguf file with quantised matrices",
            )),
        }
    }

    /// Its tokenizer; an adapter's is its own where it has one, else its base's.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match self {
            Self::Adapter(path, base) if !path.join("tokenizer.json").is_file() => base.tokenizer(),
            Self::Adapter(path, _) | Self::Whole(path) => load_tokenizer(path),
        }
    }

    /// Its configuration, without its weights.
    pub fn config(&self) -> Result<Config> {
        match self {
            Self::Whole(path) => load_config(path),
            Self::Adapter(_, base) => base.config(),
        }
    }

    /// What the model is merged into, where it is an adapter.
    pub fn base(&self) -> Option<&Self> {
        match self {
            Self::Whole(_) => None,
            Self::Adapter(_, base) => Some(base),
        }
    }

    /// Its directory or file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Whole(path) | Self::Adapter(path, _) => path,
        }
    }
}

/// The base that an adapter names: a path as it is, one that starts at the adapter's directory, or a Hub name.
pub(crate) fn base_name(dir: &Path) -> Result<String> {
    let hint = "name the base model: `base` in a recipe, --base on the command line";
    let Some(name) = adapter_base(dir)? else {
        return Err(Error::user(format!("the adapter `{}` names no base model", dir.display()), hint));
    };
    let beside = dir.join(&name);
    let of_hub = name.split('/').count() == 2 && !name.starts_with(['/', '.']);
    match () {
        () if Path::new(&name).exists() => Ok(name),
        () if beside.exists() => Ok(beside.to_string_lossy().into_owned()),
        () if of_hub => Ok(format!("hf:{name}")),
        () => Err(Error::user(
            format!("the adapter `{}` names the base model `{name}`, which is not there", dir.display()),
            hint,
        )),
    }
}

/// Loads the tokenizer of a Hugging Face directory or a GGUF file.
pub fn load_tokenizer(path: &Path) -> Result<Tokenizer> {
    Ok(if path.is_dir() {
        Tokenizer::from_dir(path)?
    } else {
        Tokenizer::from_gguf(&temper_format::Gguf::open(path)?)?
    })
}

fn load_config(path: &Path) -> Result<Config> {
    if path.is_dir() {
        let file = path.join("config.json");
        return Ok(Config::from_json(&std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?)?);
    }
    Ok(Config::from_gguf(&temper_format::Gguf::open(path)?)?)
}
