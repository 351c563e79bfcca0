//! What stands beside and around a stage's own loss.

use temper_data::Tokenizer;

use super::grouped;
use super::sizes::Rows;
use crate::error::Result;
use crate::recipe::{AfterUpdate, Freeze, Recipe, Stream, Training};
use crate::{examples, offline, streams};

/// What a stage's streams will do.
#[derive(Default)]
pub(super) struct Beside {
    pub rows: Vec<Rows>,
    pub figures: Vec<(&'static str, String)>,
    pub notes: Vec<String>,
}

impl Beside {
    pub(super) fn of(
        recipe: &Recipe,
        stage: &str,
        streams: &[Stream],
        tokenizer: &Tokenizer,
        context: usize,
    ) -> Result<Self> {
        let mut all = Self::default();
        for (k, stream) in streams.iter().enumerate() {
            let what = if let Some(shown) = &stream.demonstrations {
                all.rows.push(stream.bound(context));
                match shown.most_right {
                    None => "a demonstration of every task of the round".to_owned(),
                    Some(most) => format!("demonstrations of the round's tasks with at most {most} right rollouts"),
                }
            } else {
                let rows = examples::of_stream(stream, tokenizer, context, streams::seed(recipe.stage_seed(stage), k))?;
                let notes = examples::notes(&stream.data, &rows);
                all.notes.extend(notes.into_iter().map(|note| format!("stream `{}`: {note}", stream.id)));
                all.rows.push(rows.tokens());
                let batch = stream.batch.as_ref();
                let of = batch.and_then(|b| b.examples).map(|n| format!("{n} examples"));
                let tokens = || format!("at most {} tokens", grouped(batch.and_then(|b| b.tokens).unwrap_or(0) as u64));
                format!("{} a step, of {}", of.unwrap_or_else(tokens), grouped(rows.rows.len() as u64))
            };
            let loss = stream.loss();
            let names: Vec<&str> = loss.weighted().map(|(_, o)| o.name()).collect();
            all.figures.push(("stream", format!("`{}`: {what}; {} x {}", stream.id, stream.weight, names.join(" + "))));
            all.figures.extend(
                offline::loss_passes(&loss).into_iter().map(|pass| ("extra pass", format!("`{}`: {pass}", stream.id))),
            );
        }
        Ok(all)
    }
}

/// What comes before and after the optimiser's own update.
pub(super) fn around(stage: &Training) -> Vec<(&'static str, String)> {
    let frozen = stage.freeze.map(|freeze| match freeze {
        Freeze::Names { names } => ("frozen", names.join(", ")),
        Freeze::Half {} => ("frozen", "half of every block, drawn for this stage".to_owned()),
    });
    let before = stage.gradient.iter().map(|g| ("gradients", g.name().to_owned()));
    let copy = |a: &AfterUpdate| if a.moves_reference() { "" } else { ", which keeps a copy of what is trained" };
    frozen
        .into_iter()
        .chain(before)
        .chain(stage.after_update.iter().map(|a| ("after a step", format!("{}{}", a.name(), copy(a)))))
        .collect()
}
