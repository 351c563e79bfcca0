"""Runs one side of a measurement, Temper or a peer: alone, with what it printed, the seconds it took and its peak memory."""
import functools, json, os, re, resource, shlex, statistics, subprocess, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
HOME = Path(os.environ["PEER_HOME"])
TEMPER = os.environ.get("TEMPER") or Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release/temper"
# glibc keeps what is freed: without this PyTorch gives large tensors back to the system and faults them in again.
RETAIN = dict(MALLOC_MMAP_THRESHOLD_="8589934592", MALLOC_TRIM_THRESHOLD_="17179869184", MALLOC_TOP_PAD_="268435456")


class Failed(Exception):
    """A program ended with an error; the text holds its command and the end of what it said."""


def run(command, **env):
    """What a program wrote to stdout, the seconds it took, and its peak memory in GB (1e9 bytes)."""
    with tempfile.NamedTemporaryFile("r") as peak:
        command = [str(word) for word in command]
        began = time.perf_counter()
        done = subprocess.run(["/usr/bin/time", "-o", peak.name, "-f", "%M", *command], env={**os.environ, **env}, text=True, capture_output=True, cwd=REPO)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise Failed(f"{shown(command)}\n{done.stderr[-2000:]}")
        return done.stdout, seconds, int(peak.read().split()[-1]) * 1024 / 1e9


def shown(command):
    """A command as one would type it in the repository, with PEER_HOME set."""
    text = shlex.join(map(str, command)).replace(str(HOME), "$PEER_HOME").replace(f"{REPO}/", "")
    return text.replace(str(TEMPER), "temper").replace(sys.executable, "python")


def side(values, **more):
    """What one side reached: median, smallest and largest of its steps."""
    return dict(value=statistics.median(values), low=min(values), high=max(values), steps=len(values), **more)


def peer(script, key, *args, model=None, **env):
    """A field of the RESULT line of one of the peers' scripts: a number, or one for each step."""
    if model:
        env["PEER_MODEL"] = str(model)
    text, _, peak = run([sys.executable, HERE / script, *args], **env)
    result = json.loads(re.findall(r"^RESULT (.*)$", text, re.M)[-1])
    values = result[key] if isinstance(result[key], list) else [result[key]]
    return side(values, peak_gb=peak, result=result)


def peers(script, key, *args, **more):
    """A peer as it comes, and with an allocator that retains memory."""
    return peer(script, key, *args, **more), peer(script, key, *args, **more, **RETAIN)


def temper(recipe, stage, *sets, threads=None):
    """The lines of timing.jsonl of a stage; and peak memory, the memory that `temper plan` expects, and its command."""
    words = [REPO / "benches" / recipe, *(word for pair in sets for word in ("--set", pair))]
    plan = json.loads(run([TEMPER, "plan", *words, "--json"])[0])
    # None where the recipe makes its model itself.
    planned = max((s["memory"]["total"] / 1e9 for s in plan if s["memory"]), default=None)
    with tempfile.TemporaryDirectory(dir=HOME) as base:
        extra = ["--threads", threads] if threads else []
        _, _, peak = run([TEMPER, "run", *words, *extra, "--out", f"{base}/run"])
        lines = [json.loads(line) for line in open(f"{base}/run/timing.jsonl")]
    return [line for line in lines if line["stage"] == stage], dict(peak_gb=peak, planned_gb=planned, command=shown([TEMPER, "plan", *words]))


@functools.cache
def bench(model, dtype):
    """The pieces of work of `temper bench`."""
    return json.loads(run([TEMPER, "bench", model, "--dtype", dtype, "--json"])[0])["work"]


def decoding(what, dtype, model):
    """Tokens a second of one piece of decoding, the best of its runs. The process also trains, so its memory says nothing."""
    piece = next(w for w in bench(model, dtype) if w["part"] == "decoding" and w["what"] == what)
    return side([piece["tokens"] / piece["seconds"]])


def cpu_seconds():
    """Seconds of the processor that were used since its start by all programs and thieves, and by ours that have ended."""
    user, nice, system, _, _, irq, soft, steal = map(int, open("/proc/stat").readline().split()[1:9])
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK"), own.ru_utime + own.ru_stime


def alone(measure):
    """What `measure` returns, and the cores that everything else used meanwhile."""
    (all_before, own_before), began = cpu_seconds(), time.perf_counter()
    result = measure()
    (all_after, own_after), seconds = cpu_seconds(), time.perf_counter() - began
    return result, seconds, max(0.0, (all_after - all_before - own_after + own_before) / seconds)
