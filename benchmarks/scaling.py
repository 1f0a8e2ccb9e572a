"""Cost as work grows: the local engine's step time against response length, batch and ranks, in one picture.

    python benchmarks/scaling.py --folder DIR [--out scaling.svg] [--steps 2] [--warmup 1] [--passes 2]
                                 [--only lengths,batch,ranks] [--longest 2048]

Each point is one `thinkprune bench --fixed-length` of the quickstart's task on a random Qwen2 of 4.0 million
parameters in float32 (hidden size 256, 4 layers), one thread a rank, in rank processes of its own: end tokens are
not honoured, so that every response has the full length whatever is sampled. No random model is ever right, so all
rewards are 0; the update's products do not depend on that. Sweeps:

* lengths: 128, 256, 512, 1024, 2048 tokens in each of 2 responses;
* batch: 4, 8, 16, 32 responses of 128 tokens;
* ranks: 16 responses of 128 tokens on 1 rank, then DP 2, TP 2, PP 2 and DP 4.

All points are measured once in each pass, in order in the first, backwards in the second, and so on in turns, so that
a machine that slows down or speeds up does not pass for a slope. A point's time is the median over the steps of all
passes; the whiskers are the quickest and the slowest. Every finished measurement stays in --folder and is not done
again: the same command goes on where it was stopped, and with other settings it refuses.

The expected time is the first point's, scaled by the model FLOPs of what was really sampled and trained
(nemo_thinkprune/costs/flops.py): grouped-query and causal attention, no padding. Where a step is not bound by products
(a token at a time for few rows reads all weights for little arithmetic), measured growth is below it; that is the
finding, not an error. Expected slopes on the logarithmic axes: 1 over responses, about 1 over their tokens (a prompt
that does not grow takes from it, attention to all tokens before adds to it). For ranks, "1 / ranks" is the ideal, and
the cores' line is what as many ranks can gain on this machine: no rank runs faster than one alone, and no more of
them run at once than there are cores. A pipeline gains nothing while it decodes, since a token passes one stage after
the other, and its stages wait for each other in the update; TP sums over ranks in every layer.

Writes the picture and a table (also as scaling.txt) and prints the table. Needs a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scaling_picture import Panel, Place, picture

from checkpoints_tools.hf_config import config_from_dict
from checkpoints_tools.random_init import random_hf_init
from nemo_thinkprune.bench.commands import bench
from nemo_thinkprune.bench.result import RESULT_FILE, MeasuredStep, read_result
from nemo_thinkprune.data.running_total import write_dataset
from nemo_thinkprune.data.tiny_model import build_tokenizer, model_config
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.reporting.table import render
from nemo_thinkprune.training.supervisor import JobFailed, JobStopped

SETTINGS_FILE, TABLE_FILE = "settings.json", "scaling.txt"
SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
}
PACKED_TOKENS = 2304  # of a micro-batch: the longest prompt and response
SWEEPS = ("lengths", "batch", "ranks")


@dataclass(frozen=True, slots=True)
class Point:
    """One size of the work, and how it is shared."""

    sweep: str
    name: str
    prompts: int
    samples: int
    tokens: int
    dp: int = 1
    tp: int = 1
    pp: int = 1

    @property
    def ranks(self) -> int:
        """Processes that work on it."""
        return self.dp * self.tp * self.pp

    @property
    def x(self) -> float:
        """Where it stands in its sweep: tokens, responses or ranks."""
        return {"lengths": self.tokens, "batch": self.prompts * self.samples}.get(self.sweep, self.ranks)


@dataclass(frozen=True, slots=True)
class Measured:
    """What all passes found at a point; seconds of its steps, and the model FLOPs of one."""

    point: Point
    steps: tuple[MeasuredStep, ...]

    def seconds(self, *phases: str) -> list[float]:
        """Wall seconds of each step, of these phases or of all."""
        return [sum(s.phases[p].seconds for p in phases) if phases else s.seconds for s in self.steps]

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all ranks in a step, the median."""
        return statistics.median(sum(p.cpu_seconds or 0.0 for p in s.phases.values()) for s in self.steps)

    def flops(self, *phases: str) -> float:
        """Model FLOPs of a step, of these phases or of all; the median."""
        return statistics.median(
            sum(n for phase, n in s.flops.items() if not phases or phase in phases) for s in self.steps
        )


def main() -> None:
    """The command line."""
    options = _options()
    try:
        measured = measure(options)
    except (UserError, JobFailed, JobStopped) as error:
        sys.exit(f"error: {error}")
    text = table(measured)
    write_atomic(options.folder / TABLE_FILE, text + "\n")
    write_atomic(options.out or options.folder / "scaling.svg", picture(panels(measured)))
    print(text)


