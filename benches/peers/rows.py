"""The rows of the comparison: what both sides do, and what is aimed at."""
import json, random, subprocess, sys, tempfile, time
from dataclasses import dataclass
from functools import partial
from typing import Callable

from peers import HERE, HOME, REPO, TEMPER, decoding, peer, peers, run, side, temper

MODEL = dict(f32=HOME / "models/smollm2-135m-instruct", bf16=HOME / "models/smollm2-135m-instruct-bf16")
GGUF = HOME / "gguf/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = HOME / "data/random_text.jsonl"
POLICY = f"model.policy.path={MODEL['f32']}"  # ours rounds for bf16 itself and keeps f32 to update
SFT = f"stage.sft.data.0.path={HOME}/data/sft_messages.jsonl"
GRPO = f"stage.grpo.tasks.0.source.path={HOME}/data/grpo_prompts.jsonl"
STEP = f"stage.step.data.0.path={TEXT}"
WARM, STEPS = 2, 7  # steps of warm-up, and with them


@dataclass
class Row:
    """`measure` gives Temper's side, the peer's, and the peer's with an allocator that retains memory; None where there is none."""

    what: str
    measure: Callable
    peer: str = "-"
    unit: str = "tokens/s"  # with "s" less is better
    ratio: float | None = None
    gb: float | None = None  # most memory, 1e9 bytes
    seconds: float | None = None


def random_text(path=TEXT, rows=64, words=400):
    """Rows of `text` of more than 256 tokens, the same ones every time."""
    random.seed(1)
    known = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(4000)]
    with open(path, "w") as f:
        f.writelines(json.dumps({"text": " ".join(random.choices(known, k=words))}) + "\n" for _ in range(rows))


def ours(recipe, stage, *sets, of=lambda step: step["tokens_per_s"], skip=WARM):
    """A figure of each of Temper's steps after the warm-up."""
    lines, memory = temper(recipe, stage, *sets)
    return side([of(step) for step in lines[skip:]], **memory)


def flags(dtype, warm=WARM):
    return ["--dtype", dtype, "--steps", STEPS, "--warmup", warm]


def sft(dtype):
    own = ours("sft_smollm2.toml", "sft", POLICY, SFT, f"dtype={dtype}", f"stage.sft.steps={STEPS}")
    return own, *peers("bench_sft.py", "step_tok_s", *flags(dtype), "--packing", "--batch", 8, model=MODEL[dtype])


def lora(dtype):
    own = ours("sft_lora_smollm2.toml", "sft", POLICY, SFT, f"dtype={dtype}", f"stage.sft.steps={STEPS}")
    return own, *peers("bench_sft.py", "step_tok_s", *flags(dtype), "--lora", "--batch", 8, model=MODEL[dtype])


def raw(dtype):
    random_text()
    own = ours("raw_step.toml", "step", POLICY, STEP, f"dtype={dtype}", f"stage.step.steps={STEPS}")
    return own, *peers("raw_step.py", "step_tok_s", MODEL[dtype], "--dtype", dtype, "--steps", STEPS - WARM, "--warmup", WARM)


def tiny():
    random_text()
    own = ours("tiny_step.toml", "step", STEP, of=lambda step: 1 / step["wall_s"])
    return own, *peers("raw_step.py", "step_rate", "--tiny", "--steps", 40)


def grpo(dtype):
    """A step of the peer takes a minute, so only one is left out."""
    forced = "stage.grpo.sampling.ignore_eos=true"
    steps = STEPS - WARM + 1
    own = ours("grpo_smollm2.toml", "grpo", POLICY, GRPO, f"dtype={dtype}", f"stage.grpo.steps={steps}", forced, of=lambda step: step["wall_s"], skip=1)
    work = ["--prompts", 4, "--gens", 8, "--micro", 8, "--max_new", 64, "--forced", "--dtype", dtype, "--steps", steps, "--warmup", 1]
    return own, *peers("bench_grpo.py", "step_s", *work, model=MODEL[dtype])


