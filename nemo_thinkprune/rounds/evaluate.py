"""Evaluate a model on a set of problems: any Hugging Face folder, or a checkpoint step_N of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_thinkprune.recipe.checks_layout import check_evaluation
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.model_source import ModelSource
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.training.job import EvalSpec, Job
from nemo_thinkprune.training.models import find_model, refuse_unsupported, with_model


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The summary of an evaluation (see evaluation.stats.summarise) and the file it was written to."""

    summary: dict[str, Any]
    path: Path

    @property
    def rows(self) -> Path:
        """The file with the responses."""
        return self.path.with_suffix(".jsonl")


def evaluate_model(
    model: str,
    *,
    data: str,
    limit: int,
    samples: int,
    temperature: float,
    top_p: float,
    recipe: Recipe,
    out: Path | None,
    run: Callable[[Job], None],
    top_k: int | None = None,
    limits: Sequence[int] = (),
) -> Evaluation:
    """Sample ``samples`` responses of up to ``limit`` tokens to each problem in ``data`` and measure them.

    ``model`` is what models.find_model takes; ``recipe`` gives prompt family, scoring, layout and batch sizes;
    ``limits`` are budgets in tokens at which accuracy is reported too; ``run`` runs the job. Writes ``out``
    (with or without .json; None: a name made of model, data and limit in eval/), the rows beside it (.jsonl)
    and logs into a folder of that name.

    Raises:
        UserError: the model or the data cannot be used, in this layout or with so many tokens.
    """
    source = find_model(model)
    refuse_unsupported(source.folder)
    check_evaluation(recipe, source.folder, limit=limit)
    path = summary_path(out, source.name, data, limit)
    spec = EvalSpec(
        data_path=data,
        limit=limit,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        out=path,
        limits=tuple(limits),
    )
    run(evaluation_job(source, spec, recipe))
    return Evaluation(json.loads(path.read_text(encoding="utf-8")), path)


def summary_path(out: Path | None, name: str, data: str, limit: int) -> Path:
    """Where the summary of an evaluation goes: ``out`` with the suffix .json, or a name of its own in eval/.

    Raises:
        UserError: a folder has that name.
    """
    if out is None:
        return Path("eval") / f"{name}_{Path(data).resolve().stem}_{limit}.json"
    path = out if out.suffix == ".json" else out.with_name(f"{out.name}.json")
    for file in (path, path.with_suffix(".jsonl")):
        if file.is_dir():
            raise UserError(f"--out: {file} is a folder: give another name")
    return path


def evaluation_job(source: ModelSource, spec: EvalSpec, recipe: Recipe) -> Job:
    """The job that evaluates ``source``; the recipe's own model is replaced."""
    return Job(
        kind="eval",
        run_dir=spec.out.with_suffix(""),
        recipe=with_model(recipe, source.folder),
        model=source.folder,
        init_weights=source.weights,
        limit=spec.limit,
        eval=spec,
    )
