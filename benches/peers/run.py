"""Measures Temper and its peers on the same work, in turn, and writes docs/BENCHMARKS.md or a document of this machine. Called by run.sh.

Each row is kept under PEER_HOME/results/COMMIT as soon as it is measured, so that an interrupted run goes on."""
import argparse, json, os, platform, re, subprocess, sys, time
from importlib.metadata import version

from document import kept, write
from peers import HOME, REPO, TEMPER, Failed, alone
from rows import ROWS
from scaling import CURVES


def arguments():
    p = argparse.ArgumentParser(prog="run.sh", description=__doc__, epilog="Rows: " + ", ".join([*ROWS, *CURVES]))
    p.add_argument("rows", nargs="*", metavar="ROW", help="only these (default: all)")
    p.add_argument("--again", action="store_true", help="measure anew what is kept")
    p.add_argument("--and", dest="earlier", metavar="COMMIT", help="write rows that are not measured at this commit from what is kept of that one")
    p.add_argument("--machine", metavar="NAME", help="write docs/benchmarks/NAME.md, the document of another machine than that of docs/BENCHMARKS.md")
    p.add_argument("--of", metavar="COMMIT", help="measure nothing: write the document from what is kept of this commit")
    a = p.parse_args()
    if unknown := [row for row in a.rows if row not in {**ROWS, **CURVES}]:
        p.error(f"no row {', '.join(unknown)}; there are {', '.join([*ROWS, *CURVES])}")
    if a.machine and not re.fullmatch(r"[\w.-]*\w", a.machine):
        p.error(f"no machine {a.machine!r}: a name is letters, digits, '-', '_' and '.'")
    for known in filter(None, (a.of, a.earlier)):
        if not (HOME / "results" / known / "about.json").exists():
            p.error(f"nothing is kept of {known} in {HOME / 'results'}")
    return a


def git(*words):
    return subprocess.check_output(["git", *words], cwd=REPO, text=True).strip()


def commit():
    """The commit, with a mark if anything but docs differs from it."""
    return git("rev-parse", "--short=9", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".", ":!docs") else "")


def about():
    """Where and with what."""
    cpu = open("/proc/cpuinfo").read()
    flags = set(re.search(r"flags\s*: (.*)", cpu)[1].split())
    level = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8") if f in flags]
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    name = re.search(r"model name\s*: (.*)", cpu)[1]
    packages = {p: version(p) for p in ("trl", "torch", "transformers", "peft", "llama_cpp_python")}
    rust = subprocess.check_output(["rustc", "--version"], text=True, cwd=REPO).split()[1]
    return dict(commit=commit(), machine=f"{name} ({', '.join(level)}), {os.cpu_count()} cores, {ram:.0f} GB, Linux {platform.release()}",
                versions=dict(rustc=rust, Python=platform.python_version(), **packages))


def built():
    """The commit that Temper's binary was built from."""
    return re.search(r"\((\S+)\)", subprocess.check_output([TEMPER, "--version"], text=True))[1][:9]


def measure(name):
    if name in CURVES:
        points, seconds, others = alone(lambda: list(CURVES[name].measure()))
        found = dict(points=points)
    else:
        sides, seconds, others = alone(ROWS[name].measure)
        found = dict(zip(("ours", "peer", "kept"), sides))
    return dict(**found, commit=built(), date=time.strftime("%Y-%m-%d"), seconds=round(seconds, 1), other_cores=round(others, 3))


def keep(path, found):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1))
    part.rename(path)


def main():
    a = arguments()
    folder = HOME / "results" / (a.of or commit())
    failed = []
    if not a.of:
        folder.mkdir(parents=True, exist_ok=True)
        keep(folder / "about.json", about())
    for name in [] if a.of else a.rows or [*ROWS, *CURVES]:
        path = folder / f"{name}.json"
        if path.exists() and not a.again:
            continue
        print(name, end=": ", file=sys.stderr, flush=True)
        try:
            found = measure(name)
        except Exception as error:  # the other rows are worth measuring all the same
            failed.append(name)
            print(f"failed: {error!r}" if not isinstance(error, Failed) else f"failed: {error}", file=sys.stderr)
            continue
        keep(path, found)
        print(f"{found['seconds']:.0f} s", file=sys.stderr)
    earlier = kept(HOME / "results" / a.earlier) if a.earlier else {}
    write(earlier | kept(folder), json.loads((folder / "about.json").read_text()), a.machine)
    if failed:
        sys.exit(f"failed, and not in the document: {', '.join(failed)}")


if __name__ == "__main__":
    main()
