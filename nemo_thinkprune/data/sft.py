"""Warm-up batches: which traces are imitated in which step, as token ids and loss masks.

The schedule of the warm-up: the first part of the steps imitates the shortest traces, many per step, so that
the task itself is learnt; the rest imitates redundant ones.  Lengths are mixed inside each step: batches made
of like lengths make the length of the model's thoughts drift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemo_thinkprune.data.problems import Problem
from nemo_thinkprune.data.prompts import encode_prompt
from nemo_thinkprune.data.streams import permutation
from nemo_thinkprune.data.tables import read_rows
from nemo_thinkprune.recipe.errors import UserError

Stage = Literal["short", "redundant"]


@dataclass(frozen=True, slots=True)
class Trace:
    """A response to imitate: its text without end token, and the part of the warm-up it serves."""

    id: str
    question: str
    answer: str
    response: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class SftSchedule:
    """Steps and batch sizes.

    `short_fraction` of `steps` takes short traces, from `short_batch_first` a step rising linearly to
    `short_batch_last`; every later step, also beyond `steps` when a warm-up is extended, takes `batch`
    redundant ones.
    """

    steps: int = 700
    short_fraction: float = 0.35
    short_batch_first: int = 24
    short_batch_last: int = 44
    batch: int = 16

    def __post_init__(self) -> None:
        sizes = (self.steps, self.short_batch_first, self.short_batch_last, self.batch)
        if min(sizes) < 1 or not 0 <= self.short_fraction <= 1:
            raise UserError(
                f"warm-up steps and batch sizes must be positive and short_fraction in 0..1: {self}"
            )

    @property
    def short_steps(self) -> int:
        """Steps that take short traces."""
        return round(self.steps * self.short_fraction)

    def stage_of(self, step: int) -> Stage:
        """Return the stage of `step`, counted from 1."""
        if step < 1:
            raise ValueError(f"steps are counted from 1, got {step}")
        return "short" if step <= self.short_steps else "redundant"

    def traces_in(self, step: int) -> int:
        """Return the number of traces in `step`."""
        if self.stage_of(step) == "redundant":
            return self.batch
        rise = (self.short_batch_last - self.short_batch_first) * (step - 1)
        return self.short_batch_first + round(rise / max(self.short_steps - 1, 1))

    def taken_before(self, step: int) -> int:
        """Return how many traces of its stage the steps before `step` took."""
        if self.stage_of(step) == "redundant":
            return self.batch * (step - self.short_steps - 1)
        return sum(self.traces_in(earlier) for earlier in range(1, step))


@dataclass(frozen=True, slots=True)
class SftBatch:
    """One optimizer step.

    `token_ids[i]` is prompt, response and end token of one trace; `loss_mask[i]`, of equal length, is 1 where
    the token is to be predicted (response and end token) and 0 on the prompt.  Position 0 is always 0.
    """

    step: int
    token_ids: list[list[int]]
    loss_mask: list[list[int]]
    trace_ids: list[str]


def load_traces(path: str | Path) -> list[Trace]:
    """Read warm-up traces: JSONL or Parquet rows with id, question, answer, response, stage.

    Raises:
        UserError: when the file cannot be read or a row has not these columns.
    """
    return [_trace_from(row, f"{path} row {number}") for number, row in enumerate(read_rows(Path(path)), 1)]


def sft_batches(
    traces: Sequence[Trace],
    tokenizer: Any,
    *,
    schedule: SftSchedule,
    seed: int,
    family: str = "plain",
    first_step: int = 1,
) -> Iterator[SftBatch]:
    """Yield the batches of steps `first_step`, `first_step` + 1, ... without end.

    A batch depends on the traces, the schedule, the seed and its step only, so a warm-up resumes at any step.
    Each stage runs through permutations of its traces, one after the other, without dropping any.

    Raises:
        UserError: when a stage that the schedule needs has no traces, or the tokenizer no end token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end token (eos_token): a response could not be ended")
    by_stage: dict[Stage, list[Trace]] = {"short": [], "redundant": []}
    for trace in traces:
        by_stage[trace.stage].append(trace)
    step = first_step
    while True:
        stage = schedule.stage_of(step)
        pool = by_stage[stage]
        if not pool:
            raise UserError(f"warm-up step {step} needs traces of stage {stage!r} and the data has none")
        picks = _picks(len(pool), schedule.taken_before(step), schedule.traces_in(step), seed, stage)
        chosen = [pool[index] for index in picks]
        encoded = [_encode(trace, tokenizer, family) for trace in chosen]
        yield SftBatch(
            step, [ids for ids, _ in encoded], [mask for _, mask in encoded], [t.id for t in chosen]
        )
        step += 1


def _picks(n: int, start: int, count: int, seed: int, stage: Stage) -> list[int]:
    """Return positions start .. start + count - 1 of the endless row of permutations of 0 .. n - 1."""
    picks: list[int] = []
    while len(picks) < count:
        epoch, offset = divmod(start + len(picks), n)
        order = permutation(n, "sft", stage, seed, epoch)
        picks.extend(order[offset : offset + count - len(picks)])
    return picks


def _encode(trace: Trace, tokenizer: Any, family: str) -> tuple[list[int], list[int]]:
    problem = Problem(trace.id, trace.question, trace.answer, "sft")
    prompt = encode_prompt(tokenizer, problem, family=family, length_hint=None)
    response = [*tokenizer(trace.response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return prompt + response, [0] * len(prompt) + [1] * len(response)


def _trace_from(row: Mapping[str, Any], where: str) -> Trace:
    stage = row.get("stage")
    texts = [row.get(name) for name in ("id", "question", "answer", "response")]
    if stage not in ("short", "redundant") or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"{where}: a warm-up trace needs the texts id, question, answer, response and stage 'short' or "
            f"'redundant'; it has {sorted(row)}"
        )
    return Trace(row["id"], row["question"], row["answer"], row["response"], stage)
