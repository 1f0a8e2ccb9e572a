"""The local engine's GRPO step beside TRL's on the same work, in pairs: CPU seconds, phases, and a picture.

    python -m venv PEER && PEER/bin/pip install torch==2.13.0 trl==1.16.0
    python benchmarks/step.py --peer-python PEER/bin/python --out docs/images/step.svg

Two processes, one of each trainer, both on one thread and both alive all the time, take turns: one step of one, then
one step of the other, the first of each pair changing from pair to pair. The first steps warm both up and are not
counted. The work is that of benchmarks/step_work.py; each worker counts the tokens it trained and the tokens it ran
through the model, and the benchmark refuses to compare steps that did not train all of them.

Compared are CPU seconds (user and system) of the worker's process, since wall time on a shared machine measures the
neighbours; wall seconds are printed too. The ratio is the median of the pairs' ratios, with their quartiles.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import step_work as work
from step_picture import bars

from checkpoints_tools.hf_config import read_hf_config
from checkpoints_tools.random_init import random_hf_init
from checkpoints_tools.weight_map import weight_map
from nemo_thinkprune.recipe.files import write_atomic

HERE = Path(__file__).parent
PARAMETERS = 4_448_512
TRAINED = work.PROMPTS * work.SAMPLES * work.RESPONSE_TOKENS
OURS, PEER = "nemo-thinkprune", "TRL"


@dataclass(slots=True)
class Worker:
    """A trainer in a process of its own, and the rows of its measured steps."""

    name: str
    process: subprocess.Popen[str]
    versions: dict[str, Any]
    rows: list[dict[str, Any]]

    def step(self) -> dict[str, Any]:
        """Let it do one step; what it took."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        row = _read(self.process, self.name)
        if row["trained_tokens"] != TRAINED:
            sys.exit(
                f"{self.name} trained {row['trained_tokens']} tokens, not {TRAINED}: nothing is compared"
            )
        return row


def main() -> None:
    """Measure, print the table, write the rows and the picture."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        model = Path(name)
        make_model(model)
        commands = {
            OURS: [sys.executable, "-W", "ignore", str(HERE / "step_ours.py"), name, *options.overrides],
            PEER: [options.peer_python, "-W", "ignore", str(HERE / "peers" / "trl_step.py"), name],
        }
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(_worker(title, command)) for title, command in commands.items()]
            measure(workers, pairs=options.pairs, warmup=options.warmup)
    result = {"workers": {w.name: {"versions": w.versions, "steps": w.rows} for w in workers}}
    print(*table(workers), sep="\n")
    write_atomic(options.out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_atomic(options.out, picture(workers))
    print(f"written: {options.out}, {options.out.with_suffix('.json')}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="the Python that TRL is installed in")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3, help="pairs before those that are counted")
    parser.add_argument(
        "--out", type=Path, default=Path("step.svg"), help="the picture; rows beside it as .json"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of our recipe")
    options = parser.parse_args()
    if options.pairs < 1 or options.warmup < 0:
        parser.error("--pairs is at least 1, --warmup at least 0")
    return options


def make_model(folder: Path) -> None:
    """The random model of the fixed work with its tokenizer, as a Hugging Face folder."""
    (folder / "config.json").write_text(json.dumps(work.CONFIG))
    config = read_hf_config(folder)
    assert weight_map(config).parameters == PARAMETERS
    random_hf_init(config, folder, 0)
    (folder / "config.json").write_text(json.dumps(work.CONFIG))
    work.write_tokenizer(folder)


@contextlib.contextmanager
def _worker(name: str, command: Sequence[str]) -> Iterator[Worker]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    quiet = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **threads, **quiet},
        )
        try:
            yield Worker(name, process, _read(process, name), [])
        except SystemExit:
            log.seek(0)
            sys.stderr.write(log.read()[-4000:])
            raise
        finally:
            process.kill()
            process.wait()


def _read(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit(f"{name} ended: its last words stand above")
    return json.loads(line)


def measure(workers: Sequence[Worker], *, pairs: int, warmup: int) -> None:
    """Fill the workers' rows, a step of each in turns."""
    for number in range(warmup + pairs):
        for worker in workers[:: 1 if number % 2 else -1]:
            row = worker.step()
            counted = number >= warmup
            print(
                f"{'pair' if counted else 'warm-up'} {number + 1 - warmup * counted}: {worker.name} "
                f"{row['cpu_s']:.2f} CPU s, {row['wall_s']:.2f} s",
                file=sys.stderr,
            )
            if counted:
                worker.rows.append(row)


def table(workers: Sequence[Worker]) -> Iterator[str]:
    """Medians by trainer and phase, work counted, and the ratio of the pairs."""
    yield "| | " + " | ".join(f"{w.name} ({_versions(w)})" for w in workers) + " |"
    yield "|---" * (1 + len(workers)) + "|"
    rows: dict[str, list[str]] = {
        "CPU s/step, median (quartiles)": [_spread([r["cpu_s"] for r in w.rows]) for w in workers],
        "wall s/step": [_spread([r["wall_s"] for r in w.rows]) for w in workers],
    }
    for phase in PHASES:
        rows[f"CPU s, {phase}"] = [f"{_median(phases(r)[phase] for r in w.rows):.2f}" for w in workers]
    rows["tokens trained"] = [str(w.rows[-1]["trained_tokens"]) for w in workers]
    rows["tokens through the model in the update"] = [str(w.rows[-1]["forward_tokens"]) for w in workers]
    rows["peak RSS, MiB"] = [f"{w.rows[-1]['peak_rss_mib']:.0f}" for w in workers]
    for title, cells in rows.items():
        yield f"| {title} | " + " | ".join(cells) + " |"
    ours, peer = workers
    ratios = [p["cpu_s"] / o["cpu_s"] for o, p in zip(ours.rows, peer.rows, strict=True)]
    yield f"{PEER} takes {_spread(ratios)} times the CPU seconds of {OURS}, {len(ratios)} pairs"


PHASES = ("generate", "forward and backward", "optimizer", "other")


def phases(row: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of a step by phases that both trainers have; they add up to the step."""
    found = row["phases"]
    optimizer = found.get("optimizer", 0.0)
    if "update" in found:
        update = found["update"] + found.get("logprobs", 0.0) - optimizer
    else:
        update = found["forward"] + found["backward"]
    known = {"generate": found["generate"], "forward and backward": update, "optimizer": optimizer}
    return {**known, "other": row["cpu_s"] - sum(known.values())}


def picture(workers: Sequence[Worker]) -> str:
    """Each trainer's step as a bar of its phases, in CPU seconds."""
    parts = {w.name: {p: _median(phases(r)[p] for r in w.rows) for p in PHASES} for w in workers}
    whole = {w.name: [r["cpu_s"] for r in w.rows] for w in workers}
    return bars(parts, whole)


def _versions(worker: Worker) -> str:
    return ", ".join(f"{name} {value}" for name, value in worker.versions.items() if name != "ready")


def _median(values: Any) -> float:
    return statistics.median(list(values))


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
