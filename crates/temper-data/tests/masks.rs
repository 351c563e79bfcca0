//! Loss masks: what is trained on, for every kind of template, and that training sees the tokens that generation sees.

mod common;

use common::{chat, example, golden_tokenizer, with_template};
use proptest::prelude::*;
use temper_data::{
    Cause, Encoded, Error, Example, MaskPolicy, Message, Overflow, Payload, Tokenizer, encode, encode_all,
    encode_answer, encode_example_prompt, encode_followup, encode_prompt,
};

const ROOM: usize = 1 << 20;

fn encoded(tokenizer: &Tokenizer, messages: Vec<Message>) -> Encoded {
    encode(tokenizer, &chat(messages), MaskPolicy::Response, ROOM, Overflow::Error).unwrap()
}

/// The trained texts, in order.
fn trained(tokenizer: &Tokenizer, encoded: &Encoded) -> Vec<String> {
    let runs = encoded.runs(tokenizer).into_iter();
    runs.filter(|(_, weight)| *weight > 0.0).map(|(text, _)| text).collect()
}

fn turns() -> Vec<Message> {
    vec![
        Message::system("Be brief."),
        Message::user("Größe? 日本語"),
        Message::assistant("naïve 🙂 café"),
        Message::user("And 12 + 30?"),
        Message::assistant("42"),
    ]
}

