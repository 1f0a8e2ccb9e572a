"""Open a model on disk, whichever format it is in."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_tools.bridge_files import read_run_config, run_config_differences, states_the_model
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_config import read_hf_config
from checkpoints_tools.hf_folder import INDEX_FILE, SINGLE_FILE, carried_files, stored_tensors
from checkpoints_tools.hf_model import check_tensors, check_tied_head, unknown_tensors
from checkpoints_tools.layout import StoredModel, TensorLayout, whole_extent
from checkpoints_tools.megatron_model import model_layouts
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.torch_dist.folders import CheckpointFolder, find_checkpoint
from checkpoints_tools.torch_dist.index import DistIndex
from checkpoints_tools.torch_dist.read import read_index
from checkpoints_tools.weight_map import weight_map

# What may be another in the configuration a checkpoint is exported with: it changes no tensor and no computation,
# or (the vocabulary) is checked against what is stored.
_MAY_DIFFER = ("dtype", "initializer_range", "max_position_embeddings", "vocab_size")


@dataclass(frozen=True, slots=True)
class OpenCheckpoint:
    """A checkpoint's model, where its parts lie, and all that its `.metadata` lists."""

    model: StoredModel
    folder: CheckpointFolder
    index: DistIndex


def open_model(path: Path, *, base: Path | None = None, partial: bool = False) -> StoredModel:
    """The model in a Hugging Face folder or a torch_dist checkpoint (see `find_checkpoint`), checked to be whole.

    `base`: the Hugging Face folder that a checkpoint takes config.json and tokenizer from; it goes before those
    that the checkpoint has. `partial`: give what is there, to be compared; tensors may be missing, and a Hugging
    Face folder may have others, or of other shapes, than its config.json says.

    Raises:
        CheckpointError: There is no model, it is not supported, or a tensor is missing, unknown, misshapen or
            damaged.
    """
    path = Path(path).expanduser()
    if is_hf_folder(path):
        return open_hf(path, partial=partial)
    return open_checkpoint(path, base=base, partial=partial).model


def is_hf_folder(path: Path) -> bool:
    """Whether the folder holds safetensors weights as the hub has them."""
    return (path / SINGLE_FILE).is_file() or (path / INDEX_FILE).is_file()


def open_hf(folder: Path, *, partial: bool = False) -> StoredModel:
    """The model in a Hugging Face folder. Arguments and errors are `open_model`'s."""
    if not is_hf_folder(folder) and _is_checkpoint(folder):
        raise CheckpointError(f"{folder} is a Megatron checkpoint already, not a Hugging Face model folder")
    config = read_hf_config(folder)
    stored, table = stored_tensors(folder), weight_map(config)
    if not partial:
        check_tensors(stored, table, config, folder)
        if config.tied:
            check_tied_head(stored)
    names = [*table.hf, *(unknown_tensors(stored, table, config) if partial else ())]
    tensors = {
        name: TensorLayout(name, stored[name].dtype, stored[name].shape, (whole_extent(stored[name]),))
        for name in names
        if name in stored
    }
    return StoredModel(folder, "huggingface", config, tensors, tuple(carried_files(folder)))


def open_checkpoint(path: Path, *, base: Path | None = None, partial: bool = False) -> OpenCheckpoint:
    """A torch_dist checkpoint with its parts. Arguments and errors are `open_model`'s."""
    if is_hf_folder(path):
        raise CheckpointError(f"{path} is a Hugging Face model folder already, not a Megatron checkpoint")
    found = find_checkpoint(path)
    files = _model_files(found, base)
    config = read_hf_config(files)
    if faults := config_contradictions(found, config):
        raise CheckpointError(
            f"{files / 'config.json'} describes another model than the one that was saved: {'; '.join(faults[:9])}. "
            "Give a --base HF_DIR whose config.json fits"
        )
    index = read_index(found.iteration)
    carried = tuple(carried_files(files))
    model = StoredModel(
        found.iteration, "torch_dist", config, model_layouts(index, config, partial=partial), carried
    )
    return OpenCheckpoint(model, found, index)


def config_contradictions(found: CheckpointFolder, config: ModelConfig) -> list[str]:
    """Where the checkpoint itself says that it is another model than `config`, one sentence each.

    The configuration of the run that saved it tells, or else the checkpoint's own config.json. One that cannot be
    read says nothing: the tensors do not need it.
    """
    run_config: Mapping[str, Any] = {}
    with contextlib.suppress(CheckpointError):
        run_config = read_run_config(found.iteration) or {}
    faults = run_config_differences(run_config, config, certain=True)
    if faults or states_the_model(run_config) or found.files not in found.places:
        return faults
    try:
        own = read_hf_config(found.files / "config.json")
    except CheckpointError:
        return []
    return [
        f"{name} is {getattr(own, name)!r} in {found.files / 'config.json'}, here {getattr(config, name)!r}"
        for name in ModelConfig.__slots__
        if name not in _MAY_DIFFER and getattr(own, name) != getattr(config, name)
    ]


def _is_checkpoint(path: Path) -> bool:
    try:
        find_checkpoint(path)
    except CheckpointError:
        return False
    return True


def _model_files(found: CheckpointFolder, base: Path | None) -> Path:
    """The folder with config.json, tokenizer and what else goes with the model."""
    if base is not None:
        if not (base.expanduser() / "config.json").is_file():
            raise CheckpointError(f"{base} has no config.json: give a Hugging Face model folder with --base")
        return base.expanduser()
    if found.files is not None:
        return found.files
    hint = f" (it was trained from {found.model_name})" if found.model_name else ""
    raise CheckpointError(
        f"{found.root} has no config.json, looked in {', '.join(str(p) for p in found.places)}: give the Hugging "
        f"Face folder of the model with --base HF_DIR{hint}"
    )
