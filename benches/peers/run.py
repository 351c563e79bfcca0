"""Runs Temper and its peers on the same work, in turn, and writes docs/BENCHMARKS.md. Called by run.sh; rows by name on the command line."""
import functools, json, os, platform, random, re, statistics, subprocess, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
HOME = Path(os.environ["PEER_HOME"])
TEMPER = Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release" / "temper"
PYTHON = sys.executable
F32, BF16 = HOME / "models/smollm2-135m-instruct", HOME / "models/smollm2-135m-instruct-bf16"
TEXT = HOME / "data/random_text.jsonl"
# glibc keeps what is freed: without this PyTorch gives large tensors back to the system and faults them in again.
RETAIN = dict(MALLOC_MMAP_THRESHOLD_="8589934592", MALLOC_TRIM_THRESHOLD_="17179869184", MALLOC_TOP_PAD_="268435456")
SKIP = 2  # steps of warm-up


def run(command, **env):
    """The process's stdout and stderr together, and its peak memory in MB."""
    with tempfile.NamedTemporaryFile("r") as peak:
        full = ["/usr/bin/time", "-o", peak.name, "-f", "%M", *map(str, command)]
        out = subprocess.run(full, env={**os.environ, **env}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=REPO)
        if out.returncode:
            raise RuntimeError(f"{' '.join(full[5:])}\n{out.stdout[-2000:]}")
        return out.stdout, int(peak.read().split()[-1]) / 1024


def peer(script, *args, model=None, **env):
    """The RESULT line of one of the peers' scripts."""
    if model:
        env["PEER_MODEL"] = str(model)
    text, peak = run([PYTHON, HERE / script, *args], **env)
    result = json.loads(re.findall(r"^RESULT (.*)$", text, re.M)[-1])
    return {**result, "peak_mb": peak}


def temper(recipe, stage, *sets, model=None):
    """Median seconds and tokens a second of a stage's steps after the warm-up, and peak memory in MB."""
    with tempfile.TemporaryDirectory() as base:
        out = Path(base) / "run"
        chosen = [f"model.policy.path={model}"] if model else []
        text, peak = run([TEMPER, "run", REPO / "benches" / recipe, "--out", out, *[x for s in (*chosen, *sets) for x in ("--set", s)]])
        lines = [json.loads(l) for l in open(out / "timing.jsonl")]
        steps = [l for l in lines if l["stage"] == stage][SKIP:]
        return dict(med_s=statistics.median(l["wall_s"] for l in steps), tok_s=statistics.median(l["tokens_per_s"] for l in steps), peak_mb=peak, steps=len(steps))


def random_text():
    random.seed(1)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(4000)]
    with open(TEXT, "w") as f:
        for _ in range(64):
            f.write(json.dumps({"text": " ".join(random.choices(words, k=400))}) + "\n")


DATA = dict(
    sft=f"stage.sft.data.0.path={HOME}/data/sft_messages.jsonl",
    grpo=f"stage.grpo.tasks.0.source.path={HOME}/data/grpo_prompts.jsonl",
    text=f"stage.step.data.0.path={TEXT}",
)
STEPS = 7  # with the warm-up
FLAGS = ["--steps", str(STEPS), "--warmup", str(SKIP)]
GRPO = ["--prompts", "4", "--gens", "8", "--micro", "8", "--max_new", "64", "--forced", *FLAGS]



def sft(dtype):
    flags = ["--dtype", dtype, "--packing", "--batch", "8", *FLAGS]
    model = F32 if dtype == "f32" else BF16
    sets = [f"stage.sft.steps={STEPS}"] + (["dtype=bf16"] if dtype == "bf16" else [])
    ours = temper("sft_smollm2.toml", "sft", DATA["sft"], *sets, model=F32)
    theirs, kept = peer("bench_sft.py", *flags, model=model), peer("bench_sft.py", *flags, model=model, **RETAIN)
    return ours, theirs, kept, "tok_s", 4.5 if dtype == "f32" else 4.0


