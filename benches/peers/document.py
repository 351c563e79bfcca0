"""docs/BENCHMARKS.md, or another machine's document, and its plots, from the results that were kept."""
import json, os
from itertools import groupby
from pathlib import Path

import matplotlib

from peers import REPO
from rows import ROWS, WARM
from scaling import CURVES

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "temper", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
from matplotlib import pyplot

DOCS = REPO / "docs"
BENCHMARKS = DOCS / "benchmarks"
SCALING = """## Scaling of Temper

Each point is a run of its own of three steps, of which the last two count. The deviation is that of the memory that `temper plan` expects from the peak that was measured.

"""
CLOSE = 0.1  # how far a prediction of memory may be off


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def amount(x, unit):
    return f"{number(1000 * x)} ms" if unit == "s" and x < 1 else f"{number(x)} {unit}"


def memory(side):
    return f"{side['peak_gb']:.2f} GB" if side and side.get("peak_gb") else "-"


def table(head, lines):
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in [head, ["---"] * len(head), *lines]) + "\n"


def ratio(row, ours, theirs):
    """How many times faster Temper is."""
    if not theirs:
        return None
    return theirs["value"] / ours["value"] if row.unit == "s" else ours["value"] / theirs["value"]


def target(row):
    speed = [f"{row.ratio:g}x"] if row.ratio else [amount(row.seconds, "s")] if row.seconds else []
    return ", ".join(speed + ([f"{row.gb:g} GB"] if row.gb else []))


def met(row, ours, theirs):
    """Against the peer as it comes."""
    slow = row.ratio and ratio(row, ours, theirs) < row.ratio or row.seconds and ours["value"] > row.seconds
    missed = (["speed"] if slow else []) + (["memory"] if row.gb and ours["peak_gb"] > row.gb else [])
    return "no: " + ", ".join(missed) if missed else "yes"


def compared(name, result):
    """A line of the comparison."""
    row = ROWS[name]
    if result is None:
        return [row.what, "not measured", "", "", row.peer, "", "", "", target(row), "", ""]
    ours, theirs, kept = (result[side] for side in ("ours", "peer", "kept"))
    spread = f"{number(ours['low'])}-{number(ours['high'])}" if ours["steps"] > 1 else "-"
    if row.unit == "s" and ours["value"] < 1:
        spread = f"{number(1000 * ours['low'])}-{number(1000 * ours['high'])}"
    ratios = [number(r) if r else "-" for r in (ratio(row, ours, theirs), ratio(row, ours, kept))]
    other = f"{row.peer} {amount(theirs['value'], row.unit)}" if theirs else "-"
    return [row.what, amount(ours["value"], row.unit), spread, memory(ours), other, memory(theirs), *ratios, target(row), met(row, ours, theirs), result["commit"]]


def comparison(results):
    head = ["work (SmolLM2-135M unless said)", "Temper", "min-max", "memory", "peer", "its memory", "ratio", "ratio, retaining", "target", "met", "commit"]
    return table(head, [compared(name, results.get(name)) for name in ROWS])


def deviation(found):
    """Of the memory that `temper plan` expects from the peak, as a share of the peak; None where there is no prediction."""
    return found["planned_gb"] / found["peak_gb"] - 1 if found.get("planned_gb") else None


def percent(share):
    return "-" if share is None else f"{100 * share:+.0f}%"


def plot(curve, points, path):
    """Time and memory against what the curve varies; dashed: the memory that was expected. Points are sorted by series."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for series, own in groupby((p for p in points if "left_out" not in p), key=lambda p: p["series"]):
        own = list(own)
        x = [p["x"] for p in own]
        line, = left.plot(x, [p["seconds"] for p in own], "o-", ms=3, lw=1.2, label=series)
        right.plot(x, [p["peak_gb"] for p in own], "o-", ms=3, lw=1.2, color=line.get_color())
        right.plot(x, [p.get("planned_gb") or float("nan") for p in own], "--", lw=1, color=line.get_color())
    for axes, label in ((left, "seconds"), (right, "peak memory, GB (dashed: planned)")):
        axes.set(xscale="log", yscale="log" if axes is left else "linear", xlabel=curve.axis, ylabel=label)
        ticks = sorted({p["x"] for p in points})
        axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3, lw=0.5)
    right.set_ylim(bottom=0)
    left.legend(frameon=False)
    figure.savefig(path, metadata=dict(Date=None, Creator=None))
    pyplot.close(figure)


def pointed(p):
    if "left_out" in p:
        return [p["series"], f"{p['x']:,}", p["left_out"], *["-"] * 4]
    planned = f"{p['planned_gb']:.2f}" if p.get("planned_gb") else "-"
    return [p["series"], f"{p['x']:,}", amount(p["seconds"], "s"), number(p["tok_s"]), planned, f"{p['peak_gb']:.2f}", percent(deviation(p))]


def scaling(name, result, document, plots):
    """A curve's section of a document."""
    curve = CURVES[name]
    text = f"### {curve.title}\n\n{curve.work[0].upper()}{curve.work[1:]}.\n\n"
    if result is None:
        return text + "Not measured.\n"
    points = sorted(result["points"], key=lambda p: p["series"])
    plots.mkdir(parents=True, exist_ok=True)
    plot(curve, points, plots / f"{name}.svg")
    head = ["", curve.axis, "a step", "tokens/s", "planned GB", "peak GB", "deviation"]
    return text + f"Commit {result['commit']}.\n\n![{curve.title}]({plots.relative_to(document.parent)}/{name}.svg)\n\n" + table(head, [pointed(p) for p in points])


