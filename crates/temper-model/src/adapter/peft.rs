//! PEFT's directory of an adapter: `adapter_config.json` and `adapter_model.safetensors`.

use super::Lora;
use super::targets::{self, linear_layers, parse_module};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::weights::read_text;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use temper_format::{ArrayData, ArrayInfo, ArraySource, DType, SafetensorsFile, SafetensorsWriter, atomic};
use temper_tensor::Ops;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Options that say nothing about what the stored adapter computes.
const WITHOUT_EFFECT: [&str; 21] = [
    "task_type",
    "auto_mapping",
    "inference_mode",
    "revision",
    "peft_version",
    "runtime_config",
    "ensure_weight_tying",
    "megatron_core",
    "qalora_group_size",
    // Where and how it began; the tensors say where it is.
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    // Read.
    "peft_type",
    "base_model_name_or_path",
    "use_rslora",
    "lora_dropout",
];

/// Whether a directory holds an adapter rather than a model.
pub fn is_adapter(path: &Path) -> bool {
    path.join(CONFIG).is_file()
}

/// The base model that an adapter names.
pub fn adapter_base(dir: &Path) -> Result<Option<String>> {
    let config = read_config(dir)?;
    Ok(config.get("base_model_name_or_path").and_then(Value::as_str).filter(|s| !s.is_empty()).map(String::from))
}

/// `base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight`.
pub(super) fn tensor_name(layer: usize, part: &str, which: &str) -> String {
    format!("base_model.model.{}.lora_{which}.weight", targets::module(layer, part))
}

fn read_config(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join(CONFIG);
    let text = read_text(&path)?;
    serde_json::from_str(&text).map_err(|why| Error::json(&path, &why))
}

impl Model {
    /// Reads an adapter in PEFT's format onto this model, whose own weights are frozen by it.
    ///
    /// # Errors
    /// Files that are missing or damaged, another kind of adapter than LoRA, options that Temper does not compute, tensors of another
    /// model or rank, values that are not finite.
    pub fn load_adapter(&mut self, dir: &Path) -> Result<()> {
        let lora = parse(&read_config(dir)?).map_err(Error::within(&dir.join(CONFIG)))?;
        let path = dir.join(WEIGHTS);
        if !path.is_file() {
            let what = format!("`{}` is not there", path.display());
            return Err(Error::adapter(
                what,
                "save the adapter with PEFT's `save_pretrained`, which writes safetensors",
            ));
        }
        let file = SafetensorsFile::open(&path)?;
        self.read_adapter(&file, lora).map_err(Error::within(&path))
    }

    fn read_adapter(&mut self, file: &SafetensorsFile, mut lora: Lora) -> Result<()> {
        let layers = adapted(file, self.config.num_hidden_layers)?;
        lora.targets = targets::target_modules(&layers, self.config.num_hidden_layers);
        for &(layer, part) in &layers {
            let (n, k) = self.linear_shape(layer, part);
            for (which, expected) in [("A", [lora.rank, k]), ("B", [n, lora.rank])] {
                let name = tensor_name(layer, part, which);
                let found = file.info(&name).map(|i| i.shape).unwrap_or_default();
                if found != expected {
                    let what =
                        format!("`{name}` has shape {found:?}, rank {} and the base ask for {expected:?}", lora.rank);
                    return Err(Error::adapter(what, "give the base model that the adapter was trained on"));
                }
            }
        }
        self.begin_adapter(&lora)?;
        for (layer, part) in layers {
            let [a, b] = ["A", "B"].map(|which| finite(file, &tensor_name(layer, part, which)));
            self.add_pair(layer, part, &a?, &b?)?;
        }
        Ok(())
    }

    /// Writes the adapter's two files into an existing directory. `base` is what names the base model: a Hub name or a path.
    ///
    /// # Errors
    /// A model without an adapter, files that cannot be written.
    pub fn save_adapter_into(&self, ops: &dyn Ops, dir: &Path, base: &str) -> Result<()> {
        let Some(adapter) = &self.adapter else {
            return Err(Error::adapter("the model has no adapter", "save the model itself"));
        };
        let own = || self.params.iter().skip(adapter.base);
        let info = |(n, k): (usize, usize)| ArrayInfo { dtype: DType::F32, shape: vec![n, k] };
        let infos = own().map(|(_, p)| (p.name.clone(), info(p.shape())));
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let mut file = SafetensorsWriter::create(dir.join(WEIGHTS), infos, &metadata)?;
        for (id, param) in own() {
            file.push(&param.name, ArrayData::F32(&self.params.values(ops, id)?))?;
        }
        file.finish()?;
        let config = written(&adapter.lora, base, &self.adapted_modules());
        Ok(atomic::write(dir.join(CONFIG), format!("{config:#}\n").as_bytes())?)
    }

    fn adapted_modules(&self) -> Vec<String> {
        let blocks = self.config.num_hidden_layers;
        let has = |&(layer, part): &(usize, &str)| self.params.by_name(&tensor_name(layer, part, "A")).is_some();
        targets::target_modules(&linear_layers(blocks).filter(has).collect::<Vec<_>>(), blocks)
    }
}

