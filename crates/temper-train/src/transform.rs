//! What is done to training examples before they are tokenised: methods that change the data and not the loss.
//!
//! Every transform is a function of the examples and a seed; those under "asks the model" also of the model that the stage
//! starts from. They run in the order given, on the examples of every source alike.

mod asked;
mod copied;
mod episodes;
mod rewrite;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_algo::{Problem, split_seed};
use temper_data::{Conversation, Example, Message, Payload, Tokenizer};
use temper_model::Model;
use temper_tensor::Ops;

use crate::error::Result;
pub use copied::copied_spans;

/// One transform.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Transform {
    /// Puts markers such as `[family=addition]`, made of the examples' tags, before the question, and the same before the
    /// answer, so that the model is steered by them and learns to write them itself. Treasure Hunt, D'souza et al.,
    /// arXiv 2506.14702.
    Markers {
        /// Which tags, by their key.
        keys: Vec<String>,
        /// Share of the examples whose question has no marker at all (default 0.5).
        #[serde(default = "half")]
        example_dropout: f64,
        /// Share of the single markers that are left out of the other questions (default 0.5).
        #[serde(default = "half")]
        marker_dropout: f64,
        /// Write the markers before the answer as well (default true).
        #[serde(default = "yes")]
        in_answer: bool,
    },
    /// Copies a later stretch of the answer between two marks to an earlier place: `y_1..y_d <T> z </T> y_(d+1)..`, in words.
    /// Trelawney, Thankaraj et al., arXiv 2504.11336 (their plain copying; place and stretch are random).
    Lookahead {
        /// Share of the examples that are changed; the others stay as they are (default 0.5).
        #[serde(default = "half")]
        share: f64,
        /// Words of the stretch, at most (default 3).
        #[serde(default = "three")]
        words: usize,
        /// The opening mark (default `<T>`).
        #[serde(default = "open")]
        open: String,
        /// The closing mark (default `</T>`).
        #[serde(default = "close")]
        close: String,
    },
    /// Empties every question: the model learns what answers look like. Response tuning, Hewitt et al., arXiv 2409.14254.
    ResponseOnly {},
    /// A question with a solution, and its critique as the answer. Rows with the columns `solution` and `critique` give both;
    /// other examples get their own solution or, half of the time, that of another example, and "Right." or "Wrong." with the
    /// own solution as the critique. Critique fine-tuning, Wang et al., arXiv 2501.17703 and 2506.03295.
    Critique {
        /// What is asked for after the solution (default "Is this solution right?").
        #[serde(default = "question")]
        instruction: String,
    },
    /// Model turns that carry an `expert` field (what an expert would have said there) become targets one by one, each after
    /// the turns that were really said; those are no targets. A model that learns from its own logged actions takes them for
    /// evidence. Ortega et al., arXiv 2110.10819.
    Interventions {},
    /// Few-shot episodes of one self-made task each, from the examples' texts: what comes next, a masked word, the last
    /// phrase, or whether two halves are in order. Chen et al., arXiv 2205.01703.
    SelfSupervised {
        /// Solved instances before the last one of an episode; all answers are targets (default 3).
        #[serde(default = "three")]
        demonstrations: usize,
    },
    /// Trains only on tokens of stretches that occur in the text before: extraction instead of generation. Cuckoo, Peng et al.,
    /// arXiv 2502.11275. Their tagging head does not exist here, so the stretches are written, not tagged.
    CopiedSpans {
        /// Shortest stretch, in tokens (default 4).
        #[serde(default = "four")]
        min_tokens: usize,
    },
    /// Asks the model: the answers it finds least likely (mean log-prob a token) are replaced, so that it learns what to say
    /// where it knows nothing. Kang et al., arXiv 2403.05612.
    Unfamiliar {
        /// The answer they get instead.
        answer: String,
        /// Share of the examples, the least familiar ones.
        share: f64,
    },
    /// Asks the model: a mark at the end of questions whose answers need them. An answer needs its question if the question
    /// raises its mean log-prob a token by more than `threshold`. Wang et al., arXiv 2411.02688, who measure the attention that
    /// answers pay to questions instead.
    Indicator {
        /// The mark (default `[CONTEXT]`).
        #[serde(default = "indicator")]
        text: String,
        /// Nats a token.
        threshold: f64,
    },
    /// Asks the model: every answer is replaced by the model's own greedy one. With `mask = "all"` this is prompt-based continued
    /// pretraining, Shi and Lipani, arXiv 2305.01711, for a causal model.
    PseudoLabel {
        /// Longest answer, in tokens.
        max_tokens: usize,
    },
}

