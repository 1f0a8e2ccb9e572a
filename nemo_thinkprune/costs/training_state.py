"""Bytes of weights, gradients and optimizer state that one rank keeps.

Sources: megatron-core 0.16.1, optimizer/distrib_optimizer.py and optimizer/optimizer.py (master weights, views of
gradients), optimizer/optimizer_config.py (precision-aware optimizer); TransformerEngine, pytorch/optimizers/
fused_adam.py (remainders of master weights); NeMo-RL v0.7.0, nemo_rl/models/megatron/setup.py
`_create_megatron_config` (what it passes on).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.buffers import Reduction, stage_buffer
from nemo_thinkprune.costs.shards import Split, stage_parameters, stage_shapes
from nemo_thinkprune.recipe.schema import Recipe

EngineName = Literal["nemo-rl", "local"]
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOAT32 = 4
_REMAINDER = 2  # a bfloat16 weight and 16 more bits are its float32 master


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of one parameter.

    `weight` and `gradient` as the buffers hold them; `master` is the optimizer's own copy of a weight, 0 where the
    weight itself is it; `moments` its running averages. `step` is what an update needs besides: a float32 copy of
    the gradient, 0 where the optimizer reads the buffer.
    """

    weight: int
    gradient: int
    master: int
    moments: int
    step: int

    @property
    def optimizer(self) -> int:
        """Optimizer state kept between updates."""
        return self.master + self.moments


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What one rank keeps for training, in bytes; `parameters` and the others' elements are counts.

    `gradient_elements` counts the padded buffer. `optimizer_elements` are those of the data-parallel rank that has
    the most.
    """

    parameters: int
    gradient_elements: int
    optimizer_elements: int
    weights: int
    gradients: int
    optimizer: int
    step: int


def precision_of(recipe: Recipe, *, engine: EngineName = "nemo-rl") -> Precision:
    """Bytes of one parameter under a recipe.

    NeMo-RL passes `use_precision_aware_optimizer` on to TransformerEngine's Adam, which keeps of a float32 master
    weight only the 16 bits that the bfloat16 weight lacks, and of a float32 weight a copy. The local engine has
    Megatron's optimizer on torch's, for which a float32 weight is its own master.
    """
    megatron, optimizer = recipe.policy.megatron_cfg, recipe.policy.megatron_cfg.optimizer
    weight = WIDTH[recipe.policy.precision]
    gradient = _FLOAT32 if megatron.distributed_data_parallel_config.grad_reduce_in_fp32 else weight
    aware = engine == "nemo-rl" and optimizer.use_precision_aware_optimizer and optimizer.optimizer == "adam"
    aware = aware and optimizer.use_distributed_optimizer
    master = 0 if weight == _FLOAT32 and not aware else _FLOAT32
    if aware and recipe.policy.precision == "bfloat16" and not optimizer.optimizer_cpu_offload:
        master = _REMAINDER
    moments = 2 * _FLOAT32 if optimizer.optimizer == "adam" else _FLOAT32 * (optimizer.sgd_momentum > 0)
    return Precision(weight, gradient, master, moments, 0 if aware or gradient == _FLOAT32 else _FLOAT32)


def reduction_of(recipe: Recipe, *, engine: EngineName = "nemo-rl") -> Reduction:
    """How gradients are reduced under a recipe; the local engine neither overlaps nor shards for a single rank."""
    megatron = recipe.policy.megatron_cfg
    distributed = megatron.optimizer.use_distributed_optimizer
    if engine == "local":
        model_parallel = megatron.tensor_model_parallel_size * megatron.pipeline_model_parallel_size
        return Reduction(distributed and recipe.world_size > model_parallel, overlapped=False)
    return Reduction(distributed, megatron.distributed_data_parallel_config.overlap_grad_reduce)


def training_state(
    model: ModelConfig, split: Split, pp_rank: int, *, precision: Precision, reduction: Reduction
) -> TrainingState:
    """What one rank of a pipeline stage keeps: the data-parallel rank with the most of it.

    Weights: with the distributed optimizer they lie in a buffer padded like the gradients'. Optimizer state: of
    the rank's share, or of all parameters without the distributed optimizer.

    Raises:
        UserError: as `stage_shapes`.
    """
    parameters = stage_parameters(model, split, pp_rank)
    buffer = stage_buffer(stage_shapes(model, split, pp_rank), model, split, pp_rank, reduction)
    shards = split.shards if reduction.distributed else 1
    owned = max(buffer.owned(shards))
    return TrainingState(
        parameters=parameters,
        gradient_elements=buffer.elements,
        optimizer_elements=owned,
        weights=precision.weight * (buffer.elements if reduction.distributed else parameters),
        gradients=precision.gradient * buffer.elements,
        optimizer=precision.optimizer * owned,
        step=precision.step * owned,
    )
