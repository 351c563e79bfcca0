//! Conversations and the rows of a data set: what a model is shown and what it should say.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation, in the OpenAI shape.
///
/// On reading, `content` may also be null (no text, as beside tool calls) or a list of text parts, which are
/// joined; keys that are not named here go to `extra` and reach the chat template unchanged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool` or whatever else the template knows.
    pub role: String,
    /// The text of the turn.
    #[serde(default, deserialize_with = "content")]
    pub content: String,
    /// Loss weight of an assistant turn; `None` is 1. Read from `weight`, `loss`, `train`, `training` or `trainable`
    /// (a number or a boolean).
    #[serde(
        default,
        alias = "loss",
        alias = "train",
        alias = "training",
        alias = "trainable",
        deserialize_with = "weight",
        skip_serializing_if = "Option::is_none"
    )]
    pub weight: Option<f32>,
    /// Everything else the row says about the turn (`tool_calls`, `name`, `reasoning_content` ...).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A turn with nothing but a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), weight: None, extra: Map::new() }
    }

    /// A system turn.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// A user turn.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// An assistant turn.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// The same turn with a loss weight.
    #[must_use]
    pub fn with_weight(mut self, weight: f32) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Whether the model writes this turn (role `assistant`, or `model` as some templates call it).
    pub fn is_model(&self) -> bool {
        matches!(self.role.as_str(), "assistant" | "model")
    }

    /// The loss weight under response-only training: 1 for the model's turns unless the row says otherwise, 0 for the rest.
    pub fn loss_weight(&self) -> f32 {
        if self.is_model() { self.weight.unwrap_or(1.0) } else { 0.0 }
    }
}

/// The turns of one conversation and the tools that the template may describe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// The turns, oldest first.
    pub messages: Vec<Message>,
    /// Tool descriptions (JSON schemas), passed to the template as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Value>,
}

impl Conversation {
    /// A conversation without tools.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, tools: None }
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self::new(messages)
    }
}

/// What a row of data holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// A conversation, rendered by the tokenizer's chat template.
    Chat(Conversation),
    /// Plain text, as in pretraining.
    Text(String),
    /// A raw prompt and its continuation, joined as they are, with no template.
    PromptCompletion {
        /// What is given.
        prompt: String,
        /// What is to be written.
        completion: String,
    },
    /// A prompt and the answer that a verifier compares with.
    Task {
        /// The turns before the answer.
        prompt: Vec<Message>,
        /// The gold answer, as the data spells it.
        answer: String,
        /// The row's other columns.
        #[serde(default)]
        columns: Map<String, Value>,
    },
}

/// One row of data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Stable name: given by the row's `id`, or `<file stem>:<line>`.
    pub id: String,
    /// The contents.
    pub payload: Payload,
    /// Where it comes from; samplers and reports group by these.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// Text, null, or a list of `{"type": "text", "text": ...}` parts.
fn content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Null => Ok(String::new()),
        Value::Array(parts) => parts.iter().map(text_part).collect::<Result<_, _>>().map_err(D::Error::custom),
        other => {
            Err(D::Error::custom(format!("content must be a string, null or a list of text parts, found {other}")))
        }
    }
}

fn text_part(part: &Value) -> Result<&str, String> {
    part.as_str()
        .or_else(|| part.get("text").and_then(Value::as_str))
        .ok_or_else(|| format!("only text parts are supported in content, found {part}"))
}

/// Weights say how much more one turn counts than another. Beyond this a sum of them would leave the range of f32,
/// and the row that did it could no longer be named.
const HEAVIEST: f32 = 1e6;

/// The weight as it is trained with, unless it is out of range or would silently become 0.
fn narrow(weight: f64) -> Option<f32> {
    let narrow = weight as f32;
    let kept = (0.0..=HEAVIEST).contains(&narrow) && (narrow > 0.0) == (weight > 0.0) && weight >= 0.0;
    kept.then_some(narrow)
}

/// A number of at least 0, a boolean, or null.
fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f32>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    match &value {
        Value::Null => Ok(None),
        Value::Bool(on) => Ok(Some(f32::from(u8::from(*on)))),
        Value::Number(number) => number.as_f64().and_then(narrow).map(Some).ok_or_else(|| {
            D::Error::custom(format!("weight must be 0 or more, and at most {HEAVIEST} (usually 1), found {number}"))
        }),
        other => Err(D::Error::custom(format!("weight must be a number or a boolean, found {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_data_sets_write() {
        let message: Message =
            serde_json::from_str(r#"{"role":"assistant","content":"a","loss":false,"name":"x"}"#).unwrap();
        assert_eq!(message.weight, Some(0.0));
        assert_eq!(message.extra["name"], "x");
        let parts: Message = serde_json::from_str(
            r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#,
        )
        .unwrap();
        assert_eq!(parts, Message::user("ab"));
        let null: Message = serde_json::from_str(r#"{"role":"assistant","content":null,"tool_calls":[1]}"#).unwrap();
        assert_eq!(null.content, "");
        assert_eq!(serde_json::to_string(&Message::user("a")).unwrap(), r#"{"role":"user","content":"a"}"#);
    }

    #[test]
    fn refuses_what_it_cannot_mean() {
        for bad in [
            r#"{"role":"user","content":3}"#,
            r#"{"role":"user","content":[{"type":"image"}]}"#,
            r#"{"role":"assistant","content":"a","weight":-1}"#,
            r#"{"role":"assistant","content":"a","weight":"much"}"#,
            // Infinity, or 0, once it is an f32.
            r#"{"role":"assistant","content":"a","weight":1e300}"#,
            r#"{"role":"assistant","content":"a","weight":1e-300}"#,
            r#"{"role":"assistant","content":"a","weight":1000001}"#,
        ] {
            assert!(serde_json::from_str::<Message>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn payloads_round_trip() {
        let example = Example {
            id: "a:1".into(),
            payload: Payload::Task { prompt: vec![Message::user("q")], answer: "4".into(), columns: Map::new() },
            tags: vec!["a".into()],
        };
        let text = serde_json::to_string(&example).unwrap();
        assert_eq!(serde_json::from_str::<Example>(&text).unwrap(), example);
    }
}
