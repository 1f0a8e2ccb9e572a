"""Evaluate a model on a set of problems: any Hugging Face folder, or a checkpoint step_N of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import with_values
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.training.job import EvalSpec, Job
from nemo_thinkprune.training.start import model_folder

_STEP = re.compile(r"step_\d+")


@dataclass(frozen=True, slots=True)
class Model:
    """Where a model's configuration and tokenizer are, and the torch_dist weights that replace its own."""

    folder: str
    weights: Path | None = None
    name: str = ""


def find_model(model: str) -> Model:
    """Tell a Hugging Face folder or hub id from a checkpoint ``step_N`` of either engine.

    The config.json of a checkpoint is beside its tokenizer (our engine), or in the folder that its recipe
    names as policy.model_name (NeMo-RL).

    Raises:
        UserError: a folder that is neither, or a checkpoint whose parts are gone.
    """
    path = Path(model).expanduser()
    if not path.exists() or (path / "config.json").is_file():
        return Model(str(model_folder(model)), name=path.resolve().name)
    if not _STEP.fullmatch(path.resolve().name) or not (path / "policy" / "weights").is_dir():
        raise UserError(f"{path} is neither a Hugging Face folder (no config.json) nor a checkpoint step_N")
    tokenizer = path / "policy" / "tokenizer"
    folder = str(tokenizer) if (tokenizer / "config.json").is_file() else _recorded_model(path)
    return Model(folder, weights=_newest_iteration(path), name=_name(path.resolve()))


def _name(step: Path) -> str:
    run = step.parents[1].name if step.parent.name == "checkpoints" else step.parent.name
    return f"{run}_{step.name}"


def _newest_iteration(step: Path) -> Path:
    found = sorted((step / "policy" / "weights").glob("iter_*"))
    if not found:
        raise UserError(f"{step}/policy/weights holds no iter_* folder: the checkpoint is incomplete")
    return found[-1]


def _recorded_model(step: Path) -> str:
    try:
        config = yaml.safe_load((step / "config.yaml").read_text(encoding="utf-8"))
        name = config["policy"]["model_name"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        raise UserError(f"{step}/config.yaml does not name the model that the weights belong to") from None
    try:
        return str(model_folder(name))
    except UserError as error:
        raise UserError(f"{step} was trained from {name}, whose config.json is needed: {error}") from None


def evaluate_model(
    model: str,
    *,
    data: str,
    limit: int,
    samples: int,
    temperature: float,
    top_p: float,
    recipe: Recipe,
    out: Path,
    run: Callable[[Job], None],
    top_k: int | None = None,
    limits: Sequence[int] = (),
) -> dict[str, Any]:
    """Sample ``samples`` responses of up to ``limit`` tokens to each problem in ``data`` and measure them.

    ``model`` is what find_model takes; ``recipe`` gives prompt family, scoring, layout and batch sizes;
    ``limits`` are budgets in tokens at which accuracy is reported too; ``run`` runs the job. Writes ``out``
    (with or without .json), the rows beside it (.jsonl) and logs into a folder of that name.

    Returns:
        The summary (see evaluation.stats.summarise).

    Raises:
        UserError: the model or the data cannot be used.
    """
    path = out if out.suffix == ".json" else out.with_name(f"{out.name}.json")
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
    run(evaluation_job(find_model(model), spec, recipe))
    return json.loads(path.read_text(encoding="utf-8"))


def evaluation_job(model: Model, spec: EvalSpec, recipe: Recipe) -> Job:
    """The job that evaluates ``model``; the recipe's own model is replaced."""
    names = {"policy.model_name": model.folder, "policy.tokenizer.name": model.folder}
    return Job(
        kind="eval",
        run_dir=spec.out.with_suffix(""),
        recipe=with_values(recipe, names),
        model=model.folder,
        init_weights=model.weights,
        limit=spec.limit,
        eval=spec,
    )
