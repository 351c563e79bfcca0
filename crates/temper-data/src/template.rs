//! Chat templates: conversations to text, by the Jinja dialect that Hub templates are written in.

mod python;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use minijinja::value::{Rest, Value as Jinja};
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value, json};

use crate::{Conversation, Error, Message};
pub use python::Date;

/// The names under which messages carry reasoning; templates read the first (and, some, the second).
const REASONING_KEYS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Steps of the template engine after which a rendering is given up: about half a second. A conversation of a
/// thousand messages takes a few hundred thousand.
const MOST_STEPS: u64 = 10_000_000;

/// A compiled chat template with the variables it sees.
///
/// The dialect is that of Hugging Face transformers: `trim_blocks` and `lstrip_blocks`, Python's string and
/// dictionary methods, `raise_exception`, `strftime_now`, `tojson` as `json.dumps` writes it, `namespace`, loop
/// controls, and `{% generation %}` blocks (no-ops here: loss masks come from positions, not from marks).
/// Rendering is a pure function: `strftime_now` tells the date given, never the clock's.
#[derive(Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
    environment: Arc<Environment<'static>>,
    variables: Map<String, Value>,
    date: Date,
    deaf: OnceLock<Deaf>,
}

/// Whose words make no difference to what a template writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deaf {
    pub(crate) to_user: bool,
    pub(crate) to_model: bool,
}

impl ChatTemplate {
    /// Compiles a template. `specials` are variables such as `bos_token` and `eos_token`.
    pub fn new(source: &str, specials: &BTreeMap<String, String>) -> Result<Self, Error> {
        let variables = specials.iter().map(|(name, text)| (name.clone(), json!(text))).collect();
        Self::compile(source.into(), variables, Date::default())
    }

    /// The same template with another date for `strftime_now` (the default is [`Date::default`]).
    pub fn with_date(self, date: Date) -> Result<Self, Error> {
        Self::compile(self.source, self.variables, date)
    }

    /// The same template with one more variable, such as `enable_thinking`.
    #[must_use]
    pub fn with_variable(mut self, name: impl Into<String>, value: Value) -> Self {
        self.variables.insert(name.into(), value);
        self.deaf = OnceLock::new();
        self
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as text; with `add_generation_prompt` followed by what stands before the model's next turn.
    pub fn render(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String, Error> {
        self.render_messages(&conversation.messages, conversation.tools.as_ref(), add_generation_prompt)
    }

    pub(crate) fn render_messages(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let mut context = self.variables.clone();
        context.insert("messages".into(), messages.iter().map(template_message).collect());
        context.insert("tools".into(), tools.cloned().unwrap_or(Value::Null));
        context.insert("documents".into(), Value::Null);
        context.insert("add_generation_prompt".into(), json!(add_generation_prompt));
        let template = self.environment.get_template("chat").map_err(|e| Error::TemplateSyntax(explain(&e)))?;
        template.render(context).map_err(|e| {
            if is_endless(&e) { Error::EndlessTemplate { steps: MOST_STEPS } } else { Error::Render(explain(&e)) }
        })
    }

    /// Finds out, once, whether the template writes what the messages say. A template that refuses the probes is not
    /// judged by them.
    pub(crate) fn deaf(&self) -> Deaf {
        *self.deaf.get_or_init(|| {
            let same = |probe: &dyn Fn(&str) -> Vec<Message>, prompt: bool| {
                let render = |word: &str| self.render_messages(&probe(word), None, prompt).ok();
                render("zq7one").is_some_and(|one| render("zq7two") == Some(one))
            };
            Deaf {
                to_user: same(&|word| vec![Message::user(word)], true),
                to_model: same(&|word| vec![Message::user("a"), Message::assistant(word)], false),
            }
        })
    }

    fn compile(source: Arc<str>, variables: Map<String, Value>, date: Date) -> Result<Self, Error> {
        let mut environment = dialect(date);
        environment
            .add_template_owned("chat", without_generation_marks(&unix_lines(&source)))
            .map_err(|e| Error::TemplateSyntax(explain(&e)))?;
        Ok(Self { source, environment: Arc::new(environment), variables, date, deaf: OnceLock::new() })
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).field("date", &self.date).finish_non_exhaustive()
    }
}

fn dialect(date: Date) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(MOST_STEPS));
    environment.set_formatter(python::print);
    environment.set_unknown_method_callback(python::method);
    environment.add_test("iterable", python::is_iterable);
    environment.add_test("sequence", python::is_sequence);
    environment.add_filter("tojson", python::to_json);
    environment.add_filter("string", |value: &Jinja| python::text(value));
    environment.add_function("raise_exception", |message: String| -> Result<Jinja, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("the template says: {message}")))
    });
    environment.add_function("strftime_now", move |format: &str, _: Rest<Jinja>| date.format(format));
    environment
}

/// What the template sees of a message: everything but the loss weight; reasoning under each name that templates use.
fn template_message(message: &Message) -> Value {
    let mut map = Map::new();
    map.insert("role".into(), json!(message.role));
    map.insert("content".into(), json!(message.content));
    map.extend(message.extra.iter().map(|(key, value)| (key.clone(), value.clone())));
    if let Some(reasoning) = REASONING_KEYS.iter().find_map(|key| map.get(*key).filter(|value| !value.is_null())) {
        let reasoning = reasoning.clone();
        map.insert("reasoning_content".into(), reasoning.clone());
        map.entry("thinking").or_insert(reasoning);
    }
    Value::Object(map)
}

/// Jinja reads every kind of line end as "\n".
fn unix_lines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// `{% generation %}` and `{% endgeneration %}` become a scope of their own that changes nothing.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        out.push_str(&replace_mark(&tag[..end]));
        rest = &tag[end..];
    }
    out + rest
}

fn replace_mark(tag: &str) -> String {
    let word = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
    match word {
        "generation" => tag.replace("generation", "with"),
        "endgeneration" => tag.replace("endgeneration", "endwith"),
        _ => tag.to_owned(),
    }
}

/// Whether the engine ran out of steps, be it inside a macro or a filter.
fn is_endless(error: &minijinja::Error) -> bool {
    let below = || std::error::Error::source(error)?.downcast_ref::<minijinja::Error>();
    error.kind() == ErrorKind::OutOfFuel || below().is_some_and(is_endless)
}

/// The error's own message, the line, and the causes below it.
fn explain(error: &minijinja::Error) -> String {
    let mut text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if let Some(line) = error.line() {
        text.extend([" (line ", &line.to_string(), ")"]);
    }
    let mut cause = std::error::Error::source(error);
    while let Some(below) = cause {
        text.extend([": ", &below.to_string()]);
        cause = below.source();
    }
    text
}
