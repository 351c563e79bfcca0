//! Writing a model as a Hugging Face directory that transformers loads.

use super::layout::tensors;
use crate::error::{Error, Result};
use crate::model::Model;
use std::collections::BTreeMap;
use std::path::Path;
use temper_format::atomic::{self, DirWriter};
use temper_format::{ArrayData, ArrayInfo, DType, SafetensorsWriter};
use temper_tensor::Ops;

impl Model {
    /// Writes `config.json`, `generation_config.json` and `model.safetensors` as the directory `dir`, whole or not at
    /// all. What was at `dir` before is replaced, other files there included; to add a tokenizer to the same directory,
    /// open a [`DirWriter`] and use [`Model::save_into`].
    pub fn save(&self, ops: &dyn Ops, dir: impl AsRef<Path>, dtype: DType) -> Result<()> {
        let aside = DirWriter::create(dir)?;
        self.save_into(ops, aside.path(), dtype)?;
        Ok(aside.commit()?)
    }

    /// Writes the three files into an existing directory, one that a [`DirWriter`] holds aside for example. Weights are
    /// rounded to `dtype` (F32, BF16 or F16), to the nearest with ties to even.
    pub fn save_into(&self, ops: &dyn Ops, dir: impl AsRef<Path>, dtype: DType) -> Result<()> {
        if self.adapter().is_some() {
            return Err(Error::adapter(
                "a model with an adapter is not saved whole",
                "merge it first, or save the adapter",
            ));
        }
        if self.params.any_quantised() {
            let what = "saving a model that is held in quantised blocks";
            return Err(Error::unsupported(what, "load it in f32 and save that, or copy its file"));
        }
        let dir = dir.as_ref();
        let name = torch_name(dtype)?;
        self.write_weights(ops, &dir.join("model.safetensors"), dtype)?;
        let write =
            |file: &str, json: &serde_json::Value| atomic::write(dir.join(file), format!("{json:#}\n").as_bytes());
        write("generation_config.json", &self.config.to_generation_json())?;
        Ok(write("config.json", &self.config.to_json(name))?)
    }

    fn write_weights(&self, ops: &dyn Ops, path: &Path, dtype: DType) -> Result<()> {
        let specs = tensors(&self.config);
        let infos = specs.iter().map(|s| (s.name.clone(), ArrayInfo { dtype, shape: s.shape.clone() }));
        let mut file = SafetensorsWriter::create(path, infos, &BTreeMap::new())?;
        for (id, param) in self.params.iter().filter(|(_, p)| specs.iter().any(|s| s.name == p.name)) {
            file.push(&param.name, ArrayData::F32(&self.params.values(ops, id)?))?;
        }
        Ok(file.finish()?)
    }
}

/// PyTorch's name of the type, as config.json has it.
fn torch_name(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("float32"),
        DType::BF16 => Ok("bfloat16"),
        DType::F16 => Ok("float16"),
        other => Err(Error::unsupported(format!("saving a model as {other}"), "use F32, BF16 or F16")),
    }
}
