//! `temper generate`: let a model write.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use temper_algo::split_seed;
use temper_data::{Conversation, Example, Message, Payload, Tokenizer, encode_example_prompt};
use temper_model::{Completion, Request};
use temper_train::models::Source;
use temper_train::recipe::Generation;
use temper_train::{rollout, sampling};

use crate::args::Generate;
use crate::failure::{Exit, user};
use crate::machine;
use crate::output::data;

/// Sequences that are sampled at the same time.
const MAX_BATCH: usize = 32;

/// Runs the command.
pub(crate) fn run(args: &Generate) -> anyhow::Result<Exit> {
    let rules = rules(args)?;
    let device = machine::device(args.threads)?;
    let asked = asked(args)?;
    let (model, tokenizer) =
        Source::find(&args.model, args.base.as_deref())?.load_to_read(&device, args.dtype.as_asked())?;
    let prompts = asked.iter().map(|a| a.encode(&tokenizer)).collect::<anyhow::Result<Vec<_>>>()?;
    let seeds = |i: usize| (0..args.n as u64).map(|s| split_seed(args.seed, &[i as u64, s])).collect();
    let requests: Vec<Request> =
        prompts.into_iter().enumerate().map(|(i, prompt)| Request { prompt, seeds: seeds(i) }).collect();
    // As a run does: an operation then forks from inside the pool.
    let done = rayon::scope(|_| {
        rollout::complete(&device, &tokenizer, &model, &requests, &rules, MAX_BATCH, None, &mut |_, _| {})
    })?;
    let several = done.len() * args.n > 1;
    for (i, completions) in done.iter().enumerate() {
        for (sample, completion) in completions.iter().enumerate() {
            let text = sampling::text(&tokenizer, &completion.tokens, &rules.stop);
            let shown = if args.json {
                line(i, sample, completion, &text)
            } else {
                plain(several, i, sample, completion, &text)
            };
            data(&shown)?;
        }
    }
    Ok(Exit::Done)
}

fn rules(args: &Generate) -> anyhow::Result<Generation> {
    let drawing = &args.drawing;
    let temperature = drawing.temperature.unwrap_or(if args.n > 1 { 1.0 } else { 0.0 });
    let cuts = args.top_k.is_some() || args.top_p.is_some() || args.min_p.is_some();
    if temperature == 0.0 && (cuts || args.n > 1) {
        let what = if args.n > 1 {
            format!("{} completions at temperature 0 are all the same", args.n)
        } else {
            "--top-k, --top-p and --min-p have no effect at temperature 0".into()
        };
        return Err(user(what, "set a --temperature above 0, such as --temperature 1"));
    }
    Ok(Generation {
        temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        max_tokens: drawing.max_tokens,
        stop: drawing.stop.clone(),
        ignore_eos: false,
    })
}

/// What a completion is asked of.
enum Asked {
    Raw(String),
    Chat(Conversation),
}

impl Asked {
    fn encode(&self, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
        Ok(match self {
            Self::Raw(text) => tokenizer.encode_with_bos(text)?,
            Self::Chat(conversation) => encode_example_prompt(tokenizer, &unanswered(conversation))?,
        })
    }
}

/// The conversation as an example whose answer is still empty: its prompt is all that came before, tools included.
fn unanswered(conversation: &Conversation) -> Example {
    let mut conversation = conversation.clone();
    conversation.messages.push(Message::assistant(""));
    Example { id: String::new(), payload: Payload::Chat(conversation), tags: vec![] }
}

fn asked(args: &Generate) -> anyhow::Result<Vec<Asked>> {
    match (&args.prompt, &args.messages) {
        (Some(prompt), _) if args.raw => Ok(vec![Asked::Raw(prompt.clone())]),
        (Some(prompt), _) => Ok(vec![Asked::Chat(Conversation::new(vec![Message::user(prompt)]))]),
        (None, Some(path)) => conversations(path),
        (None, None) => Err(user("there is no prompt", "give --prompt TEXT or --messages FILE")),
    }
}

/// A list of messages, an object with `messages`, or one of these a line.
fn conversations(path: &Path) -> anyhow::Result<Vec<Asked>> {
    let name = path.display();
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.with_context(|| format!("cannot read the messages of `{name}`"))?;
    let whole: Result<Value, _> = serde_json::from_str(&text);
    let values: Vec<(usize, Value)> = match whole {
        Ok(value) => vec![(1, value)],
        Err(_) => lines(&text).map_err(|(line, e)| bad(path, line, &e.to_string()))?,
    };
    let found = values.into_iter().map(|(line, value)| conversation(value).map_err(|why| bad(path, line, &why)));
    let found = found.collect::<anyhow::Result<Vec<Asked>>>()?;
    if found.is_empty() { Err(bad(path, 1, "the file is empty")) } else { Ok(found) }
}

fn lines(text: &str) -> Result<Vec<(usize, Value)>, (usize, serde_json::Error)> {
    let filled = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    filled.map(|(i, line)| serde_json::from_str(line).map(|value| (i + 1, value)).map_err(|e| (i + 1, e))).collect()
}

fn bad(path: &Path, line: usize, why: &str) -> anyhow::Error {
    user(
        format!("`{}`, line {line}: {why}", path.display()),
        "expected a list of messages such as [{\"role\": \"user\", \"content\": \"...\"}], an object with `messages`, or such lines",
    )
}

fn conversation(value: Value) -> Result<Asked, String> {
    let conversation: Conversation = match value {
        Value::Array(_) => Conversation::new(serde_json::from_value(value).map_err(|e| e.to_string())?),
        _ => serde_json::from_value(value).map_err(|e| e.to_string())?,
    };
    if conversation.messages.is_empty() {
        return Err("there are no messages".into());
    }
    Ok(Asked::Chat(conversation))
}

fn line(prompt: usize, sample: usize, completion: &Completion, text: &str) -> String {
    let logp: f64 = completion.logp_gen.iter().map(|&l| f64::from(l)).sum();
    let object = json!({
        "prompt": prompt,
        "sample": sample,
        "text": text,
        "n_tokens": completion.tokens.len(),
        "stop": completion.stop.name(),
        "logp": logp,
        "tokens": completion.tokens,
    });
    object.to_string() + "\n"
}

/// One completion is printed alone, several under a line each.
fn plain(several: bool, prompt: usize, sample: usize, completion: &Completion, text: &str) -> String {
    let mut out = String::new();
    if several {
        let _ = writeln!(
            out,
            "--- prompt {prompt}, sample {sample} ({} tokens, {})",
            completion.tokens.len(),
            completion.stop.name()
        );
    }
    let _ = writeln!(out, "{text}");
    out
}
