"""Read what a run left behind, whatever is there of it: the one place that knows a run folder's names.

A prune run holds ``round_1_L128/``, ``round_2_L96/``, ... (each a train run), perhaps ``control/`` and
``warmup/``, and ``eval/NAME.json`` with ``eval/NAME.jsonl``. A train run holds metrics.jsonl itself. Readers
here never raise on a missing or half-written piece: a report must also work while the run is going on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_thinkprune.reporting import damage

START = "start"
CONTROL = "control"
WARMUP = "warmup"
_ROUND = re.compile(r"round_(\d+)_L(\d+)")

Json = dict[str, Any]


def round_name(number: int, limit: int) -> str:
    """Folder and evaluation name of a round: ``round_1_L128``."""
    return f"round_{number}_L{limit}"


def parse_round(name: str) -> tuple[int, int] | None:
    """(number, limit) of a round folder's name, None for any other name."""
    match = _ROUND.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class TrainFiles:
    """One train run: its metrics rows by kind, and its selection decision where it is a round."""

    name: str
    folder: Path
    limit: int | None
    steps: tuple[Json, ...]
    validation: tuple[Json, ...]
    decision: Json | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One eval job's output: the summary and where its per-sample rows are."""

    name: str
    summary: Json
    rows_path: Path

    def rows(self) -> list[Json]:
        """Per-sample rows that have what statistics need; empty when the file is missing."""
        return list(read_samples(self.rows_path))


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Everything a report reads. ``kind`` is "prune" or "train"."""

    root: Path
    kind: str
    config: Json
    config_text: str
    environment: Json
    rounds: tuple[TrainFiles, ...]
    control: TrainFiles | None
    warmup: TrainFiles | None
    evaluations: dict[str, Evaluation]

    @property
    def limits(self) -> tuple[int, ...]:
        """The planned limits: those of the recipe, else those of the rounds that are there."""
        planned = dig(self.config, "thinkprune", "limits")
        found = [damage.number(v) for v in planned] if isinstance(planned, list) else []
        limits = tuple(v for v in found if isinstance(v, int) and v > 0)
        return limits or tuple(r.limit for r in self.rounds if r.limit)


def dig(tree: Any, *keys: str) -> Any:
    """The value at a path of nested mappings, None where it ends."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def read_jsonl(path: Path) -> Iterator[Json]:
    """The objects of a JSON-lines file; a torn last line of a running writer is skipped."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def read_samples(path: Path) -> Iterator[Json]:
    """The rows of a file of sampled responses; a row without length, stop reason or verdict is skipped."""
    return (row for row in read_jsonl(path) if damage.sample(row))


def read_json(path: Path) -> Json | None:
    """The object in a JSON file, None when it is missing or unreadable."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_run(root: Path) -> RunFiles:
    """Collect the files of a prune or train run."""
    config_text = _text(root / "config.yaml")
    rounds = _rounds(root)
    return RunFiles(
        root=root,
        kind="prune" if (pruned := bool(rounds) or _began_pruning(root)) else "train",
        config=_yaml(config_text),
        config_text=config_text,
        environment=damage.environment(read_json(root / "environment.json")),
        rounds=rounds if pruned else (read_train(root),),
        control=read_train(root / CONTROL) if _has_metrics(root / CONTROL) else None,
        warmup=read_train(root / WARMUP) if (root / WARMUP).is_dir() else None,
        evaluations=_evaluations(root / "eval"),
    )


def read_train(folder: Path) -> TrainFiles:
    """Metrics and decision of one train run; later rows of a step replace earlier ones.

    Of each row only numbers are kept; a validation row without accuracy and length is left out.
    """
    steps: dict[int, Json] = {}
    validation: dict[int, Json] = {}
    for row in read_jsonl(folder / "metrics.jsonl"):
        step = damage.step_of(row)
        if step is None:
            continue
        if measured := damage.measured(row.get("validation")):
            validation[step] = {**measured, "step": step}
        if any(key not in ("step", "validation") for key in row):
            steps[step] = damage.numbers(row)
    decision = read_json(folder / "decision.json")
    parsed = parse_round(folder.name)
    return TrainFiles(
        name=folder.name,
        folder=folder,
        limit=parsed[1] if parsed else None,
        steps=tuple(steps[s] for s in sorted(steps)),
        validation=tuple(validation[s] for s in sorted(validation)),
        decision=None if decision is None else damage.decision(decision),
    )


def rollout_rows(folder: Path, *, last: bool) -> tuple[int | None, list[Json]]:
    """(step, rows) of the first or the last rollouts/step_N.jsonl of a train run."""
    found = {}
    for path in (folder / "rollouts").glob("step_*.jsonl"):
        number = path.stem.removeprefix("step_")
        if number.isdecimal():
            found[int(number)] = path
    if not found:
        return None, []
    step = max(found) if last else min(found)
    return step, list(read_samples(found[step]))


def _rounds(root: Path) -> tuple[TrainFiles, ...]:
    if not root.is_dir():
        return ()
    found = sorted((parsed, path) for path in root.iterdir() if (parsed := parse_round(path.name)))
    return tuple(read_train(path) for _, path in found)


def _began_pruning(root: Path) -> bool:
    return not _has_metrics(root) and any((root / name).is_dir() for name in ("eval", CONTROL, WARMUP))


def _evaluations(folder: Path) -> dict[str, Evaluation]:
    found = {}
    for path in sorted(folder.glob("*.json")):
        summary = damage.evaluation(read_json(path) or {})
        if summary is not None:
            found[path.stem] = Evaluation(path.stem, summary, path.with_suffix(".jsonl"))
    return found


def _has_metrics(folder: Path) -> bool:
    return (folder / "metrics.jsonl").exists()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _yaml(text: str) -> Json:
    try:
        value = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
