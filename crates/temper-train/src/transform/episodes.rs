//! In-context episodes of self-made tasks from raw text.

use temper_algo::seed::SplitMix64;
use temper_algo::split_seed;
use temper_data::{Conversation, Example, Message, Payload};

use super::answer;

/// Branches of the seed.
const ORDER: u64 = 0;
const EPISODE: u64 = 1;

/// The four tasks of the paper.
#[derive(Debug, Clone, Copy)]
enum Task {
    NextPart,
    MaskedWord,
    LastPhrase,
    InOrder,
}

const TASKS: [Task; 4] = [Task::NextPart, Task::MaskedWord, Task::LastPhrase, Task::InOrder];

/// As many episodes as the texts give, each of `demonstrations + 1` texts and one task, as a conversation whose every answer
/// is a target. Texts of fewer than four words are left out.
pub(super) fn episodes(examples: &[Example], demonstrations: usize, seed: u64) -> Vec<Example> {
    let mut texts: Vec<String> = examples.iter().map(text).filter(|t| t.split_whitespace().count() >= 4).collect();
    shuffle(&mut texts, split_seed(seed, &[ORDER]));
    let episode = |(i, group): (usize, &[String])| {
        let mut random = SplitMix64::new(split_seed(seed, &[EPISODE, i as u64]));
        let task = TASKS[random.below(TASKS.len())];
        let turns = group.iter().flat_map(|t| {
            let (input, output) = task.instance(t, &mut random);
            [Message::user(input), Message::assistant(output)]
        });
        let payload = Payload::Chat(Conversation::new(turns.collect()));
        Example { id: format!("episode:{i}"), payload, tags: vec![format!("task={task:?}")] }
    };
    texts.chunks_exact(demonstrations + 1).enumerate().map(episode).collect()
}

/// Everything that an example says, question first.
fn text(example: &Example) -> String {
    match &example.payload {
        Payload::Chat(c) => c.messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join(" "),
        Payload::Text(text) => text.clone(),
        Payload::PromptCompletion { prompt, completion } => format!("{prompt}{completion}"),
        Payload::Task { prompt, .. } => {
            let asked: Vec<&str> = prompt.iter().map(|m| m.content.as_str()).collect();
            format!("{} {}", asked.join(" "), answer(example))
        }
    }
}

fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut random = SplitMix64::new(seed);
    for i in (1..items.len()).rev() {
        items.swap(i, random.below(i + 1));
    }
}

impl Task {
    /// Input and output for one text of at least four words.
    fn instance(self, text: &str, random: &mut SplitMix64) -> (String, String) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let cut = middle(&words);
        match self {
            Self::NextPart => (words[..cut].join(" "), words[cut..].join(" ")),
            Self::MaskedWord => {
                let at = random.below(words.len());
                let (before, after) = (words[..at].iter(), words[at + 1..].iter());
                (before.chain([&"_"]).chain(after).copied().collect::<Vec<_>>().join(" "), words[at].to_owned())
            }
            Self::LastPhrase => {
                let cut = words.len() - 1 - random.below(2);
                (format!("{} _", words[..cut].join(" ")), words[cut..].join(" "))
            }
            Self::InOrder => {
                let (first, second) = (words[..cut].join(" "), words[cut..].join(" "));
                if random.next_f64() < 0.5 {
                    (format!("{first} / {second}"), "True".into())
                } else {
                    (format!("{second} / {first}"), "False".into())
                }
            }
        }
    }
}

/// The end of the sentence that ends nearest to the middle, or the middle.
fn middle(words: &[&str]) -> usize {
    let half = words.len() / 2;
    let ends = (1..words.len()).filter(|i| words[i - 1].ends_with(['.', '?', '!', ':']));
    ends.min_by_key(|i| i.abs_diff(half)).unwrap_or(half)
}

#[cfg(test)]
mod tests {
    use super::super::tests::chat;
    use super::*;

    #[test]
    fn instances_are_answered_by_the_text_itself() {
        let mut random = SplitMix64::new(1);
        let text = "A cat sat. It was the red mat.";
        assert_eq!(Task::NextPart.instance(text, &mut random), ("A cat sat.".into(), "It was the red mat.".into()));
        for _ in 0..20 {
            let (input, output) = Task::MaskedWord.instance(text, &mut random);
            assert_eq!(input.replacen('_', &output, 1), text);
            let (input, output) = Task::LastPhrase.instance(text, &mut random);
            assert_eq!(input.replacen('_', &output, 1), text);
            let (input, output) = Task::InOrder.instance(text, &mut random);
            assert_eq!(input == "A cat sat. / It was the red mat.", output == "True");
        }
    }

    #[test]
    fn every_text_is_in_one_episode_at_most_and_every_answer_is_a_target() {
        let examples: Vec<Example> =
            (0..22).map(|i| chat("x", &format!("what is number {i}?"), &format!("it is {i}"))).collect();
        let made = episodes(&examples, 3, 9);
        assert_eq!(made.len(), 5);
        assert_eq!(made, episodes(&examples, 3, 9));
        assert_ne!(made, episodes(&examples, 3, 10));
        for episode in &made {
            let Payload::Chat(c) = &episode.payload else { panic!() };
            assert_eq!((c.messages.len(), c.messages.iter().filter(|m| m.loss_weight() == 1.0).count()), (8, 4));
        }
    }
}