#[test]
fn the_models_turns_and_their_ends_are_trained() {
    for (template, end) in [
        ("chatml", "<|im_end|>"),
        ("generation", "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("gemma", "<|end|>"),
        ("phi3", "<|end|>"),
        ("zephyr", "<|im_end|>"),
    ] {
        let tokenizer = with_template("bytes", template);
        let encoded = encoded(&tokenizer, turns());
        let expected = [format!("naïve 🙂 café{end}"), format!("42{end}")];
        assert_eq!(trained(&tokenizer, &encoded), expected, "{template}");
        assert_eq!((encoded.rewritten_turns, encoded.endless_turns, encoded.unlike_prompt), (0, 0, 0), "{template}");
    }
}

/// Behind the prompt of generation, an answer has the tokens that a transcript has there, up to its end-of-turn marker.
#[test]
fn an_answer_is_what_the_model_would_write() {
    for (kind, template, end) in [
        ("bytes", "chatml", "<|im_end|>"),
        ("bytes", "llama3", "<|eot_id|>"),
        ("bytes", "phi3", "<|end|>"),
        ("pieces", "mistral", "</s>"),
    ] {
        let tokenizer = with_template(kind, template);
        let messages = &turns()[..4];
        let answer = encode_answer(&tokenizer, messages, "42").unwrap().unwrap();
        assert_eq!(tokenizer.decode(&answer, false).trim(), format!("42{end}"), "{template}");
        let whole = encoded(&tokenizer, turns());
        let prompt = encode_prompt(&tokenizer, messages).unwrap();
        assert_eq!(whole.ids[..prompt.len() + answer.len()], [prompt, answer].concat(), "{template}");
        assert!(encode_answer(&tokenizer, messages, "").is_err());
    }
    // Generation opens the turn with words that the transcript does not have.
    let source = "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}{{ m.content }}<|end|>\
                  {% endfor %}{% if add_generation_prompt %}<|assistant|>Think: {% endif %}";
    let tokenizer = golden_tokenizer("bytes").with_chat_template(Some(source)).unwrap();
    assert_eq!(encode_answer(&tokenizer, &[Message::user("a")], "b").unwrap(), None);
}

/// Prompt, answer and what follows it are the prompt of the longer conversation.
#[test]
fn a_followup_is_what_stands_between_two_turns() {
    for (kind, template) in [("bytes", "chatml"), ("bytes", "llama3"), ("bytes", "phi3"), ("bytes", "gemma")] {
        let tokenizer = with_template(kind, template);
        let before = &turns()[..2];
        let whole = encode_prompt(&tokenizer, &[before, &[Message::assistant("42"), Message::user("Sure?")]].concat());
        let prompt = encode_prompt(&tokenizer, before).unwrap();
        let answer = encode_answer(&tokenizer, before, "42").unwrap().unwrap();
        let followup = encode_followup(&tokenizer, before, "Sure?").unwrap().unwrap();
        assert_eq!(whole.unwrap(), [prompt, answer, followup].concat(), "{template}");
    }
}

#[test]
fn turns_of_a_piece_tokenizer_are_trained() {
    let tokenizer = with_template("pieces", "mistral");
    let encoded = encoded(&tokenizer, turns());
    let expected = ["naïve 🙂 café</s>", "42</s>"];
    assert_eq!(trained(&tokenizer, &encoded), expected);
}

#[test]
fn history_that_the_template_rewrites_is_not_trained() {
    let tokenizer = with_template("bytes", "qwen3");
    let thought = |answer: &str| Message::assistant(format!("<think>\nhm\n</think>\n\n{answer}"));
    let encoded = encoded(&tokenizer, vec![Message::user("a"), thought("b"), Message::user("c"), thought("d")]);
    assert_eq!(trained(&tokenizer, &encoded), ["<think>\nhm\n</think>\n\nd<|im_end|>"]);
    assert_eq!(encoded.rewritten_turns, 1);
}

#[test]
fn a_turn_that_generation_opens_differently_is_trained_and_counted() {
    let source = "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}{{ m.content }}\
                  {% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}\
                  {% if add_generation_prompt %}<|assistant|>Think: {% endif %}";
    let tokenizer = golden_tokenizer("bytes").with_chat_template(Some(source)).unwrap();
    let encoded = encoded(&tokenizer, vec![Message::user("a"), Message::assistant("The end")]);
    assert_eq!(trained(&tokenizer, &encoded), ["The end<|end|>"]);
    assert_eq!(encoded.unlike_prompt, 1);
}

#[test]
fn a_template_that_rewrites_everything_is_reported() {
    let source = "{% for m in messages %}{{ messages | length }}{{ m.content }}{% endfor %}";
    let tokenizer = golden_tokenizer("bytes").with_chat_template(Some(source)).unwrap();
    let result = encode(&tokenizer, &chat(turns()), MaskPolicy::Response, ROOM, Overflow::Error);
    assert_eq!(result, Err(Cause::RewrittenHistory));
}

fn with_source(source: &str) -> Tokenizer {
    golden_tokenizer("bytes").with_chat_template(Some(source)).unwrap()
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let forever = "{% for a in range(50000) %}{% for b in range(50000) %}{% endfor %}{% endfor %}";
    let deep = with_source(&format!("{{% macro deep() %}}{forever}{{% endmacro %}}{{{{ deep() }}}}"));
    assert!(matches!(deep.render(&turns().into(), true), Err(Error::EndlessTemplate { .. })));
    for source in [
        forever.to_owned(),
        // For generation only.
        format!(
            "{{{{ messages[0].content }}}}{{{{ messages[-1].content }}}}{{% if add_generation_prompt %}}{forever}{{% endif %}}"
        ),
    ] {
        let tokenizer = with_source(&source);
        let rows = vec![chat(turns()); 1000];
        let error = encode_all(&tokenizer, &rows, MaskPolicy::Response, ROOM, Overflow::Drop).unwrap_err();
        assert!(matches!(error, Error::EndlessTemplate { .. }), "{error}");
        assert!(error.to_string().contains("loops over large ranges"), "{error}");
        assert!(matches!(encode_prompt(&tokenizer, &turns()), Err(Error::EndlessTemplate { .. })));
    }
}

#[test]
fn long_conversations_fit_into_the_steps_of_a_template() {
    let tokenizer = with_template("bytes", "qwen3");
    let messages: Vec<Message> = (0..1000).flat_map(|_| [Message::user("a"), Message::assistant("b")]).collect();
    assert!(tokenizer.render(&messages.into(), true).is_ok());
}

#[test]
fn a_template_that_ignores_the_messages_is_refused() {
    let messages = vec![Message::user("a"), Message::assistant("b")];
    for (source, who) in [
        ("<|user|>hello<|end|><|assistant|>fine<|end|>", "user"),
        // As templates of image models are given a text.
        (
            "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{{ part.text }}{% endfor %}<|end|>{% endfor %}",
            "user",
        ),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}<|end|>{% endfor %}", "model"),
    ] {
        let tokenizer = with_source(source);
        let said = format!("writes the same whatever the {who} says");
        for mask in [MaskPolicy::Response, MaskPolicy::All] {
            let result = encode(&tokenizer, &chat(messages.clone()), mask, ROOM, Overflow::Drop);
            assert!(matches!(&result, Err(Cause::Unrenderable(why)) if why.contains(&said)), "{result:?}");
        }
        let prompt = encode_prompt(&tokenizer, &messages[..1]);
        assert_eq!(prompt.is_err(), who == "user", "{prompt:?}");
        assert!(prompt.err().is_none_or(|error| error.to_string().contains(&said)));
    }
}

