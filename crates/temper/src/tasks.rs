//! Task names on the command line: `chains:3:test`, `gsm8k:FILE`, or a task source as recipes write it.

use std::str::FromStr as _;

use temper_env::{Family, Split, TaskSource};
use toml::{Table, Value};

use crate::failure::user;

/// What a name leaves open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    /// Level of families.
    pub(crate) level: u8,
    /// Split of families.
    pub(crate) split: Split,
    /// Whether demonstrations show worked steps.
    pub(crate) cot: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { level: 1, split: Split::Test, cot: false }
    }
}

const FILES: [&str; 3] = ["gsm8k", "bbh", "blimp"];

/// The source that a name stands for.
pub(crate) fn source(name: &str, defaults: Defaults) -> anyhow::Result<TaskSource> {
    let name = name.trim();
    if name.starts_with('{') {
        return from_toml(name);
    }
    let (head, rest) = name.split_once(':').unwrap_or((name, ""));
    if FILES.contains(&head) {
        if rest.is_empty() {
            return Err(wrong(name, format!("`{head}` needs a file, as in {head}:FILE")));
        }
        return built(name, [("kind", Value::from(head)), ("path", Value::from(rest))]);
    }
    tiny_world(name, head, rest, defaults)
}

fn wrong(name: &str, why: impl std::fmt::Display) -> anyhow::Error {
    user(
        format!("`{name}` is not a task: {why}"),
        "name a family with level and split (chains:3:test), a file (gsm8k:FILE, bbh:FILE, blimp:FILE), or a source as \
         recipes write it ('{ kind = \"gsm8k\", path = \"FILE\" }'); `temper env list` shows the families",
    )
}

fn from_toml(text: &str) -> anyhow::Result<TaskSource> {
    let table: Result<Table, _> = format!("source = {text}").parse();
    let table = table.map_err(|e| wrong(text, e.message()))?;
    let source = table.get("source").cloned().unwrap_or(Value::Table(Table::new()));
    source.try_into().map_err(|e: toml::de::Error| wrong(text, e.message().trim()))
}

fn built(name: &str, keys: impl IntoIterator<Item = (&'static str, Value)>) -> anyhow::Result<TaskSource> {
    let table: Table = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Value::Table(table).try_into().map_err(|e: toml::de::Error| wrong(name, e.message().trim()))
}

/// `families[:levels[:split]]`.
fn tiny_world(name: &str, families: &str, rest: &str, defaults: Defaults) -> anyhow::Result<TaskSource> {
    let (levels, split) = rest.split_once(':').unwrap_or((rest, ""));
    let families = if families == "all" {
        Value::from("all")
    } else {
        let parse = |f: &str| Family::from_str(f.trim()).map(|f| Value::from(f.name())).map_err(|why| wrong(name, why));
        Value::Array(families.split(',').map(parse).collect::<anyhow::Result<_>>()?)
    };
    let levels = if levels.is_empty() { vec![defaults.level] } else { levels_of(name, levels)? };
    let split = if split.is_empty() { defaults.split.name() } else { split };
    let levels: Vec<Value> = levels.into_iter().map(|level| Value::from(i64::from(level))).collect();
    built(
        name,
        [
            ("kind", Value::from("tiny_world")),
            ("families", families),
            ("levels", Value::Array(levels)),
            ("split", Value::from(split)),
            ("cot", Value::from(defaults.cot)),
        ],
    )
}

/// `2`, `1-3` or `1,3`.
fn levels_of(name: &str, text: &str) -> anyhow::Result<Vec<u8>> {
    let level = |text: &str| {
        let level = text.trim().parse().ok().filter(|level| temper_env::LEVELS.contains(level));
        level.ok_or_else(|| wrong(name, format!("`{text}` is no level; levels are 1 to 5, as in 2, 1-3 or 1,3")))
    };
    let part = |part: &str| match part.split_once('-') {
        Some((from, to)) => Ok((level(from)?..=level(to)?).collect()),
        None => Ok(vec![level(part)?]),
    };
    let levels: Vec<Vec<u8>> = text.split(',').map(part).collect::<anyhow::Result<_>>()?;
    Ok(levels.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task_id(name: &str) -> String {
        source(name, Defaults::default()).unwrap().open(0).unwrap().get(0).unwrap().id
    }

    #[test]
    fn families_levels_and_splits() {
        assert!(task_id("chains:3:train").starts_with("chains/L3/train/"));
        assert!(task_id("chains").starts_with("chains/L1/test/"));
        assert!(task_id("sorting,chains:2-3").starts_with("sorting/L2/test/"));
        assert!(task_id("all:5:ood").contains("/L6/ood/"));
        let inline = source(
            "{ kind = \"tiny_world\", families = [\"chains\"], levels = [2], split = \"test\" }",
            Defaults::default(),
        );
        assert!(inline.unwrap().open(0).unwrap().get(0).unwrap().id.starts_with("chains/L2/test/"));
    }

    #[test]
    fn files_keep_their_colons() {
        let Ok(TaskSource::Gsm8k(source)) = source("gsm8k:hf:datasets/a/b/c.jsonl", Defaults::default()) else {
            panic!()
        };
        assert_eq!(source.path, "hf:datasets/a/b/c.jsonl");
    }

    #[test]
    fn what_is_no_task_is_named_with_what_would_be() {
        for (name, why) in [
            ("chain", "chains"),
            ("chains:9", "1 to 5"),
            ("chains:x", "1 to 5"),
            ("chains:1:dev", "train"),
            ("gsm8k", "gsm8k:FILE"),
            ("{ kind = \"tiny\" }", "tiny_world"),
            ("{ kind", "not a task"),
            ("", "not a task"),
        ] {
            let text = source(name, Defaults::default()).unwrap_err().to_string();
            assert!(text.contains(why), "{name}: {text}");
        }
    }
}
