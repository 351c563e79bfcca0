//! Transforms of one example's text.

use temper_algo::seed::SplitMix64;
use temper_algo::split_seed;
use temper_data::{Conversation, Example, Message, Payload, Tokenizer};

use super::{answer, with_answer, with_question};
use crate::error::Result;

/// `[family=sums] [level=2] ` before the question, thinned out, and before the answer, whole.
pub(super) fn markers(example: Example, keys: &[String], dropout: [f64; 2], in_answer: bool, seed: u64) -> Example {
    let of = |key: &String| example.tags.iter().find(|t| t.strip_prefix(key).is_some_and(|rest| rest.starts_with('=')));
    let all: Vec<String> = keys.iter().filter_map(of).map(|tag| format!("[{tag}] ")).collect();
    let mut random = SplitMix64::new(seed);
    let bare = random.next_f64() < dropout[0];
    let shown: String = all.iter().filter(|_| !bare && random.next_f64() >= dropout[1]).map(String::as_str).collect();
    let example = with_question(example, |question| format!("{shown}{question}"));
    if !in_answer {
        return example;
    }
    let text = format!("{}{}", all.concat(), answer(&example));
    with_answer(example, text)
}

/// Copies up to `words` words from after a random place to it. Answers of fewer than three words stay as they are.
pub(super) fn lookahead(example: Example, share: f64, words: usize, marks: [&str; 2], seed: u64) -> Example {
    let mut random = SplitMix64::new(seed);
    let pieces: Vec<&str> = answer(&example).split_inclusive(char::is_whitespace).collect();
    if random.next_f64() >= share || pieces.len() < 3 {
        return example;
    }
    // d words before the marks; the stretch starts after word d + 1 at the earliest, so that it is not what follows anyway.
    let d = random.below(pieces.len() - 2) + 1;
    let start = d + 1 + random.below(pieces.len() - d - 1);
    let end = (start + words).min(pieces.len());
    let [open, close] = marks;
    let goal = pieces[start..end].concat();
    let text = format!("{}{open} {} {close} {}", pieces[..d].concat(), goal.trim_end(), pieces[d..].concat());
    with_answer(example, text)
}

/// The answer after what the chat template writes for an empty question.
pub(super) fn response_only(example: Example, tokenizer: &Tokenizer) -> Result<Example> {
    let completion = answer(&example).to_owned();
    let empty = Conversation::new(vec![Message::user("")]);
    let prompt = tokenizer.render(&empty, true)?;
    Ok(Example { payload: Payload::PromptCompletion { prompt, completion }, ..example })
}

/// Question and solution, answered by the critique. What has no question is left out.
pub(super) fn critiques(examples: &[Example], instruction: &str, seed: u64) -> Vec<Example> {
    let make = |(i, example): (usize, &Example)| {
        let messages = match &example.payload {
            Payload::Chat(c) => c.messages.iter().filter(|m| !m.is_model()).cloned().collect(),
            Payload::Task { prompt, .. } => prompt.clone(),
            Payload::PromptCompletion { prompt, .. } => vec![Message::user(prompt)],
            Payload::Text(_) => return None,
        };
        let (solution, critique) = given(example).unwrap_or_else(|| made(examples, i, split_seed(seed, &[i as u64])));
        let payload = Payload::Chat(messages.into());
        let asked = Example { payload, ..example.clone() };
        let mut asked = with_question(asked, |q| format!("{q}\n{solution}\n{instruction}"));
        if let Payload::Chat(c) = &mut asked.payload {
            c.messages.push(Message::assistant(critique));
        }
        Some(asked)
    };
    examples.iter().enumerate().filter_map(make).collect()
}

fn given(example: &Example) -> Option<(String, String)> {
    let Payload::Task { columns, .. } = &example.payload else { return None };
    let text = |key: &str| columns.get(key).and_then(|v| v.as_str()).map(String::from);
    Some((text("solution")?, text("critique")?))
}

/// The example's own solution, or half of the time another example's, with a verdict.
fn made(examples: &[Example], i: usize, seed: u64) -> (String, String) {
    let mut random = SplitMix64::new(seed);
    let own = answer(&examples[i]);
    let other = answer(&examples[(i + 1 + random.below(examples.len().saturating_sub(1))) % examples.len()]);
    if random.next_f64() < 0.5 || other == own {
        return (own.to_owned(), "Right.".to_owned());
    }
    (other.to_owned(), format!("Wrong. {own}"))
}

