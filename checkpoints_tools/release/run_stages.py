"""summary.json of a run: what was measured of its models, and which of them a checkpoint is."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from checkpoints_tools.small_files import Reader

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """One measured model. Accuracies are shares of 1, `tokens` the mean response length with the end token.

    `*_se` are standard errors over problems. Changes are against the model before the first round: of accuracy
    in shares of 1, of length relative (-0.5 is half). `is_this`: it is the checkpoint that is asked about.
    """

    label: str
    limit: int | None
    accuracy: float | None
    accuracy_se: float | None
    tokens: float | None
    tokens_se: float | None
    accuracy_change: float | None = None
    accuracy_change_se: float | None = None
    tokens_change: float | None = None
    round: int | None = None
    kept_start: bool = False
    is_this: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """How the models were measured: problems, responses to each, largest response in tokens, sampling."""

    data: str | None = None
    problems: int | None = None
    samples: int | None = None
    limit: int | None = None
    temperature: float | None = None
    top_p: float | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """What summary.json says. `missing`: what a finished run would have and this one had not, in words.

    The stages of a prune run are measured on the reporting set. Those of a train run come from the selection
    problems: before training, and at the checkpoint's step.
    """

    kind: Literal["prune", "train"]
    setting: Setting
    baseline: Stage | None
    rounds: tuple[Stage, ...]
    control: Stage | None
    missing: tuple[str, ...]

    @property
    def this(self) -> Stage | None:
        """What was measured of the checkpoint that is asked about."""
        return next((s for s in (*self.rounds, self.control) if s is not None and s.is_this), None)


def read_results(summary: Reader, checkpoint: str, *, newest: bool) -> Results:
    """Take what summary.json says of `checkpoint`, a path relative to the run such as round_1_L4000/.../step_20.

    Rounds after the checkpoint's own are left out: they are other models. `newest`: no checkpoint of the same
    train run is later; of the control that is the one that was measured.

    Raises:
        CheckpointError: The schema is not known, or a value is of the wrong type.
    """
    schema, kind = summary.value("schema"), summary.value("kind")
    if schema != SCHEMA or kind not in ("prune", "train"):
        raise summary.error("schema", f"{SCHEMA}, of kind prune or train")
    missing = summary.texts("missing")
    if kind == "train":
        return _train(summary, checkpoint, missing)
    rounds = [_round(entry, checkpoint) for entry in summary.readers("rounds")]
    own = max((i for i, stage in enumerate(rounds) if stage.is_this), default=None)
    if own is None:
        number = _round_number(checkpoint)
        own = sum(1 for stage in rounds if number and stage.round and stage.round < number) - 1
    control = summary.section("control")
    baseline = summary.section("baseline")
    return Results(
        kind="prune",
        setting=_setting(summary.section("settings")),
        baseline=_stage(baseline) if baseline else None,
        rounds=tuple(rounds[: own + 1]),
        control=_stage(control, is_this=newest and checkpoint.startswith("control/")) if control else None,
        missing=missing,
    )


def _stage(entry: Reader, *, is_this: bool = False) -> Stage:
    return Stage(
        label=entry.text("label") or "",
        limit=entry.count("limit"),
        accuracy=entry.share("accuracy"),
        accuracy_se=entry.number("accuracy_se", low=0),
        tokens=entry.number("mean_tokens", low=0),
        tokens_se=entry.number("mean_tokens_se", low=0),
        accuracy_change=entry.number("accuracy_change", low=-1, high=1),
        accuracy_change_se=entry.number("accuracy_change_se", low=0),
        tokens_change=entry.number("tokens_change", low=-1),
        round=entry.count("round"),
        kept_start=entry.flag("kept_start") or False,
        is_this=is_this,
    )


def _round(entry: Reader, checkpoint: str) -> Stage:
    weights = entry.text("checkpoint") or ""
    return _stage(entry, is_this=weights == checkpoint or weights.startswith(f"{checkpoint}/"))


def _round_number(checkpoint: str) -> int | None:
    found = re.match(r"round_(\d{1,4})_L\d+/", checkpoint)
    return int(found[1]) if found else None


def _setting(entry: Reader | None) -> Setting:
    if entry is None:
        return Setting()
    return Setting(
        data=entry.text("data"),
        problems=entry.count("problems"),
        samples=entry.count("samples"),
        limit=entry.count("limit"),
        temperature=entry.number("temperature", low=0),
        top_p=entry.number("top_p", low=0, high=1),
    )


def _train(summary: Reader, checkpoint: str, missing: tuple[str, ...]) -> Results:
    """The validations before training and at the checkpoint's step."""
    name = checkpoint.rpartition("/")[2]
    rows = {row.count("step"): row for row in summary.readers("validation")}
    before = rows.get(0)
    here = next((row for step, row in rows.items() if name == f"step_{step}" and step), None)
    baseline = _stage(before) if before else None
    stage = None
    if here is not None:
        stage = _change(replace(_stage(here, is_this=True), label=f"step {here.count('step')}"), baseline)
    measured = here or before
    return Results(
        kind="train",
        setting=Setting(limit=measured.count("limit") if measured else None),
        baseline=baseline,
        rounds=(stage,) if stage else (),
        control=None,
        missing=missing,
    )


def _change(stage: Stage, before: Stage | None) -> Stage:
    if before is None:
        return stage
    accuracy = tokens = None
    if before.accuracy is not None and stage.accuracy is not None:
        accuracy = stage.accuracy - before.accuracy
    if before.tokens and stage.tokens is not None:
        tokens = stage.tokens / before.tokens - 1
    return replace(stage, accuracy_change=accuracy, tokens_change=tokens)