def plans(results):
    """How good the predictions of memory are, and those that are not close."""
    found = [(ROWS[n].what, r["ours"]) for n, r in results.items() if n in ROWS]
    found += [(f"{CURVES[n].title}, {p['series']}, {p['x']:,}", p) for n, r in results.items() if n in CURVES for p in r["points"]]
    found = [(what, f, deviation(f)) for what, f in found if deviation(f) is not None]
    if not found:
        return ""
    off = [(what, f, d) for what, f, d in found if abs(d) > CLOSE]
    text = f"## Memory that `temper plan` expects\n\nWithin {CLOSE:.0%} of the peak in {len(found) - len(off)} of {len(found)} measurements (rows and points of the curves).\n"
    if off:
        lines = [[what, f"{f['planned_gb']:.2f}", f"{f['peak_gb']:.2f}", percent(d), f"`{f['command']}`"] for what, f, d in off]
        text += "\nFurther off:\n\n" + table(["work", "planned GB", "peak GB", "deviation", "command"], lines)
    return text + "\n"


def others(document):
    """Where the documents of other machines lie."""
    machines = [path for path in [DOCS / "BENCHMARKS.md", *sorted(BENCHMARKS.glob("*.md"))] if path != document]
    links = [f"[{path.stem}]({os.path.relpath(path, document.parent)})" for path in machines]
    return f"Other machines: {', '.join(links)}.\n\n" if links else ""


def write(results, about, machine=None):
    """`results`: what was kept, by name; `about`: where and with what it was measured; `machine`: whose document, if not the main one."""
    document = BENCHMARKS / f"{machine}.md" if machine else DOCS / "BENCHMARKS.md"
    plots = BENCHMARKS / machine if machine else BENCHMARKS
    dates = sorted({r["date"] for r in results.values()})
    crowd = max(((r["other_cores"], name) for name, r in results.items()), default=(0.0, "-"))
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    text = f"""# Temper and its peers on the same work{f": {machine}" if machine else ""}

Made by `benches/peers/run.sh` (benches/peers/README.md) on {' to '.join(dates[:1] + dates[1:][-1:]) or 'no day'}; {about['machine']}; {versions}.

The commit of a row or curve is the one that Temper was built from. Each side runs alone, one after the other, with a thread for each core; what else ran used at most {crowd[0]:.2f} cores on average in a row (`{crowd[1]}`). Steps: the median of at least five after {WARM} of
warm-up (GRPO: after 1), and Temper's smallest and largest; decoding and reading prompts: the best of 3 runs on both sides (llama.cpp: of 4). GB are 1e9 bytes, the process's peak. Retaining: the
peer with an allocator that keeps memory (glibc's MALLOC_* settings). Ratios are of speed, above 1 where Temper is faster; whether a target is met is judged by the first ratio and by Temper's memory.
Prompts in decoding: ours has 64 tokens, shared by the 16 completions of a batch; transformers pads its own to the longest. Each completion has 64 tokens.

{others(document)}{comparison(results)}
{plans(results)}"""
    if not machine or any(name in CURVES for name in results):
        text += SCALING + "\n".join(scaling(name, results.get(name), document, plots) for name in CURVES)
    document.write_text(text.rstrip("\n") + "\n")


def kept(folder):
    """The results in a folder, in the order of rows and curves."""
    files = {name: Path(folder) / f"{name}.json" for name in [*ROWS, *CURVES]}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
