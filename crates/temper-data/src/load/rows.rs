//! From a row's columns to a payload.

use serde_json::Value;

use super::{Columns, Format, Kind};
use crate::{Conversation, Message, Payload};

/// Columns of prompts and answers that data sets use, tried in this order.
const TASK_COLUMNS: [(&str, &str); 9] = [
    ("question", "answer"),
    ("problem", "answer"),
    ("problem", "solution"),
    ("prompt", "answer"),
    ("prompt", "ground_truth"),
    ("prompt", "reward_model.ground_truth"),
    ("prompt", "solution"),
    ("messages", "ground_truth"),
    ("input", "target"),
];
const PAIR_COLUMNS: [(&str, &str); 3] = [("prompt", "completion"), ("query", "response"), ("prompt", "response")];
const TURN_COLUMNS: [&str; 3] = ["messages", "conversations", "conversation"];

/// What a file's rows are, with the columns that hold it.
pub(super) enum Shape {
    Messages { column: String },
    Alpaca,
    Pair { prompt: String, completion: String },
    Text { column: String },
    Task { prompt: String, answer: String, system: Option<String> },
}

impl Shape {
    /// What `format` asks for, with the columns of a row where it leaves them open.
    pub(super) fn of(row: &Columns, format: &Format) -> Result<Self, String> {
        match format.kind {
            Kind::Auto => guess(row, format),
            Kind::Messages => Ok(Self::Messages { column: turn_column(row).unwrap_or(TURN_COLUMNS[0]).to_owned() }),
            Kind::Alpaca => Ok(Self::Alpaca),
            Kind::PromptCompletion => Ok(pair(row, format)),
            Kind::Text => Ok(text(format)),
            Kind::Task => Ok(task(row, format)),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Messages { .. } => Kind::Messages,
            Self::Alpaca => Kind::Alpaca,
            Self::Pair { .. } => Kind::PromptCompletion,
            Self::Text { .. } => Kind::Text,
            Self::Task { .. } => Kind::Task,
        }
    }

    pub(super) fn payload(&self, mut row: Columns) -> Result<Payload, String> {
        match self {
            Self::Messages { column } => Ok(Payload::Chat(conversation(&row, column)?)),
            Self::Alpaca => Ok(Payload::Chat(alpaca(&row)?)),
            Self::Text { column } => Ok(Payload::Text(string(&row, column)?)),
            Self::Pair { prompt, completion } => prompt_completion(&row, prompt, completion),
            Self::Task { prompt, answer, system } => {
                let turns = opened(system.as_deref(), messages(need(&row, prompt)?, prompt)?);
                let answer_text = scalar(need(&row, answer)?, answer)?;
                row.remove(prompt);
                Ok(Payload::Task { prompt: turns, answer: answer_text, columns: row })
            }
        }
    }
}

/// Options that the kind gives no effect to are mistakes.
pub(super) fn check(format: &Format) -> Result<(), String> {
    let Format { kind, prompt_column, answer_column, text_column, system, .. } = format;
    let with_prompt = matches!(kind, Kind::Auto | Kind::Task | Kind::PromptCompletion);
    let with_text = matches!(kind, Kind::Auto | Kind::Text);
    let with_system = matches!(kind, Kind::Auto | Kind::Task);
    for (name, set, used) in [
        ("prompt_column", prompt_column.is_some(), with_prompt),
        ("answer_column", answer_column.is_some(), with_prompt),
        ("text_column", text_column.is_some(), with_text),
        ("system", system.is_some(), with_system),
    ] {
        if set && !used {
            return Err(format!("{name} has no effect with kind = {kind:?}; remove it or change kind"));
        }
    }
    Ok(())
}

fn guess(row: &Columns, format: &Format) -> Result<Shape, String> {
    if format.text_column.is_some() {
        return Ok(text(format));
    }
    if format.prompt_column.is_some() || format.answer_column.is_some() {
        return Ok(task(row, format));
    }
    let has = |column: &str| find(row, column).is_some();
    if has("chosen") && has("rejected") || row.get("label").is_some_and(Value::is_boolean) || has("kto_tag") {
        return Err("the rows compare or judge answers (chosen and rejected, or a label), which kind = auto does not \
            train on; set kind to use their other columns alone"
            .into());
    }
    let shape = if let Some((prompt, completion)) = PAIR_COLUMNS.into_iter().find(|(p, c)| has(p) && has(c)) {
        Shape::Pair { prompt: prompt.to_owned(), completion: completion.to_owned() }
    } else if has("instruction") && has("output") {
        Shape::Alpaca
    } else if TASK_COLUMNS.iter().any(|(p, a)| has(p) && has(a)) {
        return Ok(task(row, format));
    } else if let Some(column) = turn_column(row) {
        Shape::Messages { column: column.to_owned() }
    } else if has("text") {
        text(format)
    } else {
        let columns: Vec<&String> = row.keys().collect();
        return Err(format!(
            "cannot tell the format from the columns {columns:?}; expected messages, conversations, \
             instruction and output, prompt and completion, text, or question and answer; \
             set kind, prompt_column and answer_column"
        ));
    };
    match &format.system {
        Some(_) => Err(format!("system has no effect on {:?} rows; remove it or set kind = task", shape.kind())),
        None => Ok(shape),
    }
}