/// One example a labelled turn: what was really said before it, without weight, and the expert's word as the target.
pub(super) fn interventions(example: &Example) -> Vec<Example> {
    let Payload::Chat(conversation) = &example.payload else { return vec![] };
    let target = |(turn, message): (usize, &Message)| {
        let expert = message.extra.get("expert")?.as_str().filter(|_| message.is_model())?;
        let mut messages = conversation.messages[..turn].to_vec();
        messages.iter_mut().filter(|m| m.is_model()).for_each(|m| m.weight = Some(0.0));
        messages.push(Message::assistant(expert));
        let payload = Payload::Chat(Conversation { messages, tools: conversation.tools.clone() });
        Some(Example { id: format!("{}/turn{turn}", example.id), payload, tags: example.tags.clone() })
    };
    conversation.messages.iter().enumerate().filter_map(target).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::chat;
    use super::*;

    fn question(example: &Example) -> &str {
        let Payload::Chat(c) = &example.payload else { panic!("{example:?}") };
        &c.messages[0].content
    }

    #[test]
    fn markers_condition_and_are_learnt() {
        let keys = ["level".to_string(), "family".to_string(), "none".to_string()];
        let all = markers(chat("a", "1+1?", "2"), &keys, [0.0, 0.0], true, 1);
        assert_eq!((question(&all), answer(&all)), ("[level=2] [family=sums] 1+1?", "[level=2] [family=sums] 2"));
        let none = markers(chat("a", "1+1?", "2"), &keys, [1.0, 0.0], false, 1);
        assert_eq!((question(&none), answer(&none)), ("1+1?", "2"));
        let shown = (0..1000)
            .filter(|s| question(&markers(chat("a", "q", "x"), &keys, [0.5, 0.5], true, *s)).contains("level"));
        assert!((200..300).contains(&shown.count()));
    }

    #[test]
    fn a_later_stretch_comes_forward() {
        for seed in 0..50 {
            let changed = lookahead(chat("a", "q", "one two three four five"), 1.0, 2, ["<T>", "</T>"], seed);
            let text = answer(&changed);
            let (before, rest) = text.split_once("<T> ").unwrap();
            let (goal, after) = rest.split_once(" </T> ").unwrap();
            assert_eq!(format!("{before}{after}"), "one two three four five", "{text}");
            assert!(after.contains(goal) && !after.starts_with(goal) && !before.is_empty(), "{text}");
        }
        let short = chat("a", "q", "one two");
        assert_eq!(lookahead(short.clone(), 1.0, 2, ["<T>", "</T>"], 3), short);
        let kept = chat("a", "q", "one two three");
        assert_eq!(lookahead(kept.clone(), 0.0, 2, ["<T>", "</T>"], 3), kept);
    }

    #[test]
    fn critiques_are_right_about_half_of_the_time_and_true_always() {
        let examples: Vec<Example> =
            (0..200).map(|i| chat(&i.to_string(), &format!("q{i}"), &format!("a{i}"))).collect();
        let made = critiques(&examples, "Right?", 5);
        let right = made.iter().filter(|e| answer(e) == "Right.").count();
        assert!((70..130).contains(&right), "{right}");
        for (i, e) in made.iter().enumerate() {
            let own = question(e).contains(&format!("\na{i}\n"));
            assert_eq!(answer(e), if own { "Right.".into() } else { format!("Wrong. a{i}") });
        }
    }

    #[test]
    fn written_critiques_come_from_their_columns() {
        let columns = serde_json::json!({ "solution": "3", "critique": "No: 2." });
        let payload = Payload::Task {
            prompt: vec![Message::user("1+1?")],
            answer: "2".into(),
            columns: columns.as_object().unwrap().clone(),
        };
        let made = critiques(&[Example { payload, ..chat("a", "", "") }], "Check.", 0);
        assert_eq!((question(&made[0]), answer(&made[0])), ("1+1?\n3\nCheck.", "No: 2."));
    }

    #[test]
    fn only_the_experts_words_are_targets() {
        let mut acted = Message::assistant("left");
        acted.extra.insert("expert".into(), "right".into());
        let messages = vec![
            Message::user("go"),
            acted.clone(),
            Message::user("lost"),
            Message::assistant("left"),
            Message::user("lost"),
            acted,
        ];
        let log = Example { payload: Payload::Chat(messages.into()), ..chat("log", "", "") };
        let made = interventions(&log);
        assert_eq!(made.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["log/turn1", "log/turn5"]);
        let Payload::Chat(c) = &made[1].payload else { panic!() };
        let weights: Vec<(String, f32)> = c.messages.iter().map(|m| (m.content.clone(), m.loss_weight())).collect();
        assert_eq!(
            weights[1..],
            [
                ("left".into(), 0.0),
                ("lost".into(), 0.0),
                ("left".into(), 0.0),
                ("lost".into(), 0.0),
                ("right".into(), 1.0)
            ]
        );
    }
}
