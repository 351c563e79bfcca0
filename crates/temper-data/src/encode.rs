//! Examples to training sequences: token ids with a loss weight for each.

mod batch;
mod turns;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tokenizer::Pieces;
use crate::{Conversation, Error, Example, Message, Payload, Tokenizer};
pub use batch::{Dropped, Report, encode_all};
use turns::Turns;

/// Which tokens are trained on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskPolicy {
    /// The model's turns with their end-of-turn markers, completions, and plain texts.
    #[default]
    Response,
    /// Every token that has one before it; weights of messages still scale the model's turns.
    All,
}

/// What happens to an example of more than `max_tokens` tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// It is left out, and counted.
    #[default]
    Drop,
    /// Its end is cut off, and counted.
    Truncate,
    /// It stops the run.
    Error,
}

/// A training sequence. `weights[t]` is the loss weight of predicting `ids[t]`; 0 is not trained. The first token has
/// nothing before it, so its weight is 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Loss weight of each token.
    pub weights: Vec<f32>,
    /// Whether the end was cut off.
    pub truncated: bool,
    /// Whether the last token is an end token that the row's own text does not have.
    pub end_added: bool,
    /// Turns of the model that are not trained because the chat template writes them differently once the
    /// conversation goes on, so that they are not what the model would have generated.
    pub rewritten_turns: usize,
    /// Trained turns that the chat template opens in another way than it does for generation.
    pub unlike_prompt: usize,
    /// Trained turns or texts without an end marker: the model does not learn there when to stop.
    pub endless_turns: usize,
}

impl Encoded {
    /// Takes the added end token off again: the row as it is written.
    pub fn without_added_end(&mut self) {
        if std::mem::take(&mut self.end_added) {
            self.ids.pop();
            self.weights.pop();
        }
    }

    /// Tokens with a weight above 0.
    pub fn supervised(&self) -> usize {
        self.weights.iter().filter(|weight| **weight > 0.0).count()
    }

    /// The text in runs of equal weight, to show what is trained on.
    pub fn runs(&self, tokenizer: &Tokenizer) -> Vec<(String, f32)> {
        let pairs: Vec<(u32, f32)> = self.ids.iter().copied().zip(self.weights.iter().copied()).collect();
        let runs = pairs.chunk_by(|a, b| a.1 == b.1);
        runs.map(|run| {
            let ids: Vec<u32> = run.iter().map(|(id, _)| *id).collect();
            (tokenizer.decode(&ids, false), run[0].1)
        })
        .collect()
    }
}

/// Why an example is not trained on.
#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// More than `max_tokens` tokens.
    #[error("{tokens} tokens exceed max_tokens = {max_tokens}")]
    TooLong {
        /// The example's tokens.
        tokens: usize,
        /// The limit.
        max_tokens: usize,
    },
    /// Cut to `max_tokens`, nothing to train on is left.
    #[error("the first trained token comes after max_tokens = {max_tokens}")]
    TruncatedAway {
        /// The limit.
        max_tokens: usize,
    },
    /// No token has a weight above 0.
    #[error("no token to train on")]
    NoSupervisedTokens,
    /// Nothing comes before what is to be written.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The chat template refuses the conversation.
    #[error("{0}")]
    Unrenderable(String),
    /// The chat template was stopped because it does not end.
    #[error("the chat template was stopped after {steps} steps: it does not end")]
    EndlessTemplate {
        /// How many steps it was given.
        steps: u64,
    },
    /// The chat template rewrites every turn that would be trained on.
    #[error(
        "the chat template writes the model's turns differently from what the model would generate after its prompt"
    )]
    RewrittenHistory,
    /// The row's contents make no example.
    #[error("{0}")]
    BadRow(String),
}

impl Cause {
    /// The name under which reports count it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too_long",
            Self::TruncatedAway { .. } => "truncated_away",
            Self::NoSupervisedTokens => "no_supervised_tokens",
            Self::EmptyPrompt => "empty_prompt",
            Self::Unrenderable(_) => "unrenderable",
            Self::EndlessTemplate { .. } => "endless_template",
            Self::RewrittenHistory => "rewritten_history",
            Self::BadRow(_) => "bad_row",
        }
    }
}

/// Encodes one example; `max_tokens` counts all its tokens.
///
/// Masks are by position: the model's turns are found in the rendered text by rendering the conversation up to them,
/// and the tokens that start there are trained, with the end-of-turn marker and without what follows it. The tokens
/// before a turn are those that [`encode_prompt`] gives for the messages before it.
pub fn encode(
    tokenizer: &Tokenizer,
    example: &Example,
    mask: MaskPolicy,
    max_tokens: usize,
    overflow: Overflow,
) -> Result<Encoded, Cause> {
    let mut encoded = match &example.payload {
        Payload::Chat(conversation) => encode_chat(tokenizer, conversation, mask)?,
        Payload::Text(text) => encode_text(tokenizer, text)?,
        Payload::PromptCompletion { prompt, completion } => encode_completion(tokenizer, prompt, completion, mask)?,
        Payload::Task { prompt, answer, .. } => encode_chat(tokenizer, &answered(prompt, answer)?, mask)?,
    };
    if let Some(first) = encoded.weights.first_mut() {
        *first = 0.0;
    }
    if encoded.supervised() == 0 {
        return Err(Cause::NoSupervisedTokens);
    }
    fit(encoded, max_tokens, overflow)
}

