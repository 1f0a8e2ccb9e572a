"""NeMo-RL's setup and trainers by name: the one place that knows in which order they give and take things."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PLACES = (
    "policy",
    "policy_generation",
    "nemo_gym",
    "clusters",
    "dataloader",
    "val_dataloader",
    "loss_fn",
    "logger",
    "checkpointer",
    "grpo_save_state",
    "master_config",
)


@dataclass(slots=True)
class Parts:
    """What `setup` made, under the names that the trainers take.

    `setup` gives a tuple that grows at its end from release to release; the first eleven places are these.
    """

    policy: Any
    policy_generation: Any
    nemo_gym: Any
    clusters: Any
    dataloader: Any
    val_dataloader: Any
    loss_fn: Any
    logger: Any
    checkpointer: Any
    grpo_save_state: Any
    master_config: Any
    later: tuple[Any, ...] = ()

    @classmethod
    def of(cls, made: tuple[Any, ...]) -> Parts:
        """Name the places."""
        first = dict(zip(PLACES, made, strict=False))
        return cls(**first, later=tuple(made[len(PLACES) :]))


@dataclass(frozen=True, slots=True)
class Environments:
    """Environment actors by task name."""

    train: Mapping[str, Any]
    validation: Mapping[str, Any]


def run_trainer(parts: Parts, tokenizer: Any, environments: Environments) -> None:
    """Train to the end: the asynchronous, the data-plane or the synchronous trainer, as the recipe says."""
    config = parts.master_config
    shared = {
        "policy": parts.policy,
        "policy_generation": parts.policy_generation,
        "val_dataloader": parts.val_dataloader,
        "tokenizer": tokenizer,
        "loss_fn": parts.loss_fn,
        "task_to_env": environments.train,
        "val_task_to_env": environments.validation,
        "logger": parts.logger,
        "checkpointer": parts.checkpointer,
        "grpo_save_state": parts.grpo_save_state,
        "master_config": config,
    }
    asynchronous = value(config.grpo, "async_grpo")
    if asynchronous is not None and value(asynchronous, "enabled"):
        from nemo_rl.algorithms.grpo import async_grpo_train

        async_grpo_train(
            dataloader=parts.dataloader,
            max_trajectory_age_steps=value(asynchronous, "max_trajectory_age_steps"),
            **shared,
        )
    else:
        _synchronous(config)(wrapped_dataloader=parts.dataloader, **shared)


def policy_factory(config: Any) -> Callable[..., Any] | None:
    """The policy class that the data-plane trainer needs; None for NeMo-RL's usual one."""
    if not _data_plane(config):
        return None
    from functools import partial

    from nemo_rl.models.policy.tq_policy import TQPolicy

    return partial(TQPolicy, dp_cfg=config.data_plane)


def value(section: Any, key: str) -> Any:
    """A key of a section, which is a dict in one release and a model in the next; None where it is missing."""
    return section.get(key) if isinstance(section, Mapping) else getattr(section, key, None)


def _data_plane(config: Any) -> bool:
    return config.data_plane is not None and bool(value(config.data_plane, "enabled"))


def _synchronous(config: Any) -> Callable[..., None]:
    if _data_plane(config):
        from nemo_rl.algorithms.grpo_sync import grpo_train_sync

        return grpo_train_sync
    from nemo_rl.algorithms.grpo import grpo_train

    return grpo_train
