//! Every command and option, in one place: the help texts are these doc comments.

use std::path::PathBuf;

use clap::{Args as ArgGroup, Parser, Subcommand, ValueEnum};

/// Version and commit.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("TEMPER_COMMIT"), ")");

/// Post-training for language models: improves a model by a recipe, and shows what it kept and what it lost.
#[derive(Debug, Parser)]
#[command(name = "temper", version = VERSION, disable_help_subcommand = true, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Data goes to stdout, everything else to stderr.\n\
    Exit codes: 0 done, 1 something that you can mend, 2 a fault of temper, 130 interrupted after a checkpoint.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a recipe: train a model stage by stage and measure it before and after.
    Run(Run),
    /// Check recipes without running them: every problem at once, each with the way out.
    Check(Check),
    /// Say what a recipe will do: examples, steps, tokens, memory, and the first example with its loss mask.
    Plan(Plan),
    /// Measure a model on one task or on the likelihood of a text.
    Eval(Eval),
    /// Let a model write.
    Generate(Generate),
    /// Merge a LoRA adapter into its base model and write the whole model.
    Merge(Merge),
    /// Make the report of a run anew from its directory, and print its path.
    Report(Report),
    /// Look at task families: list them, draw samples, prove their verifiers.
    #[command(subcommand)]
    Env(Env),
    /// List the published methods that ship as recipes, with what each was checked against.
    Methods(Methods),
    /// The recipe format, and the distance between two recipes.
    #[command(subcommand)]
    Recipe(RecipeCommand),
    /// Measure what this machine can do, and what a model's training step, GRPO round and decoding reach of it.
    Bench(Bench),
}

/// Overrides of a recipe.
#[derive(Debug, Clone, Default, ArgGroup)]
pub(crate) struct Overrides {
    /// Override a key of the recipe; stages and tasks are named by their id, as in stage.sft.steps=10 (repeatable).
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub(crate) sets: Vec<String>,
}

/// Threads.
#[derive(Debug, Clone, Copy, Default, ArgGroup)]
pub(crate) struct Threads {
    /// Threads to compute with [default: one a core]. Results do not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Run {
    /// The recipe, a TOML file.
    pub(crate) recipe: PathBuf,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
    /// Directory of the run [default: runs/NAME with the name that the recipe gives].
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Go on where the run in that directory was interrupted; start afresh if there is none.
    #[arg(long)]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) threads: Threads,
    /// The run's seed; the same as --set seed=N.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64))]
    pub(crate) seed: Option<u64>,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Check {
    /// Recipes.
    #[arg(required = true, value_name = "RECIPE")]
    pub(crate) recipes: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Plan {
    /// The recipe, a TOML file.
    pub(crate) recipe: PathBuf,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
    /// Print one JSON array instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a completion is drawn.
#[derive(Debug, Clone, ArgGroup)]
pub(crate) struct Drawing {
    /// Softmax temperature; 0 is greedy [default: 0 for one completion, 1 for several].
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = temperature)]
    pub(crate) temperature: Option<f32>,
    /// Longest completion, in tokens.
    #[arg(long, value_name = "N", default_value_t = 256, allow_negative_numbers = true, value_parser = positive)]
    pub(crate) max_tokens: usize,
    /// Text that ends a completion, besides the model's end-of-turn tokens (repeatable).
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
}

const TASKS: &str = "\
Tasks are named so:
  chains:3:test             a family of the tiny world, with level and split (train, test or ood) [default: 1, test]
  chains,sorting:1-3        several families, several levels
  all:2                     every family
  gsm8k:FILE                GSM8K rows (question, answer)
  bbh:FILE                  BIG-Bench Hard
  blimp:FILE                minimal pairs: how often the good sentence is the likelier one
  '{ kind = \"gsm8k\", path = \"FILE\", n = 100 }'
                            a task source as recipes write it";

#[derive(Debug, ArgGroup)]
#[command(after_help = TASKS)]
pub(crate) struct Eval {
    /// The model: a Hugging Face directory, a .gguf file, hf:owner/name, or the directory of a LoRA adapter.
    pub(crate) model: String,
    /// The base model, where the model is an adapter [default: the one that its adapter_config.json names].
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,
    /// Type to compute in.
    #[arg(long, value_enum, default_value_t = Compute::F32)]
    pub(crate) dtype: Compute,
    /// Measure accuracy on this task.
    #[arg(long, value_name = "NAME", required_unless_present = "data", conflicts_with = "data")]
    pub(crate) task: Option<String>,
    /// Measure the negative log-likelihood per token of this data file (.jsonl, .json, .txt; plain, .gz or .zst).
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<String>,
    /// Items to measure; fewer where there are fewer.
    #[arg(long, value_name = "N", default_value_t = 200, allow_negative_numbers = true, value_parser = positive)]
    pub(crate) n: usize,
    /// Completions per item; more than one gives pass@k as well [default: 1].
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = positive, conflicts_with = "data")]
    pub(crate) samples: Option<usize>,
    /// Softmax temperature; 0 is greedy [default: 0 for one sample, 1 for several].
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = temperature, conflicts_with = "data")]
    pub(crate) temperature: Option<f32>,
    /// Longest completion, in tokens [default: 256]; with --data the longest row, longer ones are cut [default: 512].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = positive)]
    pub(crate) max_tokens: Option<usize>,
    /// Text that ends a completion, besides the model's end-of-turn tokens (repeatable).
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new(), conflicts_with = "data")]
    pub(crate) stop: Vec<String>,
    /// Which tokens of conversations count; plain text always counts whole [default: response].
    #[arg(long, value_enum, requires = "data")]
    pub(crate) mask: Option<Mask>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Seed of the items and samples.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) threads: Threads,
}