fn half() -> f64 {
    0.5
}
fn yes() -> bool {
    true
}
fn three() -> usize {
    3
}
fn four() -> usize {
    4
}
fn open() -> String {
    "<T>".into()
}
fn close() -> String {
    "</T>".into()
}
fn question() -> String {
    "Is this solution right?".into()
}
fn indicator() -> String {
    "[CONTEXT]".into()
}

/// The model that a stage starts from, for transforms that ask it.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// The device.
    pub ops: &'a dyn Ops,
    /// The model.
    pub model: &'a Model,
    /// Tokens scored at once.
    pub micro_tokens: usize,
}

impl std::fmt::Debug for Asked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Asked {{ micro_tokens: {} }}", self.micro_tokens)
    }
}

impl Transform {
    /// Whether it needs the model's opinion.
    pub fn asks_model(&self) -> bool {
        matches!(self, Self::Unfamiliar { .. } | Self::Indicator { .. } | Self::PseudoLabel { .. })
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        let share = |name: &'static str, value: f64| {
            let message = format!("{name} is {value}, expected a share from 0 to 1");
            (!(0.0..=1.0).contains(&value)).then(|| Problem::new(name, message, "0.5 is half of them"))
        };
        let empty = |name: &'static str, text: &str| {
            let blank = text.trim().is_empty();
            blank.then(|| Problem::new(name, format!("{name} is empty"), "give it a text"))
        };
        let least = |name: &'static str, value: usize| {
            (value == 0).then(|| Problem::new(name, format!("{name} is 0"), "give it a value of at least 1"))
        };
        let found: Vec<Option<Problem>> = match self {
            Self::ResponseOnly {} | Self::Interventions {} => vec![],
            Self::Markers { keys, example_dropout, marker_dropout, .. } => vec![
                least("keys", keys.len()),
                share("example_dropout", *example_dropout),
                share("marker_dropout", *marker_dropout),
            ],
            Self::Lookahead { share: changed, words, open, close } => {
                vec![share("share", *changed), least("words", *words), empty("open", open), empty("close", close)]
            }
            Self::Critique { instruction } => vec![empty("instruction", instruction)],
            Self::SelfSupervised { demonstrations } => vec![least("demonstrations", *demonstrations)],
            Self::CopiedSpans { min_tokens } => vec![least("min_tokens", *min_tokens)],
            Self::Unfamiliar { answer, share: changed } => vec![empty("answer", answer), share("share", *changed)],
            Self::Indicator { text, threshold } => {
                let message = format!("threshold is {threshold}, expected a finite number");
                let bad =
                    (!threshold.is_finite()).then(|| Problem::new("threshold", message, "1 nat a token is a start"));
                vec![empty("text", text), bad]
            }
            Self::PseudoLabel { max_tokens } => vec![least("max_tokens", *max_tokens)],
        };
        found.into_iter().flatten().collect()
    }

    /// The examples as changed. Without a model, transforms that ask it change nothing ([`crate::plan`] says so).
    pub fn apply(
        &self,
        examples: Vec<Example>,
        tokenizer: &Tokenizer,
        asked: Option<Asked>,
        seed: u64,
    ) -> Result<Vec<Example>> {
        let seeds = |i: usize| split_seed(seed, &[i as u64]);
        let each = |f: &dyn Fn(Example, u64) -> Example| -> Vec<Example> {
            examples.iter().cloned().enumerate().map(|(i, example)| f(example, seeds(i))).collect()
        };
        Ok(match self {
            Self::Markers { keys, example_dropout, marker_dropout, in_answer } => {
                each(&|e, seed| rewrite::markers(e, keys, [*example_dropout, *marker_dropout], *in_answer, seed))
            }
            Self::Lookahead { share, words, open, close } => {
                each(&|e, seed| rewrite::lookahead(e, *share, *words, [open, close], seed))
            }
            Self::ResponseOnly {} => {
                examples.into_iter().map(|e| rewrite::response_only(e, tokenizer)).collect::<Result<_>>()?
            }
            Self::Critique { instruction } => rewrite::critiques(&examples, instruction, seed),
            Self::Interventions {} => examples.iter().flat_map(rewrite::interventions).collect(),
            Self::SelfSupervised { demonstrations } => episodes::episodes(&examples, *demonstrations, seed),
            Self::CopiedSpans { .. } => examples,
            Self::Unfamiliar { answer, share } => match asked {
                Some(model) => asked::unfamiliar(examples, tokenizer, model, answer, *share)?,
                None => examples,
            },
            Self::Indicator { text, threshold } => match asked {
                Some(model) => asked::indicated(examples, tokenizer, model, text, *threshold)?,
                None => examples,
            },
            Self::PseudoLabel { max_tokens } => match asked {
                Some(model) => asked::pseudo_labelled(examples, tokenizer, model, *max_tokens)?,
                None => examples,
            },
        })
    }
}