def points(sweeps: Sequence[str], *, longest: int) -> list[Point]:
    """All points, smallest first within each sweep."""
    lengths = [n for n in (128, 256, 512, 1024, 2048) if n <= longest]
    base = min(128, longest)
    found = [Point("lengths", f"{n} tokens", 1, 2, n) for n in lengths or [longest]]
    found += [Point("batch", f"{4 * n} responses", n, 4, base) for n in (1, 2, 4, 8)]
    found += [
        Point("ranks", "1 rank", 4, 4, base),
        Point("ranks", "DP 2", 4, 4, base, dp=2),
        Point("ranks", "TP 2", 4, 4, base, tp=2),
        Point("ranks", "PP 2", 4, 4, base, pp=2),
        Point("ranks", "DP 4", 4, 4, base, dp=4),
    ]
    return [point for point in found if point.sweep in sweeps]


def measure(options: argparse.Namespace) -> list[Measured]:
    """Measure what is not there yet; all points with the steps of every pass."""
    found = points(options.only, longest=options.longest)
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _same_settings(folder, {"steps": options.steps, "warmup": options.warmup, "longest": options.longest})
    _make_inputs(folder)
    began = time.monotonic()
    for number in range(options.passes):
        for point in found if number % 2 == 0 else reversed(found):
            out = _place(folder, point, number)
            if (out / RESULT_FILE).exists():
                continue
            at = f"{time.monotonic() - began:4.0f} s"
            print(f"{at}  pass {number + 1} of {options.passes}: {point.sweep}, {point.name}", flush=True)
            _bench(point, out, folder, steps=options.steps, warmup=options.warmup)
    return [
        Measured(
            point,
            tuple(
                step
                for number in range(options.passes)
                for step in read_result(_place(folder, point, number) / RESULT_FILE).steps
            ),
        )
        for point in found
    ]


def table(measured: Sequence[Measured]) -> str:
    """All points: seconds, processor seconds, model FLOPs, and measured over expected."""
    head = ("sweep", "point", "step s", "min .. max", "CPU s", "rollout s", "update s", "GFLOP", "expected s",
            "measured / expected")  # fmt: skip
    rows = []
    for one in measured:
        first = next(m for m in measured if m.point.sweep == one.point.sweep)
        seconds, expected = statistics.median(one.seconds()), expected_seconds(one, first)
        rows.append(
            (
                one.point.sweep,
                one.point.name,
                f"{seconds:.2f}",
                f"{min(one.seconds()):.2f} .. {max(one.seconds()):.2f}",
                f"{one.cpu_seconds:.2f}",
                f"{statistics.median(one.seconds('rollout')):.2f}",
                f"{statistics.median(one.seconds('update')):.2f}",
                f"{one.flops() / 1e9:.1f}",
                f"{expected:.2f}",
                f"{seconds / expected:.2f}",
            )
        )
    steps = {len(one.steps) for one in measured}
    about = (
        f"{_cores()} cores usable; medians of {' or '.join(map(str, sorted(steps)))} steps. Expected: the sweep's "
        "first point, scaled by model FLOPs; for ranks divided by those that the cores let run at once."
    )
    return "\n".join([render(head, rows), about, *slopes(measured)])


def slopes(measured: Sequence[Measured]) -> list[str]:
    """By how much seconds grow with the work, from the first point of a sweep to its last: expected and measured.

    A slope of 1 is in proportion, of 2 as the square: log of the seconds' ratio over log of the sizes' ratio.
    """
    lines = []
    for sweep, size in (("lengths", "tokens in a response"), ("batch", "responses in a step")):
        mine = [one for one in measured if one.point.sweep == sweep]
        if len(mine) < 2:
            continue
        first, last = mine[0], mine[-1]
        scale, before = math.log(last.point.x / first.point.x), statistics.median(first.seconds())
        expected = math.log(expected_seconds(last, first) / before) / scale
        found = math.log(statistics.median(last.seconds()) / before) / scale
        lines.append(
            f"Slope over {size}: expected {expected:.2f} (that of model FLOPs), measured {found:.2f}."
        )
    if any(one.point.sweep == "ranks" for one in measured):
        lines.append("Slope over ranks: expected -1 up to the number of cores, then 0.")
    return lines


def expected_seconds(one: Measured, first: Measured, *phases: str, cores: int | None = None) -> float:
    """The first point's seconds scaled by model FLOPs and by how many ranks run at once on `cores` cores."""
    at_once = min(one.point.ranks, cores or _cores())
    scale = one.flops(*phases) / first.flops(*phases) / at_once
    return statistics.median(first.seconds(*phases)) * scale


def panels(measured: Sequence[Measured]) -> list[Panel]:
    """What the picture shows: a panel a sweep, its expected lines beside what was measured."""
    labels = {
        "lengths": ("response length", "tokens in a response"),
        "batch": ("batch", "responses in a step"),
        "ranks": ("ranks", "processes"),
    }
    result = []
    for sweep in SWEEPS:
        mine = [one for one in measured if one.point.sweep == sweep]
        if not mine:
            continue
        title, x_label = labels[sweep]
        result.append(
            Panel(
                title=title,
                x_label=x_label,
                named=sweep == "ranks",
                places=tuple(_shown(one, mine[0]) for one in mine),
                note=_work(mine[0].point),
            )
        )
    return result


