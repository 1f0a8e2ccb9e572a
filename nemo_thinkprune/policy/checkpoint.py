"""Megatron's torch_dist checkpoints: every rank writes its shards, any TP x PP x DP reads them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing.validation import StrictHandling

from checkpoints_tools.safe_pickle import check_torch_dist
from nemo_thinkprune.policy.policy import Policy

# What Megatron-Bridge writes too: layers stacked on a leading axis, optimizer shards that any DP size can read.
CONTENT_METADATA = {
    "singleton_local_shards": False,
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
}


def save_torch_dist(policy: Policy, folder: Path, *, iteration: int, with_optimizer: bool = True) -> None:
    """Write the policy (and its optimizer) into `folder`; collective, called by every rank.

    `folder` must exist and be empty; `metadata.json` is written last, by rank 0.
    """
    state = _sharded_state(policy, with_optimizer=with_optimizer, is_loading=False)
    state |= {"iteration": iteration, "checkpoint_version": 3.0}
    dist_checkpointing.save(state, str(folder), content_metadata=CONTENT_METADATA)


def load_torch_dist(policy: Policy, folder: Path, *, with_optimizer: bool) -> int:
    """Read a torch_dist folder into the policy, whatever layout wrote it; returns the saved iteration.

    Raises:
        CheckpointError: A pickle in the folder asks for anything but tensors' own types, or a key is missing.
    """
    check_torch_dist(folder)
    state = _sharded_state(policy, with_optimizer=with_optimizer, is_loading=True)
    loaded = dist_checkpointing.load(state, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)
    policy.network.load_state_dict(loaded["model"])
    if with_optimizer:
        assert policy.optimizer is not None
        policy.optimizer.load_state_dict(loaded["optimizer"])
    elif policy.optimizer is not None:
        policy.optimizer.reload_model_params()
    return int(loaded.get("iteration", 0))


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
