"""The safetensors file format: bounded reading and planning of headers.

A file is the header's length (8 bytes, little endian), the header (JSON: name -> dtype, shape, data_offsets
relative to the header's end; padded with spaces to 8 bytes) and the tensors' bytes without holes.
Source: https://github.com/huggingface/safetensors, README, Format.
"""

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.shapes import Index

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
}  # fmt: skip
# The reference implementation allows 100 MB, which would parse to a gigabyte; a header of the largest dense models,
# in one file, is some 200 kB.
_MAX_HEADER_BYTES = 16 << 20
_MAX_NAME = 1000


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written; `dtype` is safetensors' name (F32, BF16, F16)."""

    name: str
    dtype: str
    shape: Index

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: `start` is the byte position of its data in the file."""

    file: Path
    dtype: str
    shape: Index
    start: int
    nbytes: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Tensors of a safetensors file. Raises CheckpointError on a damaged or malformed file."""
    try:
        with _open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(f"{file} is not a safetensors file, or is truncated")
            if length > _MAX_HEADER_BYTES:
                raise CheckpointError(f"{file}: a header of {length} bytes is larger than any model's")
            header = json.loads(stream.read(length), object_pairs_hook=_unrepeated)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except (OSError, RecursionError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: the safetensors header cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: the safetensors header is not an object")
    header.pop("__metadata__", None)
    tensors = {name: _stored(file, name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != end:
            raise CheckpointError(f"{file}: tensors overlap or leave a hole at byte {min(end, tensor.start)}")
        end += tensor.nbytes
        if end > size:
            raise CheckpointError(
                f"{file} is truncated or damaged: it has {size} bytes, {name} ends at byte {end}"
            )
    if end != size:
        raise CheckpointError(
            f"{file} is truncated or damaged: it has {size} bytes, its header describes {end}"
        )
    return tensors


def _open_regular(file: Path) -> BinaryIO:
    """Without waiting for a pipe's writer."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{file} is not a regular file")
    return open(descriptor, "rb")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: of two tensors of one name, readers take one or the other."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name occurs twice")
    return content


def _stored(file: Path, name: str, entry: Any, base: int) -> StoredTensor:
    if not name.isprintable() or len(name) > _MAX_NAME:  # it will be shown on terminals
        raise CheckpointError(f"{file}: {name!r:.80} is not a tensor's name")
    raw = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = raw.get("dtype"), _counts(raw.get("shape")), _counts(raw.get("data_offsets"))
    if (
        type(dtype) is not str
        or dtype not in ITEM_BYTES
        or shape is None
        or offsets is None
        or len(offsets) != 2
    ):
        raise CheckpointError(f"{file}: malformed header entry of {name}")
    start, end = offsets
    if end - start != prod(shape) * ITEM_BYTES[dtype]:
        raise CheckpointError(
            f"{file}: {name} has {end - start} bytes, which is not {dtype} of shape {shape}"
        )
    return StoredTensor(file, dtype, shape, base + start, end - start)


def _counts(value: Any) -> Index | None:
    valid = isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
    return tuple(value) if valid else None


@dataclass(frozen=True, slots=True)
class Shard:
    """A file to be written: its header and where each tensor's bytes go."""

    file_name: str
    header: bytes
    starts: dict[str, int]
    nbytes: int


def plan_shards(specs: Iterable[TensorSpec], max_shard_bytes: int) -> list[Shard]:
    """Distribute tensors over files in the given order; a larger tensor gets a file of its own.

    Named as the Hugging Face hub names them: `model.safetensors`, or `model-00001-of-0000N.safetensors`.
    """
    groups: list[list[TensorSpec]] = [[]]
    room = max_shard_bytes
    for spec in specs:
        if spec.nbytes > room and groups[-1]:
            groups.append([])
            room = max_shard_bytes
        groups[-1].append(spec)
        room -= spec.nbytes
    count = len(groups)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    return [
        _shard(name, group)
        for name, group in zip(["model.safetensors"] if count == 1 else names, groups, strict=True)
    ]


def _shard(file_name: str, specs: list[TensorSpec]) -> Shard:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # Wider types first: readers view the bytes in place and need each tensor aligned to its type.
    for spec in sorted(specs, key=lambda s: -ITEM_BYTES[s.dtype]):
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.nbytes],
        }
        end += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    starts = {spec.name: base + header[spec.name]["data_offsets"][0] for spec in specs}
    return Shard(file_name, len(text).to_bytes(8, "little") + text, starts, base + end)
