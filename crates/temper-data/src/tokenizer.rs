//! The tokenizer of a model with everything that text needs: special tokens, stop tokens and the chat template.

mod gguf;
mod hub;
mod pieces;
mod train;

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, ModelWrapper, PostProcessorWrapper, Tokenizer as Inner};

use crate::template::Deaf;
use crate::{ChatTemplate, Conversation, Error, Message};
pub(crate) use pieces::Pieces;
pub use train::{BpeOptions, CHATML, train_bpe};

/// Rendering without a chat template: the contents one after another, the model's turns ended by `eos_token`.
const PLAIN: &str = "{{ begin_text }}{% for message in messages %}{{ message.content }}\
    {% if message.role == 'assistant' and eos_token is defined %}{{ eos_token }}{% endif %}{% endfor %}";

/// Text to token ids and back, with the chat template and the ids that stop generation.
///
/// A model's embedding may have more rows than the tokenizer has tokens; ids beyond the vocabulary decode to nothing.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Inner,
    specials: BTreeMap<String, String>,
    templates: Templates,
    eos_ids: Vec<u32>,
    bos_id: Option<u32>,
    pad_id: Option<u32>,
    adds_bos: bool,
    /// Bytes of the special tokens that are cut out of a text before anything else, by id.
    anchors: BTreeMap<u32, usize>,
    /// Tokens of the guard `"\n"`, if the tokenizer treats the start of a text specially (see [`Pieces`]).
    guard: Option<Vec<u32>>,
    vocab_size: usize,
    /// The part of `tokenizer_config.json` that is written again.
    config: Map<String, Value>,
}

/// The chat templates that a model comes with.
#[derive(Debug, Clone)]
struct Templates {
    /// `None` inside the model's files: `plain` stands in.
    chat: Option<ChatTemplate>,
    /// For conversations with tools, where the model has a template of its own for them.
    tool_use: Option<ChatTemplate>,
    plain: ChatTemplate,
}

/// What [`Tokenizer::assemble`] puts together; each loader fills it from its own files.
#[derive(Default)]
struct Parts {
    /// `bos_token`, `eos_token`, `pad_token`, `unk_token` ... and their texts.
    specials: BTreeMap<String, String>,
    chat: Option<String>,
    tool_use: Option<String>,
    /// Stop ids that the files list beside `eos_token`.
    stop_ids: Vec<u32>,
    /// Whether plain text starts with `bos_token`; `None` asks the post-processor.
    adds_bos: Option<bool>,
    config: Map<String, Value>,
}

impl Tokenizer {
    /// Token ids of a text; no special token is added, those that the text spells out are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| Error::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a text as it starts a document: after `bos_token`, if the tokenizer puts one there.
    pub fn encode_with_bos(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids: Vec<u32> = self.leading_bos().into_iter().collect();
        ids.extend(self.encode(text)?);
        Ok(ids)
    }

