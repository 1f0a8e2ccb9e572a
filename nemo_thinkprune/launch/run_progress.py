"""What has moved in a run folder since the last look: rows, checkpoints being written, results, new attempts.

Files are compared with what was seen of them before, never with a clock: those of a shared file system carry the
time of another machine.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_thinkprune.reporting.run_files import CONTROL, WARMUP, dig, parse_round, read_json
from nemo_thinkprune.training.attempts import LOGS
from nemo_thinkprune.training.job import JOB_FILE
from nemo_thinkprune.training.run_folder import LEDGER, METRICS, ROLLOUTS

EVALUATIONS = "eval"
_ATTEMPT = re.compile(r"attempt_(\d+)")
_GUARD_BYTES = 64
_ABSENT = (FileNotFoundError, NotADirectoryError)

Stamp = tuple[int, int]
"""Time of the last change in ns and size in bytes: only compared for being the same."""


@dataclass(frozen=True, slots=True)
class StepRow:
    """A step as metrics.jsonl tells of it; durations in seconds, None where they are not told."""

    step: int
    step_s: float | None
    validate_s: float
    save_s: float


@dataclass(slots=True)
class Look:
    """What one look at the run found to have changed; paths in the order in which they were come upon."""

    moved: list[Path] = field(default_factory=list)
    attempts: list[Path] = field(default_factory=list)
    steps: list[tuple[Path, StepRow]] = field(default_factory=list)
    validations: list[Path] = field(default_factory=list)
    results: list[Path] = field(default_factory=list)
    trouble: OSError | None = None


class RunProgress:
    """Looks at a run folder again and again.  The first look takes everything as it is and reports nothing moved.

    A folder is told of by its path: `attempts`, `steps`, `validations` name the folder of a train run (`root`
    itself, a round, the control, the warm-up) or of an evaluation, `results` that of an evaluation which ended.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stamps: dict[Path, Stamp] = {}
        self._names: dict[Path, frozenset[str]] = {}
        self._rows: dict[Path, _Rows] = {}
        self._settings: dict[Path, tuple[int, Settings]] = {}
        self._known = False
        self._look = Look()

    def look(self) -> Look:
        """What has changed since the last look.

        What cannot be read now (a shared file system in trouble) is as it was; `Look.trouble` says why.
        """
        look = self._look = Look()
        for folder in self._folders():
            self._attempts(folder)
            self._train_files(folder)
            for path in self._growing(folder):
                self._stamp(path)
        self._evaluations()
        self._known = True
        return look

    def settings(self, folder: Path) -> Settings:
        """What the newest attempt's JOB.json of a train run says of its length and validations."""
        numbers = [int(match[1]) for name in self._names.get(folder / LOGS, ()) if (match := _number(name))]
        newest = max(numbers, default=0)
        found = self._settings.get(folder)
        if found is None or found[0] != newest:
            job = read_json(folder / LOGS / f"attempt_{newest}" / JOB_FILE)
            if job is None:
                return Settings()
            found = self._settings[folder] = (newest, Settings.of(job))
        return found[1]

    def _folders(self) -> list[Path]:
        names = self._listing(self.root)
        wanted = sorted(name for name in names if parse_round(name) or name in (CONTROL, WARMUP))
        return [self.root, *(self.root / name for name in wanted)]

    def _train_files(self, folder: Path) -> None:
        """Files that are replaced or appended to, and folders that get one more file with each step."""
        for name in (LEDGER, ROLLOUTS, "decision.json", "summary.json", "JOB.json", "model"):
            self._stamp(folder / name)
        if self._stamp(metrics := folder / METRICS) or metrics not in self._rows:
            rows = self._rows.setdefault(metrics, _Rows(metrics))
            try:
                found = rows.new()
            except _ABSENT:
                return
            except OSError as error:
                self._look.trouble = error
                self._stamps.pop(metrics, None)  # to be read again
                return
            for row in found:
                if (step := _step_row(row)) is not None:
                    self._look.steps.append((folder, step))
                elif "validation" in row:
                    self._look.validations.append(folder)

    def _growing(self, folder: Path) -> Iterator[Path]:
        """The checkpoints' folder and every file of those that are being written."""
        checkpoints = folder / self.settings(folder).checkpoint_dir
        names = self._listing(checkpoints, report=True)
        for base in [*(checkpoints / name for name in names if name.startswith("tmp_")), folder / "model"]:
            for parent, _, files in os.walk(base, onerror=self._noted):
                yield Path(parent)
                yield from (Path(parent) / file for file in files)

    def _attempts(self, folder: Path) -> None:
        before = self._names.get(folder / LOGS, frozenset())
        names = self._listing(folder / LOGS)
        for name in sorted(names - before):
            if _number(name) and self._known:
                self._look.attempts.append(folder)
                self._look.moved.append(folder / LOGS / name)
            elif name.endswith(".jsonl") and self._known:  # NeMo-RL's own record of a step
                self._look.moved.append(folder / LOGS / name)

    def _evaluations(self) -> None:
        base = self.root / EVALUATIONS
        for name in sorted(self._listing(base)):
            path = base / name
            if name.endswith(".json"):
                if self._stamp(path):
                    self._look.results.append(path.with_suffix(""))
            elif name.endswith(".jsonl"):
                self._stamp(path)
            elif not name.startswith("."):
                self._attempts(path)

    def _listing(self, folder: Path, *, report: bool = False) -> frozenset[str]:
        """The names in a folder, as they were when it cannot be read; with `report` a new name counts as a sign."""
        before = self._names.get(folder)
        try:
            names = frozenset(os.listdir(folder))
        except _ABSENT:
            names = frozenset()
        except OSError as error:
            self._look.trouble = error
            return before or frozenset()
        self._names[folder] = names
        if report and self._known and names != (before or frozenset()):
            self._look.moved.append(folder)
        return names

    def _stamp(self, path: Path) -> bool:
        """Note a file as it is now; whether it is another than it was."""
        try:
            found = path.stat()
        except _ABSENT:
            self._stamps.pop(path, None)
            return False
        except OSError as error:
            self._look.trouble = error
            return False
        stamp = (found.st_mtime_ns, found.st_size)
        if self._stamps.get(path) == stamp:
            return False
        self._stamps[path] = stamp
        if self._known:
            self._look.moved.append(path)
        return True

    def _noted(self, error: OSError) -> None:
        if not isinstance(error, _ABSENT):
            self._look.trouble = error


