"""The smallest change of a recipe with which it fits: tried in the order of what each costs, and planned again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, floor

from nemo_thinkprune.costs.activations import longest_sequence
from nemo_thinkprune.costs.kv_cache import BLOCK_TOKENS
from nemo_thinkprune.costs.memory import largest_tensor_bytes
from nemo_thinkprune.costs.parts import GIB
from nemo_thinkprune.plan.plan import LOCAL, Plan
from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.schema import Recipe

_MEGATRON = "policy.megatron_cfg"
_VLLM = "policy.generation.vllm_cfg"

_GPUS_OF_A_NODE = 8  # of the servers that costs.gpus describes

# Overrides to (recipe, plan); UserError when the recipe would not run.
Replan = Callable[[Sequence[str]], Plan]


@dataclass(frozen=True, slots=True)
class Change:
    """Overrides that belong together, what they cost, and how much they cost by rank (low is cheap).

    `group`: of changes of one group only one is made.
    """

    overrides: tuple[str, ...]
    cost: str
    rank: int
    group: str


@dataclass(frozen=True, slots=True)
class Advice:
    """Changes with which the recipe fits, and the plan with them."""

    changes: tuple[Change, ...]
    plan: Plan

    @property
    def overrides(self) -> tuple[str, ...]:
        """What to add to the command line."""
        return tuple(text for change in self.changes for text in change.overrides)


def advise(plan: Plan, replan: Replan) -> Advice | None:
    """The cheapest change that makes `plan` fit, alone or with others; None when none does, or it fits.

    Cheaper is what has the cheaper dearest part, then fewer parts: three changes that cost nothing come before one
    that doubles the nodes. Single changes and pairs are tried, three at once only when no pair fits. Every part is
    needed: what fits with fewer has been tried before.  A change that the recipe's own checks refuse is passed over.
    In a group the dearer change saves more, so where the dearest of some groups do not fit together, nothing of these
    groups is tried.

    Args:
        plan: The plan that does not fit.
        replan: Plans the recipe with overrides added; raises UserError where it cannot run.
    """
    if plan.fits:
        return None
    changes = list(candidates(plan))
    dearest = {change.group: change for change in changes}
    known: dict[frozenset[str], bool] = {}

    def hopeless(groups: frozenset[str]) -> bool:
        if groups not in known:
            known[groups] = _too_little([one for name, one in dearest.items() if name in groups], replan)
        return known[groups]

    for sizes in ((1, 2), (3,)):
        if sizes == (3,) and hopeless(frozenset(dearest)):
            break
        tried = [some for size in sizes for some in combinations(changes, size) if _differ(some)]
        for some in sorted(tried, key=_cost):
            if hopeless(frozenset(change.group for change in some)):
                continue
            if (found := _try(some, replan)) is not None:
                return found
    return None


def _too_little(changes: Sequence[Change], replan: Replan) -> bool:
    """Whether a recipe that can run with these changes does not fit with them."""
    try:
        return not replan([text for change in changes for text in change.overrides]).fits
    except UserError:
        return False


def _differ(changes: tuple[Change, ...]) -> bool:
    return len({change.group for change in changes}) == len(changes)


def _cost(changes: tuple[Change, ...]) -> tuple[int, int, int]:
    ranks = [change.rank for change in changes]
    return max(ranks), len(ranks), sum(ranks)


def _try(changes: tuple[Change, ...], replan: Replan) -> Advice | None:
    try:
        advice = Advice(changes, replan([text for change in changes for text in change.overrides]))
        if not advice.plan.fits or _crosses_nodes(advice):
            return None
        check_recipe(advice.plan.recipe, engine=advice.plan.engine)
    except UserError:
        return None
    return advice


def _crosses_nodes(advice: Advice) -> bool:
    """Whether it makes tensor parallel ranks talk over the network."""
    inside = advice.plan.split.tp <= advice.plan.recipe.cluster.gpus_per_node
    return not inside and any(change.group == "tensor" for change in advice.changes)


def candidates(plan: Plan) -> Iterator[Change]:
    """Changes that lower some memory of this plan, cheap ones first."""
    yield from _free(plan.recipe)
    yield from _batches(plan)
    if plan.engine == LOCAL:
        yield from _local(plan.recipe)
        return
    yield from _generation(plan)
    yield from _slower(plan.recipe)
    yield from _layouts(plan)


def _free(recipe: Recipe) -> Iterator[Change]:
    """Same numbers, no time worth naming."""
    policy, megatron = recipe.policy, recipe.policy.megatron_cfg
    chunk = policy.logprob_chunk_size
    for rank, size in ((1, 1024), (2, 256)):
        if chunk is None or chunk > size:
            overrides = [f"policy.logprob_chunk_size={size}"]
            if not megatron.defer_fp32_logits:
                overrides.append(f"{_MEGATRON}.defer_fp32_logits=true")
            yield Change(tuple(overrides), "logits are made in pieces: no time worth naming", rank, "logits")
    if megatron.tensor_model_parallel_size > 1 and not megatron.sequence_parallel:
        yield Change(
            (f"{_MEGATRON}.sequence_parallel=true",), "the same bytes are sent in other pieces", 1, "sequence"
        )
    if policy.offload_optimizer_for_logprob is False and not policy.generation.colocated.enabled:
        yield Change(
            ("policy.offload_optimizer_for_logprob=true",),
            "the optimizer's state travels to the host and back in every step",
            3,
            "offload",
        )


def _batches(plan: Plan) -> Iterator[Change]:
    """Micro-batches down to the longest sequence: less work at a time."""
    policy = plan.recipe.policy
    least = max(longest_sequence(plan.recipe), policy.max_total_sequence_length)
    if not policy.sequence_packing.enabled:
        if policy.train_micro_batch_size > 1:
            yield Change(
                ("policy.train_micro_batch_size=1", "policy.logprob_batch_size=1"),
                "smaller matrix products in update and log-probs",
                4,
                "rows",
            )
        return
    for key, what in (("train_mb_tokens", "update"), ("logprob_mb_tokens", "log-probs")):
        now = getattr(policy.sequence_packing, key)
        halves = sorted({max(least, now // 2), least}, reverse=True)
        for rank, tokens in enumerate(halves, 4):
            if tokens < now:
                yield Change(
                    (f"policy.sequence_packing.{key}={tokens}",),
                    f"smaller matrix products in {what}",
                    rank,
                    key,
                )


def _local(recipe: Recipe) -> Iterator[Change]:
    rows = recipe.policy.generation_batch_size
    for rank, size in ((5, rows // 2), (6, rows // 8), (7, 1)):
        if 0 < size < rows:
            yield Change(
                (f"policy.generation_batch_size={size}",),
                "fewer responses are sampled together",
                rank,
                "rollouts",
            )
    if not recipe.policy.megatron_cfg.activation_checkpointing:
        yield _recompute()


def _recompute() -> Change:
    return Change(
        (f"{_MEGATRON}.activation_checkpointing=true", f"{_MEGATRON}.recompute_granularity=full"),
        "every layer's forward pass is made twice: the update takes about a third longer",
        8,
        "recompute",
    )


def _generation(plan: Plan) -> Iterator[Change]:
    """vLLM's share of the GPU, to the hundredth: lower when it leaves too little, higher when it holds no sequence."""
    now = plan.recipe.policy.generation.vllm_cfg.gpu_memory_utilization
    share = _fitting_share(plan)
    if share > now:
        yield Change(
            (f"{_VLLM}.gpu_memory_utilization={share:g}",), "nothing: the memory was idle", 3, "share"
        )
    elif share < now:
        cost = "fewer sequences are generated at once"
        yield Change((f"{_VLLM}.gpu_memory_utilization={share:g}",), cost, 5, "share")
    if plan.recipe.policy.generation.colocated.enabled:
        needed = ceil(2 * largest_tensor_bytes(plan.recipe, plan.model) / GIB * 10) / 10
        given = plan.recipe.policy.refit_buffer_size_gb
        if given is None or given != needed:
            yield Change(
                (f"policy.refit_buffer_size_gb={needed:g}",),
                "weights are handed over in smaller lots",
                3,
                "refit",
            )


