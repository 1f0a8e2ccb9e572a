"""The two pickles of a torch_dist checkpoint that are read, `.metadata` and a record's data.pkl, as plain data.

Stand-ins take the place of torch's classes. Only what is read is kept; the save plans that Megatron stores along
with the index, several times its size, are dropped while they are read.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.torch_dist.safe_pickle import RestrictedUnpickler, forget, load_restricted

_METADATA = "torch.distributed.checkpoint.metadata"

DTYPES = {
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "bool": "BOOL", "uint8": "U8",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
STORAGES = {
    "BFloat16Storage": "BF16", "HalfStorage": "F16", "FloatStorage": "F32", "DoubleStorage": "F64",
    "BoolStorage": "BOOL", "ByteStorage": "U8", "CharStorage": "I8", "ShortStorage": "I16", "IntStorage": "I32",
    "LongStorage": "I64",
}  # fmt: skip


class _Fields:
    """A class of torch's as its fields, all of unchecked type; a field that the pickle lacks is None."""

    __slots__: tuple[str, ...] = ()

    def __setstate__(self, state: Any) -> None:
        for name in self.__slots__:
            setattr(self, name, state.get(name))
        forget(state)


class RawChunk(_Fields):
    """A box of a tensor."""

    __slots__ = ("offsets", "sizes")
    offsets: Any
    sizes: Any


class RawTensor(_Fields):
    """A tensor: `properties` is RawProperties, `chunks` a list of RawChunk."""

    __slots__ = ("chunks", "properties", "size")
    chunks: Any
    properties: Any
    size: Any


class RawBytes(_Fields):
    """An object stored as bytes."""

    __slots__ = ()


class RawProperties:
    """A tensor's type; `dtype` is safetensors' name."""

    __slots__ = ("dtype",)

    def __setstate__(self, state: Any) -> None:
        self.dtype = state[0]


class RawKey(_Fields):
    """Names a chunk of a tensor (by its offset) or an object. Megatron's saves have no offset for objects."""

    __slots__ = ("fqn", "offset")
    fqn: Any
    offset: Any


class RawPlace(_Fields):
    """Where a record lies."""

    __slots__ = ("length", "offset", "relative_path", "transform_descriptors")
    length: Any
    offset: Any
    relative_path: Any
    transform_descriptors: Any


class RawMetadata(_Fields):
    """`state_dict_metadata`: name to RawTensor or RawBytes; `storage_data`: RawKey to RawPlace."""

    __slots__ = ("state_dict_metadata", "storage_data")
    state_dict_metadata: Any
    storage_data: Any


class RawRecord:
    """A record's data.pkl: a tensor of `size` and `stride` over storage number `key` of `numel` elements."""

    __slots__ = ("dtype", "key", "numel", "offset", "size", "stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        kind, self.dtype, self.key, _, self.numel = storage
        self.offset, self.size, self.stride = offset, size, stride
        if kind != "storage":
            raise CheckpointError("a tensor without a storage")


def _size(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


class _MetadataUnpickler(RestrictedUnpickler):
    stand_ins: ClassVar = {
        (_METADATA, "Metadata"): RawMetadata,
        ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"): RawMetadata,
        (_METADATA, "TensorStorageMetadata"): RawTensor,
        (_METADATA, "BytesStorageMetadata"): RawBytes,
        (_METADATA, "ChunkStorageMetadata"): RawChunk,
        (_METADATA, "TensorProperties"): RawProperties,
        (_METADATA, "MetadataIndex"): RawKey,
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): RawPlace,
        ("torch", "Size"): _size,
        **{("torch", name): dtype for name, dtype in DTYPES.items()},
    }

    def persistent_load(self, _: Any) -> Any:
        raise CheckpointError("a tensor, where there should be none")


class _RecordUnpickler(RestrictedUnpickler):
    stand_ins: ClassVar = {
        ("torch._utils", "_rebuild_tensor_v2"): RawRecord,
        ("torch", "Size"): _size,
        **{("torch", name): dtype for name, dtype in STORAGES.items()},
    }

    def persistent_load(self, pid: Any) -> Any:
        return pid


def load_metadata(data: bytes, *, name: str) -> RawMetadata:
    """Content of `.metadata`. Raises CheckpointError when the pickle is refused or no Metadata."""
    metadata = load_restricted(data, name=name, kind=_MetadataUnpickler)
    if type(metadata) is not RawMetadata:
        raise CheckpointError(f"{name} does not hold torch's Metadata")
    return metadata


def load_record(data: bytes, *, name: str) -> RawRecord:
    """Content of a record's data.pkl: one tensor that is all of its storage, row-major.

    Raises CheckpointError when the pickle is refused or holds anything else.
    """
    record = load_restricted(data, name=name, kind=_RecordUnpickler)
    if type(record) is not RawRecord:
        raise CheckpointError(f"{name} does not hold a tensor")
    counts = (record.size, record.stride, (record.numel, record.offset))
    if not all(type(c) is tuple and all(type(n) is int and n >= 0 for n in c) for c in counts):
        raise CheckpointError(f"{name}: malformed tensor")
    if record.dtype not in STORAGES.values() or type(record.key) is not str:
        raise CheckpointError(f"{name}: malformed storage")
    if record.offset != 0 or record.numel != prod(record.size) or not _row_major(record.size, record.stride):
        raise CheckpointError(f"{name}: the tensor is a view into its storage, which Megatron does not store")
    return record


def _row_major(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for n, step in zip(reversed(size), reversed(stride), strict=False):
        if n != 1 and step != expected:
            return False
        expected *= n
    return len(size) == len(stride)
