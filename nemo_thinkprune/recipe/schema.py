"""The recipe: NeMo-RL v0.7.0's own key paths for GRPO on Megatron-Core, plus the section `thinkprune`.

Keys and their meaning are those of NVIDIA-NeMo/RL v0.7.0 (examples/configs/grpo_math_1B.yaml and
grpo_math_1B_megatron.yaml and the classes behind them); defaults are ThinkPrune's (arXiv 2504.01296 and the
released code).  Every section is strict: an unknown key or a wrong type is an error.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from nemo_thinkprune.recipe.base import Section
from nemo_thinkprune.recipe.complete import complete
from nemo_thinkprune.recipe.keys import dotted
from nemo_thinkprune.recipe.section_algorithm import Grpo, LossFn
from nemo_thinkprune.recipe.section_policy import Policy
from nemo_thinkprune.recipe.section_run import Checkpointing, Cluster, Data, DataPlane, Environment, Logger
from nemo_thinkprune.recipe.section_thinkprune import ThinkPrune

__all__ = ["Recipe", "contradictions"]


class Recipe(Section):
    """A whole run.  Values that follow from others are filled in on construction (see derived.py)."""

    grpo: Grpo
    """Batches, advantages, validation."""
    loss_fn: LossFn = Field(default_factory=LossFn)
    """Objective."""
    policy: Policy
    """Model, training and generation."""
    data: Data
    """Problems."""
    env: dict[str, Environment] = Field(default_factory=dict)
    """Environments of NeMo-RL by name; the local engine needs none."""
    checkpointing: Checkpointing = Field(default_factory=Checkpointing)
    """Checkpoints."""
    logger: Logger = Field(default_factory=Logger)
    """Logging."""
    cluster: Cluster = Field(default_factory=Cluster)
    """Machines."""
    data_plane: DataPlane | None = None
    """NeMo-RL's TransferQueue."""
    on_policy_distillation: dict[str, Any] | None = None
    """Must stay null: ThinkPrune does not distil."""
    thinkprune: ThinkPrune
    """Limits, rewards, selection."""

    @property
    def world_size(self) -> int:
        """Number of ranks: cluster.num_nodes x cluster.gpus_per_node."""
        return self.cluster.num_nodes * self.cluster.gpus_per_node

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Fill in derived values, so that a recipe made from a dict is the same as one loaded from a file."""
        if not isinstance(data, dict):
            return data
        result, problems = complete(data, cls)
        if problems:
            raise ValueError("; ".join(f"{dotted(path)}: {message}" for path, message in problems))
        return result

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        """Refuse two names of one setting with two values."""
        if found := contradictions(self):
            raise ValueError("; ".join(found))
        return self


def contradictions(recipe: Recipe) -> list[str]:
    """Return a message for each setting that NeMo-RL names twice and that was given two values."""
    grpo, optimizer = recipe.grpo, recipe.policy.megatron_cfg.optimizer
    pairs: list[tuple[str, Any, str, Any]] = [
        (f"grpo.{name}", getattr(grpo, name), f"grpo.adv_estimator.{name}", getattr(grpo.adv_estimator, name))
        for name in ("normalize_rewards", "use_leave_one_out_baseline")
    ]
    pairs += [
        ("policy.max_grad_norm", recipe.policy.max_grad_norm,
         "policy.megatron_cfg.optimizer.clip_grad", optimizer.clip_grad),
        ("policy.pretrained_checkpoint", recipe.policy.pretrained_checkpoint,
         "checkpointing.pretrained_checkpoint",
         recipe.checkpointing.pretrained_checkpoint or recipe.policy.pretrained_checkpoint),
    ]  # fmt: skip
    return [
        f"{one} is {left} but {other} is {right}: they are one setting, give only one of them"
        for one, left, other, right in pairs
        if left != right
    ]
