//! Where the model's turns lie in a rendered conversation.

use crate::{Conversation, Message, Tokenizer};

/// The model's turns in a rendering, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Turns {
    /// Turns whose start is known.
    pub(super) list: Vec<Turn>,
    /// Messages of the model before which the template writes something else than in the whole conversation.
    pub(super) lost: Vec<usize>,
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
            match turn_start(tokenizer, conversation, message, text) {
                Some((start, as_generated)) => {
                    let end = turn_end(tokenizer, conversation, message, text, start, &stops);
                    turns.list.push(Turn { message, start, as_generated, end });
                }
                None => turns.lost.push(message),
            }
        }
        turns
    }

    pub(super) fn starts(&self) -> Vec<usize> {
        self.list.iter().map(|turn| turn.start).collect()
    }
}

/// Where the model's turns start in a rendering, as far as that is known.
pub(super) fn starts(tokenizer: &Tokenizer, conversation: &Conversation, text: &str) -> Vec<usize> {
    let messages = model_messages(conversation);
    messages.filter_map(|(message, _)| Some(turn_start(tokenizer, conversation, message, text)?.0)).collect()
}

fn model_messages(conversation: &Conversation) -> impl Iterator<Item = (usize, &Message)> {
    conversation.messages.iter().enumerate().filter(|(_, message)| message.is_model())
}

/// Where the turn of a message starts, and whether the text before it is the prompt of generation.
///
/// Some templates open the model's turn in one way for generation (`<think>`) and in another in a transcript. The turn
/// then starts with the first token that differs, if the messages before it are written alike.
fn turn_start(tokenizer: &Tokenizer, conversation: &Conversation, message: usize, text: &str) -> Option<(usize, bool)> {
    let (before, tools) = (&conversation.messages[..message], conversation.tools.as_ref());
    let prompt = tokenizer.render_messages(before, tools, true).ok()?;
    if text.starts_with(&prompt) {
        return Some((prompt.len(), true));
    }
    let history = tokenizer.render_messages(before, tools, false).ok().filter(|history| text.starts_with(history))?;
    let start = first_difference(tokenizer, &prompt, text)?;
    (start >= history.len()).then_some((start, false))
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
) -> Option<End> {
    let messages = &conversation.messages[..=message];
    let last = message + 1 == conversation.messages.len();
    let alone = if last { None } else { tokenizer.render_messages(messages, conversation.tools.as_ref(), false).ok() };
    let alone = if last { text } else { alone.as_deref()? };
    let turn = alone.strip_prefix(&text[..start])?;
    let content = content_end(turn, &messages[message].content);
    let marker = first_stop(&turn[content..], stops).map(|end| End { at: content + end, marked: true });
    let stripped = turn.trim_end().len().max(content);
    let bare = End { at: stripped, marked: stripped > content };
    let ends = marker.into_iter().chain([bare]);
    let mut there = ends.filter(|end| text[start..].starts_with(&turn[..end.at]));
    there.next().map(|end| End { at: start + end.at, ..end })
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