#[test]
fn what_a_template_refuses_is_told_when_nothing_is_left() {
    let rows = vec![chat(turns()); 3];
    for (source, why) in [
        ("{{ messages[0].content.nosuch() }}", "nosuch"),
        // The whole conversation is rendered, the prompts in it are not.
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}\
             {% if add_generation_prompt %}{{ raise_exception('no prompts here') }}{% endif %}",
            "no prompts here",
        ),
    ] {
        let error = encode_all(&with_source(source), &rows, MaskPolicy::Response, ROOM, Overflow::Drop).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert!(matches!(error, Error::NothingSupervised { cause, .. } if cause == "unrenderable"));
    }
    let long = encode_all(&with_template("bytes", "chatml"), &rows, MaskPolicy::Response, 3, Overflow::Drop);
    assert!(matches!(long, Err(Error::NothingSupervised { cause, .. }) if cause == "too_long"));
}

#[test]
fn weights_scale_single_turns() {
    let tokenizer = with_template("bytes", "chatml");
    let mut messages = turns();
    messages[2].weight = Some(0.0);
    messages[4].weight = Some(0.5);
    let encoded = encoded(&tokenizer, messages);
    assert_eq!(trained(&tokenizer, &encoded), ["42<|im_end|>"]);
    assert!(encoded.weights.iter().all(|weight| [0.0, 0.5].contains(weight)));
}

#[test]
fn all_tokens_but_the_first_can_be_trained() {
    let tokenizer = with_template("bytes", "chatml");
    let encoded = encode(&tokenizer, &chat(turns()), MaskPolicy::All, ROOM, Overflow::Error).unwrap();
    assert_eq!(encoded.weights[0], 0.0);
    assert!(encoded.weights[1..].iter().all(|weight| *weight == 1.0));
}

#[test]
fn without_a_template_contents_are_joined() {
    let tokenizer = golden_tokenizer("bytes");
    let encoded = encoded(&tokenizer, vec![Message::user("Q: 1\nA:"), Message::assistant(" one")]);
    assert_eq!(trained(&tokenizer, &encoded), [" one<|im_end|>"]);
    let prompt = encode_prompt(&tokenizer, &[Message::user("Q: 1\nA:")]).unwrap();
    assert_eq!(tokenizer.decode(&prompt, false), "Q: 1\nA:");
    let pieces = golden_tokenizer("pieces");
    let prompt = encode_prompt(&pieces, &[Message::user("user")]).unwrap();
    assert_eq!(prompt, pieces.encode_with_bos("user").unwrap());
}

