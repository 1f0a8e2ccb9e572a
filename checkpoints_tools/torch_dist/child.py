"""The process that reads a foreign `.metadata`: within limits, it turns the pickle into lines of JSON.

`read.py` starts it. Lines: ["file", name], ["tensor", key, dtype, shape, chunks], ["item", key, file, record,
bytes] and last ["end"] or ["error", message]. A chunk is [*start, *shape, file, record, bytes, payload]; `file`
counts the file lines.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import stat
import sys
from collections.abc import Iterator
from typing import Any

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.torch_dist.record_read import locate_payload
from checkpoints_tools.torch_dist.unpickle import (
    DTYPES,
    RawBytes,
    RawChunk,
    RawKey,
    RawMetadata,
    RawPlace,
    RawProperties,
    RawTensor,
    load_metadata,
)
from checkpoints_tools.weight_map.names import parse_key

# Real files take some 9 bytes of memory for one of theirs.
MEMORY_BYTES = 256 << 20
MEMORY_PER_BYTE = 32
MAX_MEMORY_BYTES = 1536 << 20
CPU_SECONDS = 120
_MAX_METADATA = 256 << 20
_MAX_COUNT = 1 << 60
_MAX_AXES = 8
_MAX_OPEN = 64


def main(folder: str, strict: bool) -> None:
    """Write the index of a torch_dist folder to standard output; `strict` is `check_common`'s."""
    _limit(resource.RLIMIT_CPU, CPU_SECONDS)
    _limit(resource.RLIMIT_CORE, 0)
    gc.disable()  # nothing here makes cycles, and looking for them costs a third of the time
    try:
        with _Shards(folder) as shards:
            for row in _rows(folder, shards):
                print(json.dumps(row, separators=(",", ":")))
        _check_common(folder, strict)
        print('["end"]')
    except CheckpointError as error:
        print(json.dumps(["error", str(error)]))
    except MemoryError:
        print(
            json.dumps(
                ["error", f"{folder}: .metadata asks for more memory than any checkpoint needs: refused"]
            )
        )
    except OSError as error:
        print(json.dumps(["error", f"{folder} cannot be read: {error}"]))
    except Exception as error:  # stand-ins that a crafted pickle left half filled
        print(json.dumps(["error", f"{folder}: .metadata is malformed ({type(error).__name__})"]))
    sys.stdout.flush()
    os._exit(0)  # taking a large object tree apart is of no use


def _check_common(folder: str, strict: bool) -> None:
    path = os.path.join(folder, "common.pt")
    if os.path.isfile(path):
        from checkpoints_tools.torch_dist.common_read import check_common  # zipfile is slow to import

        check_common(path, strict=strict)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):  # not every system has every limit
        resource.setrlimit(kind, (value, hard))


