//! Rollouts: tasks drawn, groups sampled, completions scored.

mod draw;
mod episode;
mod inject;
mod line;
pub mod measure;
mod memory;
mod round;
mod sample;
mod shape;
mod share;
mod steps;

use serde::Serialize;
use temper_algo::{Fate, Shaped};
use temper_env::{Task, Verdict};
use temper_model::{Author, Batch, Reply, Stop};

use crate::error::Result;
use crate::online::Readings;

pub use draw::Sources;
pub use inject::Answers;
pub use line::RolloutLine;
pub use round::Sampling;
pub use sample::complete;
pub use shape::{advantages, redrawn};
pub use share::Peer;
pub use steps::score_steps;

/// Branches of a stage's seed.
const SAMPLE: u64 = 2;
const SOURCE: u64 = 3;
const MIX: u64 = 4;
/// Randomness of reward shaping.
const NOISE: u64 = 5;
const REDRAW: u64 = 8;
const REFINE: u64 = 9;
const SHARE: u64 = 10;
const STEPS: u64 = 13;

/// Where a completion comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The policy sampled it in this round.
    Sampled,
    /// It is the task's solution.
    Demonstration,
    /// The policy sampled it in this round with a wrong rollout and its critique in view.
    Refinement,
    /// Another learner sampled it.
    Shared,
    /// The policy sampled it in an earlier round.
    Stored {
        /// That round, from 1.
        round: usize,
    },
}

/// A turn of the model that is not its last one.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What it says.
    pub text: String,
    /// Its tokens.
    pub n_tokens: usize,
    /// Why sampling ended.
    pub stop: Stop,
    /// Its reward.
    pub reward: f64,
}

/// One completion of a task.
#[derive(Debug, Clone)]
pub struct Rollout {
    /// The tokens `[T]`, end-of-turn tokens included where they were sampled; with an environment the words between the model's
    /// turns too.
    pub tokens: Vec<u32>,
    /// Who wrote each of them `[T]`. Those of model and teacher are scored and trained on.
    pub authors: Vec<Author>,
    /// Log-probabilities of the scored tokens as sampled, at the sampling temperature; of a demonstration, which nobody sampled,
    /// those under the policy before the update.
    pub logp_gen: Vec<f32>,
    /// Log-probabilities of the scored tokens under the policy before the update, where it is not what sampled them.
    pub logp_old: Option<Vec<f32>>,
    /// Where the tokens come from.
    pub origin: Origin,
    /// What the policy makes of the completion, `[C]`; empty unless an episodic memory asks for it.
    pub embedding: Vec<f32>,
    /// What an episodic memory adds to the reward.
    pub intrinsic: f64,
    /// Example weight: how often it counts in the step.
    pub weight: f64,
    /// Why sampling ended.
    pub stop: Stop,
    /// The text that is scored: the tokens decoded, without special ones; of several turns the last one's.
    pub text: String,
    /// The model's turns before the last one.
    pub earlier: Vec<Attempt>,
    /// With an environment, what the last turn earned by itself.
    pub last_reward: f64,
    /// Mean probability mass that truncating rules cut away.
    pub lost_mass: f64,
    /// What the rewards said.
    pub verdict: Option<Verdict>,
    /// What reference and critic said of the scored tokens.
    pub read: Readings,
}

