//! From a TOML file and `--set` overrides to a [`Recipe`].

use std::path::{Path, PathBuf};

use toml::Value;

use super::missing::missing;
use super::{Knobs, Recipe};

/// A recipe that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file could not be read.
    #[error("cannot read the recipe `{path}`: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("`{path}` is not valid TOML: {message}", path = path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The parser's message with line and column.
        message: String,
    },
    /// A key or value that the recipe format does not have.
    #[error("`{path}`: {message}", path = path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is wrong, where.
        message: String,
    },
    /// A `--set` that does not fit.
    #[error("--set {set}: {why}")]
    Set {
        /// The override as given.
        set: String,
        /// What is wrong with it.
        why: String,
    },
}

/// A recipe with the file it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The recipe, every default filled in.
    pub recipe: Recipe,
    /// The file.
    pub path: PathBuf,
}

/// Reads a recipe file and applies `key.path=value` overrides, in order.
pub fn load(path: &Path, sets: &[String]) -> Result<Loaded, RecipeError> {
    let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Read { path: path.into(), source })?;
    parse(&text, path, sets).map(|recipe| Loaded { recipe, path: path.into() })
}

/// Reads a recipe from text; `path` is named in messages only.
pub fn parse(text: &str, path: &Path, sets: &[String]) -> Result<Recipe, RecipeError> {
    let table: toml::Table =
        text.parse().map_err(|e: toml::de::Error| RecipeError::Toml { path: path.into(), message: e.to_string() })?;
    let mut value = Value::Table(table);
    for set in sets {
        apply_set(&mut value, set)?;
    }
    let written = value.clone();
    read(value).map_err(|why| RecipeError::Shape { path: path.into(), message: with_all_missing(&written, why) })
}

/// What is missing everywhere, where something is: the parser alone stops at the first key.
fn with_all_missing(recipe: &Value, why: String) -> String {
    let mut all = missing(&Recipe::schema(), recipe);
    if all.is_empty() || !why.contains("missing field") {
        all.insert(0, why);
    }
    all.join("\n  ")
}

fn read(mut value: Value) -> Result<Recipe, String> {
    let knobs = take_knobs(&mut value)?;
    // The parts one by one first, so that a message names the stage or task it concerns.
    locate(&value)?;
    let mut recipe: Recipe = value.try_into().map_err(|e: toml::de::Error| tidy(&e))?;
    for (stage, knobs) in recipe.stage.iter_mut().zip(knobs).filter(|(_, knobs)| !knobs.is_empty()) {
        match stage.knobs_mut() {
            Some(place) => *place = knobs,
            None => return Err(format!("stage `{}`: nothing in a stage of this kind can move", stage.id())),
        }
    }
    Ok(recipe)
}

/// The moving settings of every stage.
fn take_knobs(recipe: &mut Value) -> Result<Vec<Knobs>, String> {
    let stages = recipe.get_mut("stage").and_then(Value::as_array_mut);
    let take = |(i, stage): (usize, &mut Value)| {
        Knobs::take(stage).map_err(|why| format!("{}: {why}", name(stage, "stage", i)))
    };
    stages.into_iter().flatten().enumerate().map(take).collect()
}

/// The recipe as a value, every default filled in.
pub fn to_value(recipe: &Recipe) -> Value {
    let mut value = Value::try_from(recipe).expect("a recipe holds nothing that TOML cannot say");
    let written = value.get_mut("stage").and_then(Value::as_array_mut).into_iter().flatten();
    let put = |(value, stage): (&mut Value, &super::Stage)| stage.training().iter().for_each(|t| t.knobs.put(value));
    written.zip(&recipe.stage).for_each(put);
    value
}

/// The recipe as TOML with every default spelled out: what a run directory keeps.
pub fn to_toml(recipe: &Recipe) -> String {
    // Through a value, so that plain keys come before tables whatever the order of the fields.
    toml::to_string_pretty(&to_value(recipe)).expect("a TOML value can be written")
}

fn tidy(error: &toml::de::Error) -> String {
    error.message().trim().to_string()
}

fn name(table: &Value, key: &str, i: usize) -> String {
    match table.get("id").and_then(Value::as_str) {
        Some(id) => format!("{key} `{id}`"),
        None => format!("{key} number {}", i + 1),
    }
}

/// Reads each element of the arrays of tables alone, to say which one is wrong.
fn locate(value: &Value) -> Result<(), String> {
    let tables = |key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    for (i, stage) in tables("stage").into_iter().enumerate() {
        let at = name(&stage, "stage", i);
        stage_fits(stage).map_err(|why| format!("{at}: {why}"))?;
    }
    for key in ["target", "retain"] {
        for (i, task) in tables(key).into_iter().enumerate() {
            let at = name(&task, key, i);
            task.try_into::<super::EvalTask>().map_err(|e| format!("{at}: {}", tidy(&e)))?;
        }
    }
    Ok(())
}

