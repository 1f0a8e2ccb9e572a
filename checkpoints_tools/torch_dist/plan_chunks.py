"""Where every byte of a torch_dist checkpoint will lie, worked out before any is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.safetensors_file import ITEM_BYTES
from checkpoints_tools.shapes import Index
from checkpoints_tools.torch_dist.index import ByteItem, Chunk, DistIndex, DistTensor
from checkpoints_tools.torch_dist.record_write import ALIGNMENT, object_record, tensor_record
from checkpoints_tools.weight_map import (
    MegatronTensor,
    WeightMap,
    local_boxes,
    padded_vocab_size,
    weight_map,
)
from checkpoints_tools.weight_map.names import extra_state_key, parse_key, stored_key

DEFAULT_CHUNK_BYTES = 64 << 20
DEFAULT_FILE_BYTES = 1 << 30  # several files: the kernel lets one thread at a time write to a file
# Embeddings are cut where a rank of these tensor parallel sizes begins: torch reads a chunk as a whole.
_LOADERS = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class RecordCopy:
    """A record that goes into the new checkpoint as it is: `nbytes` from `source_offset` to `offset`."""

    key: str
    source: Path
    source_offset: int
    destination: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Reshard:
    """A checkpoint with its model re-chunked.

    `index` is all that will lie there, `model` its part that is written anew, `copies` make up the rest.
    """

    index: DistIndex
    model: DistIndex
    copies: tuple[RecordCopy, ...]


def plan_chunks(
    config: ModelConfig,
    dtypes: Mapping[str, str],
    folder: Path,
    *,
    chunk_tp: int = 1,
    max_chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    max_file_bytes: int = DEFAULT_FILE_BYTES,
) -> DistIndex:
    """Plan a model's checkpoint: layers stacked on a leading axis, vocabulary unpadded.

    `dtypes`: safetensors dtype of each Hugging Face tensor. A chunk is one layer's part for one of `chunk_tp`
    tensor parallel ranks, gate and up apart; embedding and output layer are cut into rows of at most
    `max_chunk_bytes`. Files `__N_0.distcp` hold at most `max_file_bytes`, or one larger chunk.

    Raises:
        CheckpointError: `chunk_tp` does not divide a tensor; tensors that Megatron stores as one differ in dtype.
    """
    table = weight_map(config)
    kinds = _key_dtypes(table, dtypes)
    parts = []
    for name, tensor in table.megatron.items():
        key, layer = stored_key(name)
        layers = None if layer is None else config.num_layers
        parts.append(_Part(key, kinds[key], tensor, layer, layers))
    space = _Space(max_file_bytes)
    items = {key: space.item(key) for key in _extra_states(table, config.num_layers)}
    return DistIndex(folder, _place(parts, space, chunk_tp, max_chunk_bytes), items)


def plan_reshard(
    index: DistIndex,
    config: ModelConfig,
    folder: Path,
    *,
    chunk_tp: int = 1,
    max_chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    max_file_bytes: int = DEFAULT_FILE_BYTES,
) -> Reshard:
    """Plan a checkpoint of the same keys and dtypes whose model tensors are cut as `plan_chunks` cuts them.

    A padded vocabulary loses its padding. Optimizer state and objects keep their records, byte for byte.
    Raises CheckpointError for a key that the model does not have, and where `chunk_tp` does not divide.
    """
    table = weight_map(config)
    order = {name: place for place, name in enumerate(table.megatron)}
    parts, rest = [], []
    for tensor in index.tensors.values():
        ours = _parts_of(tensor, table, config.num_layers)
        parts += ours
        rest += [] if ours else [tensor]
    parts.sort(key=lambda part: (order[part.tensor.name], part.key))
    space = _Space(max_file_bytes)
    model = DistIndex(folder, _place(parts, space, chunk_tp, max_chunk_bytes), {})
    return _with_the_rest(index, model, rest, space)


def file_sizes(index: DistIndex) -> dict[str, int]:
    """Bytes of each `.distcp` file."""
    sizes: dict[str, int] = {}
    for record in records(index):
        sizes[record.file] = max(sizes.get(record.file, 0), record.record + record.record_bytes)
    return dict(sorted(sizes.items()))


def records(index: DistIndex) -> Iterator[Chunk | ByteItem]:
    """All records of a checkpoint."""
    for tensor in index.tensors.values():
        yield from tensor.chunks
    yield from index.items.values()


@dataclass(frozen=True, slots=True)
class _Part:
    """What a key holds of one tensor of the weight map: all of it, or `layer` of `layers` on a leading axis."""

    key: str
    dtype: str
    tensor: MegatronTensor
    layer: int | None
    layers: int | None

    @property
    def shape(self) -> Index:
        shape = self.tensor.shape
        return shape if self.layers is None else (self.layers, *shape)

    def box(self, start: Index, shape: Index) -> tuple[Index, Index]:
        return (start, shape) if self.layer is None else ((self.layer, *start), (1, *shape))


@dataclass(slots=True)
class _Space:
    """Hands out room in the files, one record after the other."""

    max_file_bytes: int
    file: int = 0
    end: int = field(default=0)

    def take(self, nbytes: int) -> tuple[str, int]:
        start = self.end + -self.end % ALIGNMENT
        if start and start + nbytes > self.max_file_bytes:
            self.file, start = self.file + 1, 0
        self.end = start + nbytes
        return f"__{self.file}_0.distcp", start

    def chunk(self, start: Index, shape: Index, dtype: str) -> Chunk:
        head, tail = tensor_record(shape, dtype)
        nbytes = len(head) + prod(shape) * ITEM_BYTES[dtype] + len(tail)
        file, record = self.take(nbytes)
        return Chunk(start, shape, file, record, nbytes, record + len(head))

    def item(self, key: str) -> ByteItem:
        nbytes = len(object_record([None]))
        return ByteItem(key, *self.take(nbytes), nbytes)


def _place(
    parts: Iterable[_Part], space: _Space, chunk_tp: int, max_chunk_bytes: int
) -> dict[str, DistTensor]:
    chunks: dict[str, list[Chunk]] = {}
    first: dict[str, _Part] = {}
    for part in parts:
        first.setdefault(part.key, part)
        row_bytes = prod(part.tensor.shape[1:]) * ITEM_BYTES[part.dtype]
        rows = max(1, max_chunk_bytes // row_bytes)
        for start, shape in _boxes(part.tensor, chunk_tp, rows):
            chunks.setdefault(part.key, []).append(space.chunk(*part.box(start, shape), part.dtype))
    return {key: DistTensor(key, p.dtype, p.shape, tuple(chunks[key])) for key, p in first.items()}


def _boxes(tensor: MegatronTensor, chunk_tp: int, max_rows: int) -> list[tuple[Index, Index]]:
    """The chunks of one tensor as (start, shape), in the order of their first elements."""
    if tensor.vocab:
        rest, origin = tensor.shape[1:], (0,) * (len(tensor.shape) - 1)
        return [((a, *origin), (n, *rest)) for a, n in _row_blocks(tensor.shape[0], chunk_tp, max_rows)]
    ranks = 1 if tensor.tp_axis is None else chunk_tp
    boxes = [box for rank in range(ranks) for box in local_boxes(tensor, rank, chunk_tp)]
    return sorted((box.global_start, box.shape) for box in boxes)


def _row_blocks(rows: int, chunk_tp: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """(first, count): cut at each loader's first row, then evenly into blocks of at most `max_rows`."""
    ends = {rows}
    for tp in {*_LOADERS, chunk_tp}:
        part = padded_vocab_size(rows, tp) // tp
        ends.update(range(part, rows, part))
    first = 0
    for end in sorted(ends):
        blocks = -(-(end - first) // max_rows)
        step = -(-(end - first) // blocks)
        yield from ((row, min(step, end - row)) for row in range(first, end, step))
        first = end


def _key_dtypes(table: WeightMap, dtypes: Mapping[str, str]) -> dict[str, str]:
    """The dtype of each key, which all tensors that lie in it must share."""
    seen: dict[str, str] = {}
    for name in table.megatron:
        key, _ = stored_key(name)
        for hf_name in table.hf_names(name):
            if hf_name not in dtypes:
                raise CheckpointError(f"the model has no {hf_name}; the folder is incomplete")
            witness = seen.setdefault(key, hf_name)
            if dtypes[witness] != dtypes[hf_name]:
                raise CheckpointError(
                    f"{witness} is {dtypes[witness]} and {hf_name} is {dtypes[hf_name]}, which Megatron stores "
                    f"as one tensor, {key}; convert them to one type with --dtype bf16 or --dtype fp32"
                )
    return {key: dtypes[hf_name] for key, hf_name in seen.items()}


def _extra_states(table: WeightMap, num_layers: int) -> Iterator[str]:
    """Keys of the objects that megatron-core's modules ask for on loading, of either layer spec.

    Linear layers of both specs have one; TransformerEngine's norms and, in older releases, its attention too.
    GPTModel leaves out the output layer's. Source: megatron-core `make_sharded_tensors_for_checkpoint`,
    TransformerEngine `get_extra_state`.
    """
    modules = ["self_attention.core_attention"]
    for name in table.megatron:
        if name.startswith("decoder.layers.0."):
            modules.append(name.removeprefix("decoder.layers.0.").rpartition(".")[0])
    for layer in range(num_layers):
        yield from (extra_state_key(module, layer, num_layers) for module in dict.fromkeys(modules))
    yield "decoder.final_layernorm._extra_state/shard_0_1"


def _parts_of(stored: DistTensor, table: WeightMap, num_layers: int) -> list[_Part]:
    """The parts of a checkpoint tensor; none when it is not the model's."""
    parsed = parse_key(stored.key)
    if parsed is None:
        return []
    layers = [(layer, parsed.of_layer(layer)) for layer in range(num_layers)]
    parts = []
    for layer, name in layers if parsed.stacked else [(None, parsed.name)]:
        tensor = table.megatron.get(name)
        if tensor is None:
            raise CheckpointError(
                f"{stored.key} is not a tensor of the model that the configuration describes"
            )
        if parsed.half is not None:
            half = (tensor.shape[0] // 2, *tensor.shape[1:])
            tensor = MegatronTensor(tensor.name, half, tp_axis=tensor.tp_axis)
        parts.append(_Part(stored.key, stored.dtype, tensor, layer, num_layers if parsed.stacked else None))
    return parts


def _with_the_rest(index: DistIndex, model: DistIndex, rest: list[DistTensor], space: _Space) -> Reshard:
    """Add the records of `rest` and of all objects, in the order in which they lie in the source."""
    owners = [(chunk, tensor.key) for tensor in rest for chunk in tensor.chunks]
    owners += [(item, item.key) for item in index.items.values()]  # type: ignore[misc]
    moved: dict[tuple[str, int], tuple[str, int]] = {}
    copies = []
    for record, key in sorted(owners, key=lambda owner: (owner[0].file, owner[0].record)):
        file, offset = moved[record.file, record.record] = space.take(record.record_bytes)
        place = index.folder / record.file, record.record, model.folder / file, offset
        copies.append(RecordCopy(key, *place, record.record_bytes))
    tensors = {**model.tensors}
    for tensor in rest:
        tensors[tensor.key] = replace(tensor, chunks=tuple(_moved(c, moved) for c in tensor.chunks))
    items = {}
    for key, item in index.items.items():
        file, offset = moved[item.file, item.record]
        items[key] = replace(item, file=file, record=offset)
    return Reshard(DistIndex(model.folder, tensors, items), model, tuple(copies))


def _moved(chunk: Chunk, moved: Mapping[tuple[str, int], tuple[str, int]]) -> Chunk:
    file, record = moved[chunk.file, chunk.record]
    payload = chunk.payload if chunk.payload < 0 else chunk.payload - chunk.record + record
    return replace(chunk, file=file, record=record, payload=payload)