def lora(dtype):
    flags = ["--dtype", dtype, "--lora", "--batch", "8", *FLAGS]
    model = F32 if dtype == "f32" else BF16
    sets = [f"stage.sft.steps={STEPS}"] + (["dtype=bf16"] if dtype == "bf16" else [])
    ours = temper("sft_lora_smollm2.toml", "sft", DATA["sft"], *sets, model=F32)
    theirs, kept = peer("bench_sft.py", *flags, model=model), peer("bench_sft.py", *flags, model=model, **RETAIN)
    return ours, theirs, kept, "tok_s", 4.5 if dtype == "f32" else 5.0


def raw(dtype):
    flags = ["--dtype", dtype, "--steps", str(STEPS - SKIP), "--warmup", str(SKIP)]
    sets = [f"stage.step.steps={STEPS}"] + (["dtype=bf16"] if dtype == "bf16" else [])
    ours = temper("raw_step.toml", "step", DATA["text"], *sets, model=F32)
    model = F32 if dtype == "f32" else BF16
    theirs, kept = peer("raw_step.py", model, *flags), peer("raw_step.py", model, *flags, **RETAIN)
    return ours, theirs, kept, "tok_s", 2.5 if dtype == "f32" else 1.6


def tiny(_):
    ours = temper("tiny_step.toml", "step", DATA["text"])
    ours["steps_s"] = 1 / ours["med_s"]
    theirs, kept = peer("raw_step.py", "--tiny", "--steps", "40"), peer("raw_step.py", "--tiny", "--steps", "40", **RETAIN)
    return ours, theirs, kept, "steps_s", 2.2


def grpo(dtype):
    model = F32 if dtype == "f32" else BF16
    sets = [f"stage.grpo.steps={STEPS}", "stage.grpo.sampling.ignore_eos=true"] + (["dtype=bf16"] if dtype == "bf16" else [])
    ours = temper("grpo_smollm2.toml", "grpo", DATA["grpo"], *sets, model=F32)
    ours["per_s"] = 1 / ours["med_s"]
    theirs, kept = peer("bench_grpo.py", "--dtype", dtype, *GRPO, model=model), peer("bench_grpo.py", "--dtype", dtype, *GRPO, model=model, **RETAIN)
    for side in (theirs, kept):
        side["per_s"] = 1 / side["med_s"]
    return ours, theirs, kept, "per_s", 8.0 if dtype == "f32" else 6.0


@functools.cache
def bench(model, dtype):
    """The pieces of work of `temper bench`, and peak memory in MB."""
    text, peak = run([TEMPER, "bench", model, "--dtype", dtype, "--json"])
    return json.loads(text[text.index("{"):])["work"], peak


def decoding(what, dtype, model=None):
    """Tokens a second of one piece of decoding."""
    work, peak = bench(model or F32, dtype)
    piece = next(w for w in work if w["part"] == "decoding" and w["what"] == what)
    return dict(tok_s=piece["tokens"] / piece["seconds"], peak_mb=peak)


def generate(dtype, what, batch, key, target):
    ours = decoding(what, dtype)
    flags = ["--dtype", dtype, "--batch", str(batch)]
    model = F32 if dtype == "f32" else BF16
    sides = peer("bench_generate.py", *flags, model=model), peer("bench_generate.py", *flags, model=model, **RETAIN)
    for side in sides:
        side["tok_s"] = side[key]
    return ours, *sides, "tok_s", target


def one(dtype):
    return generate(dtype, "1 at a time", 1, "decode_tok_s", 2.3)


def sixteen(dtype):
    return generate(dtype, "16 at a time", 16, "decode_tok_s", 3.0 if dtype == "f32" else 2.5)


def prefill(dtype):
    return generate(dtype, "reading a prompt", 8, "prefill_tok_s", 2.0 if dtype == "f32" else 1.2)


def quantised(_):
    """Temper widens the GGUF's blocks when it loads them; llama.cpp computes on them."""
    theirs = peer("bench_llamacpp.py")
    theirs["tok_s"] = theirs["decode_tok_s"]
    return decoding("1 at a time", "f32", HOME / "gguf/SmolLM2-135M-Instruct.Q4_1.gguf"), theirs, theirs, "tok_s", 1.0


