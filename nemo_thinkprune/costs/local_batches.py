"""The largest micro-batch that the local engine makes on a CPU when every sequence has the greatest length.

Responses to one prompt are laid out behind one copy of it, each without its last token, which predicts nothing
(policy/prompt_groups.py `assign_groups`).  Each data-parallel rank has every dp-th response of an update.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_thinkprune.costs.shards import Split
from nemo_thinkprune.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class LocalBatch:
    """A full micro-batch: its tokens, its response tokens, and how many such an update has on a rank."""

    tokens: int
    responses: int
    count: int


def largest_batch(recipe: Recipe, split: Split) -> LocalBatch:
    """The largest micro-batch of a rank, by sequence_packing.train_mb_tokens or train_micro_batch_size.

    A group of responses that does not fit is split into single ones.
    """
    policy, grpo = recipe.policy, recipe.grpo
    prompt, limit = recipe.data.max_input_seq_length, policy.generation.max_new_tokens
    sequences = max(1, policy.train_global_batch_size // split.dp)
    of_group = max(1, grpo.num_generations_per_prompt // split.dp)
    packed = policy.sequence_packing
    budget = packed.train_mb_tokens if packed.enabled else 1 << 60
    most = sequences if packed.enabled else policy.train_micro_batch_size
    size = prompt + of_group * (limit - 1)
    if size > budget or of_group > most:
        of_group, size = 1, prompt + limit - 1
    groups = max(1, min(budget // size, most // of_group, sequences // of_group))
    multiple = split.tp if split.sequence_parallel else 1
    return LocalBatch(
        tokens=-(-groups * size // multiple) * multiple,
        responses=groups * of_group * limit,
        count=-(-sequences // (groups * of_group)),
    )
