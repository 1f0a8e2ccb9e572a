"""What a model's name means: a Hugging Face folder, a hub id, or a checkpoint of either engine."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from checkpoints_tools.torch_dist.folders import RUN_TOKENIZER_FOLDER, WEIGHTS_FOLDER
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import is_file, is_folder

_ITERATION = re.compile(r"iter_\d+")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from.

    `folder` has config.json and tokenizer, or is a hub id; `weights` are torch_dist weights that replace its
    own and `step` the checkpoint they are part of; `name` tells it from others in file names.
    """

    folder: str
    weights: Path | None = None
    step: Path | None = None
    name: str = ""


def locate(model: str) -> ModelSource:
    """Tell a Hugging Face folder from a checkpoint (``step_N`` or its ``iter_*``); all else is a hub id.

    The config.json of a checkpoint is beside its tokenizer (local engine), or in the model that its recipe
    names as policy.model_name (NeMo-RL).  Looks at files only; downloads nothing.

    Raises:
        UserError: A folder that is neither, or a checkpoint whose parts are gone.
    """
    given = Path(os.path.expanduser(model))
    if not is_folder(given):
        return ModelSource(model, name=given.name)
    path = Path(os.path.realpath(given))
    if is_file(path / "config.json"):
        return ModelSource(str(path), name=path.name)
    step = checkpoint_of(path)
    if step is None and _ITERATION.fullmatch(path.name):
        raise UserError(
            f"{path} holds weights without their model: give the Hugging Face model as policy.model_name and "
            f"policy.pretrained_checkpoint.path={path}"
        )
    if step is None:
        raise UserError(
            f"{path} has no config.json and no {WEIGHTS_FOLDER}: give a Hugging Face model folder or a "
            "checkpoint step_N"
        )
    weights = _newest_iteration(step) if step == path else path
    return ModelSource(_config_folder(step, weights), weights, step, _name(step))


def checkpoint_of(path: Path) -> Path | None:
    """The checkpoint folder that `path` is, or whose weights ``iter_*`` it is; None when it is neither."""
    if is_folder(path / WEIGHTS_FOLDER):
        return path
    inside = _ITERATION.fullmatch(path.name) and path.parent.parts[-2:] == WEIGHTS_FOLDER.parts
    return path.parents[2] if inside else None


def _name(step: Path) -> str:
    run = step.parents[1].name if step.parent.name == "checkpoints" else step.parent.name
    return f"{run}_{step.name}"


def _newest_iteration(step: Path) -> Path:
    found = sorted((step / WEIGHTS_FOLDER).glob("iter_*"))
    if not found:
        raise UserError(f"{step / WEIGHTS_FOLDER} holds no iter_* folder: the checkpoint is incomplete")
    return found[-1]


def _config_folder(step: Path, weights: Path) -> str:
    if is_file(step / RUN_TOKENIZER_FOLDER / "config.json"):
        return str(step / RUN_TOKENIZER_FOLDER)
    advice = (
        "give the Hugging Face model it was trained from as policy.model_name and "
        f"policy.pretrained_checkpoint.path={weights}"
    )
    try:
        config = yaml.safe_load((step / "config.yaml").read_text(encoding="utf-8"))
        name = config["policy"]["model_name"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{step} has no {RUN_TOKENIZER_FOLDER}/config.json and its config.yaml does not name the model that the "
            f"weights belong to: {advice}"
        )
    folder = Path(os.path.expanduser(name))
    if is_file(folder / "config.json"):
        return os.path.realpath(folder)
    if is_folder(folder) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"{step} was trained from {name}, whose config.json is needed and not there: {advice}"
        )
    return name
