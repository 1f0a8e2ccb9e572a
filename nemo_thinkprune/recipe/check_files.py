"""Whether the files that a recipe names are there: asked where a run starts, since data may be made after a check."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from checkpoints_tools.bridge_files import RUN_CONFIG_FILE
from nemo_thinkprune.recipe.data_source import is_hub_id, is_on_disk
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import is_file, is_folder
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.support import datasets

_TRACKER = "latest_checkpointed_iteration.txt"


def check_files(recipe: Recipe, *, on_cpu: bool = False) -> None:
    """Look for the data and the checkpoint that a run of the nemo-rl engine would read, before it is started.

    Args:
        recipe: a recipe that passed `check_recipe`.
        on_cpu: whether the CPU worker loads the checkpoint: Megatron-Bridge, which loads it on a cluster, also
            needs the run_config.yaml beside the weights.

    Raises:
        UserError: naming every path where nothing is that could be read.
    """
    problems = [*_data(recipe), *_checkpoint(recipe, on_cpu=on_cpu)]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"the recipe names files that are not there:\n{lines}")


def check_report_data(recipe: Recipe) -> None:
    """Look for the problems that results are reported on, before rounds that would want them only at their end.

    Raises:
        UserError: thinkprune.report_data names neither a file nor a folder that is there, nor a hub data set.
    """
    name = recipe.thinkprune.report_data
    if name is not None and _is_missing(name):
        raise UserError(
            f"{_nothing_at('thinkprune.report_data', name)}, or set null for rounds without a result"
        )


def _data(recipe: Recipe) -> Iterator[str]:
    for path, dataset in datasets(recipe):
        if dataset.data_path is not None and _is_missing(dataset.data_path):
            yield _nothing_at(f"{path}.data_path", dataset.data_path)


def _is_missing(name: str) -> bool:
    return not is_on_disk(name) and not is_hub_id(name)


def _nothing_at(key: str, name: str) -> str:
    return (
        f"{key} = {name!r}: nothing at {os.path.abspath(os.path.expanduser(name))}; make it with "
        "`thinkprune data prepare` or correct the path"
    )


def _checkpoint(recipe: Recipe, *, on_cpu: bool) -> Iterator[str]:
    checkpoint = recipe.policy.pretrained_checkpoint
    if checkpoint is None:
        return
    folder = Path(os.path.abspath(os.path.expanduser(checkpoint.path)))
    path = f"policy.pretrained_checkpoint.path = {checkpoint.path!r}"
    if not is_folder(folder):
        yield f"{path}: there is no folder {folder}; give iter_N of a checkpoint's policy/weights"
        return
    iteration = _iteration(folder)
    if not is_file(iteration / "metadata.json") and not is_file(iteration / ".metadata"):
        yield f"{path}: {iteration} holds no torch_dist weights; give iter_N of a checkpoint's policy/weights"
    elif checkpoint.format == "megatron_bridge" and not on_cpu and not is_file(iteration / RUN_CONFIG_FILE):
        yield (
            f"{path}: {iteration} has no {RUN_CONFIG_FILE}, without which NeMo-RL's GPU workers do not load it; export "
            "it with thinkprune-ckpt to a Hugging Face folder and give that as policy.model_name"
        )


def _iteration(folder: Path) -> Path:
    """The folder that NeMo-RL would read: this one, or what the tracker file names, or the last iteration."""
    if is_file(folder / RUN_CONFIG_FILE) or is_file(folder / "metadata.json"):
        return folder
    if is_file(folder / _TRACKER):
        number = (folder / _TRACKER).read_text(encoding="utf-8", errors="replace").strip()
        return folder / (f"iter_{int(number):07d}" if number.isdecimal() else "release")
    found = sorted(item for item in folder.glob("iter_*") if is_folder(item))
    return found[-1] if found else folder
