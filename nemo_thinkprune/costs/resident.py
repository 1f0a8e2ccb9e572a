"""Resident host memory of one rank of the local engine on CPUs, phase by phase.

Everything that a rank holds is in one address space: weights, gradients and optimizer state stay through all phases,
and a phase adds what it needs.  Each part names what allocates it; benchmarks/memory_truth.py compares the sum with
the kernel's high-water mark (VmHWM).  Processes of the scoring pool are others' memory: thinkprune.scoring.workers
x memory_mb at most.

glibc's allocator (malloc(3), mallopt(3)): blocks of 32 MiB and more are mapped and given back when they are freed.
Smaller ones come from a heap that the local engine has told never to shrink (policy/device.py, `keep_freed_memory`).
So a phase is planned with the largest amount of small blocks that any phase of a step has at once, whichever phase
made them, and with twice the largest small block at least.  Gaps in the heap that no block fits into are not planned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map import padded_vocab_size
from checkpoints_tools.weight_map.names import EMBEDDING, OUTPUT
from nemo_thinkprune.costs.activations import Recompute, Shape
from nemo_thinkprune.costs.local_activations import layer_bytes, layer_parts, stage_bytes
from nemo_thinkprune.costs.local_batches import LocalBatch, largest_batch
from nemo_thinkprune.costs.parts import BYTES, Part, PhaseMemory, phase
from nemo_thinkprune.costs.shards import Split, split_of, stage_shapes
from nemo_thinkprune.costs.training_state import TrainingState, precision_of, reduction_of, training_state
from nemo_thinkprune.recipe.schema import Recipe

_FP32 = 4
_MIB = 2**20
# without a model: when it is loaded, and in the phases of a step, where oneDNN's bfloat16 kernels take 20 MiB
LOAD_BASE_BYTES = 403 * _MIB
BASE_BYTES = {"float32": 433 * _MIB, "bfloat16": 453 * _MIB, "float16": 453 * _MIB}
BASE_SOURCE = (
    "measured without a model: Python 3.11, torch 2.13 for CPUs, megatron-core 0.16.1, transformers 5.8"
)
_LARGEST_HEAP_BLOCK = 32 * _MIB
BASE, KEPT = "interpreter and libraries", "kept by the allocator"
DEFAULT_CHUNK = 1024  # training/session.py: the local engine's own, where policy.logprob_chunk_size is null


@dataclass(frozen=True, slots=True)
class _Rank:
    """One rank of a stage: what the parts of its phases are computed from."""

    recipe: Recipe
    model: ModelConfig
    split: Split
    stage: int
    state: TrainingState
    batch: LocalBatch
    distributed: bool

    @property
    def shape(self) -> Shape:
        """The largest micro-batch, of updates and log-probabilities alike."""
        recompute = Recompute.of(self.recipe)
        return Shape(self.batch.tokens, BYTES[self.recipe.policy.precision], self.split, recompute)

    @property
    def width(self) -> int:
        return BYTES[self.recipe.policy.precision]

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
            batch=largest_batch(recipe, split),
            distributed=reduction.distributed,
        )
        yield from _phases(rank)


@dataclass(frozen=True, slots=True)
class _Made:
    """Something that a phase makes and frees again; `small` of its bytes are in blocks below 32 MiB."""

    part: Part
    small: int = 0


def _made(name: str, *blocks: int, count: int = 1) -> _Made:
    """`count` times blocks of these sizes."""
    small = sum(size for size in blocks if size < _LARGEST_HEAP_BLOCK)
    return _Made(Part(name, count * sum(blocks)), count * small)


def _phases(rank: _Rank) -> Iterator[PhaseMemory]:
    # they stay until the next update has begun; its activations come when they are gone, gloo's copy when those are
    matrices = _blocks(rank, bytes_each=_FP32 if rank.state.step else 0)
    main = _made("float32 gradients", *matrices)
    phases = {
        "generate": [main, *_generate(rank)],
        "log-probs": [main, *_forward(rank)],
        "forward/backward": _train(rank),
        "optimizer": [main, *_optimizer(rank)],
        "save": [main, *_save(rank)],
    }
    small = {name: sum(one.small for one in made) for name, made in phases.items()}
    most = max(size for name, size in small.items() if name != "save")
    least = 2 * min(_LARGEST_HEAP_BLOCK, largest_block(rank.model, rank.shape))
    yield phase("load", rank.stage, _load(rank))
    for name, made in phases.items():
        held = max((made, [main], _reduced(rank)), key=_bytes) if name == "forward/backward" else made
        kept = Part(KEPT, max(most - sum(one.small for one in held), least))
        yield phase(name, rank.stage, [*_always(rank), *(one.part for one in held), kept])


def _bytes(made: list[_Made]) -> int:
    return sum(one.part.bytes for one in made)


def largest_block(model: ModelConfig, shape: Shape) -> int:
    """The largest block that is freed again and again: gate and up, as activations or as a packed weight."""
    rows = max(shape.tokens, model.hidden_size)
    return 2 * rows * model.ffn // shape.split.tp * shape.width


def _blocks(rank: _Rank, *, bytes_each: int) -> list[int]:
    """Bytes of something like every parameter of a rank, or of its share under the distributed optimizer."""
    share = rank.state.optimizer_elements / rank.state.parameters
    shapes = stage_shapes(rank.model, rank.split, rank.stage)
    return [int(prod(shape) * share) * bytes_each for shape in shapes.values()]


def _always(rank: _Rank) -> list[Part]:
    state = rank.state
    reference = rank.recipe.loss_fn.reference_policy_kl_penalty != 0
    return [
        Part(BASE, BASE_BYTES[rank.recipe.policy.precision], BASE_SOURCE),
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
            Part("mapped files of weights", mapped_bytes(rank.model, rank.split, rank.stage)),
        ],
        [
            Part("weights", weights),
            Part("copied into one buffer", state.weights if rank.distributed else 0),
            Part("gradients", state.gradients),
        ],
        [Part("weights", state.weights), Part("gradients", state.gradients), Part("master weights", master)],
    )
    base = Part(BASE, LOAD_BASE_BYTES, BASE_SOURCE)
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


def _generate(rank: _Rank) -> list[_Made]:
    """Caches, packed weights, logits, and the wider of the prompts' layers and of a cache that is cut.

    Weights of the linear layers and of the output projection, tied or not, are copied in oneDNN's order
    (rollout/stage_layers.py). Room for responses is resident as far as it is written, at the end `limit` tokens; a row
    that ends just before leaves, layer by layer, old keys and values, new ones and a copy between them
    (rollout/decoder.py, `_LayerCache.keep`).
    """
    recipe, model, tp = rank.recipe, rank.model, rank.split.tp
    group = recipe.grpo.num_generations_per_prompt
    prompts = max(1, recipe.grpo.num_prompts_per_step // rank.split.dp)
    rows = min(recipe.policy.generation_batch_size, prompts * group)
    at_once = min(prompts, -(-rows // group))
    prompt, limit = recipe.data.max_input_seq_length, recipe.policy.generation.max_new_tokens
    shapes = stage_shapes(model, rank.split, rank.stage)
    layers = sum(1 for name in shapes if name.endswith("linear_fc1.weight"))
    token = model.num_kv_heads // tp * model.head_dim * rank.width
    linear = [
        prod(shape) * rank.width
        for name, shape in shapes.items()
        if ("linear_" in name or name == OUTPUT) and len(shape) == 2
    ]
    if rank.is_last and OUTPUT not in shapes:
        linear.append(prod(shapes[EMBEDDING]) * rank.width)
    columns = padded_vocab_size(model.vocab_size, tp)
    cut = _made("a layer's cache cut to fewer rows", *(3 * [token * (rows - 1) * limit]))
    return [
        _made("key-value cache", token * at_once * prompt, token * rows * limit, count=2 * layers),
        _made("weights packed for sampling", *linear),
        max(_workspace(rank, at_once * prompt), cut, key=lambda one: one.part.bytes),
        _made("logits", *(3 * [_FP32 * rows * columns] if rank.is_last else [])),
    ]


def _workspace(rank: _Rank, tokens: int) -> _Made:
    """Gate and up, their product; hidden states before, after and normalised."""
    model = rank.model
    wide, hidden = tokens * model.ffn // rank.split.tp * rank.width, tokens * model.hidden_size * rank.width
    return _made("workspace of a layer", 2 * wide, wide, hidden, hidden, hidden)


def _forward(rank: _Rank) -> list[_Made]:
    return [_workspace(rank, rank.shape.tokens), _made("logits", *_chunk(rank))]


def _chunk(rank: _Rank) -> list[int]:
    """Three float32 copies of the logits of a chunk: of response tokens, this rank's part of the vocabulary."""
    if not rank.is_last:
        return []
    chunk = rank.recipe.policy.logprob_chunk_size or DEFAULT_CHUNK
    columns = padded_vocab_size(rank.model.vocab_size, rank.split.tp) // rank.split.tp
    return 3 * [_FP32 * min(chunk, rank.batch.responses) * columns]


