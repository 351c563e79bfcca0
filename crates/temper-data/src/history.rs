//! What is known about each example from training: the one store that samplers, filters and curricula read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What happened to one example.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Times it was in a step's batch.
    pub seen: u64,
    /// The last step that had it.
    pub last_step: u64,
    /// Attempts (samples, answers) that were graded.
    pub attempts: u64,
    /// Attempts that passed.
    pub passes: u64,
    /// Losses recorded.
    pub losses: u64,
    /// Mean of the recorded losses.
    pub mean_loss: f64,
    /// Advantages recorded.
    pub advantages: u64,
    /// Mean absolute value of the recorded advantages.
    pub mean_abs_adv: f64,
}

impl Record {
    /// Passed over graded attempts, `None` before the first.
    pub fn pass_rate(&self) -> Option<f64> {
        (self.attempts > 0).then(|| self.passes as f64 / self.attempts as f64)
    }
}

/// A [`Record`] for each example by id. What serde writes and reads again is the same store.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History {
    records: BTreeMap<String, Record>,
}

impl History {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The example was in the batch of `step`.
    pub fn saw(&mut self, id: &str, step: u64) {
        let record = self.entry(id);
        record.seen += 1;
        record.last_step = step;
    }

    /// `passes` of `attempts` graded attempts passed.
    pub fn graded(&mut self, id: &str, passes: u64, attempts: u64) {
        let record = self.entry(id);
        record.passes += passes;
        record.attempts += attempts;
    }

    /// The example's loss in a step.
    pub fn lost(&mut self, id: &str, loss: f64) {
        let record = self.entry(id);
        mean(&mut record.mean_loss, &mut record.losses, loss);
    }

    /// The advantage of one attempt.
    pub fn advantage(&mut self, id: &str, adv: f64) {
        let record = self.entry(id);
        mean(&mut record.mean_abs_adv, &mut record.advantages, adv.abs());
    }

    /// What is known about an example.
    pub fn get(&self, id: &str) -> Option<&Record> {
        self.records.get(id)
    }

    /// All examples that something is known about, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Record)> {
        self.records.iter().map(|(id, record)| (id.as_str(), record))
    }

    /// How many examples something is known about.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing is known yet.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn entry(&mut self, id: &str) -> &mut Record {
        if !self.records.contains_key(id) {
            self.records.insert(id.to_owned(), Record::default());
        }
        self.records.entry(id.to_owned()).or_default()
    }
}

/// Adds a value to a running mean. JSON has no NaN or infinity, so a value that is neither finite is left out.
fn mean(mean: &mut f64, count: &mut u64, value: f64) {
    if value.is_finite() {
        *count += 1;
        *mean += (value - *mean) / *count as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_add_up_and_survive_serde() {
        let mut history = History::new();
        history.saw("a:1", 3);
        history.saw("a:1", 5);
        history.graded("a:1", 1, 4);
        history.graded("a:1", 2, 4);
        for loss in [1.0, 2.0, f64::NAN] {
            history.lost("a:1", loss);
        }
        for adv in [-1.0, 0.5] {
            history.advantage("a:1", adv);
        }
        let record = history.get("a:1").unwrap();
        assert_eq!((record.seen, record.last_step, record.pass_rate()), (2, 5, Some(0.375)));
        assert_eq!((record.losses, record.mean_loss, record.mean_abs_adv), (2, 1.5, 0.75));
        assert_eq!(history.get("b"), None);
        let text = serde_json::to_string(&history).unwrap();
        assert_eq!(serde_json::from_str::<History>(&text).unwrap(), history);
    }
}