ROWS = dict(
    sft_f32=("SFT full, f32, packed 8 x 256", sft, "f32"),
    sft_bf16=("SFT full, bf16 compute, packed 8 x 256", sft, "bf16"),
    raw_f32=("training step 4 x 256, all logits, f32", raw, "f32"),
    raw_bf16=("training step 4 x 256, all logits, bf16", raw, "bf16"),
    lora_f32=("SFT LoRA r = 16, batch 8, f32", lora, "f32"),
    lora_bf16=("SFT LoRA r = 16, batch 8, bf16", lora, "bf16"),
    grpo_f32=("GRPO 4 x 8 x 64 forced tokens, f32", grpo, "f32"),
    grpo_bf16=("GRPO 4 x 8 x 64 forced tokens, bf16", grpo, "bf16"),
    decode_1_f32=("decoding, batch 1, f32", one, "f32"),
    decode_1_bf16=("decoding, batch 1, bf16", one, "bf16"),
    decode_16_f32=("decoding, batch 16, f32", sixteen, "f32"),
    decode_16_bf16=("decoding, batch 16, bf16", sixteen, "bf16"),
    decode_1_q4=("decoding, batch 1, from Q4_1 (peer: llama.cpp)", quantised, "q4_1"),
    prefill_f32=("reading prompts, f32", prefill, "f32"),
    prefill_bf16=("reading prompts, bf16", prefill, "bf16"),
    tiny_f32=("tiny model, 64 x 64, training steps/s", tiny, "f32"),
)
UNITS = dict(tok_s="tokens/s", steps_s="steps/s", per_s="rounds/s")


def machine():
    info = open("/proc/cpuinfo").read()
    name = re.search(r"model name\s*: (.*)", info)
    flags = set(re.search(r"flags\s*: (.*)", info)[1].split())
    level = [f for f in ("avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    commit = subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=REPO, text=True).strip()
    return f"{name[1] if name else platform.processor()}, {os.cpu_count()} cores, {', '.join(level)}; commit {commit}; {time.strftime('%Y-%m-%d')}"


def line(name):
    what, measure, dtype = ROWS[name]
    try:
        ours, theirs, kept, key, target = measure(dtype)
    except (RuntimeError, LookupError) as failed:
        print(failed, file=sys.stderr)
        return f"| {what} | failed: {str(failed).splitlines()[0][-80:]} | | | | |"
    first = ours[key] / theirs[key]
    return (f"| {what} | {ours[key]:.3g} {UNITS[key]}, {ours['peak_mb'] / 1000:.2f} GB | {theirs[key]:.3g}, {theirs['peak_mb'] / 1000:.1f} GB | "
            f"{kept[key]:.3g} | {first:.2f} | {ours[key] / kept[key]:.2f} | {target} |")


def main():
    wanted = sys.argv[1:] or list(ROWS)
    unknown = [w for w in wanted if w not in ROWS]
    if unknown:
        sys.exit(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    random_text()
    lines = []
    for name in wanted:
        print(name, file=sys.stderr, flush=True)
        lines.append(line(name))
        print(lines[-1], flush=True)
    head = ("# Temper and its peers on the same work\n\n"
            f"Made by `benches/peers/run.sh {' '.join(sys.argv[1:])}`".rstrip() + f". {machine()}.\n\n"
            f"Each side runs alone, one after the other; medians of the steps after {SKIP} of warm-up. TRL 1.16, PyTorch 2.13, transformers 5.23. The peer is "
            "shown as it comes, and with an allocator that retains memory (glibc's MALLOC_* settings).\n\n"
            "| work (SmolLM2-135M unless said) | Temper | peer | peer, retaining | ratio | ratio, retaining | target |\n|---|---|---|---|---|---|---|\n")
    (REPO / "docs" / "BENCHMARKS.md").write_text(head + "\n".join(lines) + "\n")


main()