def _fitting_share(plan: Plan) -> float:
    """The share nearest to the recipe's that holds a sequence, or that leaves what training keeps; else as it is."""
    now = plan.recipe.policy.generation.vllm_cfg.gpu_memory_utilization
    engine, total = plan.generation, plan.capacity
    if engine is None:
        return now
    if engine.sequences < 1:
        length = plan.recipe.policy.generation.vllm_cfg.max_model_len
        blocks = -(-length // BLOCK_TOKENS)
        need = engine.weights + engine.running + engine.graphs + blocks * BLOCK_TOKENS * engine.token_bytes
        return min(ceil(100 * need / total), 99) / 100
    kept = max(
        sum(part.bytes for part in one.parts)
        - engine.weights
        - engine.running
        - engine.graphs
        - engine.cache_bytes
        for one in plan.phases
        if one.phase == "generate"
    )
    return min(now, floor(100 * (total - kept) / total) / 100)


def _slower(recipe: Recipe) -> Iterator[Change]:
    """Same GPUs, more time."""
    megatron = recipe.policy.megatron_cfg
    now = "none"
    if megatron.activation_checkpointing:
        now = megatron.recompute_granularity
    if now == "none":
        yield Change(
            (
                f"{_MEGATRON}.activation_checkpointing=true",
                f"{_MEGATRON}.recompute_granularity=selective",
                f"{_MEGATRON}.recompute_modules=[mlp]",
            ),
            "every MLP's forward pass is made twice: the update takes about a fifth longer",
            7,
            "recompute",
        )
    if now != "full":
        yield _recompute()
    if not megatron.optimizer.optimizer_cpu_offload:
        yield Change(
            (
                f"{_MEGATRON}.optimizer.optimizer_cpu_offload=true",
                f"{_MEGATRON}.optimizer.optimizer_offload_fraction=1.0",
            ),
            "AdamW runs on the host: seconds more in every update",
            10,
            "optimizer",
        )


def _layouts(plan: Plan) -> Iterator[Change]:
    """Other splits of the same GPUs, then more GPUs."""
    recipe, split = plan.recipe, plan.split
    per_node = recipe.cluster.gpus_per_node
    most = max(per_node, _GPUS_OF_A_NODE)
    vllm = recipe.policy.generation.vllm_cfg.tensor_parallel_size
    for rank, size in enumerate((2 * vllm, 4 * vllm, 8 * vllm), 9):
        if size <= most:
            yield Change(
                (f"{_VLLM}.tensor_parallel_size={size}",), "fewer, slower vLLM engines", rank, "engines"
            )
    for rank, size in enumerate((2 * split.tp, 4 * split.tp, 8 * split.tp), 11):
        if size <= most:
            overrides = [f"{_MEGATRON}.tensor_model_parallel_size={size}"]
            if not split.sequence_parallel:
                overrides.append(f"{_MEGATRON}.sequence_parallel=true")
            yield Change(tuple(overrides), "more is sent between the GPUs of a node", rank, "tensor")
    for rank, size in enumerate((2 * split.pp, 4 * split.pp), 13):
        yield Change(
            (f"{_MEGATRON}.pipeline_model_parallel_size={size}",),
            "longer bubbles in the pipeline",
            rank,
            "pipeline",
        )
    for rank, size in enumerate((2 * per_node, 4 * per_node, 8 * per_node), 15):
        if size <= most:
            cost = f"{size - per_node} GPUs more in each node"
            yield Change((f"cluster.gpus_per_node={size}",), cost, rank, "nodes")
    nodes = recipe.cluster.num_nodes
    for rank, number in enumerate((2 * nodes, 4 * nodes, 8 * nodes), 16):
        yield Change((f"cluster.num_nodes={number}",), f"{number - nodes} nodes more", rank, "nodes")
