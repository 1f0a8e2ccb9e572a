"""The running-total task: a miniature on which two CPU cores can watch thoughts being pruned.

A prompt is `start 13 ; a +3 ; b -4 ; c -4 ; result ?`: three to six operations with operands 1 to 5 that keep
every value within 0 to 19.  A thought repeats each operation with its running total; the teacher whose traces
warm the model up checks its steps again and again, so there is something to prune.

One word is one token and a signed operand is one word: the task is a look-up in a table of 20 x 10 sums,
which a model of two layers learns in a minute.  The shortest response to k operations has 8 k + 6 tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nemo_thinkprune.data.problems import Problem
from nemo_thinkprune.data.sft import Trace
from nemo_thinkprune.data.streams import CounterStream
from nemo_thinkprune.recipe.files import write_atomic

Split = Literal["train", "selection", "report"]

MAX_VALUE = 19
MAX_OPERAND = 5
MIN_OPERATIONS = 3
MAX_OPERATIONS = 6
STEP_TOKENS = 8
CHECK_TOKENS = 11
FRAME_TOKENS = 6
MAX_TEACHER_TOKENS = 230
MIN_VERBOSITY = 0.3
MAX_VERBOSITY = 0.8
SOURCE = "running_total"

_HELD_OUT_PERCENT = 10


@dataclass(frozen=True, slots=True)
class RunningTotal:
    """One instance: the start value and the signed operands; all partial sums are within 0 .. MAX_VALUE."""

    start: int
    operands: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """The value after each operation."""
        values, value = [], self.start
        for operand in self.operands:
            value += operand
            values.append(value)
        return tuple(values)

    @property
    def question(self) -> str:
        """The prompt's text, in words of the vocabulary."""
        steps = " ; ".join(f"{_letter(i)} {operand:+d}" for i, operand in enumerate(self.operands))
        return f"start {self.start} ; {steps} ; result ?"

    @property
    def answer(self) -> str:
        """The gold answer."""
        return str(self.totals[-1])

    def problem(self) -> Problem:
        """Return the instance as a problem: level is the number of operations, id the hash of its text."""
        identity = hashlib.sha256(self.question.encode()).hexdigest()[:16]
        return Problem(identity, self.question, self.answer, SOURCE, len(self.operands))


def make_problem(stream: CounterStream) -> RunningTotal:
    """Draw an instance: the number of operations, the start, and each feasible signed operand uniformly."""
    start = value = stream.below(MAX_VALUE + 1)
    operands = []
    for _ in range(MIN_OPERATIONS + stream.below(MAX_OPERATIONS - MIN_OPERATIONS + 1)):
        feasible = [d for d in _signed_operands() if 0 <= value + d <= MAX_VALUE]
        operand = feasible[stream.below(len(feasible))]
        operands.append(operand)
        value += operand
    return RunningTotal(start, tuple(operands))


def shortest_trace(instance: RunningTotal) -> str:
    """Return the response without any check, without its end token: 8 k + 5 words."""
    return _response(instance, [0] * len(instance.operands))


def teacher_trace(instance: RunningTotal, stream: CounterStream) -> str:
    """Return a redundant response, without its end token.

    A verbosity v is drawn from U(0.3, 0.8); after each step its check is repeated while another uniform draw
    is below v.  Traces above 230 tokens, end token included, are drawn anew, verbosity included.
    """
    while True:
        verbosity = stream.uniform(MIN_VERBOSITY, MAX_VERBOSITY)
        checks = [_repeats(stream, verbosity) for _ in instance.operands]
        if STEP_TOKENS * len(checks) + CHECK_TOKENS * sum(checks) + FRAME_TOKENS <= MAX_TEACHER_TOKENS:
            return _response(instance, checks)


def split_of(question: str) -> Split:
    """Return the split a prompt belongs to, by the hash of its text alone.

    A tenth of all prompts is held out: half of it to select checkpoints, half to report.
    """
    bucket = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8]) % (2 * 100)
    if bucket >= 2 * _HELD_OUT_PERCENT:
        return "train"
    return "selection" if bucket < _HELD_OUT_PERCENT else "report"


def write_dataset(
    folder: str | Path,
    *,
    seed: int,
    train: int = 4096,
    selection: int = 512,
    report: int = 1024,
    sft_short: int = 9216,
    sft_redundant: int = 9216,
) -> dict[str, Path]:
    """Write train.jsonl, selection.jsonl, report.jsonl (problems) and sft.jsonl (traces on training prompts).

    The arguments after `seed` are row counts.  Prompts within a problem file are distinct, and the three
    files are disjoint; warm-up traces use prompts of the training split, where one may come twice.  Each file
    is written atomically and depends on the seed and its own count only.

    Returns:
        The paths by file stem: train, selection, report, sft.
    """
    target = Path(folder)
    sizes: dict[Split, int] = {"train": train, "selection": selection, "report": report}
    written: dict[str, Path] = {}
    for split, count in sizes.items():
        written[split] = target / f"{split}.jsonl"
        _write_jsonl(written[split], (asdict(item.problem()) for item in _distinct(split, count, seed)))
    written["sft"] = target / "sft.jsonl"
    _write_jsonl(written["sft"], (asdict(trace) for trace in _traces(seed, sft_short, sft_redundant)))
    return written


def _distinct(split: Split, count: int, seed: int) -> Iterator[RunningTotal]:
    seen: set[RunningTotal] = set()
    for instance in _instances(split, CounterStream(SOURCE, split, seed)):
        if len(seen) == count:
            return
        if instance not in seen:
            seen.add(instance)
            yield instance


def _instances(split: Split, stream: CounterStream) -> Iterator[RunningTotal]:
    while True:
        instance = make_problem(stream)
        if split_of(instance.question) == split:
            yield instance


def _traces(seed: int, short: int, redundant: int) -> Iterator[Trace]:
    stream = CounterStream(SOURCE, "short traces", seed)
    for number, instance in zip(range(short), _instances("train", stream), strict=False):
        yield _trace(f"short-{number}", instance, shortest_trace(instance), "short")
    stream = CounterStream(SOURCE, "redundant traces", seed)
    for number, instance in zip(range(redundant), _instances("train", stream), strict=False):
        yield _trace(f"redundant-{number}", instance, teacher_trace(instance, stream), "redundant")


def _trace(name: str, instance: RunningTotal, response: str, stage: Literal["short", "redundant"]) -> Trace:
    return Trace(id=name, question=instance.question, answer=instance.answer, response=response, stage=stage)


def _repeats(stream: CounterStream, verbosity: float) -> int:
    count = 0
    while stream.uniform() < verbosity:
        count += 1
    return count


def _response(instance: RunningTotal, checks: Iterable[int]) -> str:
    words = ["<think>"]
    before = instance.start
    steps = zip(instance.operands, instance.totals, checks, strict=True)
    for i, (operand, after, repeats) in enumerate(steps):
        step = f"{_letter(i)} {operand:+d} : {before} {operand:+d} = {after} ;"
        words.append(step)
        words.extend([f"wait , check {step}"] * repeats)
        before = after
    return " ".join([*words, f"</think> \\boxed{{ {instance.answer} }}"])


def _letter(index: int) -> str:
    return "abcdef"[index]


def _signed_operands() -> list[int]:
    return [*range(-MAX_OPERAND, 0), *range(1, MAX_OPERAND + 1)]


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
