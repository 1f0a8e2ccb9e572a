"""The bytes that torch.save writes around a tensor's elements, byte for byte.

A record is a zip archive of stored members: `data.pkl`, `byteorder`, `data/0` (the elements, at a multiple of
64 bytes), `version` and a few marks. CRC and size of a member stand behind it and in the central directory, so
everything before the elements (the head) is known before they are; what follows them (the tail) takes their CRC.
Source: PyTorch's caffe2/serialize/inline_container.cc and its miniz; APPNOTE.TXT of PKWARE for zip64.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from math import prod

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.safetensors_file import ITEM_BYTES
from checkpoints_tools.shapes import Index
from checkpoints_tools.torch_dist.pickle_out import Call, Global, Stored, Value, pickled
from checkpoints_tools.torch_dist.unpickle import STORAGES

ALIGNMENT = 64
_MAX_32, _MAX_64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_STORAGES = {stored: name for name, stored in STORAGES.items()}
# torch's hash of the members' names, the first half of the archive's serialization id.
_NAMES_WITH_DATA, _NAMES_WITHOUT_DATA = 15728199511854643026, 2908468677762923104


def tensor_record(shape: Index, dtype: str, crc32: int = 0) -> tuple[bytes, bytes]:
    """Head and tail of the record of a contiguous tensor; its elements stand between them.

    `dtype` is safetensors' name, `crc32` that of the elements' bytes. The lengths do not depend on the CRC, nor
    does the head. Raises CheckpointError for a dtype that torch.save has no storage class for.
    """
    if dtype not in _STORAGES:
        raise CheckpointError(f"a tensor of dtype {dtype} cannot be written; there is {', '.join(_STORAGES)}")
    count = prod(shape)
    key = ("storage", Global("torch", _STORAGES[dtype]), "0", "cpu", count)
    strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    hooks = Call(Global("collections", "OrderedDict"), ())
    tensor = Call(
        Global("torch._utils", "_rebuild_tensor_v2"), (Stored(key), 0, shape, strides, False, hooks)
    )
    return _archive("archive", pickled(tensor), count * ITEM_BYTES[dtype], crc32)


def object_record(value: Value, *, folder: str = "archive") -> bytes:
    """An object without tensors as torch.save writes it; `folder` is the file's stem (archive: a stream)."""
    head, tail = _archive(folder, pickled(value), None, 0)
    return head + tail


@dataclass(frozen=True, slots=True)
class _Member:
    name: bytes
    offset: int
    nbytes: int
    crc32: int

    @property
    def large(self) -> bool:
        """Whether size or offset needs more than 32 bits."""
        return max(self.nbytes, self.offset) >= _MAX_32

    def extra(self, stored: int) -> bytes:
        """The zip64 field: what does not fit 32 bits. miniz leaves the `stored` size 0 in the local header."""
        values = [self.nbytes, stored] if self.nbytes >= _MAX_32 else []
        values += [self.offset] if self.offset >= _MAX_32 else []
        return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""

    @property
    def header(self) -> bytes:
        """The local header, padded so that the content begins at a multiple of 64 bytes."""
        large = self.extra(0)
        unpadded = self.offset + 30 + len(self.name) + len(large) + 4
        gap = -unpadded % ALIGNMENT
        extra = large + b"FB" + struct.pack("<H", gap) + b"Z" * gap
        fields = (b"PK\x03\x04", 0, 0x0808, 0, 0, 0, 0, 0, 0, len(self.name), len(extra))
        return struct.pack("<4s5H3I2H", *fields) + self.name + extra

    @property
    def descriptor(self) -> bytes:
        sizes = "<4sI2Q" if self.large else "<4s3I"
        return struct.pack(sizes, b"PK\x07\x08", self.crc32, self.nbytes, self.nbytes)

    @property
    def entry(self) -> bytes:
        size, offset = min(self.nbytes, _MAX_32), min(self.offset, _MAX_32)
        fields = (b"PK\x01\x02", 0, 0, 0x0808, 0, 0, 0, self.crc32, size, size)
        extra = self.extra(self.nbytes)
        lengths = (len(self.name), len(extra), 0, 0, 0, 0, offset)
        return struct.pack("<4s6H3I5H2I", *fields, *lengths) + self.name + extra

    @property
    def end(self) -> int:
        return self.offset + len(self.header) + self.nbytes + len(self.descriptor)


def _archive(folder: str, pickle: bytes, nbytes: int | None, crc32: int) -> tuple[bytes, bytes]:
    members: list[_Member] = []

    def add(name: str, nbytes: int, crc32: int) -> _Member:
        offset = members[-1].end if members else 0
        members.append(_Member(f"{folder}/{name}".encode(), offset, nbytes, crc32))
        return members[-1]

    def text(name: str, content: bytes) -> bytes:
        member = add(name, len(content), zlib.crc32(content))
        return member.header + content + member.descriptor

    head = text("data.pkl", pickle) + text(".format_version", b"1") + text(".storage_alignment", b"64")
    head += text("byteorder", b"little")
    tail = b""
    if nbytes is not None:
        data = add("data/0", nbytes, crc32)
        head, tail = head + data.header, data.descriptor
    tail += text("version", b"3\n")
    names = _NAMES_WITHOUT_DATA if nbytes is None else _NAMES_WITH_DATA
    tail += text(".data/serialization_id", b"%020d%020d" % (names, _combined([m.crc32 for m in members])))
    return head, tail + _directory(members)


def _combined(checksums: list[int]) -> int:
    seed = 0
    for value in checksums:
        seed ^= value + 0x9E3779B9 + (seed << 6 & _MAX_64) + (seed >> 2) & _MAX_64
    return seed


def _directory(members: list[_Member]) -> bytes:
    start, count = members[-1].end, len(members)
    entries = b"".join(member.entry for member in members)
    end = start + len(entries)
    zip64 = (b"PK\x06\x06", 44, 0x031E, 45, 0, 0, count, count, len(entries), start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    closing = (b"PK\x05\x06", 0, 0, count, count, len(entries), min(start, _MAX_32), 0)
    return entries + struct.pack("<4sQ2H2I4Q", *zip64) + locator + struct.pack("<4s4H2IH", *closing)
