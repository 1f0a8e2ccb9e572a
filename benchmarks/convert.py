"""Time and memory of `thinkprune-ckpt` beside `cp -r` of the same bytes, and beside other converters.

    python benchmarks/convert.py [--shape 1.5b|qwq16] [--rounds 10] [--folder DIR] [--json FILE]

Three stages: import of a Hugging Face folder, export of a checkpoint in whole chunks, and export of one cut for
4 tensor parallel ranks. In each round every arm runs once, in random order, as a whole process whose output is
synced to disk before the clock stops; `cp -r` copies what the stage's conversion reads. A ratio compares two
runs of one round. `--shape 1.5b` is a random Qwen2; `qwq16` is 16 of QwQ-32B's 64 layers at true widths, read
from a sparse file of zeros. Other converters are the scripts in benchmarks/peers (`X.py import|export SRC DST`,
for export `--base HF` too; exit code 3: not installed). Everything is made under --folder and removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from process_tree import Outcome, run
from shapes import SHAPES, SPARSE, make_model, model_bytes

NOT_INSTALLED = 3
# The clock of every arm stops when each file and folder of its output is on the disk.
_SYNCED = 'out=$1; shift; "$@" || exit $?; find "$out" -print0 | xargs -0 sync'


@dataclass(slots=True)
class Arm:
    """One way to do a stage's work; SRC and OUT in `command` are replaced. `runs` by round number."""

    name: str
    command: tuple[str, ...]
    rounds: int
    peer: bool = False
    runs: dict[int, Outcome] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """A source and the arms that are compared on it; the first arm is `cp`, the second ours."""

    name: str
    source: Path
    arms: tuple[Arm, ...]


def main() -> None:
    """Prints a table for each stage; `--json` writes all single runs too."""
    options = _options()
    cost = model_bytes(SHAPES[options.shape])
    if options.model:
        cost = sum(file.stat().st_size for file in options.model.glob("*.safetensors"))
    need = (2 if options.shape in SPARSE or options.model else 3) * cost * 1.03 + 2e8
    options.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.folder).free
    if need > free:
        sys.exit(f"{options.folder} has {free / 1e9:.1f} GB free, this needs {need / 1e9:.1f} GB")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the files are removed then too
    work = Path(tempfile.mkdtemp(prefix="thinkprune-bench-", dir=options.folder))
    try:
        report = _benchmark(options, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1.5b")
    parser.add_argument("--model", type=Path, help="use this Hugging Face folder instead of making one")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--peer-rounds", type=int, default=3, help="rounds in which other converters run")
    parser.add_argument("--peer-python", type=Path, default=sys.executable, help="that has them installed")
    parser.add_argument("--cache", choices=("warm", "cold"), default="warm", help="page cache of the source")
    parser.add_argument("--converter", type=Path, help="command to measure, instead of this installation's")
    parser.add_argument("--threads", type=int, help="passed on to thinkprune-ckpt")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="disk to measure on")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the arms")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _benchmark(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    report: dict[str, Any] = {"shape": options.shape, "cache": options.cache, "machine": machine(work)}
    print(f"{options.shape}, {report['machine']}, page cache of the source {options.cache}", flush=True)
    source = options.model or work / "hf"
    if not options.model:
        make_model(options.shape, source)
    ours = [str(options.converter or _converter())]
    stages = report["stages"] = []
    checkpoint, cut = work / "checkpoint", work / "checkpoint_tp4"
    stages.append(_stage(_import_stage(source, ours, options), options, work))
    _must(run([*ours, "import", "--no-verify", str(source), str(checkpoint)], output=work / "log"))
    stages.append(_stage(_export_stage("export", checkpoint, source, ours, options), options, work))
    resharding = run(
        [*ours, "reshard", "--no-verify", "--chunk-tp", "4", str(checkpoint), str(cut)], output=work / "log"
    )
    _must(resharding)
    shutil.rmtree(checkpoint)  # at most three copies of the model at any time
    stages.append(_stage(_export_stage("export of TP=4", cut, source, ours, options), options, work))
    verified = run([*ours, "verify", str(source), str(cut)], output=work / "log")
    _must(verified)
    for name, outcome in (("reshard --chunk-tp 4", resharding), ("verify", verified)):
        report[name] = _row(outcome)
        print(f"{name}: once, {_memory([outcome])}, {outcome.seconds:.2f} s")
    report["machine_after"] = machine(work)
    return report


def _import_stage(source: Path, ours: list[str], options: argparse.Namespace) -> Stage:
    # Holes are not copied by default, which would make cp of a sparse model free.
    cp = Arm("cp -r", ("cp", "-r", "--sparse=never", "SRC", "OUT"), options.rounds)
    return Stage("import", source, (cp, *_tool_arms("import", ours, options), *_peers("import", options)))


def _export_stage(name: str, source: Path, base: Path, ours: list[str], options: argparse.Namespace) -> Stage:
    cp = Arm("cp -r", ("cp", "-r", "SRC", "OUT"), options.rounds)
    peers = _peers("export", options, "--base", str(base)) if name == "export" else []
    return Stage(name, source, (cp, *_tool_arms("export", ours, options), *peers))


def _tool_arms(verb: str, ours: list[str], options: argparse.Namespace) -> tuple[Arm, Arm]:
    threads = ("--threads", str(options.threads)) if options.threads else ()
    plain = Arm(
        f"thinkprune-ckpt {verb}", (*ours, verb, "--no-verify", *threads, "SRC", "OUT"), options.rounds
    )
    return plain, Arm("the same, verified", (*ours, verb, *threads, "SRC", "OUT"), options.peer_rounds)


