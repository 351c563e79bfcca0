//! Keys that a recipe lacks, all of them at once: serde stops at the first.

use serde_json::Value as Schema;
use toml::Value;

/// Every required key of the schema that is not there, with where it belongs and what it is.
pub(super) fn missing(schema: &Schema, recipe: &Value) -> Vec<String> {
    let mut walk = Walk { root: schema, found: vec![] };
    walk.at(schema, recipe, "the recipe");
    walk.found
}

struct Walk<'a> {
    root: &'a Schema,
    found: Vec<String>,
}

impl<'a> Walk<'a> {
    fn at(&mut self, schema: &'a Schema, value: &Value, place: &str) {
        let schema = self.resolved(schema);
        for variant in ["oneOf", "anyOf", "allOf"].iter().filter_map(|key| schema[*key].as_array()).flatten() {
            if self.fits(variant, value) {
                self.at(variant, value, place);
            }
        }
        match value {
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.at(&schema["items"], item, &within(place, item, i));
                }
            }
            Value::Table(table) => {
                for key in schema["required"].as_array().into_iter().flatten().filter_map(Schema::as_str) {
                    if !table.contains_key(key) {
                        let about = self.resolved(&schema["properties"][key])["description"].as_str();
                        let about = schema["properties"][key]["description"].as_str().or(about).unwrap_or_default();
                        let about = about.split_inclusive(['.', ';']).next().unwrap_or_default();
                        self.found.push(format!("{place}: `{key}` is missing: {about}"));
                    }
                }
                for (key, value) in table {
                    if let Some(schema) = schema["properties"].get(key) {
                        self.at(schema, value, &format!("{place}, `{key}`"));
                    }
                }
            }
            _ => {}
        }
    }

    fn resolved(&self, schema: &'a Schema) -> &'a Schema {
        let name = schema["$ref"].as_str().and_then(|to| to.strip_prefix("#/$defs/"));
        name.map_or(schema, |name| &self.root["$defs"][name])
    }

    /// Whether a variant is the one meant: the same kind of value, and the same tag where it has one.
    fn fits(&self, variant: &'a Schema, value: &Value) -> bool {
        let variant = self.resolved(variant);
        let table = variant["type"] == "object" || variant.get("oneOf").is_some();
        let tag = variant["properties"]["kind"]["const"].as_str();
        match value {
            Value::Table(of) => table && tag.is_none_or(|tag| of.get("kind").and_then(Value::as_str) == Some(tag)),
            Value::Array(_) => variant["type"] == "array",
            _ => false,
        }
    }
}

/// An item by its `id` or `name`, or its number.
fn within(place: &str, item: &Value, i: usize) -> String {
    let name = ["id", "name"].iter().find_map(|key| item.get(*key)?.as_str());
    name.map_or_else(|| format!("{place} {i}"), |name| format!("{place} `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    fn of(text: &str) -> Vec<String> {
        missing(&Recipe::schema(), &Value::Table(text.parse().unwrap()))
    }

    #[test]
    fn every_key_is_named_with_its_place_and_meaning() {
        let text = r#"
            [[stage]]
            id = "rl"
            kind = "online"
            tasks = [{ source = { kind = "tiny_world", families = ["copying"], split = "train" } }]
            rewards = [{ kind = "length" }]
            steps = 3
            [stage.sampling]
            temperature = { kind = "schedule", from = 1.0 }
            [stage.optimizer]
            kind = "adamw"
            [stage.objective]
            kl = {}
        "#;
        let found = of(text).join("\n");
        for part in [
            "the recipe: `name` is missing: Name of the run",
            "the recipe, `stage` `rl`: `prompts_per_step` is missing: Prompts in a round, P.",
            "`stage` `rl`: `samples_per_prompt`",
            "`stage` `rl`, `sampling`: `max_tokens`",
            "`sampling`, `temperature`: `to`",
            "`stage` `rl`, `optimizer`: `lr`",
            "`stage` `rl`, `rewards` 0: `name`",
            "`stage` `rl`, `rewards` 0: `max`",
            "`stage` `rl`, `objective`, `kl`: `beta`",
            "`tasks` 0, `source`: `levels`",
        ] {
            assert!(found.contains(part), "{part} is not in\n{found}");
        }
        assert_eq!(found.lines().count(), 10, "{found}");
    }

    #[test]
    fn nothing_is_missing_in_what_ships() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "toml") {
                let found = of(&std::fs::read_to_string(&path).unwrap());
                assert!(found.is_empty(), "{}: {found:?}", path.display());
            }
        }
    }
}
