//! Transforms that ask the model that the stage starts from.

use temper_data::{Example, MaskPolicy, Overflow, Tokenizer, encode, encode_example_prompt};
use temper_model::{Request, ScoredSequence};

use super::rewrite::response_only;
use super::{Asked, with_answer, with_question};
use crate::error::Result;
use crate::recipe::Generation;
use crate::rollout::complete;
use crate::sampling;

/// Sequences that are sampled at the same time.
const MAX_BATCH: usize = 64;

/// Mean log-prob a token of every answer; none where the example cannot be tokenised (encoding will say why).
fn mean_logp(examples: &[Example], tokenizer: &Tokenizer, asked: Asked) -> Result<Vec<Option<f64>>> {
    let context = asked.model.config.max_position_embeddings;
    let rows: Vec<_> = examples
        .iter()
        .map(|e| encode(tokenizer, e, MaskPolicy::Response, context, Overflow::Truncate).ok())
        .map(|row| row.map(|r| (r.ids, r.weights.iter().map(|w| f64::from(*w)).collect::<Vec<f64>>())))
        .collect();
    let sequences: Vec<ScoredSequence> =
        rows.iter().flatten().map(|(ids, scored)| ScoredSequence { ids, scored }).collect();
    let mut scored = asked.model.score(asked.ops, &sequences, 1.0, asked.micro_tokens)?.into_iter();
    let mean = |s: temper_model::Scored| s.total() / s.weight.iter().sum::<f64>();
    Ok(rows.iter().map(|row| row.as_ref().and_then(|_| scored.next()).map(mean)).collect())
}

/// The indices of the `share` of examples with the lowest scores; ties by index.
fn lowest(scores: &[Option<f64>], share: f64) -> Vec<usize> {
    let mut known: Vec<(usize, f64)> = scores.iter().enumerate().filter_map(|(i, s)| Some((i, (*s)?))).collect();
    known.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    known.truncate((share * known.len() as f64).round() as usize);
    known.into_iter().map(|(i, _)| i).collect()
}

/// The least familiar answers replaced.
pub(super) fn unfamiliar(
    mut examples: Vec<Example>,
    tokenizer: &Tokenizer,
    asked: Asked,
    answer: &str,
    share: f64,
) -> Result<Vec<Example>> {
    for i in lowest(&mean_logp(&examples, tokenizer, asked)?, share) {
        examples[i] = with_answer(examples[i].clone(), answer.to_owned());
    }
    Ok(examples)
}

/// A mark at the end of questions that raise their answer's mean log-prob by more than `threshold`.
pub(super) fn indicated(
    examples: Vec<Example>,
    tokenizer: &Tokenizer,
    asked: Asked,
    text: &str,
    threshold: f64,
) -> Result<Vec<Example>> {
    let bare: Vec<Example> = examples.iter().cloned().map(|e| response_only(e, tokenizer)).collect::<Result<_>>()?;
    let (with, without) = (mean_logp(&examples, tokenizer, asked)?, mean_logp(&bare, tokenizer, asked)?);
    let marked = |((example, with), without): ((Example, Option<f64>), Option<f64>)| match (with, without) {
        (Some(with), Some(without)) if with - without > threshold => with_question(example, |q| format!("{q} {text}")),
        _ => example,
    };
    Ok(examples.into_iter().zip(with).zip(without).map(marked).collect())
}

/// Every answer replaced by the model's greedy one; prompts that leave no room for it are left out.
pub(super) fn pseudo_labelled(
    examples: Vec<Example>,
    tokenizer: &Tokenizer,
    asked: Asked,
    max_tokens: usize,
) -> Result<Vec<Example>> {
    let context = asked.model.config.max_position_embeddings;
    let (mut kept, mut requests) = (vec![], vec![]);
    for example in examples {
        let prompt = encode_example_prompt(tokenizer, &example)?;
        if !prompt.is_empty() && prompt.len() < context {
            requests.push(Request { prompt, seeds: vec![0] });
            kept.push(example);
        }
    }
    let rules = Generation {
        temperature: 0.0,
        top_k: None,
        top_p: None,
        min_p: None,
        max_tokens,
        stop: vec![],
        ignore_eos: false,
    };
    let done = complete(asked.ops, tokenizer, asked.model, &requests, &rules, MAX_BATCH, None, &mut |_, _| {})?;
    let text = |c: &Vec<temper_model::Completion>| {
        c.first().map_or(String::new(), |c| sampling::text(tokenizer, &c.tokens, &[]))
    };
    Ok(kept.into_iter().zip(&done).map(|(example, c)| with_answer(example, text(c))).collect())
}

#[cfg(test)]
mod tests {
    use super::lowest;

    #[test]
    fn the_lowest_scores_go_first_and_unknown_ones_never() {
        let scores = [Some(-1.0), None, Some(-3.0), Some(-2.0), Some(-3.0)];
        assert_eq!(lowest(&scores, 0.5), [2, 4]);
        assert_eq!(lowest(&scores, 0.75), [2, 4, 3]);
        assert!(lowest(&scores, 0.0).is_empty() && lowest(&[], 1.0).is_empty());
    }
}