def _peers(verb: str, options: argparse.Namespace, *more: str) -> list[Arm]:
    scripts = sorted((Path(__file__).parent / "peers").glob("[a-z]*.py"))
    python = str(options.peer_python)
    return [
        Arm(script.stem, (python, str(script), verb, "SRC", "OUT", *more), options.peer_rounds, peer=True)
        for script in scripts
    ]


def _converter() -> Path:
    beside = Path(sys.executable).with_name("thinkprune-ckpt")
    found = str(beside) if beside.exists() else shutil.which("thinkprune-ckpt")
    if found is None:
        sys.exit("thinkprune-ckpt is not installed beside this Python: pip install -e .")
    return Path(found)


def _stage(stage: Stage, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run all rounds, print the stage's table and return its figures."""
    order = random.Random(f"{options.seed} {stage.name}")
    for number in range(options.rounds):
        arms = [arm for arm in stage.arms if number < arm.rounds and not arm.note]
        for arm in order.sample(arms, len(arms)):
            _measure(arm, number, stage.source, work, options.cache)
            seconds = f"{arm.runs[number].seconds:.2f} s" if number in arm.runs else arm.note
            print(f"{stage.name}, round {number + 1}: {arm.name} {seconds}", file=sys.stderr, flush=True)
    nbytes = sum(f.stat().st_size for f in _files(stage.source))
    print(f"\n{stage.name}: {nbytes / 1e9:.2f} GB")
    baseline = stage.arms[0].runs
    rows = [_summary(arm, baseline) for arm in stage.arms]
    for arm, row in zip(stage.arms, rows, strict=True):
        _print(arm, row)
    return {"stage": stage.name, "bytes": nbytes, "arms": rows}


def _measure(arm: Arm, number: int, source: Path, work: Path, cache: str) -> None:
    out = work / "out"
    os.sync()
    _prepare_cache(_files(source), warm=cache == "warm")
    command = [{"SRC": str(source), "OUT": str(out)}.get(part, part) for part in arm.command]
    try:
        outcome = run(["sh", "-c", _SYNCED, "sh", str(out), *command], output=work / "log")
    finally:
        for left in work.glob("out*"):
            shutil.rmtree(left)
    if outcome.code == NOT_INSTALLED and arm.peer:
        arm.note = "not installed"
    elif outcome.code and arm.peer:
        arm.note = f"failed: {(outcome.text.strip().splitlines() or ['without a word'])[-1]}"
    else:
        _must(outcome)
        arm.runs[number] = outcome


def _must(outcome: Outcome) -> None:
    if outcome.code:
        sys.exit(f"a command ended with code {outcome.code}:\n{outcome.text}")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _prepare_cache(files: Iterable[Path], *, warm: bool) -> None:
    """Read the files once, or ask the kernel to forget them."""
    buffer = bytearray(1 << 22)
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            if warm:
                while stream.readinto(buffer):
                    pass
            else:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _summary(arm: Arm, baseline: dict[int, Outcome]) -> dict[str, Any]:
    if not arm.runs:
        return {"name": arm.name, "note": arm.note}
    ratios = [outcome.seconds / baseline[number].seconds for number, outcome in arm.runs.items()]
    return {
        "name": arm.name,
        "note": arm.note,
        "median_s": statistics.median(o.seconds for o in arm.runs.values()),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [round(q, 3) for q in _quartiles(ratios)],
        "ratio_of_medians": statistics.median(o.seconds for o in arm.runs.values())
        / statistics.median(o.seconds for o in baseline.values()),
        "runs": [_row(outcome) for outcome in arm.runs.values()],
    }


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _row(outcome: Outcome) -> dict[str, float]:
    return {
        "seconds": round(outcome.seconds, 4),
        "tree_mb": round(outcome.tree_mb, 1),
        "bound_mb": round(outcome.bound_mb, 1),
        "maxrss_mb": round(outcome.maxrss_mb, 1),
    }


def _print(arm: Arm, row: dict[str, Any]) -> None:
    if not arm.runs:
        print(f"  {arm.name:24} {arm.note}")
        return
    seconds = [outcome.seconds for outcome in arm.runs.values()]
    low, high = row["ratio_quartiles"]
    print(
        f"  {arm.name:24} median {row['median_s']:6.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, "
        f"{len(seconds)} runs)  {row['ratio']:5.2f} x cp (quartiles {low:.2f} to {high:.2f})  "
        f"{_memory(list(arm.runs.values()))}",
        flush=True,
    )


def _memory(outcomes: Sequence[Outcome]) -> str:
    tree, bound, single = (
        max(getattr(o, name) for o in outcomes) for name in ("tree_mb", "bound_mb", "maxrss_mb")
    )
    return f"peak {tree:.0f} MB (sum of process peaks {bound:.0f}, largest process {single:.0f})"


def machine(folder: Path) -> str:
    """Cores, memory, disk and load, for the record; no names."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {memory:.0f} GiB, {_disk(folder)}, load {os.getloadavg()[0]:.1f}"


def _disk(folder: Path) -> str:
    device = os.stat(folder).st_dev
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if node.resolve().name.startswith(("vd", "xvd")):
        return "virtual disk"
    for place in (node / "queue", node / ".." / "queue"):
        if (place / "rotational").exists():
            rotates = (place / "rotational").read_text().strip() == "1"
            return "rotating disk" if rotates else "solid-state disk"
    return "disk of unknown type"


if __name__ == "__main__":
    main()