#[test]
fn texts_and_pairs_end_with_the_end_token() {
    for kind in ["bytes", "pieces"] {
        let tokenizer = golden_tokenizer(kind);
        let end = tokenizer.eos_ids()[0];
        let text = example(Payload::Text("The lazy dog".into()));
        let encoded = encode(&tokenizer, &text, MaskPolicy::Response, ROOM, Overflow::Error).unwrap();
        assert_eq!(encoded.ids.last(), Some(&end));
        assert_eq!(encoded.supervised(), encoded.ids.len() - 1);
        let pair = example(Payload::PromptCompletion { prompt: "The lazy".into(), completion: " dog".into() });
        let encoded = encode(&tokenizer, &pair, MaskPolicy::Response, ROOM, Overflow::Error).unwrap();
        let prompt = encode_example_prompt(&tokenizer, &pair).unwrap();
        assert!(encoded.ids.starts_with(&prompt), "{kind}");
        assert_eq!(encoded.weights.iter().position(|weight| *weight > 0.0), Some(prompt.len()));
        assert_eq!(encoded.ids.last(), Some(&end));
    }
}

#[test]
fn a_task_is_trained_on_its_answer() {
    let tokenizer = with_template("bytes", "chatml");
    let task = |answer: &str| {
        let payload = Payload::Task {
            prompt: vec![Message::user("6 * 7")],
            answer: answer.into(),
            columns: serde_json::Map::new(),
        };
        encode(&tokenizer, &example(payload), MaskPolicy::Response, ROOM, Overflow::Error)
    };
    assert_eq!(trained(&tokenizer, &task("42").unwrap()), ["42<|im_end|>"]);
    assert!(matches!(task(""), Err(Cause::BadRow(_))));
}

#[test]
fn long_and_empty_rows_have_causes() {
    let tokenizer = with_template("bytes", "chatml");
    let run = |messages: Vec<Message>, max_tokens, overflow| {
        encode(&tokenizer, &chat(messages), MaskPolicy::Response, max_tokens, overflow)
    };
    let full = run(turns(), ROOM, Overflow::Drop).unwrap().ids.len();
    assert_eq!(run(turns(), full - 1, Overflow::Drop), Err(Cause::TooLong { tokens: full, max_tokens: full - 1 }));
    let cut = run(turns(), full - 2, Overflow::Truncate).unwrap();
    assert!(cut.truncated && cut.ids.len() == full - 2 && cut.weights.len() == full - 2);
    assert_eq!(run(turns(), 5, Overflow::Truncate), Err(Cause::TruncatedAway { max_tokens: 5 }));
    assert_eq!(run(vec![Message::user("a")], ROOM, Overflow::Drop), Err(Cause::NoSupervisedTokens));
    assert_eq!(run(vec![Message::assistant("a")], ROOM, Overflow::Drop), Err(Cause::EmptyPrompt));
    let strict = with_template("bytes", "mistral");
    let result =
        encode(&strict, &chat(vec![Message::user("a"), Message::user("b")]), MaskPolicy::All, ROOM, Overflow::Drop);
    assert!(matches!(result, Err(Cause::Unrenderable(why)) if why.contains("must alternate")));
}

#[test]
fn a_data_set_is_accounted_for_by_cause() {
    let tokenizer = with_template("bytes", "chatml");
    let row = |id: &str, messages: Vec<Message>| Example { id: id.into(), ..chat(messages) };
    let long = vec![Message::user("word ".repeat(500)), Message::assistant("b")];
    let rows = [row("a", turns()), row("b", long.clone()), row("c", vec![Message::user("x")]), row("d", long)];
    let (kept, report) = encode_all(&tokenizer, &rows, MaskPolicy::Response, 200, Overflow::Drop).unwrap();
    assert_eq!((report.rows, report.kept, report.dropped_rows()), (4, 1, 3));
    assert_eq!(report.dropped["too_long"].first, ["b", "d"]);
    assert_eq!(report.dropped["no_supervised_tokens"].count, 1);
    assert_eq!((report.tokens, report.supervised_tokens), (kept[0].1.ids.len(), kept[0].1.supervised()));
    let text = report.to_string();
    assert!(text.contains("2 dropped, too_long") && text.contains("(first: b, d)"), "{text}");
    assert!(matches!(
        encode_all(&tokenizer, &rows, MaskPolicy::Response, 200, Overflow::Error),
        Err(Error::Overflow { id, .. }) if id == "b"
    ));
    let nothing = encode_all(&tokenizer, &rows[1..], MaskPolicy::Response, 200, Overflow::Drop).unwrap_err();
    assert!(nothing.to_string().contains("2 dropped, too_long"), "{nothing}");
    assert!(encode_all(&tokenizer, &[], MaskPolicy::Response, 200, Overflow::Drop).is_err());
}