    /// The text of token ids. Ids outside the vocabulary give nothing, halves of a character U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let tokens = || ids.iter().filter_map(|id| self.inner.id_to_token(*id)).collect();
        self.inner.decode(ids, skip_special).unwrap_or_else(|_| tokens())
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The ids that stop generation: `eos_token`, those that the model's files list, and the marker with which
    /// the chat template ends the model's turn; `eos_token` first.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The id of `bos_token`.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The id of `pad_token`.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad_id
    }

    /// Whether plain text starts with `bos_token`.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// The id of a token by its text in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.templates.chat.as_ref()
    }

    /// The same tokenizer with another chat template (`None`: contents are joined as they are).
    pub fn with_chat_template(mut self, source: Option<&str>) -> Result<Self, Error> {
        self.templates.chat = source.map(|source| ChatTemplate::new(source, &self.specials)).transpose()?;
        self.templates.tool_use = None;
        self.add_end_of_turn();
        Ok(self)
    }

    /// The same tokenizer whose chat templates see one more variable, such as `enable_thinking`.
    #[must_use]
    pub fn with_template_variable(mut self, name: &str, value: &Value) -> Self {
        for template in [&mut self.templates.chat, &mut self.templates.tool_use].into_iter().flatten() {
            *template = template.clone().with_variable(name, value.clone());
        }
        self
    }

    /// The conversation as text, by the chat template or without one.
    pub fn render(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String, Error> {
        self.render_messages(&conversation.messages, conversation.tools.as_ref(), add_generation_prompt)
    }

    pub(crate) fn render_messages(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        self.template(tools).render_messages(messages, tools, add_generation_prompt)
    }

    /// Whose words the template for a conversation with these tools leaves out.
    pub(crate) fn deaf(&self, tools: Option<&Value>) -> Deaf {
        self.template(tools).deaf()
    }

    fn template(&self, tools: Option<&Value>) -> &ChatTemplate {
        let Templates { chat, tool_use, plain } = &self.templates;
        tools.and(tool_use.as_ref()).or(chat.as_ref()).unwrap_or(plain)
    }

    /// The texts of the stop tokens that have one.
    pub(crate) fn stop_texts(&self) -> impl Iterator<Item = String> {
        self.eos_ids.iter().filter_map(|id| self.inner.id_to_token(*id))
    }

    pub(crate) fn leading_bos(&self) -> Option<u32> {
        self.bos_id.filter(|_| self.adds_bos)
    }

    /// Ids and the byte offset at which each token starts in `text`.
    pub(crate) fn encode_with_starts(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>), Error> {
        let encoding = self.inner.encode(text, false).map_err(|e| Error::Encode(e.to_string()))?;
        let starts = encoding.get_offsets().iter().map(|(start, _)| *start).collect();
        Ok((encoding.get_ids().to_vec(), starts))
    }

    /// The length in bytes of a special token that separates what stands before it from what follows.
    pub(crate) fn anchor_length(&self, id: u32) -> Option<usize> {
        self.anchors.get(&id).copied()
    }

    /// The guard text's tokens, if texts inside a document have to be encoded behind it.
    pub(crate) fn guard(&self) -> Option<&[u32]> {
        self.guard.as_deref()
    }

    fn assemble(mut inner: Inner, parts: Parts) -> Result<Self, Error> {
        make_deterministic(&mut inner)?;
        add_missing_specials(&mut inner, &parts.specials);
        let id_of = |name: &str| parts.specials.get(name).and_then(|text| inner.token_to_id(text));
        let (bos_id, eos_id, pad_id) = (id_of("bos_token"), id_of("eos_token"), id_of("pad_token"));
        let adds_bos = settle_bos(&mut inner, parts.specials.get("bos_token").zip(bos_id), parts.adds_bos)?;
        let compile = |source: Option<String>| source.map(|s| ChatTemplate::new(&s, &parts.specials)).transpose();
        let begin = parts.specials.get("bos_token").filter(|_| adds_bos);
        let plain = ChatTemplate::new(PLAIN, &parts.specials)?
            .with_variable("begin_text", Value::String(begin.cloned().unwrap_or_default()));
        let templates = Templates { chat: compile(parts.chat)?, tool_use: compile(parts.tool_use)?, plain };
        let mut eos_ids: Vec<u32> = eos_id.into_iter().collect();
        parts.stop_ids.iter().for_each(|id| push_new(&mut eos_ids, *id));
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let specials = parts.specials;
        let (config, guard, anchors) = (parts.config, None, anchors(&inner));
        let mut tokenizer =
            Self { inner, specials, templates, eos_ids, bos_id, pad_id, adds_bos, anchors, guard, vocab_size, config };
        tokenizer.guard = tokenizer.find_guard();
        tokenizer.add_end_of_turn();
        Ok(tokenizer)
    }

    /// Some tokenizers put a space before the first word of whatever they are given; a guard of one line break keeps
    /// that away from texts that continue a document.
    fn find_guard(&self) -> Option<Vec<u32>> {
        let guard = self.encode("\n").ok().filter(|guard| !guard.is_empty())?;
        let (plain, guarded) = (self.encode("a").ok()?, self.encode("\na").ok()?);
        (guarded.strip_prefix(guard.as_slice())? != plain).then_some(guard)
    }

    /// Adds the marker after the model's turn to the stop ids: the first special token behind a probe's content.
    fn add_end_of_turn(&mut self) {
        const PROBE: &str = "zq7probe";
        let messages = [Message::user("a"), Message::assistant(PROBE)];
        let Some(template) = &self.templates.chat else { return };
        let Ok(text) = template.render_messages(&messages, None, false) else { return };
        let Some((_, after)) = text.split_once(PROBE) else { return };
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let mut found: Vec<(usize, usize, u32)> = added
            .iter()
            .filter_map(|(id, token)| Some((after.find(&token.content)?, usize::MAX - token.content.len(), *id)))
            .collect();
        found.sort_unstable();
        if let Some((.., id)) = found.first() {
            push_new(&mut self.eos_ids, *id);
        }
    }
}