def _train(rank: _Rank) -> list[_Made]:
    model, shape, split = rank.model, rank.shape, rank.split
    kept = stage_bytes(model, shape, rank.stage, count=rank.batch.count)
    wide = 2 * shape.tokens * model.ffn // split.tp * shape.width
    mapped = _share_mapped(model, shape, wide)
    made = [_Made(Part("activations", kept), int(kept * (1 - mapped)))]
    if shape.recompute.granularity != "none":
        made.append(_again(rank))
    if rank.is_last:
        columns = padded_vocab_size(model.vocab_size, split.tp) // split.tp
        # the output weight's gradient in float32, and a chunk's share of it, made in the model's type and cast
        sizes = [_FP32, rank.width, *([_FP32] if rank.width < _FP32 else [])]
        weight = columns * model.hidden_size
        made.append(_made("logits", *_chunk(rank), *(weight * size for size in sizes)))
    return made


def _reduced(rank: _Rank) -> list[_Made]:
    """Behind the last backward pass gloo reduces a copy of the gradients and then cuts the rank's share out."""
    return [_made("reduced copy of gradients", rank.state.gradients if rank.distributed else 0)]


def _share_mapped(model: ModelConfig, shape: Shape, wide: int) -> float:
    """The part of a layer's activations that lies in blocks of 32 MiB and more: gate and up, or all of the MLP."""
    if shape.recompute.granularity == "full" or wide < _LARGEST_HEAP_BLOCK:
        return 0.0
    mlp = layer_parts(model, shape)["MLP"]
    large = mlp if wide // 2 >= _LARGEST_HEAP_BLOCK else mlp * 2 // 3
    return large / layer_bytes(model, shape)


