"""A chunk's record: torch.save's archive, whole or damaged, of any size."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.examples import repeatable

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.torch_dist.record_read import locate_payload

DTYPES = {
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F16": torch.float16,
    "F64": torch.float64,
    "I64": torch.int64,
}


def saved(tensor: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


def locate(
    folder: Path, record: bytes, *, dtype: str = "F32", shape: tuple[int, ...] = (2, 3), at: int = 7
) -> int:
    file = folder / "shard"
    file.write_bytes(b"\xff" * at + record + b"\xff" * 9)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return locate_payload(descriptor, at, len(record), dtype=dtype, shape=shape, name="NAME")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (1, 4, 3), (700, 9), (1, 1, 1), (0, 3)])
def test_elements_lie_where_it_says(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(-99, 99, shape).to(DTYPES[dtype])
    start = locate(tmp_path, saved(tensor), dtype=dtype, shape=shape)
    data = (tmp_path / "shard").read_bytes()[start : start + tensor.nbytes]
    assert data == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_the_axis_of_layers_may_be_absent(tmp_path: Path) -> None:
    assert locate(tmp_path, saved(torch.zeros(2, 3)), shape=(1, 2, 3)) > 0


def rezipped(change: Callable[[str, bytes], bytes | None], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """torch's record of ones(2, 3), its files changed or (None) left out, as Python's zipfile writes it."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(torch.ones(2, 3)))) as old,
        zipfile.ZipFile(out, "w", method) as new,
    ):
        for name in old.namelist():
            data = change(name.partition("/")[2], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return out.getvalue()


def with_pickle(data: bytes) -> bytes:
    return rezipped(lambda name, old: data if name == "data.pkl" else old)


def test_an_archive_of_another_writer_is_read(tmp_path: Path) -> None:
    start = locate(tmp_path, rezipped(lambda _, data: data))
    assert np.fromfile(tmp_path / "shard", np.float32, 6, offset=start).tolist() == [1.0] * 6


class Touch:
    """Unpickles into a shell command that leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def test_a_command_in_a_record_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(CheckpointError, match=r"NAME: a pickle asks for posix\.system"):
        locate(tmp_path, with_pickle(pickle.dumps(Touch(trace), protocol=2)))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("tensor", "fault"),
    [
        (torch.ones(2, 4), "holds F32 of shape \\(2, 4\\), .metadata says F32 \\(2, 3\\)"),
        (torch.ones(3, 2), "holds F32 of shape"),
        (torch.ones(2, 3).double(), "holds F64"),
        (torch.ones(3, 2).t(), "is a view"),
        (torch.ones(8)[2:].view(2, 3), "is a view"),
        (torch.ones(8)[:6].view(2, 3), "is a view"),
        (torch.ones(1, 3).expand(2, 3), "is a view"),
        ([torch.ones(2, 3)], "does not hold a tensor"),
        (torch.nn.Parameter(torch.ones(2, 3)), "_rebuild_parameter, which no checkpoint needs"),
        (torch.ones(2, 3).to_sparse(), "which no checkpoint needs"),
        (None, "does not hold a tensor"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, tensor: Any, fault: str) -> None:
    with pytest.raises(CheckpointError, match=f"NAME.*{fault}"):
        locate(tmp_path, saved(tensor))


def test_damaged_archives(tmp_path: Path) -> None:
    good = saved(torch.ones(2, 3))
    cases = {
        "no zip directory": [b"", b"x" * 10, good[:-1], good + b"x", b"PK" * 4000],
        "has no 'data/0'": [rezipped(lambda name, data: None if name == "data/0" else data)],
        "has no 'data.pkl'": [rezipped(lambda name, data: None if name == "data.pkl" else data)],
        "it has 23 bytes of elements": [rezipped(lambda name, data: data[:23] if name == "data/0" else data)],
        "is compressed": [rezipped(lambda _, data: data, method=zipfile.ZIP_DEFLATED)],
        "only little endian": [rezipped(lambda name, data: b"big" if name == "byteorder" else data)],
        "does not lie inside": [
            rezipped(lambda name, data: data + b"." * 70_000 if name == "data.pkl" else data)
        ],
        "not a readable pickle": [with_pickle(b"\x80\x02N"), with_pickle(b"\x80\x02K\x01r\x00\x00\x00\xff.")],
    }
    for fault, records in cases.items():
        for record in records:
            with pytest.raises(CheckpointError, match=f"NAME.*({fault}|too short)"):
                locate(tmp_path, record)


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    out = io.BytesIO(saved(torch.ones(2, 3)))
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", b"\0" * 24)
    with pytest.raises(CheckpointError, match="'data/0' is there twice"):
        locate(tmp_path, out.getvalue())


@repeatable(300)
@given(data=st.data())
def test_any_changed_byte_is_an_error_or_leaves_the_elements_inside(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    record = bytearray(saved(torch.ones(2, 3)))
    for _ in range(data.draw(st.integers(1, 4))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    try:
        start = locate(tmp_path_factory.getbasetemp(), bytes(record), at=0)
    except CheckpointError as error:
        assert str(error).startswith("NAME")
    else:
        assert 0 <= start <= len(record) - 24


def wide_entry(name: str, size: int, header: int | None) -> bytes:
    """A local header, or with `header` (its position) a directory entry, whose numbers stand in zip64 fields.

    Source: PKWARE APPNOTE 6.3, 4.3.7, 4.3.12 and 4.5.3.
    """
    full, code = 0xFFFFFFFF, name.encode()
    if header is None:
        extra = struct.pack("<2H2Q", 1, 16, size, size)
        head = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, full, full, len(code), len(extra))
    else:
        extra = struct.pack("<2H3Q", 1, 24, size, size, header)
        counts = (full, full, len(code), len(extra), 0, 0, 0, 0, full)
        head = struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, *counts)
    return head + code + extra


def wide_end(first: int, end: int, entries: int) -> bytes:
    """The end of a directory that takes bytes [first, end). Source: PKWARE APPNOTE 6.3, 4.3.14 to 4.3.16."""
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, end - first, first)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    full = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return record + locator + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *full)


def write_wide_record(file: Path, rows: int, columns: int) -> int:
    """A sparse record of a float32 tensor of zeros but for its first element 1.5 and last 2.5; its payload."""
    pickled = zipfile.ZipFile(io.BytesIO(saved(torch.ones(2, 3)))).read("archive/data.pkl")
    wide, narrow = struct.pack("<i", rows), struct.pack("<H", columns)
    pickled = pickled.replace(b"K\x06", b"J" + struct.pack("<i", rows * columns))
    pickled = pickled.replace(b"K\x02K\x03\x86", b"J" + wide + b"M" + narrow + b"\x86")
    pickled = pickled.replace(b"K\x03K\x01\x86", b"M" + narrow + b"K\x01\x86")
    nbytes = rows * columns * 4
    with open(file, "wb") as stream:
        stream.write(wide_entry("archive/data/0", nbytes, None))
        payload = stream.tell()
        stream.write(np.float32([1.5]).tobytes())
        stream.seek(payload + nbytes - 4)
        stream.write(np.float32([2.5]).tobytes())
        second = stream.tell()  # beyond 4 GiB too
        stream.write(wide_entry("archive/data.pkl", len(pickled), None) + pickled)
        first = stream.tell()
        stream.write(wide_entry("archive/data/0", nbytes, 0))
        stream.write(wide_entry("archive/data.pkl", len(pickled), second))
        stream.write(wide_end(first, stream.tell(), 2))
    return payload


def test_a_record_of_more_than_four_gibibytes(tmp_path: Path) -> None:
    shape, file = (1_100_000, 1024), tmp_path / "shard"
    payload = write_wide_record(file, *shape)
    with zipfile.ZipFile(file) as archive:  # Python reads the same archive
        assert archive.getinfo("archive/data/0").file_size > 1 << 32
        assert archive.getinfo("archive/data.pkl").header_offset > 1 << 32
    descriptor, size = os.open(file, os.O_RDONLY), file.stat().st_size
    try:
        assert locate_payload(descriptor, 0, size, dtype="F32", shape=shape, name="x") == payload
        with pytest.raises(CheckpointError):
            locate_payload(descriptor, 0, size - 1, dtype="F32", shape=shape, name="x")
    finally:
        os.close(descriptor)
    values = np.memmap(file, np.float32, "r", payload, shape)
    assert (values[0, 0], values[-1, -1]) == (1.5, 2.5)