impl Rollout {
    /// Log-probabilities under the policy before the update.
    pub fn logp_old(&self) -> &[f32] {
        self.logp_old.as_deref().unwrap_or(&self.logp_gen)
    }
    /// Which tokens are scored `[T]`.
    pub fn mask(&self) -> Vec<bool> {
        self.authors.iter().map(|author| matches!(author, Author::Model | Author::Teacher)).collect()
    }
    /// Which of the model's turns each scored token belongs to, from 0; others' words lie between two turns.
    pub fn turns(&self) -> Vec<usize> {
        let (mut turn, mut inside, mut turns) = (0, false, vec![]);
        for scored in self.mask() {
            turn += usize::from(!scored && inside);
            inside = scored;
            turns.extend(scored.then_some(turn));
        }
        turns
    }
    /// How many tokens are scored.
    pub fn scored(&self) -> usize {
        self.mask().into_iter().filter(|scored| *scored).count()
    }
    /// The tokens as a part of a batch.
    pub fn reply(&self) -> Reply<'_> {
        Reply { ids: &self.tokens, scored: self.mask() }
    }
    /// The weighted reward.
    pub fn reward(&self) -> f64 {
        self.verdict.as_ref().map_or(0.0, Verdict::reward)
    }
    /// The answer as the verifier reads it.
    pub fn said(&self) -> Option<&str> {
        self.verdict.as_ref().and_then(Verdict::said)
    }
    /// Reward part `k`, unweighted.
    pub fn part(&self, k: usize) -> f64 {
        self.verdict.as_ref().and_then(|v| v.parts().get(k)).map_or(0.0, |(_, value)| *value)
    }
    /// Whether it was cut off.
    pub fn truncated(&self) -> bool {
        matches!(self.stop, Stop::MaxTokens | Stop::ContextFull)
    }
    /// Whether the verifier found no answer in it.
    pub fn unparsed(&self) -> bool {
        self.verdict.as_ref().is_some_and(|v| v.failure().is_some())
    }
}

/// The completions of one prompt.
#[derive(Debug, Clone)]
pub struct Group {
    /// The task.
    pub task: Task,
    /// Its prompt, tokenised.
    pub prompt: Vec<u32>,
    /// The completions: G that were sampled, or fewer with a budget in stages, and perhaps members from elsewhere behind them.
    pub rollouts: Vec<Rollout>,
    /// Share of right completions among all that were sampled here, also those that are not trained on.
    pub success: f64,
    /// A greedy completion, where a part needs its reward.
    pub greedy: Option<Rollout>,
    /// Rewards `[G]` and their parts `[G][K]` after shaping; as scored where nothing shapes them.
    pub shaped: Shaped,
    /// Which completions are trained on `[G]`.
    pub fates: Vec<Fate>,
    /// Advantages of their tokens `[G][T]`; empty for completions that are not trained on.
    pub adv: Vec<Vec<f64>>,
}

impl Group {
    /// A group of which nothing is sampled yet.
    pub fn new(task: Task, prompt: Vec<u32>) -> Self {
        let (rollouts, shaped, fates, adv) = (vec![], Shaped::default(), vec![], vec![]);
        Self { task, prompt, rollouts, success: 0.0, greedy: None, shaped, fates, adv }
    }
    /// The completions that were sampled in this round.
    pub fn sampled(&self) -> impl Iterator<Item = &Rollout> {
        self.rollouts.iter().filter(|r| r.origin == Origin::Sampled)
    }
    /// Rewards of the completions that were sampled in this round, as scored.
    pub fn rewards(&self) -> Vec<f64> {
        self.sampled().map(Rollout::reward).collect()
    }
    /// Completions sampled in this round that earned a reward above 0.
    pub fn passes(&self) -> usize {
        self.sampled().filter(|r| r.reward() > 0.0).count()
    }
    /// Whether no completion of it is trained on.
    pub fn dropped(&self) -> bool {
        !self.fates.contains(&Fate::Kept)
    }
    /// The group with the completions that are trained on alone; nothing of a dropped one.
    pub fn trained(mut self) -> Option<Self> {
        let kept = || {
            let mut fates = self.fates.iter();
            move || fates.next() == Some(&Fate::Kept)
        };
        let (mut stays, mut counts) = (kept(), kept());
        self.rollouts.retain(|_| stays());
        self.adv.retain(|_| counts());
        (!self.rollouts.is_empty()).then_some(self)
    }
    /// Tokens that were computed in sampling it: the prompt once, and all completions.
    pub fn sampled_tokens(&self) -> u64 {
        let completions: usize = self.sampled().chain(&self.greedy).map(|r| r.tokens.len()).sum();
        (self.prompt.len() + completions) as u64
    }
    /// Mean advantage of completion `i`; 0 where it is not trained on.
    pub fn mean_adv(&self, i: usize) -> f64 {
        self.adv.get(i).map_or(0.0, |adv| adv.iter().sum::<f64>() / adv.len().max(1) as f64)
    }
    /// Scored tokens of each completion `[G]`.
    pub fn lengths(&self) -> Vec<usize> {
        self.rollouts.iter().map(Rollout::scored).collect()
    }
    /// Reward parts `[G][K]`, unweighted.
    fn parts(&self, parts: usize) -> Vec<Vec<f64>> {
        self.rollouts.iter().map(|r| (0..parts).map(|k| r.part(k)).collect()).collect()
    }
    /// Scored tokens of all completions.
    pub fn scored(&self) -> usize {
        self.rollouts.iter().map(Rollout::scored).sum()
    }
    /// Tokens of the prompt (once) and of all completions.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.rollouts.iter().map(|r| r.tokens.len()).sum::<usize>()
    }
}

