"""Host memory of one node under NeMo-RL v0.7.0: what its workers keep there instead of on their GPUs.

Sources: nemo_rl/models/policy/workers/megatron_policy_worker.py (`reference_state_dict`, `use_reference_model`,
`move_optimizer`), megatron-core 0.16.1 distributed/param_and_grad_buffer.py `offload_to_cpu` (pinned copy of the
weights, made once and kept), vLLM's sleep level 1 (device_allocator/cumem.py: weights are backed up on the host),
megatron-core dist_checkpointing/strategies/filesystem_async.py (each rank copies what it writes to the host).
"""

from __future__ import annotations

from collections.abc import Iterator

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.kv_cache import weight_bytes
from nemo_thinkprune.costs.memory import Held, held
from nemo_thinkprune.costs.parts import Part, PhaseMemory, phase
from nemo_thinkprune.costs.shards import Split, split_of
from nemo_thinkprune.recipe.schema import Recipe


def host_phases(recipe: Recipe, model: ModelConfig) -> list[PhaseMemory]:
    """What the workers of the fullest training node keep in host memory; `stage` is the node's first stage.

    Under generation: the weights' pinned copy and, where generation shares the GPUs, the optimizer.  In log-probs
    vLLM sleeps and its weights lie here too; the reference policy is swapped in and the policy's weights wait.
    Saving copies what each rank writes.  Python, torch and Ray processes are not counted.
    """
    found = [list(_node_phases(recipe, model, node)) for node in _nodes(recipe)]
    return [max(rows, key=lambda one: one.bytes) for rows in zip(*found, strict=True)]


def _nodes(recipe: Recipe) -> Iterator[list[int]]:
    """Pipeline stages of the ranks of each node that holds a different mix: tensor ranks are innermost, then data."""
    split = split_of(recipe)
    per_node = recipe.cluster.gpus_per_node
    stages = [rank // (split.tp * split.cp * split.dp) for rank in range(split.world)]
    seen = set()
    for first in range(0, split.world, per_node):
        node = stages[first : first + per_node]
        if tuple(node) not in seen:
            seen.add(tuple(node))
            yield node


def _node_phases(recipe: Recipe, model: ModelConfig, stages: list[int]) -> Iterator[PhaseMemory]:
    split = split_of(recipe)
    colocated = recipe.policy.generation.colocated.enabled
    of_stage = {stage: held(recipe, model, split, stage) for stage in set(stages)}
    own = [of_stage[stage] for stage in stages]
    weights = sum(one.weights for one in own)
    always = [Part("optimizer kept on the host", sum(one.offloaded for one in own))]
    if recipe.loss_fn.reference_policy_kl_penalty != 0:
        always.append(Part("reference policy", weights))
    asleep = always
    if colocated:
        always = [*always, Part("pinned copy of weights", weights)]
        engines = len(stages) * weight_bytes(recipe, model)
        asleep = [*always, Part("weights of sleeping vLLM", engines)]
    moved = Part("optimizer", sum(one.optimizer - one.stays for one in own) if colocated else 0)
    swapped = weights if recipe.loss_fn.reference_policy_kl_penalty != 0 else 0
    first = stages[0]
    yield phase("generate", first, [*always, moved])
    yield phase("log-probs", first, [*asleep, moved, Part("policy's weights swapped out", swapped)])
    yield phase("forward/backward", first, asleep)
    yield phase("refit", first, [*asleep, moved])
    yield phase("save", first, [*asleep, Part("what the ranks write", _written(recipe, model, split, own))])


def _written(recipe: Recipe, model: ModelConfig, split: Split, own: list[Held]) -> int:
    """Each data-parallel rank writes its share of the weights and its own optimizer shard, as it is in memory."""
    weights = sum(one.weights for one in own) // split.shards
    if not recipe.checkpointing.save_optimizer:
        return weights
    return weights + sum(one.optimizer + one.offloaded for one in own)