/// Which tokens count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mask {
    /// The model's turns with their end-of-turn marker.
    Response,
    /// Every token after the first.
    All,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Generate {
    /// The model: a Hugging Face directory, a .gguf file, hf:owner/name, or the directory of a LoRA adapter.
    pub(crate) model: String,
    /// The base model, where the model is an adapter [default: the one that its adapter_config.json names].
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,
    /// Type to compute in.
    #[arg(long, value_enum, default_value_t = Compute::F32)]
    pub(crate) dtype: Compute,
    /// What the user says (with --raw: the text to continue).
    #[arg(long, value_name = "TEXT", required_unless_present = "messages", conflicts_with = "messages")]
    pub(crate) prompt: Option<String>,
    /// Conversations to answer: a JSON file with a list of messages or an object with `messages`, or such lines; - is stdin.
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    pub(crate) messages: Option<PathBuf>,
    /// Completions of each prompt.
    #[arg(long, value_name = "K", default_value_t = 1, allow_negative_numbers = true, value_parser = positive)]
    pub(crate) n: usize,
    #[command(flatten)]
    pub(crate) drawing: Drawing,
    /// Sample among the K most likely tokens only.
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = positive)]
    pub(crate) top_k: Option<usize>,
    /// Sample among the most likely tokens whose mass reaches P.
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = share)]
    pub(crate) top_p: Option<f32>,
    /// Sample among the tokens at least P times as likely as the most likely one.
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = share)]
    pub(crate) min_p: Option<f32>,
    /// Continue the prompt as plain text, without the chat template.
    #[arg(long)]
    pub(crate) raw: bool,
    /// Print one JSON object a line for each completion.
    #[arg(long)]
    pub(crate) json: bool,
    /// Seed of the samples.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) threads: Threads,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Merge {
    /// The adapter: a directory with adapter_config.json and adapter_model.safetensors, as PEFT and temper write them.
    pub(crate) adapter: String,
    /// Directory of the merged model; it must not exist yet.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// The base model [default: the one that adapter_config.json names].
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,
    /// Type of the numbers that are written.
    #[arg(long, value_enum, default_value = "f32")]
    pub(crate) dtype: Dtype,
    #[command(flatten)]
    pub(crate) threads: Threads,
}

/// Numeric type of what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// 32-bit floats.
    F32,
    /// bfloat16, rounded to the nearest.
    Bf16,
}

/// What a model is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compute {
    /// 32-bit floats, whatever the file holds.
    F32,
    /// bfloat16: weights and what is multiplied by them are rounded.
    Bf16,
    /// The quantised blocks of a .gguf file (Q4_0, Q4_1, Q8_0), multiplied by 8-bit integers.
    Quantised,
}