/// The groups as a batch: every prompt once, all scored tokens of all completions.
pub fn batch(groups: &[&Group]) -> Result<Batch> {
    let mut shapes: Vec<(&[u32], Vec<Reply>)> = Vec::with_capacity(groups.len());
    for group in groups {
        shapes.push((&group.prompt, group.rollouts.iter().map(Rollout::reply).collect()));
    }
    Ok(Batch::replies(&shapes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::OnlineStage;

    fn rollout(reward: f64) -> Rollout {
        Rollout {
            tokens: vec![1],
            authors: vec![Author::Model],
            earlier: vec![],
            last_reward: 0.0,
            logp_gen: vec![-1.0],
            logp_old: None,
            origin: Origin::Sampled,
            embedding: vec![],
            intrinsic: 0.0,
            weight: 1.0,
            stop: Stop::Eos,
            text: String::new(),
            lost_mass: 0.0,
            verdict: Some(Verdict::Graded { reward, parts: vec![("correct".into(), reward)], said: None }),
            read: Readings::default(),
        }
    }

    #[test]
    fn scored_tokens_know_their_turn() {
        let (m, e) = (Author::Model, Author::Environment);
        let mut rollout = rollout(1.0);
        rollout.authors = vec![m, m, e, e, m];
        assert_eq!(rollout.turns(), [0, 0, 1]);
        rollout.authors = vec![m; 2];
        assert_eq!(rollout.turns(), [0, 0]);
    }

    /// NFT's share of right answers is of everything that was sampled, whatever is trained on afterwards.
    #[test]
    fn the_share_of_right_answers_is_of_all_samples() {
        let stage = r#"
            id = "rl"
            tasks = [{ source = { kind = "tiny_world", families = ["copying"], levels = [1], split = "train" } }]
            steps = 1
            prompts_per_step = 1
            samples_per_prompt = 4
            sampling = { max_tokens = 4 }
            rewards = [{ name = "correct", weight = 1.0, kind = "verifier" }]
            group = [{ kind = "down_sample", keep = 2, rule = "best", counts = true }]
            optimizer = { kind = "adamw", lr = 1e-3 }
        "#;
        let stage: OnlineStage = toml::from_str(stage).unwrap();
        let task = stage.tasks[0].source.open(0).unwrap().get(0).unwrap();
        let rollouts = [1.0, 0.0, 0.0, 0.0].map(rollout).to_vec();
        let adv = vec![vec![0.0]; 4];
        let group = Group { rollouts, adv, ..Group::new(task, vec![1]) };
        let mut groups = vec![group];
        super::shape::shape(&stage, &mut groups, 0, 0).unwrap();
        let trained = groups.remove(0).trained().unwrap();
        assert_eq!((trained.rollouts.len(), trained.success), (2, 0.25));
    }
}
