//! Episodes: several turns of the model, with an environment's words between them.
//!
//! The words are tokenised alone and appended, so that the model's own tokens stay those that it sampled; they are attended to and
//! never scored.

use temper_env::{Environment, Task};
use temper_model::{Author, Completion, Engine, Model, Request, Sample, Session, Turn};

use super::{Attempt, Origin, Rollout, inject};
use crate::context::Context;
use crate::error::Result;
use crate::online::Readings;
use crate::recipe::OnlineStage;
use crate::sampling::{self, decode_stops};

/// An episode in the making.
struct Episode<'a> {
    task: &'a Task,
    /// Tokens of the task's prompt.
    prompt: usize,
    seed: u64,
    session: Session,
    turns: Vec<Completion>,
}

/// One rollout for every seed of every request; `tasks` are those of the requests.
pub(super) fn sample(
    ctx: &Context,
    model: &Model,
    stage: &OnlineStage,
    environment: &Environment,
    tasks: &[&Task],
    requests: &[Request],
) -> Result<Vec<Vec<Rollout>>> {
    let (tokenizer, context) = (ctx.tokenizer()?, model.config.max_position_embeddings);
    let (stops, rules) =
        (decode_stops(tokenizer, &stage.sampling.stop), sampling::sampling(&stage.sampling, tokenizer));
    let engine = Engine::new(ctx.ops(), model, &rules)?.max_batch(stage.max_batch)?.stops(&stops);
    let counts: Vec<usize> = requests.iter().map(|r| r.seeds.len()).collect();
    let mut episodes = begin(&engine, model, tasks, requests)?;
    let mut done = 1;
    while let Some(words) = environment.says(done) {
        let (mut places, mut turns) = (vec![], vec![]);
        for (i, episode) in episodes.iter_mut().enumerate().filter(|(_, e)| e.turns.len() == done) {
            let Some(last) = episode.turns.last() else { continue };
            let tokens = inject::followup(tokenizer, episode.task, last.stop, words)?;
            if episode.session.len() + tokens.len() < context {
                episode.session.push(&tokens, Author::Environment);
                places.push(i);
                turns.push(Turn { session: episode.session.fork(), seeds: vec![episode.seed] });
            }
        }
        for (i, sample) in places.into_iter().zip(engine.sample(turns, &mut |_| {})?.into_iter().flatten()) {
            episodes[i].took(sample);
        }
        done += 1;
    }
    let mut rollouts = episodes.into_iter().map(|e| e.rollout(ctx, stage)).collect::<Result<Vec<_>>>()?.into_iter();
    Ok(counts.into_iter().map(|n| rollouts.by_ref().take(n).collect()).collect())
}

/// The first turns.
fn begin<'a>(engine: &Engine, model: &Model, tasks: &[&'a Task], requests: &[Request]) -> Result<Vec<Episode<'a>>> {
    let turn = |r: &Request| {
        let mut session = Session::new(model);
        session.push(&r.prompt, Author::User);
        Turn { session, seeds: r.seeds.clone() }
    };
    let samples = engine.sample(requests.iter().map(turn).collect(), &mut |_| {})?;
    let mut episodes = vec![];
    for ((request, task), samples) in requests.iter().zip(tasks).zip(samples) {
        for (seed, Sample { session, completion }) in request.seeds.iter().zip(samples) {
            let (prompt, seed) = (request.prompt.len(), *seed);
            episodes.push(Episode { task, prompt, seed, session, turns: vec![completion] });
        }
    }
    Ok(episodes)
}

impl Episode<'_> {
    fn took(&mut self, Sample { session, completion }: Sample) {
        self.session = session;
        self.turns.push(completion);
    }

    fn rollout(self, ctx: &Context, stage: &OnlineStage) -> Result<Rollout> {
        let (tokenizer, session) = (ctx.tokenizer()?, &self.session);
        // Words after which there was no turn any more are dropped.
        let end = session.authors().iter().rposition(|a| *a == Author::Model).map_or(self.prompt, |last| last + 1);
        let authors = session.authors()[self.prompt..end].to_vec();
        let sampled = |of: &dyn Fn(&Completion) -> Vec<f32>| self.turns.iter().flat_map(of).collect::<Vec<f32>>();
        let lost = sampled(&|c| c.lost_mass.clone());
        let attempt = |c: &Completion| Attempt {
            text: sampling::text(tokenizer, &c.tokens, &stage.sampling.stop),
            n_tokens: c.tokens.len(),
            stop: c.stop,
            reward: 0.0,
        };
        let mut earlier: Vec<Attempt> = self.turns.iter().map(attempt).collect();
        let last = earlier.pop();
        Ok(Rollout {
            tokens: session.tokens()[self.prompt..end].to_vec(),
            authors,
            logp_gen: sampled(&|c| c.logp_gen.clone()),
            logp_old: None,
            origin: Origin::Sampled,
            stop: last.as_ref().map_or(temper_model::Stop::ContextFull, |t| t.stop),
            text: last.map_or_else(String::new, |t| t.text),
            earlier,
            last_reward: 0.0,
            lost_mass: f64::from(lost.iter().sum::<f32>()) / lost.len().max(1) as f64,
            embedding: vec![],
            intrinsic: 0.0,
            weight: 1.0,
            verdict: None,
            read: Readings::default(),
        })
    }
}