impl Compute {
    pub(crate) fn as_asked(self) -> temper_train::models::Compute {
        use temper_train::models::Compute;
        match self {
            Self::F32 => Compute::F32,
            Self::Bf16 => Compute::Bf16,
            Self::Quantised => Compute::Quantised,
        }
    }
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Report {
    /// Directory of the run.
    pub(crate) run_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Env {
    /// List the task families with what they ask.
    List(EnvList),
    /// Draw tasks and show prompt, answer and demonstration.
    Sample(EnvSample),
    /// Prove that each verifier accepts every gold answer and rejects changed ones; exits with 1 where one does not.
    Validate(EnvValidate),
}

#[derive(Debug, ArgGroup)]
pub(crate) struct EnvList {
    /// Print one JSON array instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ArgGroup)]
#[command(after_help = TASKS)]
pub(crate) struct EnvSample {
    /// Tasks [default: every family].
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) cell: EnvCell,
    /// Tasks to draw of each name.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = positive)]
    pub(crate) n: usize,
    /// Show the answer alone as the demonstration, without worked steps.
    #[arg(long)]
    pub(crate) no_cot: bool,
}

#[derive(Debug, ArgGroup)]
#[command(after_help = TASKS)]
pub(crate) struct EnvValidate {
    /// Tasks [default: every family at every level and split].
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) cell: EnvCell,
    /// Tasks to try of each name, level and split.
    #[arg(long, value_name = "N", default_value_t = 100, allow_negative_numbers = true, value_parser = positive)]
    pub(crate) n: usize,
}

/// Which tasks of a family, for names that do not say it themselves.
#[derive(Debug, Clone, Copy, ArgGroup)]
pub(crate) struct EnvCell {
    /// Level of families whose name gives none, 1 to 5.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub(crate) level: Option<u8>,
    /// Split of families whose name gives none.
    #[arg(long, value_enum)]
    pub(crate) split: Option<Split>,
    /// Seed of the tasks.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print JSON: one object a line.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Split of the tiny world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Split {
    /// Seven problems in eight.
    Train,
    /// The others, held out.
    Test,
    /// Held-out problems of the two levels above the highest one named.
    Ood,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RecipeCommand {
    /// Print the JSON schema of recipes, for editors.
    Schema,
    /// Show what differs between two recipes, every default spelled out; names and descriptions are left out.
    Diff(RecipeDiff),
}

#[derive(Debug, ArgGroup)]
pub(crate) struct RecipeDiff {
    /// A recipe, a TOML file.
    pub(crate) a: PathBuf,
    /// Another one.
    pub(crate) b: PathBuf,
    /// Print a JSON array instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Methods {
    /// Print a JSON array instead of a table.
    #[arg(long, conflicts_with = "markdown")]
    pub(crate) json: bool,
    /// Print METHODS.md.
    #[arg(long)]
    pub(crate) markdown: bool,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Bench {
    /// The model, as in `temper eval` [default: random weights in the shape of SmolLM2-135M].
    pub(crate) model: Option<String>,
    /// Type to compute in; quantised blocks are not trained, so that only products and decoding are measured.
    #[arg(long, value_enum, default_value_t = Compute::F32)]
    pub(crate) dtype: Compute,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) threads: Threads,
}

/// The largest count that makes sense anywhere: completions are held in memory.
const MOST: usize = 1_000_000;

fn positive(text: &str) -> Result<usize, String> {
    let found = text.parse().ok().filter(|n| (1..=MOST).contains(n));
    found.ok_or_else(|| format!("expected a whole number from 1 to {MOST}"))
}

fn temperature(text: &str) -> Result<f32, String> {
    let t: Option<f32> = text.parse().ok();
    t.filter(|t| *t >= 0.0 && t.is_finite()).ok_or_else(|| "expected 0 (greedy) or a number above it".into())
}

fn share(text: &str) -> Result<f32, String> {
    let p: Option<f32> = text.parse().ok();
    p.filter(|p| *p > 0.0 && *p <= 1.0).ok_or_else(|| "expected a number above 0 and at most 1".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        super::Args::command().debug_assert();
    }
}
