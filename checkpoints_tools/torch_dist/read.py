"""Read what lies in a torch_dist folder, without trusting it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.torch_dist.index import ByteItem, Chunk, DistIndex, DistTensor

_PACKAGE_PARENT = Path(__file__).absolute().parents[2]
# The package's own place is appended, so that neither site-packages nor a current folder can shadow the
# standard library; -I -S also keep environment variables and .pth files out.
_CODE = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from checkpoints_tools.torch_dist.child import main; "
    "main(sys.argv[2], sys.argv[3] == 'strict')"
)
_MAX_OUTPUT = 512 << 20
_SILENCE_S = 300.0


def read_index(folder: Path, *, strict: bool = False, silence_s: float = _SILENCE_S) -> DistIndex:
    """The tensors and objects of a torch_dist folder, and where the model's elements lie.

    `.metadata` is a pickle, and so is part of every record: a child process with bounded memory and processor
    time reads them, through an allow-list. `silence_s`: seconds without an answer after which it is stopped.
    `strict`: torch will load `common.pt` afterwards, so it may not even name a training run's settings.
    Chunks of tensors that are not the model's (see `parse_key`) get payload -1.

    Raises:
        CheckpointError: The folder is no torch_dist checkpoint, a pickle in it is refused, or a file is missing,
            truncated or damaged.
    """
    index = DistIndex(folder)
    files: list[str] = []
    for row in _answers(folder, silence_s, strict=strict):
        match row:
            case ["file", str(name)]:
                files.append(name)
            case ["tensor", str(key), str(dtype), list(shape), list(chunks)]:
                index.tensors[key] = DistTensor(key, dtype, tuple(shape), _chunks(chunks, len(shape), files))
            case ["item", str(key), int(file), int(record), int(nbytes)]:
                index.items[key] = ByteItem(key, files[file], record, nbytes)
    _check_apart(index)
    return index


def _check_apart(index: DistIndex) -> None:
    """Raise CheckpointError where two tensors or objects claim the same bytes: each record holds one."""
    places: dict[str, list[tuple[int, int]]] = {}
    for _, part in _parts(index):
        places.setdefault(part.file, []).append((part.record, part.record + part.record_bytes))
    for file, ranges in places.items():
        ranges.sort()
        for (_, end), (start, _) in pairwise(ranges):
            if start < end:
                keys = [
                    key
                    for key, part in _parts(index)
                    if part.file == file and part.record <= start < part.record + part.record_bytes
                ]
                raise CheckpointError(
                    f"{index.folder / file}: byte {start} belongs to more than one record, of "
                    f"{' and '.join(keys[:2])}; copy the checkpoint again, or take another"
                )


def _parts(index: DistIndex) -> Iterator[tuple[str, Chunk | ByteItem]]:
    for tensor in index.tensors.values():
        yield from ((f"{tensor.key} at {chunk.start}", chunk) for chunk in tensor.chunks)
    yield from index.items.items()


def _chunks(rows: list[list[int]], axes: int, files: list[str]) -> tuple[Chunk, ...]:
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}  # most chunks have one shape: keep it once
    chunks = []
    for row in rows:
        shape = tuple(row[axes : 2 * axes])
        file, record, nbytes, payload = row[2 * axes :]
        shape = shapes.setdefault(shape, shape)
        chunks.append(Chunk(tuple(row[:axes]), shape, files[file], record, nbytes, payload))
    return tuple(chunks)


def _answers(folder: Path, silence_s: float, *, strict: bool) -> Iterator[list[Any]]:
    """The child's lines but the last; its error message becomes a CheckpointError."""
    command = [sys.executable, "-I", "-S", "-c", _CODE, os.fspath(_PACKAGE_PARENT), os.fspath(folder)]
    command.append("strict" if strict else "lenient")
    with tempfile.TemporaryFile() as trouble:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=trouble, bufsize=0
        ) as child:
            try:
                for line in _lines(child, folder, silence_s):
                    row = json.loads(line)
                    if row[0] == "error":
                        raise CheckpointError(row[1])
                    if row[0] == "end":
                        return
                    yield row
            finally:
                child.kill()
        trouble.seek(0)
        raise _death(folder, child.returncode, trouble.read()[-2000:].decode(errors="replace"))


def _lines(child: subprocess.Popen[bytes], folder: Path, silence_s: float) -> Iterator[bytes]:
    assert child.stdout is not None
    descriptor = child.stdout.fileno()
    rest, total, deadline = bytearray(), 0, time.monotonic() + silence_s
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise CheckpointError(
                    f"{folder}: reading .metadata took more than {silence_s:.0f} s: refused"
                )
            data = os.read(descriptor, 1 << 16)
            if not data:
                child.wait()
                return
            total += len(data)
            if total > _MAX_OUTPUT:
                raise CheckpointError(
                    f"{folder}: .metadata describes more than any checkpoint holds: refused"
                )
            deadline = time.monotonic() + silence_s
            rest += data
            *lines, tail = bytes(rest).split(b"\n") if b"\n" in data else (rest,)
            rest = bytearray(tail)
            yield from lines


def _death(folder: Path, code: int, trouble: str) -> CheckpointError:
    what = (
        "used more processor time"
        if code == -signal.SIGXCPU
        else "ended without an answer, or used more memory"
    )
    last = trouble.strip().splitlines()[-1:] or [f"exit status {code}"]
    return CheckpointError(
        f"{folder}: reading .metadata {what} than any checkpoint needs: refused ({last[0]})"
    )