def _again(rank: _Rank) -> _Made:
    """What recomputation makes anew of the layer that is being differentiated."""
    whole = Shape(rank.shape.tokens, rank.shape.width, rank.split, Recompute())
    all_of_it = layer_bytes(rank.model, whole)
    kept = 0 if rank.shape.recompute.granularity == "full" else layer_bytes(rank.model, rank.shape)
    size = all_of_it - kept
    wide = 2 * whole.tokens * rank.model.ffn // rank.split.tp * whole.width
    return _Made(Part("a layer made again", size), int(size * (1 - _share_mapped(rank.model, whole, wide))))


def _optimizer(rank: _Rank) -> list[_Made]:
    """AdamW's temporaries for its largest tensor; gloo gathers new weights into a copy of their buffer."""
    largest = max(_blocks(rank, bytes_each=_FP32))
    return [
        _made("AdamW's temporaries", largest, largest),
        _made("gathered weights", rank.state.weights if rank.distributed else 0),
    ]


def _save(rank: _Rank) -> list[_Made]:
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
        halves = [prod(shape) // 2 for name, shape in shapes.items() if name.endswith("linear_fc1.weight")]
        sizes = [rank.width, *(per_parameter // _FP32) * [_FP32]]
        return [_made("copies of gate and up", *(half * size for half in halves for size in sizes), count=2)]
    whole = state.gradient_elements
    if not with_optimizer:
        return [_made("copies of views", whole * rank.width)]
    gather = whole * 3 * _FP32 + 3 * _FP32 * (whole // rank.split.dp) + 3 * _FP32 * whole
    write = whole * (2 * 3 * _FP32 + rank.width)
    return [_made("optimizer gathered and copied", max(gather, write))]
