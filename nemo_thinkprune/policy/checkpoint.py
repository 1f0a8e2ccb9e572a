"""Megatron's torch_dist checkpoints: every rank writes its shards, any TP x PP x DP reads them back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from megatron.core import dist_checkpointing
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing import ShardedObject
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from checkpoints_tools.beside import iteration_of
from checkpoints_tools.bridge_files import bridge_files
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.torch_dist.read import read_index
from checkpoints_tools.torch_dist.write import CONTENT_METADATA
from checkpoints_tools.weight_map import weight_map
from nemo_thinkprune.policy.policy import Policy
from nemo_thinkprune.policy.weights import DTYPE_NAMES
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic


def save_torch_dist(policy: Policy, folder: Path, *, iteration: int, with_optimizer: bool = True) -> None:
    """Write the policy (and its optimizer) into `folder`; collective, called by every rank.

    `folder` must exist and be empty; `metadata.json` is written last, by rank 0.

    Raises:
        UserError: The shards cannot be written, for want of room for example.
    """
    state = _sharded_state(policy, with_optimizer=with_optimizer, is_loading=False)
    state |= {"iteration": iteration, "checkpoint_version": 3.0}
    with _torch_errors(
        f"the weights cannot be written to {folder}; make room there and run the command again"
    ):
        dist_checkpointing.save(state, str(folder), content_metadata=CONTENT_METADATA)


def save_bridge_files(policy: Policy, folder: Path) -> None:
    """Write what Megatron-Bridge, and so NeMo-RL, needs to start from the weights in `folder`, an `iter_N`.

    For one rank to call.  Nothing is written for a model that Bridge cannot describe.

    Raises:
        OSError: The disk is full.
    """
    dtype = DTYPE_NAMES[next(policy.network.parameters()).dtype]
    dtypes = dict.fromkeys(weight_map(policy.model).hf, dtype)
    try:
        files = bridge_files(policy.model, folder.name, iteration_of(folder) or 0, dtypes=dtypes)
    except CheckpointError:
        return
    for name, content in files.items():
        write_atomic(folder.parent / name, content)


def load_torch_dist(policy: Policy, folder: Path, *, with_optimizer: bool) -> int:
    """Read a torch_dist folder into the policy, whatever layout wrote it; returns the saved iteration.

    Raises:
        CheckpointError: A pickle in the folder asks for anything but tensors' own types.
        UserError: A tensor is missing, has another shape, or cannot be read.
    """
    read_index(folder, strict=True)  # before torch unpickles what lies there
    if with_optimizer:
        assert policy.optimizer is not None
        _allocate_moments(policy.optimizer)
    state = _without_pickles(_sharded_state(policy, with_optimizer=with_optimizer, is_loading=True))
    with _torch_errors(f"the weights in {folder} cannot be read"):
        loaded = dist_checkpointing.load(state, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)
    policy.network.load_state_dict(loaded["model"], strict=False)  # `_extra_state` was not asked for
    if with_optimizer and policy.optimizer is not None:
        with _torch_adam_keeps_its_step():
            policy.optimizer.load_state_dict(loaded["optimizer"])
        _own_step_each(policy.optimizer)
    elif policy.optimizer is not None:
        policy.optimizer.reload_model_params()
    return int(loaded.get("iteration", 0))


def _without_pickles(state: dict[str, Any]) -> dict[str, Any]:
    """Ask for tensors only: an object in a `.distcp` file is a pickle that torch would run."""
    if isinstance(state.get("model"), dict):
        state["model"] = {k: v for k, v in state["model"].items() if not k.endswith("_extra_state")}
    objects = [x.key for x in nested_values(state) if isinstance(x, ShardedObject)]
    if objects:
        raise CheckpointError(f"the checkpoint's {objects[0]} is no tensor: refused")
    return state


def _sharded_state(policy: Policy, *, with_optimizer: bool, is_loading: bool) -> dict[str, Any]:
    metadata = {**CONTENT_METADATA, "dp_cp_group": mpu.get_data_parallel_group(with_context_parallel=True)}
    model = policy.network.sharded_state_dict(metadata=metadata)
    state: dict[str, Any] = {"model": model}
    if with_optimizer:
        assert policy.optimizer is not None
        state["optimizer"] = policy.optimizer.sharded_state_dict(
            model, is_loading=is_loading, metadata=metadata
        )
    return state


# How errors of the file system reach torch's messages; its zip writer hides the error number of a full disk.
FILE_TROUBLE = ("inline_container", "No space left", "File too large", "Disk quota", "[Errno", "No such file")


@contextmanager
def _torch_errors(what: str) -> Iterator[None]:
    # torch reports a full disk or a bad file as a CheckpointException, which no `except Exception` sees.
    try:
        yield
    except CheckpointException as error:
        cause = str(next(iter(error.failures.values()))[0])
        kind = UserError if any(sign in cause for sign in FILE_TROUBLE) else RuntimeError
        raise kind(f"{what} ({cause.splitlines()[0]})") from error
    except CheckpointingException as error:
        raise UserError(f"{what} ({str(error).splitlines()[0]})") from error


@contextmanager
def _torch_adam_keeps_its_step() -> Iterator[None]:
    # Megatron 0.16.1 looks for torch AdamW's step count among the per-parameter tensors, where it did not save it.
    original = DistributedOptimizer._set_main_param_and_optimizer_states

    def with_step(self: DistributedOptimizer, model_param: torch.Tensor, tensors: dict[str, Any]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        original(self, model_param, {"step": state["step"], **tensors} if "step" in state else tensors)

    with patch.object(DistributedOptimizer, "_set_main_param_and_optimizer_states", with_step):
        yield


def _own_step_each(optimizer: MegatronOptimizer) -> None:
    # Megatron 0.16.1 restores one step tensor for all parameters, and AdamW then counts it up once for each.
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        for state in inner.optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()


def _allocate_moments(optimizer: MegatronOptimizer) -> None:
    # Megatron's distributed optimizer reads the step count of torch's AdamW before the first step has made one.
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        adam = inner.optimizer
        if isinstance(adam, torch.optim.Adam) and not adam.state:
            for parameter in (p for group in adam.param_groups for p in group["params"]):
                adam.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
