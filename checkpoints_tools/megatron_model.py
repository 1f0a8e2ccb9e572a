"""Hugging Face tensors of a torch_dist checkpoint: its chunks, seen through the weight map, as extents of files."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_model import WEIGHT_DTYPES
from checkpoints_tools.layout import Extent, TensorLayout
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.safetensors_file import ITEM_BYTES
from checkpoints_tools.shapes import Index
from checkpoints_tools.torch_dist.index import DistIndex, DistTensor
from checkpoints_tools.weight_map import (
    Copy,
    MegatronTensor,
    StoredKey,
    WeightMap,
    parse_key,
    weight_map,
)
from checkpoints_tools.weight_map.geometry import tiling_fault
from checkpoints_tools.weight_map.names import EMBEDDING, OUTPUT

# What a wrong size of a Megatron tensor's rows or columns says about config.json.
_HEADS = "num_attention_heads, num_key_value_heads or head_dim"
_FIELDS = {
    EMBEDDING: ("vocab_size", "hidden_size"),
    OUTPUT: ("vocab_size", "hidden_size"),
    "linear_qkv.weight": (_HEADS, "hidden_size"),
    "linear_qkv.bias": (_HEADS,),
    "linear_proj.weight": ("hidden_size", "num_attention_heads or head_dim"),
    "q_layernorm.weight": ("head_dim",),
    "k_layernorm.weight": ("head_dim",),
    "linear_fc1.weight": ("intermediate_size", "hidden_size"),
    "linear_fc2.weight": ("hidden_size", "intermediate_size"),
    "layer_norm_weight": ("hidden_size",),
    "final_layernorm.weight": ("hidden_size",),
}


_MODEL = ("decoder.", "embedding.", "output_layer.")


@dataclass(frozen=True, slots=True)
class _Box:
    """A box of a Megatron tensor whose elements begin at byte `offset` of `file`."""

    start: Index
    shape: Index
    file: Path
    offset: int


@dataclass(slots=True)
class _Stored:
    """What a checkpoint holds of one Megatron tensor: its boxes, and the keys that they come from."""

    dtype: str
    rows: int
    boxes: list[_Box] = field(default_factory=list)
    sources: list[tuple[str, int | None]] = field(default_factory=list)


def model_layouts(index: DistIndex, config: ModelConfig, *, partial: bool = False) -> dict[str, TensorLayout]:
    """Where the Hugging Face tensors of the model lie in the checkpoint, by name in the model's order.

    Chunks of any grid are taken, layers stacked or one by one, fc1 whole or in halves. Rows of the vocabulary
    beyond the model's are padding and left out. `partial`: tensors that are missing, or in part, are left out too.

    Raises:
        CheckpointError: The checkpoint is not this model's, or not whole: a key that is unknown or missing, a
            wrong shape, holes or overlaps between chunks, fewer rows than the vocabulary. The message names the
            key.
    """
    table = weight_map(config)
    stored = _collect(index, table, config, partial=partial)
    if partial:
        return _present(table, stored, index.folder)
    faults = [_missing(name) for name in table.megatron if name not in stored]
    if not faults:
        faults = [f for name, tensor in table.megatron.items() for f in _tensor_faults(tensor, stored[name])]
    if faults:
        raise CheckpointError(f"{index.folder} does not hold this {config.architecture}: {_some(faults)}")
    layouts: dict[str, TensorLayout] = {}
    for name in table.megatron:
        layouts |= _layouts(table, name, stored[name])
    return {name: layouts[name] for name in table.hf}


def _present(table: WeightMap, stored: Mapping[str, _Stored], folder: Path) -> dict[str, TensorLayout]:
    """The Hugging Face tensors of which every element is there."""
    layouts: dict[str, TensorLayout] = {}
    for name in table.megatron:
        if name not in stored:
            continue
        if stored[name].dtype not in WEIGHT_DTYPES:
            raise CheckpointError(f"{folder}: {name} has mixed dtypes, {stored[name].dtype}")
        for hf_name, layout in _layouts(table, name, stored[name]).items():
            count = sum(e.rows * e.columns for e in layout.extents)
            boxes = [((e.row, e.column), (e.rows, e.columns)) for e in layout.extents]
            if count > prod(layout.shape) or (
                count == prod(layout.shape) and tiling_fault(layout.matrix, boxes)
            ):
                raise CheckpointError(f"{folder}: shards of {name} overlap, in what is {hf_name}")
            if count == prod(layout.shape):
                layouts[hf_name] = layout
    return {name: layouts[name] for name in table.hf if name in layouts}


def _collect(
    index: DistIndex, table: WeightMap, config: ModelConfig, *, partial: bool = False
) -> dict[str, _Stored]:
    stored: dict[str, _Stored] = {}
    # An object under a weight's name is no weight that could be read; which other objects there are is not our matter.
    faults = [
        f"{key} is an object and not a tensor, so it is not known what it holds"
        for key in index.items
        if key.startswith(_MODEL) and parse_key(key) is not None
    ]
    for tensor in index.tensors.values():
        key = parse_key(tensor.key)
        if key is None:
            continue
        fault = _key_fault(tensor, key, table, config, partial=partial)
        if fault:
            faults.append(fault)
        else:
            _add(stored, tensor, key, index.folder)
    if faults:
        raise CheckpointError(f"{index.folder} does not hold this {config.architecture}: {_some(faults)}")
    return stored


def _key_fault(
    tensor: DistTensor, key: StoredKey, table: WeightMap, config: ModelConfig, *, partial: bool
) -> str | None:
    """What is wrong with a stored tensor by itself; with `partial` it may have too few layers."""
    if key.name == OUTPUT and config.tied:
        return (
            f"{OUTPUT} is stored, but config.json says tie_word_embeddings: the weights were trained untied, "
            "set it to false"
        )
    if key.layer is not None and key.layer >= config.num_layers:
        return f"{tensor.key} is stored, but num_hidden_layers is {config.num_layers}"
    known = table.megatron.get(key.of_layer(0) if key.stacked else key.name)
    if known is None or (key.half is not None and known.tp_blocks != 2):
        return f"{tensor.key} is no weight of this architecture"
    shape = tensor.shape[1:] if key.stacked else tensor.shape
    layers = tensor.shape[0] if tensor.shape else 0
    if key.stacked and layers != config.num_layers and not (partial and 0 < layers < config.num_layers):
        return f"{tensor.key} holds {layers} layers, num_hidden_layers is {config.num_layers}"
    if tensor.dtype not in WEIGHT_DTYPES:
        return f"{tensor.key} is stored as {tensor.dtype}; weights are read as {', '.join(WEIGHT_DTYPES)}"
    if any(chunk.payload < 0 for chunk in tensor.chunks):
        return f"{tensor.key}: its bytes were not located"
    return _shape_fault(tensor.key, shape, known, halved=key.half is not None)


def _shape_fault(key: str, shape: Index, known: MegatronTensor, *, halved: bool) -> str | None:
    rows = known.shape[0] // 2 if halved else known.shape[0]
    expected = (rows, *known.shape[1:])
    if len(shape) != len(expected):
        return f"{key} has shape {shape} a layer, config.json says {expected}"
    for axis, (n, wanted) in enumerate(zip(shape, expected, strict=True)):
        padding = known.vocab and axis == 0
        if n < wanted and padding:
            return (
                f"{key} has {n} rows, fewer than vocab_size {wanted} of config.json: rows that are not stored "
                "cannot be made up; use the config.json that the model was trained with"
            )
        if n != wanted and not padding:
            fields = next((names for suffix, names in _FIELDS.items() if known.name.endswith(suffix)), ())
            hint = f": check {fields[axis]}" if axis < len(fields) else ""
            return f"{key} has shape {shape}, config.json says {expected}{hint}"
    return None


def _add(stored: dict[str, _Stored], tensor: DistTensor, key: StoredKey, folder: Path) -> None:
    """Sort a tensor's chunks into the Megatron tensors, one a layer."""
    stacked = [key.of_layer(layer) for layer in range(tensor.shape[0])] if key.stacked else [key.name]
    shape = tensor.shape[1:] if key.stacked else tensor.shape
    for name in stacked:
        entry = stored.setdefault(name, _Stored(tensor.dtype, shape[0]))
        entry.sources.append((tensor.key, key.half))
        if entry.dtype != tensor.dtype:
            entry.dtype = f"{entry.dtype} and {tensor.dtype}"
    first = shape[0] * (key.half or 0)
    item = ITEM_BYTES[tensor.dtype]
    for chunk in tensor.chunks:
        file = folder / chunk.file
        if not key.stacked:
            start = (chunk.start[0] + first, *chunk.start[1:])
            stored[key.name].boxes.append(_Box(start, chunk.shape, file, chunk.payload))
            continue
        start, size = (chunk.start[1] + first, *chunk.start[2:]), chunk.shape[1:]
        for n in range(chunk.shape[0]):
            layer = chunk.start[0] + n
            if layer >= len(stacked):
                raise CheckpointError(f"{file}: a chunk of {tensor.key} lies outside {tensor.shape}")
            stored[stacked[layer]].boxes.append(
                _Box(start, size, file, chunk.payload + n * prod(size) * item)
            )


