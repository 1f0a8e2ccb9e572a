"""Which prompts are trained in which step, decided in advance, recorded, and proved afterwards.

Epoch e is a permutation of all problems that depends only on (seed, e, number of problems).  As in the paper
(verl's drop_last) the problems left over at the end of an epoch, fewer than one step needs, are not trained
in that epoch; another permutation leaves out others in the next.  Nothing is carried from step to step, so a
resumed run needs the step number alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_thinkprune.data.streams import permutation
from nemo_thinkprune.recipe.errors import UserError


@dataclass(frozen=True, slots=True)
class Ledger:
    """The plan: `prompts_per_step` distinct problems for each of the steps 1, 2, 3, ...

    Raises:
        UserError: when there are fewer problems than one step needs.
    """

    n_problems: int
    prompts_per_step: int
    seed: int

    def __post_init__(self) -> None:
        if self.prompts_per_step < 1:
            raise UserError(f"grpo.num_prompts_per_step must be at least 1, got {self.prompts_per_step}")
        if self.n_problems < self.prompts_per_step:
            raise UserError(
                f"{self.n_problems} training problems cannot fill a step of {self.prompts_per_step} prompts: "
                "lower grpo.num_prompts_per_step or give more problems"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full steps in one pass over the problems (the remainder is dropped)."""
        return self.n_problems // self.prompts_per_step

    def last_step(self, *, epochs: int, max_steps: int) -> int:
        """Return the last step of a run: whole epochs, at most `max_steps`."""
        return min(max_steps, epochs * self.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        """Return the epoch, counted from 0, that `step`, counted from 1, belongs to."""
        if step < 1:
            raise ValueError(f"steps are counted from 1, got {step}")
        return (step - 1) // self.steps_per_epoch

    def take(self, step: int) -> list[int]:
        """Return the problems of `step` (counted from 1) as indices 0 .. n_problems - 1, all different."""
        epoch = self.epoch_of(step)
        start = (step - 1 - epoch * self.steps_per_epoch) * self.prompts_per_step
        return list(permutation(self.n_problems, self.seed, epoch)[start : start + self.prompts_per_step])


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What one step trained: a line of ledger.jsonl."""

    step: int
    epoch: int
    problem_ids: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-ready values."""
        return {**asdict(self), "problem_ids": list(self.problem_ids)}


def ledger_row(ledger: Ledger, step: int, problem_ids: Sequence[str]) -> LedgerRow:
    """Return the row to record once `step` is trained; `problem_ids` are all problems' ids in load order."""
    _check_ids(ledger, problem_ids)
    return LedgerRow(step, ledger.epoch_of(step), tuple(problem_ids[index] for index in ledger.take(step)))


def read_ledger(path: str | Path) -> list[LedgerRow]:
    """Read a ledger.jsonl.

    Raises:
        UserError: when the file is missing or a line is not a ledger row.
    """
    try:
        # Not splitlines(): it would also break at U+2028, which may stand inside a problem's id.
        lines = Path(path).read_text("utf-8").split("\n")
    except OSError as error:
        raise UserError(f"cannot read the ledger {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the ledger {path} is not UTF-8 text: it was damaged") from error
    return [_parse_row(line, f"{path} line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def verify_ledger(
    rows: Iterable[LedgerRow | Mapping[str, Any]], ledger: Ledger, problem_ids: Sequence[str]
) -> dict[str, int]:
    """Prove that the recorded steps trained each problem exactly as often as planned.

    Steps must run 1, 2, 3, ... without gap or repetition, each with the planned epoch and problems.

    Returns:
        How often each problem was trained so far, for all of `problem_ids` (0 where it was not).

    Raises:
        UserError: naming the first step that is missing, repeated, out of order or has other problems than
            planned.
    """
    _check_ids(ledger, problem_ids)
    trained: Counter[str] = Counter()
    for expected_step, raw in enumerate(rows, 1):
        row = raw if isinstance(raw, LedgerRow) else _row_from(raw, f"ledger row {expected_step}")
        if row.step != expected_step:
            kind = "repeats" if row.step < expected_step else "skips to"
            raise UserError(f"the ledger {kind} step {row.step} where step {expected_step} was due")
        planned = ledger_row(ledger, row.step, problem_ids)
        if row != planned:
            raise UserError(_difference(row, planned))
        trained.update(row.problem_ids)
    return {problem: trained[problem] for problem in problem_ids}


def _difference(row: LedgerRow, planned: LedgerRow) -> str:
    recorded, due = Counter(row.problem_ids), Counter(planned.problem_ids)
    skipped, extra = sorted((due - recorded).elements()), sorted((recorded - due).elements())
    if skipped or extra:
        detail = f"skipped {skipped[:3]}, trained {extra[:3]} instead"
    elif row.epoch != planned.epoch:
        detail = f"recorded epoch {row.epoch}, planned epoch {planned.epoch}"
    else:
        detail = "trained the planned problems in another order"
    return f"ledger step {row.step} is not the plan: {detail}"


def _check_ids(ledger: Ledger, problem_ids: Sequence[str]) -> None:
    if len(problem_ids) != ledger.n_problems:
        raise UserError(
            f"the ledger was planned for {ledger.n_problems} problems but {len(problem_ids)} were loaded: "
            "the training data changed since the run began"
        )
    repeated = [problem for problem, count in Counter(problem_ids).items() if count > 1]
    if repeated:
        raise UserError(f"problem ids must be unique; repeated: {repeated[:3]}")


def _parse_row(line: str, where: str) -> LedgerRow:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    return _row_from(raw, where)


def _row_from(raw: Any, where: str) -> LedgerRow:
    try:
        return LedgerRow(int(raw["step"]), int(raw["epoch"]), tuple(str(item) for item in raw["problem_ids"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where} is not a ledger row (step, epoch, problem_ids): {error!r}") from error