class _Shards:
    """The folder's data files: numbers for their names, sizes, and a few open descriptors."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.numbers: dict[str, int] = {}
        self._sizes: list[int] = []
        self._open: dict[str, int] = {}

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: Any) -> None:
        self._close()

    def _close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def check(self, place: RawPlace, what: str) -> Iterator[list[Any]]:
        """Check that a record lies inside its file; gives the line of a file that is new."""
        name, start, nbytes = place.relative_path, place.offset, place.length
        if (
            type(name) is not str
            or not name.isprintable()
            or os.path.basename(name) != name
            or len(name) > 255
        ):
            raise CheckpointError(
                f"{what}: {_short(name)} is not the name of a file in the checkpoint's folder"
            )
        if name in (".", "..", ""):
            raise CheckpointError(f"{what}: {name!r} is not the name of a file")
        if not (_count(start) and _count(nbytes)):
            raise CheckpointError(f"{what}: malformed position in {name}")
        if place.transform_descriptors:
            raise CheckpointError(f"{what} is stored transformed, which is not read")
        if name not in self.numbers:
            self._sizes.append(self._size(name))
            self.numbers[name] = len(self.numbers)
            yield ["file", name]
        size = self._sizes[self.numbers[name]]
        if start + nbytes > size:
            raise CheckpointError(
                f"{os.path.join(self.folder, name)} is truncated: it has {size} bytes, {what} ends at byte "
                f"{start + nbytes}; copy the checkpoint again"
            )

    def _size(self, name: str) -> int:
        path = os.path.join(self.folder, name)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing; copy the checkpoint again, all its files") from None
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a regular file")
        return status.st_size

    def descriptor(self, name: str) -> int:
        """An open file."""
        if name not in self._open:
            if len(self._open) >= _MAX_OPEN:
                self._close()
            self._open[name] = os.open(os.path.join(self.folder, name), os.O_RDONLY)
        return self._open[name]


def _rows(folder: str, shards: _Shards) -> Iterator[list[Any]]:
    path = os.path.join(folder, ".metadata")
    metadata = load_metadata(_read(path), name=path)
    entries = metadata.state_dict_metadata
    if type(entries) is not dict:
        raise CheckpointError(f"{path} is malformed: it has no table of tensors")
    places = _places(metadata, path)
    for key, entry in entries.items():
        if type(key) is not str or not key.isprintable() or len(key) > 1000:
            raise CheckpointError(f"{path} is malformed: {_short(key)} is no key")
        if type(entry) is RawBytes:
            place = _place(places, key, None)
            yield from shards.check(place, key)
            yield ["item", key, shards.numbers[place.relative_path], place.offset, place.length]
        elif type(entry) is RawTensor:
            yield from _tensor(key, entry, places, shards)
        else:
            raise CheckpointError(f"{path} is malformed: {key} is neither a tensor nor an object")


def _tensor(key: str, entry: RawTensor, places: dict[Any, RawPlace], shards: _Shards) -> Iterator[list[Any]]:
    dtype = entry.properties.dtype if type(entry.properties) is RawProperties else None
    shape, chunks = entry.size, entry.chunks
    if (
        type(dtype) is not str
        or dtype not in DTYPES.values()
        or not _index(shape)
        or type(chunks) is not list
    ):
        raise CheckpointError(f".metadata is malformed: {key}")
    is_model = parse_key(key) is not None
    rows = []
    for chunk in chunks:
        if type(chunk) is not RawChunk or not (_index(chunk.offsets) and _index(chunk.sizes)):
            raise CheckpointError(f".metadata is malformed: a chunk of {key}")
        start, size = chunk.offsets, chunk.sizes
        if not len(start) == len(size) == len(shape):
            raise CheckpointError(f".metadata is malformed: a chunk of {key} has other axes than the tensor")
        place = _place(places, key, start)
        what = f"{key} at {start}"
        yield from shards.check(place, what)
        name, record, nbytes = place.relative_path, place.offset, place.length
        payload = -1
        if is_model:
            file = shards.descriptor(name)
            payload = locate_payload(
                file, record, nbytes, dtype=dtype, shape=size, name=f"{name}, byte {record}: {what}"
            )
        rows.append([*start, *size, shards.numbers[name], record, nbytes, payload])
    yield ["tensor", key, dtype, shape, rows]


def _places(metadata: RawMetadata, path: str) -> dict[tuple[str, tuple[int, ...] | None], RawPlace]:
    if type(metadata.storage_data) is not dict:
        raise CheckpointError(f"{path} is malformed: it does not say where the tensors lie")
    places: dict[tuple[str, tuple[int, ...] | None], RawPlace] = {}
    for key, place in metadata.storage_data.items():
        known = type(key) is RawKey and type(key.fqn) is str and type(place) is RawPlace
        if not known or not (key.offset is None or _index(key.offset)):
            raise CheckpointError(f"{path} is malformed: an entry of storage_data")
        if (key.fqn, key.offset) in places:
            raise CheckpointError(f"{path}: {_short(key.fqn)} at {key.offset} is stored twice")
        places[key.fqn, key.offset] = place
    return places


def _place(places: dict[Any, RawPlace], key: str, start: tuple[int, ...] | None) -> RawPlace:
    place = places.get((key, start))
    if place is None and start is not None and not any(start):
        place = places.get((key, None))
    if place is None:
        raise CheckpointError(f".metadata does not say where {key}{f' at {start}' if start else ''} lies")
    return place


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        folder = os.path.dirname(path)
        raise CheckpointError(f"{folder} is not a torch_dist checkpoint: it has no .metadata file") from None
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_METADATA:
            raise CheckpointError(f"{path} is no regular file of at most {_MAX_METADATA >> 20} MiB")
        _limit(resource.RLIMIT_AS, min(MEMORY_BYTES + MEMORY_PER_BYTE * status.st_size, MAX_MEMORY_BYTES))
        return stream.read()


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _index(value: Any) -> bool:
    return type(value) is tuple and len(value) <= _MAX_AXES and all(_count(n) for n in value)


def _short(value: Any) -> str:
    return repr(value)[:100] if type(value) is str else f"a {type(value).__name__}"