@dataclass(frozen=True, slots=True)
class Settings:
    """What matters of a run's recipe; zeros where it is not known."""

    last_step: int = 0
    val_period: int = 0
    val_at_end: bool = False
    checkpoint_dir: str = "checkpoints"

    @classmethod
    def of(cls, job: dict[str, Any]) -> Settings:
        """From the content of a JOB.json, which an engine wrote."""
        grpo = dig(job, "recipe", "grpo")
        grpo = grpo if isinstance(grpo, dict) and job.get("kind") == "train" else {}
        folder = dig(job, "recipe", "checkpointing", "checkpoint_dir")
        return cls(
            last_step=_whole(grpo.get("max_num_steps")),
            val_period=_whole(grpo.get("val_period")),
            val_at_end=grpo.get("val_at_end") is True,
            checkpoint_dir=folder if isinstance(folder, str) and folder else "checkpoints",
        )

    def validates(self, step: int) -> bool:
        """Whether a validation belongs to `step`."""
        return bool(self.val_period and step % self.val_period == 0) or (
            self.val_at_end and step == self.last_step
        )


class _Rows:
    """The rows of a file that were not there before, whatever was cut off and written again in between."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._guard = b""
        self._seen: set[bytes] = set()

    def new(self) -> list[dict[str, Any]]:
        """The whole rows that were never seen.

        Raises:
            OSError: The file cannot be read.
        """
        with open(self._path, "rb") as stream:
            stream.seek(max(0, self._offset - len(self._guard)))
            if stream.read(len(self._guard)) != self._guard:  # it was cut back
                stream.seek(0)
                self._offset = 0
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._guard = (self._guard + whole)[-_GUARD_BYTES:] if self._offset else b""
        lines = [line for line in whole.split(b"\n") if line and line not in self._seen]
        self._seen.update(lines)
        return [row for line in lines if (row := _parsed(line)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _step_row(row: dict[str, Any]) -> StepRow | None:
    """The step of a row, None for a validation's."""
    step = row.get("step")
    if not isinstance(step, int) or not any(key not in ("step", "validation") for key in row):
        return None
    seconds = [_seconds(dig(row, "timing", key)) for key in ("step_s", "validate_s", "save_s")]
    return StepRow(step, seconds[0], seconds[1] or 0.0, seconds[2] or 0.0)


def _seconds(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    return float(value) if good else None


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _number(name: str) -> re.Match[str] | None:
    return _ATTEMPT.fullmatch(name)
