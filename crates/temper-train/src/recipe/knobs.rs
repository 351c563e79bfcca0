//! Settings that move: a stage's numbers in whose place a recipe gives a knob.
//!
//! Reading a recipe takes the knobs out and leaves each one's first value, so that everything downstream sees plain numbers; before
//! each round the loop puts the present values in ([`Knobs::fix`]).

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use temper_algo::{Knob, KnobState, Signal};
use toml::Value;

/// The moving settings of a stage by their paths, such as `objective.kl.beta`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Knobs(BTreeMap<String, Knob>);

/// Settings that may move, by the beginning of their path: those that are read anew in every round.
pub(super) const ONLINE: [&str; 6] =
    ["objective.", "shaping.", "sampling.temperature", "weight", "streams.", "gradient."];
/// The same for offline stages.
pub(super) const OFFLINE: [&str; 5] = ["objective.", "terms.", "weight", "streams.", "gradient."];
/// The same within a stream.
const STREAM: [&str; 3] = ["objective.", "terms.", "weight"];

/// Whether a setting is read anew in every round: one that `movable` names, or begins.
pub(super) fn moves(path: &str, movable: &[&str]) -> bool {
    if let Some((_, within)) = path.strip_prefix("streams.").and_then(|rest| rest.split_once('.')) {
        return movable.contains(&"streams.") && moves(within, &STREAM);
    }
    movable.iter().any(|start| if start.ends_with('.') { path.starts_with(start) } else { path == *start })
}

/// What the knobs of a stage remember, by path; part of a checkpoint.
pub type KnobStates = BTreeMap<String, KnobState>;

impl Knobs {
    /// Takes the knobs out of a stage as written.
    ///
    /// # Errors
    /// A table with the `kind` of a knob that is none.
    pub fn take(stage: &mut Value) -> Result<Self, String> {
        let mut found = BTreeMap::new();
        take_from(stage, String::new(), &mut found)?;
        Ok(Self(found))
    }

    /// Writes the knobs back in place of their first values.
    pub fn put(&self, stage: &mut Value) {
        for (path, knob) in &self.0 {
            *at(stage, path) = Value::try_from(knob).expect("a knob is a table of numbers and words");
        }
    }

    /// Whether nothing moves.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Knobs by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Knob)> {
        self.0.iter().map(|(path, knob)| (path.as_str(), knob))
    }

    /// The values in step `step` (from 0) of `total`, by path.
    pub fn values(&self, states: &KnobStates, step: u64, total: u64) -> Vec<(&str, f64)> {
        let value = |path: &str, knob: &Knob| knob.value(&state(states, path, knob), step, total);
        self.iter().map(|(path, knob)| (path, value(path, knob))).collect()
    }

    /// The stage with its knobs at these values.
    #[must_use]
    pub fn fix<S: Serialize + DeserializeOwned + Clone>(&self, stage: &S, values: &[(&str, f64)]) -> S {
        if values.is_empty() {
            return stage.clone();
        }
        let mut value = Value::try_from(stage).expect("a stage holds nothing that TOML cannot say");
        for (path, number) in values {
            *at(&mut value, path) = Value::Float(*number);
        }
        value.try_into().expect("a number in place of a number")
    }

    /// The stage at both ends of the knobs' ranges; as it is where nothing moves. An end of 0, where a fixed number would be an
    /// option without effect, is moved off it.
    pub fn extremes<S: Serialize + DeserializeOwned + Clone>(&self, stage: &S) -> Vec<S> {
        if self.is_empty() {
            return vec![stage.clone()];
        }
        let end = |i: usize| {
            let value = |knob: &Knob| Some(knob.range()[i]).filter(|v| *v != 0.0).unwrap_or(f64::MIN_POSITIVE);
            self.fix(stage, &self.iter().map(|(path, knob)| (path, value(knob))).collect::<Vec<_>>())
        };
        vec![end(0), end(1)]
    }

    /// Tells the controllers what was measured in a step; what was not measured changes nothing.
    pub fn observe(&self, states: &mut KnobStates, kl: Option<f64>, entropy: Option<f64>) {
        for (path, knob) in self.iter() {
            let measured = match knob.watches() {
                Some(Signal::Kl) => kl,
                Some(Signal::Entropy) => entropy,
                None => None,
            };
            if let Some(measured) = measured {
                let new = knob.observe(state(states, path, knob), measured);
                states.insert(path.to_owned(), new);
            }
        }
    }
}

