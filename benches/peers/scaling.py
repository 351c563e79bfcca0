"""The scaling curves: Temper alone, three steps a point of which the last two count, and the memory that `temper plan` expects beside the peak."""
import json, sys
from dataclasses import dataclass
from statistics import median
from typing import Callable

from peers import HERE, HOME, TEMPER, Failed, run, temper
from rows import GRPO, MODEL, POLICY, TEXT, random_text

LONG = HOME / "data/long_text.jsonl"
SMOL = MODEL["f32"]


@dataclass
class Curve:
    """`measure` gives the points."""

    title: str
    axis: str
    measure: Callable
    work: str


def random_model(name):
    """The directory of a model with random weights, written on the first call."""
    path = HOME / "models" / f"random-{name}"
    if not path.exists():
        run([sys.executable, HERE / "random_models.py", name, path])
    return path


def point(series, x, recipe, stage, *sets, threads=None):
    """One point of a curve, or why there is none."""
    try:
        lines, memory = temper(recipe, stage, *sets, f"stage.{stage}.steps=3", threads=threads)
    except Failed as failed:
        if "and this machine has" not in str(failed):
            raise
        return dict(series=series, x=x, left_out="does not fit")
    seconds, rate = (median(line[key] for line in lines[1:]) for key in ("wall_s", "tokens_per_s"))
    return dict(series=series, x=x, seconds=seconds, tok_s=rate, **memory)


def step(series, x, rows, length, *sets, model=SMOL, text=TEXT, **more):
    """A training step on `rows` rows of `length` tokens, in one micro-batch unless `sets` say otherwise."""
    work = [f"stage.step.batch.examples={rows}", f"stage.step.max_tokens={length}", f"stage.step.micro_tokens={rows * length}"]
    return point(series, x, "raw_step.toml", "step", f"model.policy.path={model}", f"stage.step.data.0.path={text}", *work, *sets, **more)


def tokens():
    random_text()
    for n in (128, 512, 2048, 8192):
        yield step("f32, cut at 1,024", n, n // 128, 128, f"stage.step.micro_tokens={min(n, 1024)}")
        yield step("bf16, in one piece", n, n // 128, 128, "dtype=bf16")


def sequence():
    random_text(LONG, rows=4, words=5000)
    for n in (256, 1024, 4096, 8192):
        yield step("bf16", n, 1, n, "dtype=bf16", text=LONG)
        yield step("bf16, recompute", n, 1, n, "dtype=bf16", "stage.step.recompute=true", text=LONG)


def vocabulary():
    random_text()
    for n in (1024, 8192, 32768, 131072):
        model = random_model(f"135m-v{n}")
        for dtype in ("f32", "bf16"):
            yield step(dtype, n, 4, 256, f"dtype={dtype}", model=model)


LORA = ['stage.step.adapter={ kind = "lora", rank = 16, alpha = 32, targets = ["all_linear"] }', "save=adapter"]


def size():
    """All parameters up to 360M; LoRA up to 1B."""
    random_text()
    for name, millions in (("tiny", 7), ("135m", 135), ("360m", 362)):
        for dtype in ("f32", "bf16"):
            yield step(dtype, millions, 4, 256, f"dtype={dtype}", model=random_model(name))
    for name, millions in (("135m", 135), ("360m", 362), ("1b", 1074)):
        yield step("LoRA, bf16", millions, 4, 256, "dtype=bf16", *LORA, model=random_model(name))


def decoding():
    for name, millions, new in (("tiny", 7, 256), ("135m", 135, 64), ("360m", 362, 64), ("1b", 1074, 32)):
        for batch in (1, 16):
            yield generated(f"batch {batch}", millions, random_model(name), batch, new)


def generated(series, x, model, batch, new):
    """Decoding in f32: the tokens after the first, so that neither loading nor reading the prompt counts."""
    def once(most):
        flags = ["--raw", "--prompt", "one two three", "--temperature", "1", "--n", batch, "--max-tokens", most, "--json"]
        text, seconds, peak = run([TEMPER, "generate", model, *flags])
        return sum(json.loads(line)["n_tokens"] for line in text.splitlines()), seconds, peak
    (few, start, _), (many, end, peak) = once(1), once(new + 1)
    seconds = max(end - start, 1e-9)
    return dict(series=series, x=x, seconds=seconds / new, tok_s=(many - few) / seconds, peak_gb=peak)


def threads():
    random_text()
    for n in (1, 2):
        for dtype in ("f32", "bf16"):
            yield step(dtype, n, 4, 256, f"dtype={dtype}", threads=n)


def group():
    forced = ["stage.grpo.sampling.ignore_eos=true", "stage.grpo.prompts_per_step=1", "stage.grpo.max_batch=64"]
    for n in (2, 8, 32, 64):
        for dtype in ("f32", "bf16"):
            yield point(dtype, n, "grpo_smollm2.toml", "grpo", POLICY, GRPO, *forced, f"stage.grpo.samples_per_prompt={n}", f"dtype={dtype}")


CURVES = dict(
    scaling_tokens=Curve("Tokens of a step", "tokens of a step", tokens, "SmolLM2-135M, rows of 128 tokens, all scored"),
    scaling_sequence=Curve("Length of a sequence", "tokens of the sequence", sequence, "SmolLM2-135M, one sequence a step, all tokens scored"),
    scaling_vocabulary=Curve("Vocabulary", "tokens in the vocabulary", vocabulary, "blocks of SmolLM2-135M with random weights, 4 rows of 256 tokens"),
    scaling_size=Curve("Size of the model, training", "million parameters", size, "random weights (vocabulary 49,152), 4 rows of 256 tokens; all parameters, or LoRA r = 16"),
    scaling_decoding=Curve("Size of the model, decoding", "million parameters", decoding, "random weights (vocabulary 49,152), f32, one prompt of a few tokens; seconds are those of one token of every sequence"),
    scaling_threads=Curve("Threads", "threads", threads, "SmolLM2-135M, 4 rows of 256 tokens, all scored"),
    scaling_group=Curve("Size of a group in GRPO", "completions of a prompt", group, "SmolLM2-135M, one prompt a round, 64 forced tokens a completion"),
)