/// The tokens that generation starts from: the chat template's rendering with the header of the model's next turn, or,
/// without a template, the contents joined as they are (after BOS, if the tokenizer puts it there).
pub fn encode_prompt(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>, Error> {
    prompt_of(tokenizer, &Conversation::new(messages.to_vec()))
}

/// The tokens that the model would have to write after [`encode_prompt`] of these messages to say `answer`, its end-of-turn
/// marker included. `None` where the chat template writes the messages or the answer differently once they are history.
///
/// # Errors
/// What [`encode`] drops examples for.
pub fn encode_answer(tokenizer: &Tokenizer, messages: &[Message], answer: &str) -> Result<Option<Vec<u32>>, Cause> {
    let prompt = encode_prompt(tokenizer, messages).map_err(unrenderable)?;
    let whole = match encode_chat(tokenizer, &answered(messages, answer)?, MaskPolicy::Response) {
        Err(Cause::RewrittenHistory) => return Ok(None),
        whole => whole?,
    };
    let end = whole.weights.iter().rposition(|weight| *weight > 0.0).map_or(0, |last| last + 1);
    let mut tokens = match whole.ids[..end].strip_prefix(prompt.as_slice()) {
        Some(tokens) if !tokens.is_empty() => tokens.to_vec(),
        _ => return Ok(None),
    };
    if whole.endless_turns > 0 {
        tokens.extend(tokenizer.eos_ids().first());
    }
    Ok(Some(tokens))
}

/// The tokens between the model's answer to these messages, with its end-of-turn marker, and its next turn, when the user says
/// `text` in between; encoded alone, so that what was generated before keeps its tokens. `None` where the chat template
/// writes the answer differently once it is history.
pub fn encode_followup(tokenizer: &Tokenizer, messages: &[Message], text: &str) -> Result<Option<Vec<u32>>, Error> {
    // Whatever the model says: the words of others do not depend on it.
    let said = [Message::assistant("x"), Message::user(text)];
    let conversation = Conversation::new([messages, &said].concat());
    let rendered = tokenizer.render(&conversation, true)?;
    let turns = Turns::find(tokenizer, &conversation, &rendered);
    let answer = turns.list.iter().find(|turn| turn.message == messages.len());
    let Some(end) = answer.and_then(|turn| turn.end) else { return Ok(None) };
    let pieces = Pieces::new(tokenizer, &rendered, &[end.at])?;
    Ok(Some(pieces.ids[pieces.turns[0]..].to_vec()))
}

/// The tokens that generation starts from for an example: everything before the model's last turn, the prompt of a
/// prompt-completion pair, or a whole text.
pub fn encode_example_prompt(tokenizer: &Tokenizer, example: &Example) -> Result<Vec<u32>, Error> {
    match &example.payload {
        Payload::Chat(conversation) => {
            let last = conversation.messages.iter().rposition(Message::is_model);
            let messages = conversation.messages[..last.unwrap_or(conversation.messages.len())].to_vec();
            prompt_of(tokenizer, &Conversation { messages, tools: conversation.tools.clone() })
        }
        Payload::Text(text) | Payload::PromptCompletion { prompt: text, .. } => tokenizer.encode_with_bos(text),
        Payload::Task { prompt, .. } => encode_prompt(tokenizer, prompt),
    }
}

fn prompt_of(tokenizer: &Tokenizer, conversation: &Conversation) -> Result<Vec<u32>, Error> {
    if tokenizer.deaf(conversation.tools.as_ref()).to_user {
        return Err(Error::Render(deaf_to("user")));
    }
    let text = tokenizer.render(conversation, true)?;
    let starts = turns::starts(tokenizer, conversation, &text);
    Ok(Pieces::new(tokenizer, &text, &starts)?.ids)
}

fn encode_chat(tokenizer: &Tokenizer, conversation: &Conversation, mask: MaskPolicy) -> Result<Encoded, Cause> {
    let asked = |message: &Message| !message.is_model() && !message.content.trim().is_empty();
    if !conversation.messages.iter().any(asked) {
        return Err(Cause::EmptyPrompt);
    }
    if !conversation.messages.iter().any(|message| message.loss_weight() > 0.0) && mask == MaskPolicy::Response {
        return Err(Cause::NoSupervisedTokens);
    }
    let deaf = tokenizer.deaf(conversation.tools.as_ref());
    if deaf.to_user || deaf.to_model {
        return Err(Cause::Unrenderable(deaf_to(if deaf.to_user { "user" } else { "model" })));
    }
    let text = tokenizer.render(conversation, false).map_err(unrenderable)?;
    let turns = Turns::find(tokenizer, conversation, &text);
    let pieces = Pieces::new(tokenizer, &text, &turns.starts()).map_err(|e| Cause::BadRow(e.to_string()))?;
    let elsewhere = if mask == MaskPolicy::All { 1.0 } else { 0.0 };
    let mut encoded = Encoded { weights: vec![elsewhere; pieces.ids.len()], ..Encoded::default() };
    for (turn, first) in turns.list.iter().zip(&pieces.turns) {
        let weight = conversation.messages[turn.message].loss_weight();
        let Some(end) = turn.end else {
            encoded.rewritten_turns += usize::from(weight > 0.0);
            continue;
        };
        if weight > 0.0 && !writes_calls(&text[turn.start..end.at], &conversation.messages[turn.message]) {
            return Err(Cause::Unrenderable("the chat template leaves out the tool calls of a turn".into()));
        }
        encoded.weights[pieces.until(*first, end.at)].fill(weight);
        encoded.unlike_prompt += usize::from(weight > 0.0 && !turn.as_generated);
        encoded.endless_turns += usize::from(weight > 0.0 && !end.marked);
    }
    encoded.rewritten_turns += turns.lost.iter().filter(|i| conversation.messages[**i].loss_weight() > 0.0).count();
    if encoded.supervised() == 0 && encoded.rewritten_turns > 0 {
        return Err(turns.refused.unwrap_or(Cause::RewrittenHistory));
    }
    encoded.ids = pieces.ids;
    Ok(encoded)
}

/// Whether the names of a message's tool calls, if it has any, are in the text of its turn. Templates that know no
/// tools write an empty turn instead, which must not be learnt.
fn writes_calls(text: &str, message: &Message) -> bool {
    let calls = message.extra.get("tool_calls").and_then(Value::as_array);
    calls.into_iter().flatten().all(|call| {
        let name = call.get("function").unwrap_or(call).get("name").and_then(Value::as_str);
        name.is_none_or(|name| text.contains(name))
    })
}

/// What is wrong with a template that writes the same whatever someone says.
fn deaf_to(who: &str) -> String {
    format!(
        "it writes the same whatever the {who} says; expected one that writes each message's `content`, which is a text \
         (templates of image models may want a list of parts)"
    )
}

fn unrenderable(error: Error) -> Cause {
    match error {
        Error::EndlessTemplate { steps } => Cause::EndlessTemplate { steps },
        Error::Render(why) => Cause::Unrenderable(why),
        other => Cause::Unrenderable(other.to_string()),
    }
}

/// A text with BOS, if the tokenizer puts it there; all of it is trained on.
fn encode_text(tokenizer: &Tokenizer, text: &str) -> Result<Encoded, Cause> {
    Ok(ended(tokenizer, tokenizer.encode_with_bos(text).map_err(|e| Cause::BadRow(e.to_string()))?, 0))
}

fn encode_completion(
    tokenizer: &Tokenizer,
    prompt: &str,
    completion: &str,
    mask: MaskPolicy,
) -> Result<Encoded, Cause> {
    if prompt.is_empty() && tokenizer.leading_bos().is_none() {
        return Err(Cause::EmptyPrompt);
    }
    let text = format!("{prompt}{completion}");
    let pieces = Pieces::new(tokenizer, &text, &[prompt.len()]).map_err(|e| Cause::BadRow(e.to_string()))?;
    let mut ids: Vec<u32> = tokenizer.leading_bos().into_iter().collect();
    let prompt = ids.len() + pieces.turns[0];
    ids.extend(pieces.ids);
    Ok(ended(tokenizer, ids, if mask == MaskPolicy::Response { prompt } else { 0 }))
}

/// A row with the end token behind it, where the tokenizer has one; all is trained on but the first `read` tokens.
fn ended(tokenizer: &Tokenizer, mut ids: Vec<u32>, read: usize) -> Encoded {
    let end = tokenizer.eos_ids().first();
    ids.extend(end);
    let mut weights = vec![1.0; ids.len()];
    weights[..read].fill(0.0);
    let (end_added, endless_turns) = (end.is_some(), usize::from(end.is_none()));
    Encoded { ids, weights, end_added, endless_turns, ..Encoded::default() }
}

/// A task as a conversation that ends with its answer.
fn answered(prompt: &[Message], answer: &str) -> Result<Conversation, Cause> {
    if answer.is_empty() {
        return Err(Cause::BadRow("the task has no answer to train on".into()));
    }
    let mut messages = prompt.to_vec();
    messages.push(Message::assistant(answer));
    Ok(Conversation::new(messages))
}

fn fit(mut encoded: Encoded, max_tokens: usize, overflow: Overflow) -> Result<Encoded, Cause> {
    let tokens = encoded.ids.len();
    if tokens <= max_tokens {
        return Ok(encoded);
    }
    if overflow != Overflow::Truncate {
        return Err(Cause::TooLong { tokens, max_tokens });
    }
    encoded.ids.truncate(max_tokens);
    encoded.weights.truncate(max_tokens);
    encoded.truncated = true;
    encoded.end_added = false;
    if encoded.supervised() == 0 { Err(Cause::TruncatedAway { max_tokens }) } else { Ok(encoded) }
}
