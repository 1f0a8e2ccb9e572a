"""What a torch_dist checkpoint's `.metadata` says: tensors, their chunks, and objects stored as bytes.

A `.distcp` file is a row of records. A record is a torch.save zip of one chunk; its member `archive/data/0` is
stored uncompressed, so a chunk's elements are one byte range of the file, row-major, little endian.
"""

from dataclasses import dataclass, field
from pathlib import Path

from checkpoints_tools.shapes import Index


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box (start, shape: elements) of a checkpoint tensor.

    `file` is a bare file name of the checkpoint folder. The record is bytes [record, record + record_bytes),
    the chunk's elements begin at byte `payload` of the file (-1: not located).
    """

    start: Index
    shape: Index
    file: str
    record: int
    record_bytes: int
    payload: int


@dataclass(frozen=True, slots=True)
class DistTensor:
    """A checkpoint tensor: key, safetensors dtype name, global shape, and the chunks that make it."""

    key: str
    dtype: str
    shape: Index
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class ByteItem:
    """An object stored as a pickle in a record of its own. Never unpickled here."""

    key: str
    file: str
    record: int
    record_bytes: int


@dataclass(frozen=True, slots=True)
class DistIndex:
    """All that lies in a torch_dist folder, in the order of `.metadata`."""

    folder: Path
    tensors: dict[str, DistTensor] = field(default_factory=dict)
    items: dict[str, ByteItem] = field(default_factory=dict)