/// Reads a stage as the kind that it names: through the tagged enum, a message would not say which key is wrong.
fn stage_fits(stage: Value) -> Result<(), String> {
    let Value::Table(mut table) = stage else { return Err(format!("expected a table, found a {}", stage.type_str())) };
    let kind = table.remove("kind");
    let table = Value::Table(table);
    match kind.as_ref().and_then(Value::as_str) {
        Some("tokenizer") => fits::<super::TokenizerStage>(table),
        Some("init") => fits::<super::InitStage>(table),
        Some("offline") => fits::<super::OfflineStage>(table),
        Some("online") => fits::<super::OnlineStage>(table),
        Some("evaluate") => fits::<super::EvaluateStage>(table),
        other => Err(format!(
            "`kind` is {}, expected tokenizer, init, offline, online or evaluate",
            other.map_or("missing".into(), |k| format!("`{k}`"))
        )),
    }
}

fn fits<T: serde::de::DeserializeOwned>(table: Value) -> Result<(), String> {
    // The parser's own words have the key on a line of its own: "in `steps`".
    table.try_into::<T>().map(|_| ()).map_err(|e| e.to_string().trim().replace('\n', " "))
}

/// Applies one `a.b.c=value` override. A step into an array of tables is the `id` of an element or its number from 0.
/// The value is read as TOML, and as a plain string where it is none.
pub fn apply_set(root: &mut Value, set: &str) -> Result<(), RecipeError> {
    let fail = |why: String| RecipeError::Set { set: set.into(), why };
    let (path, text) = set.split_once('=').ok_or_else(|| fail("expected key.path=value".into()))?;
    let new = read_value(text.trim());
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().filter(|k| !k.is_empty()).ok_or_else(|| fail("the key is empty".into()))?;
    let mut at = root;
    for key in keys {
        at = step(at, key).map_err(&fail)?;
    }
    match at {
        Value::Table(table) => {
            table.insert(last.into(), new);
            Ok(())
        }
        Value::Array(_) => {
            *step(at, last).map_err(&fail)? = new;
            Ok(())
        }
        other => Err(fail(format!("`{last}` is set on a {}, expected a table", other.type_str()))),
    }
}

fn step<'a>(at: &'a mut Value, key: &str) -> Result<&'a mut Value, String> {
    match at {
        Value::Table(table) => Ok(table.entry(key).or_insert_with(|| Value::Table(toml::Table::new()))),
        Value::Array(items) => {
            let ids: Vec<String> =
                items.iter().filter_map(|v| v.get("id").and_then(Value::as_str).map(String::from)).collect();
            let by_id = items.iter().position(|v| v.get("id").and_then(Value::as_str) == Some(key));
            let index = by_id.or_else(|| key.parse().ok().filter(|&i: &usize| i < items.len()));
            index.map(|i| &mut items[i]).ok_or_else(|| {
                let known =
                    if ids.is_empty() { String::new() } else { format!(" or one of the ids {}", ids.join(", ")) };
                format!("no element `{key}`; expected a number below the length{known}")
            })
        }
        other => Err(format!("`{key}` is looked up in a {}, expected a table", other.type_str())),
    }
}

fn read_value(text: &str) -> Value {
    let parsed: Result<toml::Table, _> = format!("v = {text}").parse();
    parsed.ok().and_then(|mut t| t.remove("v")).unwrap_or_else(|| Value::String(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Value {
        Value::Table(text.parse().unwrap())
    }

    #[test]
    fn set_reaches_into_tables_and_arrays_by_id() {
        let mut v = table("seed = 1\n[[stage]]\nid = \"sft\"\nsteps = 3\n[stage.optimizer]\nlr = 1.0\n");
        apply_set(&mut v, "seed=7").unwrap();
        apply_set(&mut v, "stage.sft.optimizer.lr=1e-4").unwrap();
        apply_set(&mut v, "stage.0.steps=9").unwrap();
        apply_set(&mut v, "model.policy.path=models/x").unwrap();
        assert_eq!(v["seed"].as_integer(), Some(7));
        assert_eq!(v["stage"][0]["optimizer"]["lr"].as_float(), Some(1e-4));
        assert_eq!(v["stage"][0]["steps"].as_integer(), Some(9));
        assert_eq!(v["model"]["policy"]["path"].as_str(), Some("models/x"));
    }

    #[test]
    fn a_wrong_stage_names_the_stage_and_the_key() {
        let wrong = |stage: &str| {
            let text = format!("name = \"x\"\n[[stage]]\nid = \"sft\"\n{stage}");
            parse(&text, Path::new("x.toml"), &[]).unwrap_err().to_string()
        };
        let text = wrong("kind = \"evaluate\"\ntasks = 3");
        assert!(text.contains("stage `sft`") && text.contains("tasks"), "{text}");
        let text = wrong("kind = \"evaluate\"\nlerning_rate = 3");
        assert!(text.contains("lerning_rate") && text.contains("expected"), "{text}");
        assert!(wrong("kind = \"sft\"").contains("expected tokenizer, init, offline, online or evaluate"));
        assert!(wrong("").contains("`kind` is missing"));
    }

    #[test]
    fn a_set_that_does_not_fit_names_the_way_out() {
        let mut v = table("seed = 1\n[[stage]]\nid = \"sft\"\n");
        let text = apply_set(&mut v, "stage.rl.steps=3").unwrap_err().to_string();
        assert!(text.contains("`rl`") && text.contains("sft"), "{text}");
        assert!(apply_set(&mut v, "seed").unwrap_err().to_string().contains("key.path=value"));
        assert!(apply_set(&mut v, "seed.x=1").unwrap_err().to_string().contains("table"));
    }
}