def _missing(name: str) -> str:
    if name == OUTPUT:
        return (
            f"{OUTPUT} is missing; if the model shares it with the embedding, set tie_word_embeddings to true"
        )
    return f"{name} is missing"


def _tensor_faults(tensor: MegatronTensor, stored: _Stored) -> Iterator[str]:
    keys = " and ".join(sorted(key for key, _ in stored.sources))
    halves = [half for _, half in stored.sources]
    if halves not in ([None], [0, 1], [1, 0]):
        whole = len(halves) == 1
        yield f"{tensor.name} is {'stored by one half only' if whole else 'stored more than once'}: {keys}"
        return
    if stored.dtype not in WEIGHT_DTYPES:
        yield f"{tensor.name} has mixed dtypes, {stored.dtype}: {keys}"
        return
    shape = (stored.rows if tensor.vocab else tensor.shape[0], *tensor.shape[1:])
    fault = tiling_fault(shape, [(box.start, box.shape) for box in stored.boxes])
    if fault:
        where = "" if tensor.name in (key for key, _ in stored.sources) else f" ({tensor.name})"
        yield f"the shards of {keys}{where} do not make up the tensor {shape}: {fault}"


def _layouts(table: WeightMap, name: str, stored: _Stored) -> dict[str, TensorLayout]:
    """The Hugging Face tensors that lie in one Megatron tensor."""
    extents: dict[str, list[Extent]] = {hf_name: [] for hf_name in table.hf_names(name)}
    copies = sorted(table.copies[name], key=lambda copy: copy.megatron_start[0])
    starts = [copy.megatron_start[0] for copy in copies]
    for box in sorted(stored.boxes, key=lambda box: box.start):
        for copy in _meeting(copies, starts, box):
            extents[copy.hf_name].append(_extent(copy, box, ITEM_BYTES[stored.dtype]))
    return {
        hf_name: TensorLayout(hf_name, stored.dtype, table.hf[hf_name], tuple(found))
        for hf_name, found in extents.items()
    }


def _meeting(copies: Sequence[Copy], starts: Sequence[int], box: _Box) -> Iterator[Copy]:
    """The copies that share rows with the box. Copies are whole rows, sorted, and do not overlap."""
    end = box.start[0] + box.shape[0]
    for n in range(max(0, bisect_right(starts, box.start[0]) - 1), len(copies)):
        copy = copies[n]
        if starts[n] >= end:
            return
        if starts[n] + copy.shape[0] > box.start[0]:
            yield copy


def _extent(copy: Copy, box: _Box, item: int) -> Extent:
    """What a box holds of a copy: whole rows of the box, so contiguous in its file."""
    first = max(box.start[0], copy.megatron_start[0])
    rows = min(box.start[0] + box.shape[0], copy.megatron_start[0] + copy.shape[0]) - first
    columns = prod(box.shape[1:])
    offset = box.offset + (first - box.start[0]) * columns * item
    column = box.start[1] if len(box.start) > 1 else 0
    return Extent(box.file, offset, copy.hf_start[0] + first - copy.megatron_start[0], column, rows, columns)


def _some(faults: list[str]) -> str:
    return "; ".join(faults[:10]) + (f" (and {len(faults) - 10} more)" if len(faults) > 10 else "")
