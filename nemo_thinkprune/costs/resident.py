"""Resident host memory of one rank of the local engine on CPUs, phase by phase.

Everything that a rank holds is in one address space: weights, gradients and optimizer state stay through all phases,
and a phase adds what it needs.  Each part names what allocates it; benchmarks/memory_truth.py compares the sum with
the kernel's high-water mark (VmHWM).  Processes of the scoring pool are others' memory: thinkprune.scoring.workers
x memory_mb at most.

glibc's allocator: blocks below 32 MiB come from a heap that shrinks only from its top, and only beyond 64 MiB
(mallopt(3): M_MMAP_THRESHOLD grows to the largest block freed, at most 32 MiB; M_TRIM_THRESHOLD is twice that).
What a phase frees is therefore not all returned: up to 64 MiB are counted as kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map import padded_vocab_size
from nemo_thinkprune.costs.activations import Recompute, Shape, longest_sequence
from nemo_thinkprune.costs.local_activations import layer_parts, stage_bytes
from nemo_thinkprune.costs.parts import BYTES, Part, PhaseMemory, phase
from nemo_thinkprune.costs.shards import Split, split_of, stage_shapes
from nemo_thinkprune.costs.training_state import TrainingState, precision_of, reduction_of, training_state
from nemo_thinkprune.recipe.schema import Recipe

_FP32 = 4
_MIB = 2**20
BASE_BYTES = {"load": 405 * _MIB, "": 440 * _MIB}
BASE_SOURCE = (
    "measured without a model: Python 3.11, torch 2.13 for CPUs, megatron-core 0.16.1, transformers 5.8"
)
_LARGEST_HEAP_BLOCK = 32 * _MIB
DEFAULT_CHUNK = 1024  # training/session.py: the local engine's own, where policy.logprob_chunk_size is null


@dataclass(frozen=True, slots=True)
class _Rank:
    """One rank of a stage: what the parts of its phases are computed from."""

    recipe: Recipe
    model: ModelConfig
    split: Split
    stage: int
    state: TrainingState
    shape: Shape
    distributed: bool

    @property
    def width(self) -> int:
        return self.shape.width

    @property
    def is_last(self) -> bool:
        return self.stage == self.split.pp - 1


def resident_phases(recipe: Recipe, model: ModelConfig) -> Iterator[PhaseMemory]:
    """The peak of every phase on one rank of every pipeline stage, from the second update on.

    Raises:
        UserError: The split does not divide the ranks, the layers or the heads.
    """
    split = split_of(recipe)
    reduction = reduction_of(recipe, engine="local")
    for stage in range(split.pp):
        rank = _Rank(
            recipe=recipe,
            model=model,
            split=split,
            stage=stage,
            state=training_state(
                model, split, stage, precision=precision_of(recipe, engine="local"), reduction=reduction
            ),
            shape=local_shape(recipe, split),
            distributed=reduction.distributed,
        )
        yield from _phases(rank)


def local_shape(recipe: Recipe, split: Split) -> Shape:
    """The largest micro-batch of the local engine, for updates and log-probabilities alike.

    With packing, sequences are laid end to end up to train_mb_tokens; without, train_micro_batch_size of them.
    """
    policy = recipe.policy
    longest = recipe.data.max_input_seq_length + recipe.policy.generation.max_new_tokens
    sequences = max(1, policy.train_global_batch_size // split.dp)
    if policy.sequence_packing.enabled:
        rows = max(1, policy.sequence_packing.train_mb_tokens // longest)
    else:
        rows = policy.train_micro_batch_size
    tokens = min(rows, sequences) * longest
    multiple = split.tp if split.sequence_parallel else 1
    return Shape(-(-tokens // multiple) * multiple, BYTES[policy.precision], split, Recompute.of(recipe))


def _phases(rank: _Rank) -> Iterator[PhaseMemory]:
    kept = Part("kept by the allocator", kept_bytes(rank.model, rank.shape))
    always = [*_always(rank), kept]
    main = Part("float32 gradients", rank.state.step)  # stay until the next update begins
    yield phase("load", rank.stage, _load(rank))
    yield phase("generate", rank.stage, [*always, main, *_generate(rank)])
    yield phase("log-probs", rank.stage, [*always, main, *_forward(rank)])
    yield phase("forward/backward", rank.stage, [*always, *_train(rank)])
    yield phase("optimizer", rank.stage, [*always, main, *_optimizer(rank)])
    yield phase("save", rank.stage, [*always, main, *_save(rank)])


def kept_bytes(model: ModelConfig, shape: Shape) -> int:
    """What glibc keeps of freed blocks: twice the largest of them, each counted up to 32 MiB."""
    largest = 2 * shape.tokens * model.ffn // shape.split.tp * shape.width
    matrix = 2 * model.ffn * model.hidden_size // shape.split.tp * shape.width
    return 2 * min(_LARGEST_HEAP_BLOCK, max(largest, matrix))


def _always(rank: _Rank) -> list[Part]:
    state = rank.state
    reference = rank.recipe.loss_fn.reference_policy_kl_penalty != 0
    return [
        Part("interpreter and libraries", BASE_BYTES[""], BASE_SOURCE),
        Part("weights", state.weights),
        Part("gradients", state.gradients),
        Part("optimizer", state.optimizer),
        Part("reference policy", state.parameters * rank.width if reference else 0),
    ]


def _load(rank: _Rank) -> list[Part]:
    """The widest of three moments: files mapped, weights moved into the shared buffer, master weights made."""
    state = rank.state
    weights = state.parameters * rank.width
    master = state.optimizer_elements * _FP32 if rank.width < _FP32 else 0
    moments = (
        [
            Part("weights", weights),
            Part("files of weights, mapped", mapped_bytes(rank.model, rank.split, rank.stage)),
        ],
        [
            Part("weights", weights),
            Part("copied into one buffer", state.weights if rank.distributed else 0),
            Part("gradients", state.gradients),
        ],
        [Part("weights", state.weights), Part("gradients", state.gradients), Part("master weights", master)],
    )
    base = Part("interpreter and libraries", BASE_BYTES["load"], BASE_SOURCE)
    return [base, *max(moments, key=lambda parts: sum(part.bytes for part in parts))]


def mapped_bytes(model: ModelConfig, split: Split, stage: int) -> int:
    """Pages of the safetensors files that a rank touches, which count as resident while they are mapped.

    Rows that are split leave the other ranks' pages alone; of split columns every page holds some.
    """
    total = 0
    for name, shape in stage_shapes(model, split, stage).items():
        columns = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        total += prod(shape) * (split.tp if columns else 1)
    return total * BYTES[model.dtype]


def _generate(rank: _Rank) -> list[Part]:
    """Caches, the linear layers' weights in oneDNN's order, and the widest point of the prompts' layers."""
    recipe, model, tp = rank.recipe, rank.model, rank.split.tp
    group = recipe.grpo.num_generations_per_prompt
    prompts = max(1, recipe.grpo.num_prompts_per_step // rank.split.dp)
    rows = min(recipe.policy.generation_batch_size, prompts * group)
    at_once = min(prompts, -(-rows // group))
    prompt, limit = recipe.data.max_input_seq_length, recipe.policy.generation.max_new_tokens
    shapes = stage_shapes(model, rank.split, rank.stage)
    layers = sum(1 for name in shapes if name.endswith("linear_fc1.weight"))
    token = 2 * layers * model.num_kv_heads // tp * model.head_dim * rank.width
    linear = sum(prod(shape) for name, shape in shapes.items() if "linear_" in name and len(shape) == 2)
    columns = padded_vocab_size(model.vocab_size, tp)
    return [
        Part("key-value cache", token * (at_once * prompt + rows * limit)),
        Part("weights packed for sampling", linear * rank.width),
        Part("workspace of a layer", _workspace(rank, at_once * prompt)),
        Part("logits", 3 * _FP32 * rows * columns if rank.is_last else 0),
    ]


def _workspace(rank: _Rank, tokens: int) -> int:
    """Gate and up, silu of the gate, up, their product; hidden states before, after and normalised."""
    model = rank.model
    return tokens * (5 * model.ffn // rank.split.tp + 3 * model.hidden_size) * rank.width


def _forward(rank: _Rank) -> list[Part]:
    parts = [Part("workspace of a layer", _workspace(rank, rank.shape.tokens))]
    if rank.is_last:
        parts.append(Part("logits", 3 * _FP32 * _chunk_elements(rank)))
    return parts


def _chunk_elements(rank: _Rank) -> int:
    """Logits that exist at once: response tokens of a chunk x this rank's part of the vocabulary."""
    chunk = rank.recipe.policy.logprob_chunk_size or DEFAULT_CHUNK
    longest = longest_sequence(rank.recipe)
    responses = rank.shape.tokens * rank.recipe.policy.generation.max_new_tokens // longest
    columns = padded_vocab_size(rank.model.vocab_size, rank.split.tp) // rank.split.tp
    return min(chunk, max(1, responses)) * columns


def _train(rank: _Rank) -> list[Part]:
    model, shape, split = rank.model, rank.shape, rank.split
    sequences = max(1, rank.recipe.policy.train_global_batch_size // split.dp)
    longest = rank.recipe.data.max_input_seq_length + rank.recipe.policy.generation.max_new_tokens
    count = -(-sequences // max(1, shape.tokens // longest))
    parts = [Part("activations", stage_bytes(model, shape, rank.stage, count=count))]
    if shape.recompute.granularity != "none":
        whole = Shape(shape.tokens, shape.width, split, Recompute())
        again = sum(layer_parts(model, whole).values()) - sum(
            0 if shape.recompute.granularity == "full" else size
            for size in layer_parts(model, shape).values()
        )
        parts.append(Part("a layer made again", again))
    if rank.is_last:
        columns = padded_vocab_size(model.vocab_size, split.tp) // split.tp
        weight = columns * model.hidden_size * (_FP32 + 2 * rank.width)
        parts.append(Part("logits", 3 * _FP32 * _chunk_elements(rank) + weight))
    if rank.distributed:  # gloo reduces a copy of the buffer and then cuts the rank's share out
        parts.append(Part("gradients, reduced over the ranks", rank.state.gradients))
    return parts


def _optimizer(rank: _Rank) -> list[Part]:
    """AdamW's temporaries for its largest tensor; gloo gathers new weights into a copy of their buffer."""
    largest = max(prod(shape) for shape in stage_shapes(rank.model, rank.split, rank.stage).values())
    return [
        Part("AdamW's temporaries", 2 * min(largest, rank.state.optimizer_elements) * _FP32),
        Part("weights, gathered over the ranks", rank.state.weights if rank.distributed else 0),
    ]


def _save(rank: _Rank) -> list[Part]:
    """Copies that Megatron's writer makes of everything that is a view of a larger block.

    Without the distributed optimizer those are gate and up, two tensors in a checkpoint and one in memory.  With it
    (`distrib_optim_sharding_type` fully_reshardable) every rank gathers master weights and both moments in float32:
    three whole buffers, its shards of them, and for one of them at a time two received copies and gloo's own; then
    the whole three are views again and are copied for writing, with the weights.
    """
    state, with_optimizer = rank.state, rank.recipe.checkpointing.save_optimizer
    per_parameter = state.optimizer // max(1, state.optimizer_elements) if with_optimizer else 0
    if not rank.distributed:
        shapes = stage_shapes(rank.model, rank.split, rank.stage)
        split = sum(prod(shape) for name, shape in shapes.items() if name.endswith("linear_fc1.weight"))
        return [Part("copies of gate and up", split * (rank.width + per_parameter))]
    whole = state.gradient_elements
    if not with_optimizer:
        return [Part("copies of views", whole * rank.width)]
    gather = whole * 3 * _FP32 + 3 * _FP32 * (whole // rank.split.dp) + 3 * _FP32 * whole
    write = whole * (2 * 3 * _FP32 + rank.width)
    return [Part("optimizer gathered and copied", max(gather, write))]