fn turn_column(row: &Columns) -> Option<&'static str> {
    TURN_COLUMNS.into_iter().find(|column| row.get(*column).is_some_and(Value::is_array))
}

fn text(format: &Format) -> Shape {
    Shape::Text { column: format.text_column.clone().unwrap_or_else(|| "text".into()) }
}

fn pair(row: &Columns, format: &Format) -> Shape {
    let (prompt, completion) = columns(row, format, &PAIR_COLUMNS);
    Shape::Pair { prompt, completion }
}

fn task(row: &Columns, format: &Format) -> Shape {
    let (prompt, answer) = columns(row, format, &TASK_COLUMNS);
    Shape::Task { prompt, answer, system: format.system.clone() }
}

/// The columns that were asked for; where none was, the first known pair that fits.
fn columns(row: &Columns, format: &Format, known: &[(&str, &str)]) -> (String, String) {
    let (prompt, answer) = (format.prompt_column.as_deref(), format.answer_column.as_deref());
    let fits = |(p, a): &&(&str, &str)| {
        prompt.is_none_or(|prompt| prompt == *p || !known.iter().any(|(p, _)| *p == prompt))
            && (prompt.is_some() || find(row, p).is_some())
            && (answer.is_some() || find(row, a).is_some())
    };
    let (p, a) = known.iter().find(fits).unwrap_or(&known[0]);
    (prompt.unwrap_or(p).to_owned(), answer.unwrap_or(a).to_owned())
}

/// A column, or a path of keys with dots between them.
fn find<'a>(row: &'a Columns, path: &str) -> Option<&'a Value> {
    let found = row.get(path).or_else(|| {
        let (first, rest) = path.split_once('.')?;
        rest.split('.').try_fold(row.get(first)?, |value, key| value.get(key))
    });
    found.filter(|value| !value.is_null())
}

fn need<'a>(row: &'a Columns, column: &str) -> Result<&'a Value, String> {
    find(row, column).ok_or_else(|| {
        let columns: Vec<&String> = row.keys().collect();
        format!("no column {column:?}; the row has {columns:?}")
    })
}

fn string(row: &Columns, column: &str) -> Result<String, String> {
    let value = need(row, column)?;
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| format!("{column:?} must be a string, found {}", kind_of(value)))
}

/// An answer is a string, or a number or boolean as JSON writes it.
fn scalar(value: &Value, column: &str) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        other => Err(format!("{column:?} must be a string or a number, found {}", kind_of(other))),
    }
}

pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A user turn from a string, or a list of messages.
fn messages(value: &Value, column: &str) -> Result<Vec<Message>, String> {
    match value {
        Value::String(text) => Ok(vec![Message::user(text.clone())]),
        Value::Array(turns) => turns.iter().enumerate().map(|(i, turn)| message(turn, column, i)).collect(),
        other => Err(format!("{column:?} must be a string or a list of messages, found {}", kind_of(other))),
    }
}

/// One turn in OpenAI's or ShareGPT's keys.
fn message(turn: &Value, column: &str, index: usize) -> Result<Message, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("{column}[{index}]: {why}");
    let mut turn = turn.as_object().cloned().ok_or_else(|| wrong(&"expected an object"))?;
    if !turn.contains_key("role") {
        let from = turn.remove("from").ok_or_else(|| wrong(&"neither `role` nor `from`"))?;
        let from = from.as_str().ok_or_else(|| wrong(&"`from` must be a string"))?;
        let value = turn.remove("value").ok_or_else(|| wrong(&"no `value`"))?;
        turn.insert("role".into(), role_of(from).into());
        turn.insert("content".into(), value);
        if from == "function_call" {
            call(&mut turn);
        }
    }
    serde_json::from_value(Value::Object(turn)).map_err(|e| wrong(&e))
}

