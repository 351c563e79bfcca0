//! `temper recipe schema` and `temper recipe diff`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use temper_train::recipe::{Recipe, load, to_value};

use crate::args::{RecipeCommand, RecipeDiff};
use crate::failure::Exit;
use crate::output::data;
use crate::table::{Side, Table};

/// Runs the command.
pub(crate) fn run(args: &RecipeCommand) -> anyhow::Result<Exit> {
    match args {
        RecipeCommand::Schema => data(&format!("{:#}\n", Recipe::schema()))?,
        RecipeCommand::Diff(args) => data(&diff(args)?)?,
    }
    Ok(Exit::Done)
}

/// A key of either recipe that the other lacks or has another value for.
#[derive(Debug, PartialEq)]
struct Difference {
    key: String,
    a: Option<Value>,
    b: Option<Value>,
}

fn diff(args: &RecipeDiff) -> anyhow::Result<String> {
    let [a, b] = [load(&args.a, &[])?.recipe, load(&args.b, &[])?.recipe];
    let found = differences(&settings(&a), &settings(&b));
    if args.json {
        let rows: Vec<Value> = found.iter().map(|d| json!({ "key": d.key, "a": d.a, "b": d.b })).collect();
        return Ok(format!("{:#}\n", Value::Array(rows)));
    }
    if found.is_empty() {
        return Ok("no setting differs\n".into());
    }
    let mut table = Table::new([("setting", Side::Left), (a.name.as_str(), Side::Left), (b.name.as_str(), Side::Left)]);
    for d in &found {
        table.row([d.key.clone(), shown(d.a.as_ref()), shown(d.b.as_ref())]);
    }
    Ok(table.text())
}

fn shown(value: Option<&Value>) -> String {
    value.map_or("-".into(), ToString::to_string)
}

/// Every setting of the recipe under its dotted key, elements of arrays by their id where they have one.
fn settings(recipe: &Recipe) -> BTreeMap<String, Value> {
    let mut value = serde_json::to_value(to_value(recipe)).expect("a recipe is JSON");
    let root = value.as_object_mut().expect("a table");
    for words in ["name", "about", "method"] {
        root.remove(words);
    }
    let mut all = BTreeMap::new();
    flatten("", &value, &mut all);
    all
}

fn flatten(at: &str, value: &Value, all: &mut BTreeMap<String, Value>) {
    let under = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    match value {
        Value::Object(table) => table.iter().for_each(|(key, value)| flatten(&under(key), value, all)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (i, item) in items.iter().enumerate() {
                let id = item.get("id").and_then(Value::as_str).map_or_else(|| i.to_string(), str::to_owned);
                flatten(&under(&id), item, all);
            }
        }
        _ => {
            all.insert(at.to_owned(), value.clone());
        }
    }
}

fn differences(a: &BTreeMap<String, Value>, b: &BTreeMap<String, Value>) -> Vec<Difference> {
    let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let pair = |key: &String| Difference { key: key.clone(), a: a.get(key).cloned(), b: b.get(key).cloned() };
    keys.into_iter().map(pair).filter(|d| d.a != d.b).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_elements_by_id_and_only_differences_remain() {
        let flat = |value: Value| {
            let mut all = BTreeMap::new();
            flatten("", &value, &mut all);
            all
        };
        let a = flat(json!({ "seed": 1, "stage": [{ "id": "sft", "steps": 3, "data": [{ "n": 1 }] }] }));
        let b = flat(json!({ "seed": 1, "stage": [{ "id": "sft", "steps": 4, "data": [{ "n": 1 }], "lr": [1, 2] }] }));
        let found = differences(&a, &b);
        assert_eq!(found[0], Difference { key: "stage.sft.lr".into(), a: None, b: Some(json!([1, 2])) });
        assert_eq!(found[1], Difference { key: "stage.sft.steps".into(), a: Some(json!(3)), b: Some(json!(4)) });
        assert_eq!(found.len(), 2);
        assert!(a.contains_key("stage.sft.data.0.n"));
    }
}
