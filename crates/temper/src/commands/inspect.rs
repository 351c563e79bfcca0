//! Everything that can be said about a recipe before it runs: used by `check`, `plan` and `run`.

use std::path::Path;

use temper_train::hub::HubName;
use temper_train::plan::{self, Missing};
use temper_train::recipe::{self, Problem, Recipe, Severity};

use crate::output::{label, say};

/// A recipe with what was found.
pub(crate) struct Inspected {
    /// The recipe, every default filled in.
    pub(crate) recipe: Recipe,
    /// Errors and warnings, in the order of the recipe.
    pub(crate) problems: Vec<Problem>,
    /// Names on the Hub that are not in the cache: no error, `temper run` fetches them.
    pub(crate) not_local: Vec<Missing>,
}

impl Inspected {
    /// Reads and checks a recipe, and looks whether the files that it names are there. No model is loaded.
    pub(crate) fn read(path: &Path, sets: &[String]) -> anyhow::Result<Self> {
        let recipe = recipe::load(path, sets)?.recipe;
        let mut problems = recipe::check(&recipe);
        let (not_local, missing): (Vec<Missing>, Vec<Missing>) =
            plan::missing(&recipe).into_iter().partition(|m| m.hub);
        problems.extend(missing.iter().map(missing_file));
        problems.extend(plan::inputs(&recipe).iter().filter_map(|(at, name)| wrong_kind(at, name)));
        Ok(Self { recipe, problems, not_local })
    }

    /// How many problems are errors.
    pub(crate) fn errors(&self) -> usize {
        self.problems.iter().filter(|p| p.severity == Severity::Error).count()
    }
}

/// A problem in two lines.
pub(crate) fn problem_lines(problem: &Problem) -> [String; 2] {
    let severity = match problem.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    [format!("{} {}: {}", label(severity), problem.at, problem.what), format!("{} {}", label("hint"), problem.hint)]
}

/// Says what was found.
pub(crate) fn tell(problems: &[Problem]) {
    for line in problems.iter().flat_map(problem_lines) {
        say(&line);
    }
}

fn error(at: &str, what: String, hint: String) -> Problem {
    Problem { at: at.into(), what, hint, severity: Severity::Error }
}

fn missing_file(missing: &Missing) -> Problem {
    if let Some(Err(bad)) = HubName::parse(&missing.name) {
        return error(&missing.at, bad.to_string(), bad.hint().unwrap_or("name a local file").into());
    }
    let what = format!("there is no `{}`", missing.name);
    let hint = if missing.name.starts_with('/') { "" } else { " (paths start at the current directory)" };
    error(&missing.at, what, format!("check the path{hint}, or name another one with --set"))
}

/// A directory where a data file is expected, or something that cannot be a model.
fn wrong_kind(at: &str, name: &str) -> Option<Problem> {
    let path = Path::new(name);
    if HubName::parse(name).is_some() || !path.exists() {
        return None;
    }
    if at.starts_with("model.") {
        return not_a_model(path).map(|what| {
            error(
                at,
                format!("`{name}` {what}"),
                "name a Hugging Face directory, a .gguf file, or a Hub name such as hf:owner/name".into(),
            )
        });
    }
    // A stage may name the directory of a tokenizer.
    let expected_file = path.is_dir() && !path.join("tokenizer.json").is_file();
    expected_file
        .then(|| error(at, format!("`{name}` is a directory, a data file was expected"), "name the file itself".into()))
}

fn not_a_model(path: &Path) -> Option<String> {
    if path.is_file() {
        let gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        return (!gguf).then(|| "is a file that is no .gguf".into());
    }
    let has = |name: &str| path.join(name).is_file();
    if temper_model::is_adapter(path) {
        let lacks = !has("adapter_model.safetensors");
        return lacks.then(|| "is an adapter without adapter_model.safetensors".into());
    }
    let weights = has("model.safetensors") || has("model.safetensors.index.json");
    let lacks: Vec<&str> = [
        ("config.json", has("config.json")),
        ("tokenizer.json", has("tokenizer.json")),
        ("model.safetensors", weights),
    ]
    .into_iter()
    .filter_map(|(name, there)| (!there).then_some(name))
    .collect();
    (!lacks.is_empty()).then(|| format!("is a directory without {}", lacks.join(", ")))
}