/// ShareGPT's speakers.
fn role_of(from: &str) -> &str {
    match from {
        "human" => "user",
        "gpt" | "function_call" | "chatgpt" | "bard" | "bing" => "assistant",
        "observation" => "tool",
        other => other,
    }
}

/// ShareGPT writes a tool call as JSON text; templates want `tool_calls`. Text that is no call stays as it is.
fn call(turn: &mut Columns) {
    let parsed = turn["content"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let calls = match parsed {
        Some(Value::Array(calls)) => calls,
        Some(call) => vec![call],
        None => return,
    };
    if calls.iter().all(|call| call.get("name").is_some()) {
        let calls = calls.into_iter().map(|call| serde_json::json!({"type": "function", "function": call}));
        turn.insert("tool_calls".into(), calls.collect());
        turn.insert("content".into(), "".into());
    }
}

fn opened(system: Option<&str>, mut turns: Vec<Message>) -> Vec<Message> {
    if let Some(system) = system.filter(|text| !text.is_empty()) {
        turns.insert(0, Message::system(system));
    }
    turns
}

fn conversation(row: &Columns, column: &str) -> Result<Conversation, String> {
    let turns = match need(row, column)? {
        Value::Array(turns) if turns.iter().all(is_exchange) => exchanges(turns),
        value @ Value::Array(_) => messages(value, column)?,
        other => return Err(format!("{column:?} must be a list of messages, found {}", kind_of(other))),
    };
    if turns.is_empty() {
        return Err(format!("{column:?} is empty"));
    }
    let has_system = turns[0].role == "system";
    let system = row.get("system").and_then(Value::as_str).filter(|_| !has_system);
    Ok(Conversation { messages: opened(system, turns), tools: tools(row)? })
}

/// `{"human": ..., "assistant": ...}`, as some ShareGPT files write a pair of turns.
fn is_exchange(turn: &Value) -> bool {
    let text = |key: &str| turn.get(key).is_some_and(Value::is_string);
    text("human") && text("assistant")
}

fn exchanges(turns: &[Value]) -> Vec<Message> {
    let text = |turn: &Value, key: &str| turn[key].as_str().unwrap_or_default().to_owned();
    turns.iter().flat_map(|t| [Message::user(text(t, "human")), Message::assistant(text(t, "assistant"))]).collect()
}

/// Tools are a list, or such a list as JSON text.
fn tools(row: &Columns) -> Result<Option<Value>, String> {
    let wrong = |why: &str| format!("tools must be a list of functions or its JSON text: {why}");
    let list = match row.get("tools") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => serde_json::from_str(text).map_err(|e| wrong(&e.to_string()))?,
        Some(value) => value.clone(),
    };
    match list {
        Value::Array(list) if list.is_empty() => Ok(None),
        Value::Array(_) => Ok(Some(list)),
        other => Err(wrong(&format!("found {}", kind_of(&other)))),
    }
}

fn alpaca(row: &Columns) -> Result<Conversation, String> {
    let mut turns = Vec::new();
    for (index, pair) in row.get("history").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let text = |i: usize| pair.get(i).and_then(Value::as_str);
        let (Some(asked), Some(said)) = (text(0), text(1)) else {
            return Err(format!("history[{index}] must be two strings"));
        };
        turns.extend([Message::user(asked), Message::assistant(said)]);
    }
    let input = row.get("input").and_then(Value::as_str).filter(|input| !input.is_empty());
    let instruction = string(row, "instruction")?;
    let asked = input.map_or(instruction.clone(), |input| format!("{instruction}\n{input}"));
    turns.extend([Message::user(asked), Message::assistant(string(row, "output")?)]);
    let system = row.get("system").and_then(Value::as_str);
    Ok(Conversation { messages: opened(system, turns), tools: tools(row)? })
}

/// Two texts stay as they are; message lists become one conversation in which only the completion is trained.
fn prompt_completion(row: &Columns, prompt: &str, completion: &str) -> Result<Payload, String> {
    let (asked, said) = (need(row, prompt)?, need(row, completion)?);
    if let (Value::String(prompt), Value::String(completion)) = (asked, said) {
        return Ok(Payload::PromptCompletion { prompt: prompt.clone(), completion: completion.clone() });
    }
    let mut turns = messages(asked, prompt)?;
    for turn in turns.iter_mut().filter(|turn| turn.is_model()) {
        turn.weight = Some(0.0);
    }
    match said {
        Value::String(text) => turns.push(Message::assistant(text.clone())),
        said => turns.extend(messages(said, completion)?),
    }
    Ok(Payload::Chat(Conversation { messages: turns, tools: tools(row)? }))
}
