"""Resident host memory of one rank of the local engine on CPUs."""

from __future__ import annotations

from collections.abc import Iterator

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.parts import Part, PhaseMemory, phase
from nemo_thinkprune.costs.shards import split_of
from nemo_thinkprune.costs.training_state import precision_of, reduction_of, training_state
from nemo_thinkprune.recipe.schema import Recipe

BASE_BYTES = 640 * 2**20


def resident_phases(recipe: Recipe, model: ModelConfig) -> Iterator[PhaseMemory]:
    """The peak of every phase on one rank of every pipeline stage."""
    split = split_of(recipe)
    precision = precision_of(recipe, engine="local")
    for stage in range(split.pp):
        state = training_state(
            model, split, stage, precision=precision, reduction=reduction_of(recipe, engine="local")
        )
        base = Part("interpreter and libraries", BASE_BYTES, "measured")
        weights, gradients = Part("weights", state.weights), Part("gradients", state.gradients)
        yield phase("forward/backward", stage, [base, weights, gradients])