/// The answer of an example: the model's last turn, the completion, the gold answer, or a whole text.
pub(crate) fn answer(example: &Example) -> &str {
    match &example.payload {
        Payload::Chat(c) => c.messages.iter().rfind(|m| m.is_model()).map_or("", |m| &m.content),
        Payload::Text(text)
        | Payload::PromptCompletion { completion: text, .. }
        | Payload::Task { answer: text, .. } => text,
    }
}

/// The example with another answer.
pub(crate) fn with_answer(mut example: Example, text: String) -> Example {
    match &mut example.payload {
        Payload::Chat(c) => {
            if let Some(turn) = c.messages.iter_mut().rfind(|m| m.is_model()) {
                turn.content = text;
            }
        }
        Payload::Text(answer) | Payload::PromptCompletion { completion: answer, .. } | Payload::Task { answer, .. } => {
            *answer = text;
        }
    }
    example
}

/// The text that asks for the answer, and a way to change it: the last turn that is not the model's, or the prompt.
pub(crate) fn with_question(mut example: Example, change: impl Fn(&str) -> String) -> Example {
    let last = |messages: &mut Vec<Message>| {
        if let Some(turn) = messages.iter_mut().rfind(|m| !m.is_model()) {
            turn.content = change(&turn.content);
        }
    };
    match &mut example.payload {
        Payload::Chat(Conversation { messages, .. }) | Payload::Task { prompt: messages, .. } => last(messages),
        Payload::PromptCompletion { prompt, .. } => *prompt = change(prompt),
        Payload::Text(_) => {}
    }
    example
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn chat(id: &str, user: &str, answer: &str) -> Example {
        let messages = vec![Message::user(user), Message::assistant(answer)];
        Example {
            id: id.into(),
            payload: Payload::Chat(messages.into()),
            tags: vec!["family=sums".into(), "level=2".into()],
        }
    }

    #[test]
    fn questions_and_answers_are_found_in_every_payload() {
        let text = Example { payload: Payload::Text("t".into()), ..chat("a", "q", "x") };
        let pair = Payload::PromptCompletion { prompt: "q".into(), completion: "x".into() };
        let task =
            Payload::Task { prompt: vec![Message::user("q")], answer: "x".into(), columns: serde_json::Map::new() };
        for payload in [chat("a", "q", "x").payload, pair, task] {
            let example =
                with_answer(with_question(Example { payload, ..text.clone() }, |q| format!("{q}!")), "y".into());
            assert_eq!(answer(&example), "y");
            assert!(serde_json::to_string(&example).unwrap().contains("q!"));
        }
        assert_eq!(answer(&text), "t");
    }

    #[test]
    fn bad_settings_are_reported() {
        let bad = Transform::Markers { keys: vec![], example_dropout: 2.0, marker_dropout: -1.0, in_answer: true };
        assert_eq!(bad.check().len(), 3);
        assert_eq!(Transform::Indicator { text: " ".into(), threshold: f64::NAN }.check().len(), 2);
        assert!(Transform::ResponseOnly {}.check().is_empty());
    }
}
