"""The rows of a data set as NeMo-RL reads them: problems are kept once, however often they come up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemo_thinkprune.data.ledger import Ledger
from nemo_thinkprune.data.problems import Problem


@dataclass(frozen=True, slots=True)
class Row:
    """A problem with its prompt as text and as token ids, both None where it is not encoded yet."""

    problem: Problem
    text: str | None = None
    token_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class LedgerOrder:
    """The problem of each row: those of the ledger's steps 1 to `steps`, one step after the other."""

    ledger: Ledger
    steps: int

    def __len__(self) -> int:
        return self.steps * self.ledger.prompts_per_step

    def __getitem__(self, row: int) -> int:
        step, place = divmod(row, self.ledger.prompts_per_step)
        return self.ledger.take(step + 1)[place]


@dataclass(frozen=True, slots=True)
class RepeatedOrder:
    """The problem of each row: each problem `repeats` times, then the next."""

    problems: int
    repeats: int

    def __len__(self) -> int:
        return self.problems * self.repeats

    def __getitem__(self, row: int) -> int:
        return row // self.repeats


@dataclass(frozen=True, slots=True)
class Rows:
    """A map-style data set: row i is the problem `order[i]`.

    `family` and `length_hint` say how a prompt is made that is not encoded yet.
    """

    task_name: str
    problems: Sequence[Row]
    order: LedgerOrder | RepeatedOrder
    family: str
    length_hint: int | None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return what `cluster.dataset.process_problem` reads.

        Raises:
            IndexError: there is no row of this number.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return {
            "task_name": self.task_name,
            "row": self.problems[self.order[row]],
            "family": self.family,
            "length_hint": self.length_hint,
        }
