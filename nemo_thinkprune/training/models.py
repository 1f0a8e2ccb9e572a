"""Models made ready before any process starts: found, downloaded, checked, undamaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_config import read_hf_config
from checkpoints_tools.torch_dist.folders import find_checkpoint
from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import with_values
from nemo_thinkprune.recipe.model_source import ModelSource, checkpoint_of, locate
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.training.checkpoint_files import WEIGHTS, verify_checkpoint
from nemo_thinkprune.training.manifest import MANIFEST

DESCRIPTION_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "README.md"]
WEIGHT_FILES = ["*.safetensors"]


class NoModel(UserError):
    """A name that is neither a folder nor a hub id."""


def find_model(model: str, *, weights: bool = True) -> ModelSource:
    """What `recipe.model_source.locate` finds, with a hub model downloaded and a checkpoint verified.

    Without `weights` only configuration and tokenizer of a hub model are.

    Raises:
        UserError: Neither a model nor a hub id that can be had, or a damaged checkpoint.
    """
    source = locate(model)
    if source.step is not None:
        refuse_damaged(source.step)
    folder = source.folder if Path(source.folder).is_dir() else str(_download(source.folder, weights=weights))
    return replace(source, folder=folder)


def starting_model(recipe: Recipe, *, weights: bool = True) -> ModelSource:
    """What a run starts from: policy.model_name, with the weights of policy.pretrained_checkpoint if given.

    Without `weights` those of a hub model are not downloaded.

    Raises:
        UserError: as `find_model`, or there are no such weights.
    """
    try:
        source = find_model(recipe.policy.model_name, weights=weights)
    except NoModel as error:
        made = "run `thinkprune quickstart`, then this in runs/quickstart with policy.model_name=warmup/model, or "
        hint = made if recipe.thinkprune.warmup is not None else ""
        raise UserError(f"{error}: {hint}pass policy.model_name=FOLDER") from None
    pretrained = recipe.policy.pretrained_checkpoint
    if pretrained is None:
        return source
    path = Path(os.path.realpath(os.path.expanduser(pretrained.path)))
    if not path.is_dir():
        raise UserError(f"policy.pretrained_checkpoint.path = {pretrained.path}: there is no such folder")
    step = checkpoint_of(path)
    if step is not None:
        refuse_damaged(step)
        return replace(source, step=step, weights=path / WEIGHTS if step == path else path)
    try:  # a folder made by another tool: the iteration that its tracker file names
        return replace(
            source, weights=path if path.name.startswith("iter_") else find_checkpoint(path).iteration
        )
    except CheckpointError as error:
        raise UserError(f"policy.pretrained_checkpoint.path: {error}") from None


def ready_model(
    recipe: Recipe, *, weights: bool = True, check: Callable[[Recipe], object] = check_recipe
) -> tuple[Recipe, ModelSource]:
    """Check a recipe, find the model it starts from, and check the recipe against that model.

    Gives the recipe with the model's folder in the place of its name.  The second check finds what is known
    only now: the sizes of a model from the hub.  Without `weights`, for an engine that gets them itself, those
    of a hub model are not downloaded, and the recipe names the model by its hub id.

    Raises:
        UserError: as `check` and `starting_model`, or a model that cannot be built.
    """
    check(recipe)
    source = starting_model(recipe, weights=weights)
    placed = with_model(recipe, source.folder)
    refuse_unsupported(source.folder)
    check(placed)
    return placed if weights else with_model(recipe, locate(recipe.policy.model_name).folder), source


def with_model(recipe: Recipe, folder: str) -> Recipe:
    """The recipe with `folder` as model and tokenizer."""
    return with_values(recipe, {"policy.model_name": folder, "policy.tokenizer.name": folder})


def refuse_unsupported(folder: str) -> None:
    """Refuse a model whose config.json is damaged or describes what cannot be built.

    Raises:
        UserError: naming the file and what is wrong.
    """
    try:
        read_hf_config(folder)
    except CheckpointError as error:
        raise UserError(str(error)) from error


def refuse_damaged(step: Path) -> None:
    """Refuse a checkpoint that has changed since it was sealed; one without manifest (NeMo-RL) passes.

    Raises:
        UserError: naming the damaged files.
    """
    if not (step / MANIFEST).exists():
        return
    problems = verify_checkpoint(step)
    if problems:
        raise UserError(
            f"{step} is not whole and is not used: {'; '.join(problems)}; restore it, or give another checkpoint"
        )


def _download(model: str, *, weights: bool) -> Path:
    """The folder of a hub model, downloaded once and cached; without `weights` its small files alone."""
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise NoModel(f"there is no folder {model}, and it is not a hub id such as Qwen/QwQ-32B")
    from huggingface_hub import snapshot_download

    patterns = [*DESCRIPTION_FILES, *(WEIGHT_FILES if weights else [])]
    try:
        folder = Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:
        raise UserError(
            f"cannot get {model} from the hub ({type(error).__name__}): check the name and the connection, or "
            "give a local folder"
        ) from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{model} on the hub has no config.json: it is not a model that can be built here")
    return folder