/// At the end of a prompt this tokenizer writes "\n\n" as one token, before a word as two. Generation sees the former.
#[test]
fn a_token_that_would_straddle_the_start_of_a_turn_is_cut() {
    let tokenizer = with_template("bytes", "llama3");
    let messages = vec![Message::user("a"), Message::assistant("word")];
    let whole = tokenizer.encode(&tokenizer.render(&messages.clone().into(), false).unwrap()).unwrap();
    let prompt = encode_prompt(&tokenizer, &messages[..1]).unwrap();
    let encoded = encoded(&tokenizer, messages);
    assert!(!whole.starts_with(&prompt));
    assert!(encoded.ids.starts_with(&prompt));
    assert_eq!(trained(&tokenizer, &encoded), ["word<|eot_id|>"]);
}

#[test]
fn tool_calls_that_the_template_leaves_out_are_not_learnt_as_silence() {
    let mut call = Message::assistant("");
    call.extra.insert("tool_calls".into(), serde_json::json!([{"function": {"name": "look", "arguments": {}}}]));
    let messages = vec![Message::user("a"), call];
    let qwen = with_template("bytes", "qwen3");
    let trained = trained(&qwen, &encoded(&qwen, messages.clone()));
    assert!(trained[0].contains("<tool_call>\n{\"name\": \"look\""), "{trained:?}");
    let chatml = with_template("bytes", "chatml");
    let result = encode(&chatml, &chat(messages), MaskPolicy::Response, ROOM, Overflow::Drop);
    assert!(matches!(result, Err(Cause::Unrenderable(why)) if why.contains("tool calls")));
}

fn content() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        " ", "  ", "\n", "\n\n", "a", "the", "12", "3", "é", "日", "👍🏽", "ß", "<|", "|>", "im_end", "\t", "x y", "'s",
        ".",
    ]);
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// For templates that keep the prefix, each turn's prompt, as generation encodes it, begins the training sequence,
    /// and the turn is trained from there.
    #[test]
    fn training_sees_the_tokens_of_generation(contents in prop::collection::vec(content(), 2..7), kind in 0usize..2) {
        let kind = ["bytes", "pieces"][kind];
        // Phi-3's template closes the whole text with `eos_token`, so its `<|end|>` has to be a token to be known as the
        // end of a turn inside it.
        let templates = ["chatml", "llama3", "mistral", "zephyr", "phi3"];
        for template in templates.into_iter().filter(|template| kind == "bytes" || *template != "phi3") {
            let tokenizer = with_template(kind, template);
            let roles = ["user", "assistant"].iter().cycle();
            let even = &contents[..contents.len() / 2 * 2];
            let mut messages: Vec<Message> = roles.zip(even).map(|(role, text)| Message::new(*role, text.clone())).collect();
            messages[0].content.push('q');
            let encoded = encoded(&tokenizer, messages.clone());
            prop_assert_eq!(encoded.rewritten_turns, 0);
            for turn in (1..messages.len()).step_by(2) {
                let prompt = encode_prompt(&tokenizer, &messages[..turn]).unwrap();
                prop_assert!(encoded.ids.starts_with(&prompt), "{} {} {:?}", kind, template, &messages);
                prop_assert_eq!(encoded.weights[prompt.len() - 1], 0.0);
                if encoded.ids.len() > prompt.len() {
                    prop_assert_eq!(encoded.weights[prompt.len()], 1.0);
                }
            }
            let text = tokenizer.render(&messages.into(), false).unwrap();
            if kind == "bytes" {
                prop_assert_eq!(tokenizer.decode(&encoded.ids, false), text);
            }
        }
    }
}
