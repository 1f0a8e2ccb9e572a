"""What lies beside the weights of a checkpoint, and goes with them when they are cut anew."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from checkpoints_tools.bridge_files import LATEST_TRAIN_STATE_FILE, TRAIN_STATE_FILE
from checkpoints_tools.hf_folder import carried_files
from checkpoints_tools.models import OpenCheckpoint
from checkpoints_tools.proof.manifest import MANIFEST_FILE
from checkpoints_tools.small_files import read_text
from checkpoints_tools.torch_dist.folders import TOKENIZER_FOLDER
from checkpoints_tools.torch_dist.write import CONFIG_FILE, METADATA_FILE, TRACKER_FILE

# Made anew: what describes the chunks, and what names the iteration.
_OURS = (METADATA_FILE, CONFIG_FILE, TRACKER_FILE, MANIFEST_FILE)
_ITERATION = re.compile(r"iter_(\d{1,9})")


def iteration_of(folder: Path) -> int | None:
    """The iteration that a folder `iter_N` holds, None for `release`; 0 for a folder of any other name."""
    name = folder.resolve().name
    match = _ITERATION.fullmatch(name)
    return int(match[1]) if match else None if name == "release" else 0


def files_beside(opened: OpenCheckpoint, name: str) -> dict[str, Path]:
    """Files to carry over, by path below the new checkpoint, whose iteration folder is called `name`.

    That is all of the iteration's folder but the weights, and all files right beside it where a tracker file
    says that this is a checkpoint folder. Bridge's `latest_train_state.pt` is the iteration's own, for the folder
    may go on to later ones. Configuration and tokenizer come from where the model took them, be it another folder
    (`base`), and lie in `tokenizer` in the iteration's folder. What belongs to a `step_N` around the weights
    (`config.yaml`, `training_info.json`, its seal) stays there: the step is another thing than its weights.
    """
    iteration = opened.folder.iteration.resolve()
    model = opened.model.carried[0].resolve().parent  # config.json is among them
    tokenizer = iteration / TOKENIZER_FOLDER
    carried = {f"{name}/{TOKENIZER_FOLDER}/{file.name}": file for file in opened.model.carried}
    if model.name == TOKENIZER_FOLDER and model in (tokenizer, iteration.parent / TOKENIZER_FOLDER):
        carried |= {f"{name}/{TOKENIZER_FOLDER}/{file.relative_to(model)}": file for file in _files(model)}
    dropped = set(_model_files(iteration))
    for file in _files(iteration):
        weights = file.suffix == ".distcp" or file.name in _OURS
        if not weights and not file.is_relative_to(tokenizer) and file not in dropped:
            carried[f"{name}/{file.relative_to(iteration)}"] = file
    return carried | _files_of_root(iteration, name)


def _files_of_root(iteration: Path, name: str) -> dict[str, Path]:
    root = iteration.parent
    latest = read_text(root / TRACKER_FILE, max_bytes=64)
    carried: dict[str, Path] = {}
    if latest is not None:
        dropped = set(_model_files(root))
        for file in sorted(root.iterdir()):
            if file.is_file() and file.name not in _OURS and file not in dropped:
                carried[file.name] = file
        if latest.strip() not in (iteration.name, iteration.name.removeprefix("iter_").lstrip("0") or "0"):
            carried = {file: path for file, path in carried.items() if not file.startswith("latest_")}
    own = iteration / TRAIN_STATE_FILE
    if own.is_file() and name != "release":
        carried[LATEST_TRAIN_STATE_FILE] = own
    return carried


def _model_files(folder: Path) -> list[Path]:
    """The model's configuration and tokenizer, where they lie in this folder."""
    return carried_files(folder) if (folder / "config.json").is_file() else []


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())