/// Lets the numbers of a recipe's schema that may move be knobs: those of every type that the settings of [`ONLINE`] and [`OFFLINE`] are made of.
pub(super) fn allow(schema: &mut serde_json::Value) {
    let roots = ["PolicyObjective", "RewardShaping", "TokenObjective", "WeightedTerm", "GradientTransform"];
    let mut names: Vec<String> = roots.map(String::from).to_vec();
    let mut next = 0;
    while let Some(name) = names.get(next).cloned() {
        references(&schema["$defs"][&name], &mut names);
        next += 1;
    }
    for name in &names {
        numbers(&mut schema["$defs"][name]);
    }
    or_knob(&mut schema["$defs"]["Generation"]["properties"]["temperature"]);
    or_knob(&mut schema["$defs"]["Stream"]["properties"]["weight"]);
    for stage in ["OfflineStage", "OnlineStage"] {
        or_knob(&mut schema["$defs"][stage]["properties"]["weight"]);
    }
}

fn references(schema: &serde_json::Value, names: &mut Vec<String>) {
    use serde_json::Value::{Array, Object, String};
    match schema {
        Object(table) => {
            for (key, value) in table {
                match value {
                    String(to) if key == "$ref" => {
                        let name = to.trim_start_matches("#/$defs/").to_owned();
                        if !names.contains(&name) {
                            names.push(name);
                        }
                    }
                    value => references(value, names),
                }
            }
        }
        Array(items) => items.iter().for_each(|item| references(item, names)),
        _ => {}
    }
}

fn numbers(schema: &mut serde_json::Value) {
    use serde_json::Value::{Array, Object};
    match schema {
        Object(table) => {
            let number = |v: &serde_json::Value| v == "number" || v.get(0).is_some_and(|first| first == "number");
            if table.get("type").is_some_and(number) {
                return or_knob(schema);
            }
            table.values_mut().for_each(numbers);
        }
        Array(items) => items.iter_mut().for_each(numbers),
        _ => {}
    }
}

/// The schema of a number, or a knob in its place.
fn or_knob(schema: &mut serde_json::Value) {
    let Some(table) = schema.as_object_mut() else { return };
    let mut number = serde_json::Map::new();
    for key in ["type", "format", "minimum", "maximum"] {
        number.extend(table.remove_entry(key));
    }
    table.insert("anyOf".into(), serde_json::json!([number, { "$ref": "#/$defs/Knob" }]));
}

fn state(states: &KnobStates, path: &str, knob: &Knob) -> KnobState {
    states.get(path).copied().unwrap_or_else(|| knob.start())
}

fn take_from(value: &mut Value, path: String, found: &mut BTreeMap<String, Knob>) -> Result<(), String> {
    let within = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    if is_knob(value) {
        let knob: Knob = value.clone().try_into().map_err(|e: toml::de::Error| format!("`{path}`: {}", e.message()))?;
        *value = Value::Float(knob.start().value);
        found.insert(path, knob);
        return Ok(());
    }
    match value {
        Value::Table(table) => table.iter_mut().try_for_each(|(key, v)| take_from(v, within(key), found)),
        Value::Array(items) => {
            items.iter_mut().enumerate().try_for_each(|(i, v)| take_from(v, within(&i.to_string()), found))
        }
        _ => Ok(()),
    }
}

fn is_knob(value: &Value) -> bool {
    value.get("kind").and_then(Value::as_str).is_some_and(|kind| Knob::KINDS.contains(&kind))
}