/// The layers that the file's tensors belong to.
fn adapted(file: &SafetensorsFile, blocks: usize) -> Result<Vec<(usize, &'static str)>> {
    let place = |name: &str| {
        let module = name.strip_prefix("base_model.model.")?.strip_suffix(".weight")?;
        let module = module.strip_suffix(".lora_A").or_else(|| module.strip_suffix(".lora_B"))?;
        parse_module(module).filter(|(layer, _)| *layer < blocks)
    };
    for name in file.names() {
        if place(&name).is_none() {
            let what = format!("`{name}` is no LoRA matrix of a linear layer of the base, which has {blocks} blocks");
            return Err(Error::adapter(
                what,
                "Temper reads LoRA on the projections of attention and feed-forward, with the base that it was trained on",
            ));
        }
    }
    let there =
        |&(layer, part): &(usize, &str)| ["A", "B"].iter().any(|w| file.info(&tensor_name(layer, part, w)).is_some());
    let layers: Vec<(usize, &'static str)> = linear_layers(blocks).filter(there).collect();
    if layers.is_empty() { Err(Error::adapter("there is no tensor", "save the adapter again")) } else { Ok(layers) }
}

fn finite(file: &SafetensorsFile, name: &str) -> Result<Vec<f32>> {
    let values = file.read_f32(name)?;
    match values.iter().find(|v| !v.is_finite()) {
        Some(&value) => Err(Error::NotFinite { path: file.path().into(), name: name.into(), value }),
        None => Ok(values),
    }
}

/// The settings in `adapter_config.json`; whatever changes the result and is not computed here is an error.
fn parse(config: &Map<String, Value>) -> Result<Lora> {
    let kind = config.get("peft_type").and_then(Value::as_str).unwrap_or("missing");
    if kind != "LORA" {
        return Err(Error::adapter(
            format!("`peft_type` is {kind}"),
            "Temper reads LORA; merge other adapters with PEFT first",
        ));
    }
    for (key, value) in config {
        understood(key, value)?;
    }
    let number = |key: &str, default: f64| match config.get(key) {
        None => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| Error::adapter(format!("`{key}` is {value}"), "write a number")),
    };
    let rank = number("r", 8.0)?;
    let lora = Lora {
        rank: if rank.fract() == 0.0 && rank >= 0.0 { rank as usize } else { 0 },
        alpha: number("lora_alpha", 8.0)?,
        dropout: number("lora_dropout", 0.0)?,
        targets: vec!["all_linear".into()],
        rslora: config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
    };
    lora.validate(None)?;
    Ok(lora)
}

/// Options that are read or without effect pass; others must be switched off, whatever they are.
fn understood(key: &str, value: &Value) -> Result<()> {
    let off = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => key == "bias" && text == "none",
        _ => false,
    };
    // These leave the base's weights alone; PiSSA, OLoRA, LoftQ and others subtract their start from them.
    let harmless_start = key == "init_lora_weights"
        && (value.is_boolean() || value.as_str().is_some_and(|s| ["gaussian", "eva"].contains(&s)));
    if off || harmless_start || WITHOUT_EFFECT.contains(&key) || ["r", "lora_alpha"].contains(&key) {
        return Ok(());
    }
    let what = format!("`{key}` is {value}, which Temper does not compute");
    Err(Error::adapter(what, "merge the adapter with PEFT (`merge_and_unload`) and load the merged model"))
}

fn written(lora: &Lora, base: &str, modules: &[String]) -> Value {
    // PEFT's alpha is a whole number by declaration.
    let alpha = if lora.alpha.fract() == 0.0 { json!(lora.alpha as i64) } else { json!(lora.alpha) };
    json!({
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": lora.rslora,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> Map<String, Value> {
        serde_json::from_str(&format!(r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 16{more}}}"#)).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let lora = Lora { rank: 4, alpha: 16.0, dropout: 0.1, targets: vec!["all_linear".into()], rslora: true };
        let Value::Object(object) = written(&lora, "x", &["q_proj".into()]) else { panic!("an object") };
        assert_eq!(parse(&object).unwrap(), lora);
        assert_eq!(object["lora_alpha"], json!(16));
    }

    #[test]
    fn options_that_are_off_pass_and_others_are_named() {
        let off = r#", "use_dora": false, "bias": "none", "modules_to_save": null, "rank_pattern": {}, "something_new": false,
            "target_modules": ["q_proj"], "init_lora_weights": "gaussian", "loftq_config": {"loftq_bits": 4}"#;
        assert_eq!(parse(&config(off)).unwrap().scaling(), 4.0);
        for (more, key) in [
            (r#", "use_dora": true"#, "`use_dora` is true"),
            (r#", "bias": "all""#, "`bias` is \"all\""),
            (r#", "modules_to_save": ["lm_head"]"#, "`modules_to_save`"),
            (r#", "rank_pattern": {"q_proj": 2}"#, "`rank_pattern`"),
            (r#", "init_lora_weights": "pissa""#, "`init_lora_weights` is \"pissa\""),
            (r#", "something_new": 3"#, "`something_new` is 3"),
            (r#", "lora_alpha": "x""#, "`lora_alpha` is \"x\""),
            (r#", "r": 0"#, "`rank` is 0"),
        ] {
            let message = parse(&config(more)).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
        let ia3 = serde_json::from_str(r#"{"peft_type": "IA3"}"#).unwrap();
        assert!(parse(&ia3).unwrap_err().to_string().contains("IA3"));
    }
}