/// Tokens that take no white space before them, need no word boundary and are matched in the raw text.
fn anchors(inner: &Inner) -> BTreeMap<u32, usize> {
    let added = inner.get_added_tokens_decoder();
    let plain = added.into_iter().filter(|(_, token)| !token.lstrip && !token.single_word && !token.normalized);
    plain.map(|(id, token)| (id, token.content.len())).collect()
}

fn push_new(ids: &mut Vec<u32>, id: u32) {
    if !ids.contains(&id) {
        ids.push(id);
    }
}

/// Truncation, padding and BPE dropout, which files may ask for, would change what a text's tokens are.
fn make_deterministic(inner: &mut Inner) -> Result<(), Error> {
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|e| Error::Tokenizer(e.to_string()))?;
    if let ModelWrapper::BPE(bpe) = inner.get_model()
        && bpe.dropout.is_some()
    {
        let mut without = bpe.clone();
        without.dropout = None;
        inner.with_model(without);
    }
    Ok(())
}

/// Special tokens that the configuration names and the vocabulary lacks get the next free ids, as in transformers.
fn add_missing_specials(inner: &mut Inner, specials: &BTreeMap<String, String>) {
    let known = inner.get_added_tokens_decoder();
    let mut texts: Vec<&String> = specials.values().collect();
    texts.sort();
    texts.dedup();
    texts.retain(|text| !known.values().any(|token| token.content == **text && token.special));
    let tokens: Vec<_> = texts.into_iter().map(|text| AddedToken::from(text.clone(), true)).collect();
    inner.add_special_tokens(&tokens);
}

/// Whether plain text starts with BOS; the post-processor, which transformers reads, is made to agree.
fn settle_bos(inner: &mut Inner, bos: Option<(&String, u32)>, wanted: Option<bool>) -> Result<bool, Error> {
    let Some((text, id)) = bos else { return Ok(false) };
    let present = inner.encode("", true).is_ok_and(|encoding| encoding.get_ids().first() == Some(&id));
    let wanted = wanted.unwrap_or(present);
    if wanted && !present {
        inner.with_post_processor(Some(bos_processor(text, id)?));
    } else if present && !wanted {
        inner.with_post_processor(None::<PostProcessorWrapper>);
    }
    Ok(wanted)
}

fn bos_processor(text: &str, id: u32) -> Result<PostProcessorWrapper, Error> {
    use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
    let broken = |e: &dyn std::fmt::Display| Error::Tokenizer(format!("cannot put {text} before texts: {e}"));
    let token = SpecialToken::new(text.to_owned(), vec![id], vec![text.to_owned()]).map_err(|e| broken(&e))?;
    let single = vec![text.to_owned(), "$A:0".to_owned()];
    let mut builder = TemplateProcessing::builder();
    let builder = builder.try_single(single).map_err(|e| broken(&e))?;
    let built = builder.special_tokens(vec![token]).build().map_err(|e| broken(&e))?;
    Ok(built.into())
}