/// The value at a path that [`Knobs::take`] made.
fn at<'a>(value: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').fold(value, |value, key| match value {
        Value::Array(items) => &mut items[key.parse::<usize>().expect("a number steps into an array")],
        table => &mut table[key],
    })
}

#[cfg(test)]
mod tests {
    use temper_algo::Curve;

    use super::*;
    use crate::recipe::OnlineStage;

    const STAGE: &str = r#"
        id = "rl"
        tasks = [{ source = { kind = "tiny_world", families = ["copying"], levels = [1], split = "train" } }]
        steps = 4
        prompts_per_step = 2
        samples_per_prompt = 2
        sampling = { max_tokens = 4, temperature = { kind = "target_entropy", init = 1.0, target = 0.3, delta = 0.25, min = 0.5, max = 1.5 } }
        rewards = [{ name = "correct", kind = "verifier" }]
        optimizer = { kind = "adamw", lr = 1e-3 }
        shaping = [{ kind = "flip", part = "correct", probability = { kind = "schedule", from = 0.0, to = 0.5 } }]
        objective = { kl = { beta = { kind = "adaptive_kl", init = 0.1, target = 2.0 } } }
    "#;

    fn stage() -> (OnlineStage, Knobs) {
        let mut value = Value::Table(STAGE.parse().unwrap());
        let written = value.clone();
        let knobs = Knobs::take(&mut value).unwrap();
        let stage: OnlineStage = value.try_into().unwrap();
        let mut again = Value::try_from(&stage).unwrap();
        knobs.put(&mut again);
        let back = Knobs::take(&mut again).unwrap();
        assert_eq!((back, again.try_into().unwrap()), (knobs.clone(), stage.clone()), "{written}");
        (stage, knobs)
    }

    #[test]
    fn knobs_are_taken_out_and_put_in() {
        let (stage, knobs) = stage();
        let paths: Vec<&str> = knobs.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["objective.kl.beta", "sampling.temperature", "shaping.0.probability"]);
        assert_eq!((stage.sampling.temperature, stage.objective.kl.unwrap().beta), (1.0, 0.1));
        let schedule = Knob::Schedule { from: 0.0, to: 0.5, curve: Curve::Linear, begin: 0.0, end: 1.0 };
        assert_eq!(knobs.iter().nth(2).unwrap().1, &schedule);
        // Nothing else changes on the way.
        assert_eq!(knobs.fix(&stage, &knobs.values(&KnobStates::new(), 0, 4)), stage);
        let later = knobs.fix(&stage, &knobs.values(&KnobStates::new(), 2, 4));
        assert_eq!(serde_json::to_value(&later.shaping).unwrap()[0]["probability"], 0.25);
    }

    #[test]
    fn controllers_follow_what_is_measured() {
        let (_, knobs) = stage();
        let mut states = KnobStates::new();
        knobs.observe(&mut states, Some(8.0), Some(0.1));
        knobs.observe(&mut states, None, None);
        let values = knobs.values(&states, 0, 4);
        assert_eq!(values[0], ("objective.kl.beta", 0.1 * (1.0 + 0.1 * 0.2)));
        assert_eq!(values[1], ("sampling.temperature", 1.25));
        let json = serde_json::to_string(&states).unwrap();
        assert_eq!(serde_json::from_str::<KnobStates>(&json).unwrap(), states);
    }

    #[test]
    fn a_knob_that_is_none_is_named() {
        let mut value = Value::Table(STAGE.replace("target = 2.0", "goal = 2.0").parse().unwrap());
        let error = Knobs::take(&mut value).unwrap_err();
        assert!(error.contains("`objective.kl.beta`") && error.contains("goal"), "{error}");
    }

    #[test]
    fn both_ends_are_looked_at() {
        let (stage, knobs) = stage();
        let ends = knobs.extremes(&stage).iter().map(|s| s.sampling.temperature).collect::<Vec<_>>();
        assert_eq!(ends, [0.5, 1.5]);
        assert_eq!(Knobs::default().extremes(&stage), [stage]);
    }
}
