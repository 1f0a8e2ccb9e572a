"""The small files of a torch_dist checkpoint, and the bytes around the tensors' elements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from checkpoints_tools.copying.files import Files
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.shapes import Index
from checkpoints_tools.torch_dist.index import ByteItem, Chunk, DistIndex, DistTensor
from checkpoints_tools.torch_dist.pickle_out import Call, Global, New, Value, pickled
from checkpoints_tools.torch_dist.record_write import object_record, tensor_record
from checkpoints_tools.torch_dist.unpickle import DTYPES

TRACKER_FILE = "latest_checkpointed_iteration.txt"
METADATA_FILE, COMMON_FILE, CONFIG_FILE = ".metadata", "common.pt", "metadata.json"

# How the state dicts are laid out, which loaders read back: layers stacked on a leading axis, optimizer state
# that any data parallel size can read. The values are Megatron-Bridge's.
CONTENT_METADATA: dict[str, bool | str] = {
    "singleton_local_shards": False,
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
}

_TORCH_DTYPES = {stored: name for name, stored in DTYPES.items()}
_METADATA = "torch.distributed.checkpoint.metadata"
_SIZE = Global("torch", "Size")
_INDEX, _CHUNK = Global(_METADATA, "MetadataIndex"), Global(_METADATA, "ChunkStorageMetadata")
_TENSOR, _BYTES = Global(_METADATA, "TensorStorageMetadata"), Global(_METADATA, "BytesStorageMetadata")
_STORAGE_INFO = Global("torch.distributed.checkpoint.filesystem", "_StorageInfo")


def write_metadata(index: DistIndex) -> bytes:
    """Content of `.metadata`: the pickle of torch's `Metadata` that describes the index."""
    described: dict[Value, Value] = {key: _described(tensor) for key, tensor in index.tensors.items()}
    described |= {key: New(_BYTES, {}) for key in index.items}
    places = [_place(t.key, chunk) for t in index.tensors.values() for chunk in t.chunks]
    places += [_place(item.key, item) for item in index.items.values()]
    meta: dict[Value, Value] = {"checkpoint_id": None, "save_id": None, "load_id": None, "modules": []}
    return pickled(
        New(
            Global(_METADATA, "Metadata"),
            {
                "state_dict_metadata": described,
                "planner_data": None,
                "storage_data": dict(places),
                "storage_meta": New(Global(_METADATA, "StorageMeta"), meta),
                "version": "1.0.0",
            },
        )
    )


def _described(tensor: DistTensor) -> Value:
    dtype = Global("torch", _TORCH_DTYPES[tensor.dtype])
    layout = Call(Global("torch.serialization", "_get_layout"), ("torch.strided",))
    contiguous = Call(Global(_METADATA, "_MEM_FORMAT_ENCODING"), (0,))
    properties = (dtype, layout, False, contiguous, False)
    chunks: list[Value] = [
        New(_CHUNK, {"offsets": _size(chunk.start), "sizes": _size(chunk.shape)}) for chunk in tensor.chunks
    ]
    return New(
        _TENSOR,
        {
            "properties": New(Global(_METADATA, "TensorProperties"), properties),
            "size": _size(tensor.shape),
            "chunks": chunks,
        },
    )


def _place(key: str, record: Chunk | ByteItem) -> tuple[Value, Value]:
    name: dict[Value, Value] = {"fqn": key, "index": None}
    if isinstance(record, Chunk):  # an object's index has no offset, not even None
        name["offset"] = _size(record.start)
    info: dict[Value, Value] = {
        "relative_path": record.file,
        "offset": record.record,
        "length": record.record_bytes,
    }
    return New(_INDEX, name), New(_STORAGE_INFO, info)


def _size(shape: Index) -> Call:
    return Call(_SIZE, (shape,))


def common_pt(*, iteration: int = 0, more: Mapping[Value, Value] | None = None) -> bytes:
    """Content of `common.pt`: what is not sharded. `more`: further plain values.

    Read by megatron-core's `load_common` and `load_content_metadata`; torch.load accepts it with weights_only.
    """
    state: dict[Value, Value] = {
        "iteration": iteration,
        "checkpoint_version": 3.0,
        **(more or {}),
        "content_metadata": {key: value for key, value in CONTENT_METADATA.items()},
    }
    return object_record(state, folder="common")


def metadata_json() -> bytes:
    """Content of `metadata.json`, megatron-core's `CheckpointingConfig`. Its presence marks a checkpoint complete."""
    config = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    return json.dumps(config).encode()


def iteration_folder(iteration: int | None) -> str:
    """Name of an iteration's folder beside the tracker file; None: of weights that no training counts on from."""
    return "release" if iteration is None else f"iter_{iteration:07d}"


def tracker_text(iteration: int | None) -> bytes:
    """Content of `latest_checkpointed_iteration.txt`; None as in `iteration_folder`."""
    return b"release" if iteration is None else str(iteration).encode()


def finish_records(index: DistIndex, crc_by_payload: Mapping[tuple[str, int], int], folder: Path) -> None:
    """Write what stands around the elements of every chunk in `folder`, and the objects ([None], all of them).

    `crc_by_payload`: CRC-32 of each chunk's elements, by file name and position of the payload. Nothing is synced.
    Raises CheckpointError when a chunk's CRC is missing or a file cannot be written.
    """
    with Files() as files:
        for tensor in index.tensors.values():
            for chunk in tensor.chunks:
                crc32 = crc_by_payload.get((chunk.file, chunk.payload))
                if crc32 is None:
                    raise CheckpointError(f"{tensor.key}: the chunk at {chunk.start} was not written")
                head, tail = tensor_record(chunk.shape, tensor.dtype, crc32)
                files.write(folder / chunk.file, head, chunk.record)
                files.write(folder / chunk.file, tail, chunk.record + chunk.record_bytes - len(tail))
        for item in index.items.values():
            files.write(folder / item.file, object_record([None]), item.record)
