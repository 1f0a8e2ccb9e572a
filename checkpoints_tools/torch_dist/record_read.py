"""Where a chunk's elements lie inside its record: the zip archive that torch.save wrote.

A record ends with the zip directory's end record; `data.pkl` says what the tensor is, `data/0` is its bytes,
stored uncompressed. Sources: PKWARE APPNOTE 6.3; torch caffe2/serialize/inline_container.h.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from math import prod

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.safetensors_file import ITEM_BYTES
from checkpoints_tools.torch_dist.unpickle import load_record

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_DIRECTORY = 1 << 16
_MAX_PICKLE = 1 << 16
_WINDOW = 2048  # torch's directory and first headers take some 800 bytes at either end


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of the archive; `header` is the position of its local header in the record."""

    method: int
    nbytes: int
    stored_bytes: int
    header: int


class _Record:
    """Bytes [start, start + nbytes) of an open file, both ends of which are read at once."""

    def __init__(self, descriptor: int, start: int, nbytes: int, name: str) -> None:
        self.descriptor, self.start, self.nbytes, self.name = descriptor, start, nbytes, name
        self._head = os.pread(descriptor, min(_WINDOW, nbytes), start)
        self._tail_at = max(0, nbytes - _WINDOW)
        self._tail = os.pread(descriptor, nbytes - self._tail_at, start + self._tail_at)

    def read(self, at: int, count: int) -> bytes:
        if at < 0 or at + count > self.nbytes:
            raise self.damaged(f"it points outside, to byte {at}")
        if at + count <= len(self._head):
            return self._head[at : at + count]
        if at >= self._tail_at:
            data = self._tail[at - self._tail_at : at - self._tail_at + count]
        else:
            data = os.pread(self.descriptor, count, self.start + at)
        if len(data) != count:
            raise self.damaged("the file ends early")
        return data

    def damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.name} is damaged or no torch.save record: {why}")


def locate_payload(
    descriptor: int, start: int, nbytes: int, *, dtype: str, shape: tuple[int, ...], name: str
) -> int:
    """Position in the file of the elements of the chunk whose record is bytes [start, start + nbytes).

    `dtype` is safetensors' name. Nothing of the record's pickle is run.

    Raises:
        CheckpointError: The record is damaged, compressed, big endian, or holds another tensor than this one;
            the message begins with `name`.
    """
    record = _Record(descriptor, start, nbytes, name)
    members, directory = _members(record)
    pickle = _stored(record, members, "data.pkl", directory, limit=_MAX_PICKLE)
    tensor = load_record(record.read(*pickle), name=name)
    if tensor.dtype != dtype or _significant(tensor.size) != _significant(shape):
        raise CheckpointError(
            f"{name} holds {tensor.dtype} of shape {tensor.size}, .metadata says {dtype} {shape}"
        )
    if "byteorder" in members:
        order = record.read(*_stored(record, members, "byteorder", directory, limit=16))
        if order != b"little":
            raise CheckpointError(f"{name} is stored in byte order {order!r}; only little endian is read")
    payload, size = _stored(record, members, f"data/{tensor.key}", directory, limit=nbytes)
    if size != prod(shape) * ITEM_BYTES[dtype]:
        raise record.damaged(f"it has {size} bytes of elements, not {prod(shape) * ITEM_BYTES[dtype]}")
    return start + payload


def _significant(shape: tuple[int, ...]) -> tuple[int, ...]:
    # Megatron stores a layer's chunk with or without the leading axis of layers.
    return tuple(n for n in shape if n != 1)


def _stored(
    record: _Record, members: dict[str, _Member], name: str, directory: int, *, limit: int
) -> tuple[int, int]:
    """(position, size) of an uncompressed member's bytes in the record."""
    member = members.get(name)
    if member is None:
        raise record.damaged(f"it has no {name!r}")
    if member.method != 0 or member.nbytes != member.stored_bytes:
        raise CheckpointError(f"{record.name} is compressed, which Megatron does not write")
    magic, *_, name_bytes, extra_bytes = _LOCAL.unpack(record.read(member.header, _LOCAL.size))
    at = member.header + _LOCAL.size + name_bytes + extra_bytes
    if magic != b"PK\x03\x04" or at + member.nbytes > directory or member.nbytes > limit:
        raise record.damaged(f"{name!r} does not lie inside it")
    return at, member.nbytes


def _members(record: _Record) -> tuple[dict[str, _Member], int]:
    """The archive's files by name below its root folder, and the position of the directory."""
    at, nbytes, count = _directory(record)
    if nbytes > _MAX_DIRECTORY or at + nbytes > record.nbytes:
        raise record.damaged("its directory is too large")
    data = record.read(at, nbytes)
    members: dict[str, _Member] = {}
    where = 0
    for _ in range(count):
        if where + _ENTRY.size > nbytes:
            raise record.damaged("its directory is cut")
        fields = _ENTRY.unpack_from(data, where)
        magic, flags, method, packed, size, header = (fields[i] for i in (0, 3, 4, 8, 9, 16))
        name_bytes, extra_bytes, comment_bytes = fields[10:13]
        names = where + _ENTRY.size
        extra = data[names + name_bytes : names + name_bytes + extra_bytes]
        where = names + name_bytes + extra_bytes + comment_bytes
        if magic != b"PK\x01\x02" or flags & 1 or where > nbytes:
            raise record.damaged("its directory is malformed")
        size, packed, header = _widened(record, extra, size, packed, header)
        name = data[names : names + name_bytes].decode("utf-8", "replace").partition("/")[2]
        if name in members:
            raise record.damaged(f"{name!r} is there twice")
        members[name] = _Member(method, size, packed, header)
    return members, at


def _directory(record: _Record) -> tuple[int, int, int]:
    """(position, bytes, entries) of the directory, from the end record or its 64-bit form."""
    if record.nbytes < _END.size:
        raise record.damaged("it is too short")
    end = record.nbytes - _END.size
    magic, disk, _, _, count, nbytes, at, comment = _END.unpack(record.read(end, _END.size))
    if magic != b"PK\x05\x06" or disk or comment:
        raise record.damaged("it has no zip directory at its end")
    if end >= _LOCATOR64.size:
        magic, disk, where, _ = _LOCATOR64.unpack(record.read(end - _LOCATOR64.size, _LOCATOR64.size))
        if magic == b"PK\x06\x07" and disk == 0:
            fields = _END64.unpack(record.read(where, _END64.size))
            if fields[0] != b"PK\x06\x06":
                raise record.damaged("its 64-bit directory end is not where it should be")
            count, nbytes, at = fields[7:10]
    return at, nbytes, count


def _widened(record: _Record, extra: bytes, *values: int) -> list[int]:
    """Sizes and position of an entry: those of 0xFFFFFFFF stand, in this order, in its zip64 extra field."""
    wide = b""
    while len(extra) >= 4:
        kind, nbytes = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = extra[4 : 4 + nbytes]
        extra = extra[4 + nbytes :]
    result = []
    for value in values:
        if value == 0xFFFFFFFF:
            if len(wide) < 8:
                raise record.damaged("a 64-bit size is missing")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        result.append(value)
    return result