def _shown(one: Measured, first: Measured) -> Place:
    ranks = one.point.sweep == "ranks"
    shown: dict[str, tuple[str, ...]] = {"step": (), "rollout": ("rollout",), "update": ("update",)}
    return Place(
        name=one.point.name,
        x=one.point.x,
        seconds={name: tuple(one.seconds(*phases)) for name, phases in shown.items()},
        expected={
            name: expected_seconds(one, first, *phases, cores=one.point.ranks)
            for name, phases in shown.items()
            if name == "step" or not ranks
        },
        bound=expected_seconds(one, first) if ranks else None,
    )


def _work(point: Point) -> str:
    if point.sweep == "lengths":
        return f"{point.prompts * point.samples} responses"
    if point.sweep == "batch":
        return f"{point.tokens} tokens in a response"
    return f"{point.prompts * point.samples} responses of {point.tokens} tokens, {_cores()} cores"


def _place(folder: Path, point: Point, number: int) -> Path:
    return folder / point.sweep / point.name.replace(" ", "_") / f"pass_{number + 1}"


def _bench(point: Point, out: Path, folder: Path, *, steps: int, warmup: int) -> None:
    """Measure one point in rank processes of its own.

    Raises:
        UserError, JobFailed, JobStopped: as `thinkprune bench`.
    """
    values = {
        "policy.model_name": folder / "model",
        "data.train": f"[{{data_path: {folder / 'data' / 'train.jsonl'}}}]",
        "data.validation": "[]",
        "thinkprune.report_data": "null",
        "thinkprune.warmup": "null",
        "thinkprune.control.enabled": "false",
        "thinkprune.limits": f"[{point.tokens}]",
        "thinkprune.long_limit": "null",
        "thinkprune.runtime.threads_per_rank": 1,
        "grpo.num_prompts_per_step": point.prompts,
        "grpo.num_generations_per_prompt": point.samples,
        "policy.sequence_packing.train_mb_tokens": PACKED_TOKENS,
        "policy.sequence_packing.logprob_mb_tokens": PACKED_TOKENS,
        "policy.megatron_cfg.tensor_model_parallel_size": point.tp,
        "policy.megatron_cfg.pipeline_model_parallel_size": point.pp,
        "cluster.gpus_per_node": point.ranks,
    }
    code = bench(
        "quickstart",
        [f"{key}={value}" for key, value in values.items()],
        steps=steps,
        warmup=warmup,
        out=out,
        engine="local",
        on_cpu=False,
        nemo_rl_root=None,
        peak_tflops=None,
        fixed_length=True,
        say=lambda _: None,
    )
    if code:
        print(f"{point.sweep}, {point.name}: {'; '.join(read_result(out / RESULT_FILE).errors)}")


def _same_settings(folder: Path, settings: dict[str, int]) -> None:
    """Keep the settings of the first call; raises UserError when the folder was begun with others."""
    all_points = [asdict(point) for point in points(SWEEPS, longest=settings["longest"])]
    now = {**settings, "points": all_points, "shape": SHAPE}
    file = folder / SETTINGS_FILE
    if not file.exists():
        write_atomic(file, json.dumps(now, indent=2) + "\n")
    elif json.loads(file.read_text(encoding="utf-8")) != now:
        raise UserError(
            f"{folder} holds measurements with other settings: give the old ones or another folder"
        )


def _make_inputs(folder: Path) -> None:
    """The task and a random model, once."""
    if (folder / "model" / "config.json").exists():
        return
    config = {**model_config(), **SHAPE}
    write_dataset(folder / "data", seed=0)
    random_hf_init(config_from_dict(config), folder / "model", seed=0)
    build_tokenizer(folder / "model")
    write_atomic(folder / "model" / "config.json", json.dumps(config, indent=2) + "\n")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how a step's time grows with the work.")
    parser.add_argument("--folder", type=Path, required=True, help="where measurements stay")
    parser.add_argument("--out", type=Path, help="the picture; default scaling.svg in the folder")
    parser.add_argument("--steps", type=int, default=2, help="measured steps of a point in a pass")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--passes", type=int, default=2, help="how often each point is measured")
    parser.add_argument("--only", type=_sweeps, default=SWEEPS, help="sweeps, with commas between")
    parser.add_argument("--longest", type=int, default=2048, help="no longer responses than this")
    return parser.parse_args()


def _sweeps(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    if unknown := set(chosen) - set(SWEEPS):
        raise argparse.ArgumentTypeError(f"no sweep {', '.join(unknown)}; there is {', '.join(SWEEPS)}")
    return chosen


if __name__ == "__main__":
    main()
