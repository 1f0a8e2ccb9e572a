"""The scored responses of a step, put together from what the environment actors tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_thinkprune.data.ledger import LedgerRow
from nemo_thinkprune.recipe.errors import UserError

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Scored:
    """A row, and the step in which it came in."""

    step: int
    row: Row


class LedgerBroken(UserError):
    """NeMo-RL trains other problems in a step than the ledger has planned."""


class Groups:
    """Responses by problem; only whole groups are given out, so that one prompt's responses stay together."""

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size
        self._waiting: dict[str, list[_Scored]] = {}

    def add(self, rows: Iterable[Row], *, step: int) -> None:
        """Take in rows in the order in which they were scored; `step` is the present one."""
        for row in rows:
            self._waiting.setdefault(str(row["problem_id"]), []).append(_Scored(step, row))

    def forget(self, *, before: int) -> None:
        """Let go of the rows that came in before step `before`: NeMo-RL discards what its weights have outrun."""
        for problem, rows in list(self._waiting.items()):
            self._keep(problem, [scored for scored in rows if scored.step >= before])

    def take(self) -> list[dict[str, Any]]:
        """Rows of all whole groups, group after group, numbered by `sample`; the rest waits."""
        taken: list[dict[str, Any]] = []
        for problem, rows in list(self._waiting.items()):
            whole = len(rows) - len(rows) % self._group_size
            taken += [_numbered(scored.row, i % self._group_size) for i, scored in enumerate(rows[:whole])]
            self._keep(problem, rows[whole:])
        return taken

    def take_trained(self, contents: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """Rows of the groups that a step trained, in its order; what was scored for later steps waits on.

        `contents` are the texts of the messages of each trained conversation: prompt, response, and what else. A
        group whose responses were scored by an earlier attempt of the run has no rows.
        """
        taken: list[dict[str, Any]] = []
        for start in range(0, len(contents), self._group_size):
            group = contents[start : start + self._group_size]
            texts = [messages[1] for messages in group]
            problem = next((name for name in self._waiting if self._has(name, group[0][0], texts)), None)
            if problem is None:
                continue
            rows = self._waiting[problem]
            for sample, text in enumerate(texts):
                scored = next(scored for scored in rows if scored.row["response"] == text)
                rows.remove(scored)
                taken.append(_numbered(scored.row, sample))
            self._keep(problem, rows)
        return taken

    def _has(self, problem: str, prompt: str, texts: Sequence[str]) -> bool:
        rows = self._waiting[problem]
        known = Counter(scored.row["response"] for scored in rows)
        return str(rows[0].row["prompt"]) in prompt and not Counter(texts) - known

    def _keep(self, problem: str, rows: list[_Scored]) -> None:
        if rows:
            self._waiting[problem] = rows
        else:
            del self._waiting[problem]

    def take_step(self, planned: LedgerRow) -> list[dict[str, Any]]:
        """Rows of a step, in the order of the ledger.

        Raises:
            LedgerBroken: They are not `group_size` of each planned problem, and no others.
        """
        scored = Counter({problem: len(rows) for problem, rows in self._waiting.items()})
        due = Counter({problem: self._group_size for problem in planned.problem_ids})
        if scored != due:
            raise LedgerBroken(_difference(planned.step, scored, due))
        place = {problem: number for number, problem in enumerate(planned.problem_ids)}
        return sorted(self.take(), key=lambda row: place[str(row["problem_id"])])


def problems_of(rows: Sequence[Row], group_size: int) -> list[str]:
    """The problem of each group, in order."""
    return [str(row["problem_id"]) for row in rows[::group_size]]


def _numbered(row: Row, sample: int) -> dict[str, Any]:
    return {"problem_id": row["problem_id"], "sample": sample, **row}


def _difference(step: int, scored: Counter[str], due: Counter[str]) -> str:
    wrong = [problem for problem in due | scored if scored[problem] != due[problem]]
    listed = ", ".join(f"{problem}: {scored[problem]} instead of {due[problem]}" for problem in wrong[:3])
    return (
        f"step {step} does not train the problems that the ledger has planned; responses scored to {listed}"
        f"{' ...' if len(wrong) > 3 else ''}: the data changed since the run began, or NeMo-RL's data loader "
        "is not where its checkpoint says"
    )
