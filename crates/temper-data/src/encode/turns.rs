//! Where the model's turns lie in a rendered conversation.

use super::{Cause, unrenderable};
use crate::{Conversation, Error, Message, Tokenizer};

/// The model's turns in a rendering, in order.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Turns {
    /// Turns whose start is known.
    pub(super) list: Vec<Turn>,
    /// Messages of the model before which the template writes something else than in the whole conversation.
    pub(super) lost: Vec<usize>,
    /// What the template said when it first refused a part of the conversation.
    pub(super) refused: Option<Cause>,
}

/// One turn of the model; bytes count in the rendering.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// Index of the message.
    pub(super) message: usize,
    /// First byte behind the prompt.
    pub(super) start: usize,
    /// Whether the prompt is the one that generation starts from.
    pub(super) as_generated: bool,
    /// `None` if the rendering does not continue the prompt with what the model would write.
    pub(super) end: Option<End>,
}

/// Where the supervised part of a turn ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// First byte behind it.
    pub(super) at: usize,
    /// Whether it ends with a marker that the template adds.
    pub(super) marked: bool,
}

impl Turns {
    pub(super) fn find(tokenizer: &Tokenizer, conversation: &Conversation, text: &str) -> Self {
        let stops: Vec<String> = tokenizer.stop_texts().collect();
        let mut turns = Self::default();
        for (message, _) in model_messages(conversation) {
            match turns.heard(turn_start(tokenizer, conversation, message, text)) {
                Some((start, as_generated)) => {
                    let end = turns.heard(turn_end(tokenizer, conversation, message, text, start, &stops));
                    turns.list.push(Turn { message, start, as_generated, end });
                }
                None => turns.lost.push(message),
            }
        }
        turns
    }

    /// What was found, if anything; an error is kept, to be told if the whole conversation comes to nothing by it.
    fn heard<T>(&mut self, found: Result<Option<T>, Error>) -> Option<T> {
        found.unwrap_or_else(|error| {
            self.refused.get_or_insert_with(|| unrenderable(error));
            None
        })
    }

    pub(super) fn starts(&self) -> Vec<usize> {
        self.list.iter().map(|turn| turn.start).collect()
    }
}

/// Where the model's turns start in a rendering, as far as that is known.
pub(super) fn starts(tokenizer: &Tokenizer, conversation: &Conversation, text: &str) -> Vec<usize> {
    let messages = model_messages(conversation);
    let start = |message| Some(turn_start(tokenizer, conversation, message, text).ok()??.0);
    messages.filter_map(|(message, _)| start(message)).collect()
}

fn model_messages(conversation: &Conversation) -> impl Iterator<Item = (usize, &Message)> {
    conversation.messages.iter().enumerate().filter(|(_, message)| message.is_model())
}

/// Where the turn of a message starts, and whether the text before it is the prompt of generation.
///
/// Some templates open the model's turn in one way for generation (`<think>`) and in another in a transcript. The turn
/// then starts with the first token that differs, if the messages before it are written alike.
fn turn_start(
    tokenizer: &Tokenizer,
    conversation: &Conversation,
    message: usize,
    text: &str,
) -> Result<Option<(usize, bool)>, Error> {
    let (before, tools) = (&conversation.messages[..message], conversation.tools.as_ref());
    let prompt = tokenizer.render_messages(before, tools, true)?;
    if text.starts_with(&prompt) {
        return Ok(Some((prompt.len(), true)));
    }
    let history = tokenizer.render_messages(before, tools, false)?;
    if !text.starts_with(&history) {
        return Ok(None);
    }
    let start = first_difference(tokenizer, &prompt, text).filter(|start| *start >= history.len());
    Ok(start.map(|start| (start, false)))
}

/// The byte of `text` at which the first token starts that `prompt` does not have there.
fn first_difference(tokenizer: &Tokenizer, prompt: &str, text: &str) -> Option<usize> {
    let (ids, starts) = tokenizer.encode_with_starts(text).ok()?;
    let prompt = tokenizer.encode(prompt).ok()?;
    let same = ids.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
    starts.get(same).copied()
}

/// The end of a turn: what the template writes for it when it is the last one, cut behind the first stop token after
/// the content or else stripped of white space, if the rendering of the whole conversation has the same text there.
fn turn_end(
    tokenizer: &Tokenizer,
    conversation: &Conversation,
    message: usize,
    text: &str,
    start: usize,
    stops: &[String],
) -> Result<Option<End>, Error> {
    let messages = &conversation.messages[..=message];
    let rendered;
    let alone = if message + 1 == conversation.messages.len() {
        text
    } else {
        rendered = tokenizer.render_messages(messages, conversation.tools.as_ref(), false)?;
        &rendered
    };
    let Some(turn) = alone.strip_prefix(&text[..start]) else { return Ok(None) };
    let content = content_end(turn, &messages[message].content);
    let marker = first_stop(&turn[content..], stops).map(|end| End { at: content + end, marked: true });
    let stripped = turn.trim_end().len().max(content);
    let bare = End { at: stripped, marked: stripped > content };
    let ends = marker.into_iter().chain([bare]);
    let mut there = ends.filter(|end| text[start..].starts_with(&turn[..end.at]));
    Ok(there.next().map(|end| End { at: start + end.at, ..end }))
}

/// Where the content ends in a turn, 0 if the template does not write it as it is.
fn content_end(turn: &str, content: &str) -> usize {
    let found = |text: &str| turn.find(text).map(|at| at + text.len());
    found(content).or_else(|| found(content.trim())).unwrap_or(0)
}

/// The end of the first stop token in a text; of those that start together, the longest.
fn first_stop(text: &str, stops: &[String]) -> Option<usize> {
    let found = stops.iter().filter_map(|stop| Some((text.find(stop.as_str())?, stop.len())));
    found.min_by_key(|(at, length)| (*at, usize::MAX - length)).map(|(at, length)| at + length)
}