def generate(dtype, what, batch, key):
    own = decoding(what, dtype, MODEL["f32"])
    return own, *peers("bench_generate.py", key, "--dtype", dtype, "--batch", batch, "--new", 64, model=MODEL[dtype])


def quantised():
    """Both compute on the GGUF's blocks."""
    return decoding("1 at a time", "quantised", GGUF), peer("bench_llamacpp.py", "decode_tok_s"), None


def start():
    check = [TEMPER, "check", "recipes/quickstart.toml"]
    peak = run(check)[2]
    seconds = [timed(check) for _ in range(20)]
    theirs = [run([sys.executable, HERE / "trl_start.py"])[1:] for _ in range(5)]
    return side(seconds, peak_gb=peak), side([s for s, _ in theirs], peak_gb=max(gb for _, gb in theirs)), None


def timed(command):
    began = time.perf_counter()
    subprocess.run(command, cwd=REPO, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def quickstart():
    with tempfile.TemporaryDirectory(dir=HOME) as base:
        _, seconds, peak = run([TEMPER, "run", "recipes/quickstart.toml", "--out", f"{base}/run"])
    return side([seconds], peak_gb=peak), None, None


ROWS = dict(
    sft_f32=Row("SFT full, f32, packed 8 x 256", partial(sft, "f32"), "TRL", ratio=4.5, gb=3.3),
    sft_bf16=Row("SFT full, bf16 over f32 master weights (TRL: bf16 weights), packed", partial(sft, "bf16"), "TRL", ratio=4.0, gb=3.3),
    raw_f32=Row("training step 4 x 256, all logits, f32", partial(raw, "f32"), "PyTorch", ratio=2.5),
    raw_bf16=Row("training step 4 x 256, all logits, bf16", partial(raw, "bf16"), "PyTorch", ratio=1.6),
    lora_f32=Row("SFT LoRA r = 16, batch 8, unpacked rows, f32", partial(lora, "f32"), "TRL", ratio=4.5, gb=1.4),
    lora_bf16=Row("SFT LoRA r = 16, batch 8, unpacked rows, bf16", partial(lora, "bf16"), "TRL", ratio=5.0, gb=1.4),
    grpo_f32=Row("GRPO 4 x 8 x 64 forced tokens, beta 0, f32", partial(grpo, "f32"), "TRL", "s", ratio=8.0, gb=3.5),
    grpo_bf16=Row("GRPO 4 x 8 x 64 forced tokens, beta 0, bf16", partial(grpo, "bf16"), "TRL", "s", ratio=6.0, gb=3.5),
    decode_1_f32=Row("decoding, batch 1, f32", partial(generate, "f32", "1 at a time", 1, "decode_tok_s"), "transformers", ratio=2.3),
    decode_1_bf16=Row("decoding, batch 1, bf16", partial(generate, "bf16", "1 at a time", 1, "decode_tok_s"), "transformers", ratio=2.3),
    decode_16_f32=Row("decoding, batch 16, f32", partial(generate, "f32", "16 at a time", 16, "decode_tok_s"), "transformers", ratio=3.0),
    decode_16_bf16=Row("decoding, batch 16, bf16", partial(generate, "bf16", "16 at a time", 16, "decode_tok_s"), "transformers", ratio=2.5),
    decode_1_q4=Row("decoding, batch 1, on the blocks of a Q4_1 GGUF", quantised, "llama.cpp", ratio=1.0),
    prefill_f32=Row("reading prompts, f32", partial(generate, "f32", "reading a prompt", 8, "prefill_tok_s"), "transformers", ratio=2.0),
    prefill_bf16=Row("reading prompts, bf16", partial(generate, "bf16", "reading a prompt", 8, "prefill_tok_s"), "transformers", ratio=1.2),
    tiny_f32=Row("tiny model (4 layers, 128 wide), batch 64 x 64, f32", tiny, "PyTorch", "steps/s", ratio=2.2),
    start=Row("process start to recipe checked (median of 20; TRL: of 5)", start, "TRL", "s", seconds=0.05, gb=0.05),
    quickstart=Row("quickstart recipe, whole", quickstart, unit="s", seconds=60.0),
)
