"""Any tiling to any other: the same elements, checksums and digests that say so, few reads."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.copies import Box, Shelf, columns_of, elements, load, store

from checkpoints_tools.copying.crc import combine_crc32
from checkpoints_tools.copying.jobs import Done, Job, Pair
from checkpoints_tools.copying.run import run_jobs
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.layout import Extent, TensorLayout


@st.composite
def tilings(draw: st.DrawFn, rows: int, columns: int) -> list[Box]:
    """A matrix cut in two again and again, by rows or by columns, in any order."""
    boxes = [(0, 0, rows, columns)]
    for _ in range(draw(st.integers(0, 6))):
        row, column, height, width = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        if draw(st.booleans()):
            cut = draw(st.integers(0, height))
            halves = [(row, column, cut, width), (row + cut, column, height - cut, width)]
        else:
            cut = draw(st.integers(0, width))
            halves = [(row, column, height, cut), (row, column + cut, height, width - cut)]
        boxes += [box for box in halves if box[2] and box[3]]
    return draw(st.permutations(boxes))


def range_crcs(done: list[Done]) -> list[tuple[int, int]]:
    """Each range's checksum as told and as it is."""
    ranges = [r for one in done for r in one.ranges]
    return [(r.crc32, zlib.crc32(r.file.read_bytes()[r.offset : r.offset + r.nbytes])) for r in ranges]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_every_tiling_becomes_every_other(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tilings")
    small = st.integers(1, 40)
    sources, targets = Shelf(folder / "a", data.draw(st.integers(1, 3))), Shelf(folder / "b", 2)
    pairs, matrices = [], {}
    for number in range(data.draw(st.integers(1, 3))):
        dtype = data.draw(st.sampled_from(["BF16", "F32", "U8"]))
        shape = (data.draw(small), data.draw(small)) if data.draw(st.booleans()) else (data.draw(small),)
        rows, columns = shape[0], shape[1] if len(shape) == 2 else 1
        cuts = [data.draw(tilings(rows, columns)) for _ in range(2)]
        source = sources.place(f"t{number}", dtype, shape, cuts[0], gap=data.draw(st.integers(0, 3)))
        target = targets.place(f"t{number}", dtype, shape, cuts[1], gap=data.draw(st.integers(0, 3)))
        matrices[f"t{number}"] = elements(source, number)
        store(source, matrices[f"t{number}"])
        pairs.append(Pair(source, target))
    digests = data.draw(st.booleans())
    seen: list[int] = []
    done = run_jobs(
        [Job("job", tuple(pairs))],
        threads=2,
        digests=digests,
        on_bytes=seen.append,
        block=data.draw(st.integers(8, 400)),
    )
    for pair in pairs:
        assert pair.destination is not None
        assert np.array_equal(load(pair.destination), matrices[pair.source.name])
    assert all(told == real for told, real in range_crcs(done))
    assert sum(r.nbytes for r in done[0].ranges) == sum(seen) == sum(pair.nbytes for pair in pairs)
    expected = {name: hashlib.sha256(matrix.tobytes()).hexdigest() for name, matrix in matrices.items()}
    assert done[0].digests == (expected if digests else {})


@settings(max_examples=50, deadline=None)
@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_checksums_of_neighbours_combine(first: bytes, second: bytes) -> None:
    combined = combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second))
    assert combined == zlib.crc32(first + second)


def test_checksums_combine_over_gigabytes() -> None:
    zeros, crc = bytes(1 << 24), zlib.crc32(b"head")
    for _ in range(64):
        crc = zlib.crc32(zeros, crc)
    tail = 0
    for _ in range(64):
        tail = zlib.crc32(zeros, tail)
    assert combine_crc32(zlib.crc32(b"head"), tail, 1 << 30) == crc


def test_a_job_shared_by_threads_has_one_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("checkpoints_tools.copying.run._PART_BYTES", 5000)
    shape = (300, 100)
    source = Shelf(tmp_path / "a", 4).place("w", "BF16", shape, columns_of(*shape, 4))
    matrix = elements(source, 0)
    store(source, matrix)
    target = Shelf(tmp_path / "b", 1).place("w", "BF16", shape, [(0, 0, *shape)], gap=64)
    done = run_jobs([Job("w", (Pair(source, target),))], threads=4, digests=False)
    assert np.array_equal(load(target), matrix)
    assert [(r.offset, r.nbytes, r.crc32) for r in done[0].ranges] == [
        (64, 60000, zlib.crc32(matrix.tobytes()))
    ]


@pytest.mark.parametrize("reverse", [False, True])
def test_column_shards_take_no_read_or_write_per_row(
    reverse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (4096, 64)
    shards = Shelf(tmp_path / "a", 4).place("w", "BF16", shape, columns_of(*shape, 4))
    whole = Shelf(tmp_path / "b", 1).place("w", "BF16", shape, [(0, 0, *shape)])
    source, target = (whole, shards) if reverse else (shards, whole)
    matrix = elements(source, 3)
    store(source, matrix)
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        real = getattr(os, name)

        def counted(*args: object) -> object:
            calls[name] += 1
            return real(*args)

        monkeypatch.setattr(os, name, counted)

    count("preadv")
    count("pwrite")
    run_jobs([Job("w", (Pair(source, target),))], threads=2, digests=True, block=1 << 16)
    assert np.array_equal(load(target), matrix)
    tiles = source.nbytes // (1 << 16)
    assert calls == {"preadv": tiles * len(source.extents), "pwrite": tiles * len(target.extents)}


def test_without_a_destination_rows_are_hashed_and_nothing_is_written(tmp_path: Path) -> None:
    shape = (50, 60)
    boxes = [(25, 0, 25, 30), (0, 30, 50, 30), (0, 0, 25, 30)]
    source = Shelf(tmp_path / "a", 2).place("w", "F32", shape, boxes)
    matrix = elements(source, 1)
    store(source, matrix)
    before = {file: file.read_bytes() for file in tmp_path.rglob("file_*")}
    done = run_jobs([Job("w", (Pair(source, None),))], threads=3, digests=True, block=1000)
    assert done == [Done("w", (), {"w": hashlib.sha256(matrix.tobytes()).hexdigest()})]
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("file_*")}


def test_query_key_value_of_a_group_are_written_in_one_go(tmp_path: Path) -> None:
    """Two groups of 3 queries, a key and a value: the heads alternate in the file, the digests do not."""
    source, file = Shelf(tmp_path / "a", 1), tmp_path / "chunk"
    pairs = []
    for name, heads, first in (("q", 3, 0), ("k", 1, 3), ("v", 1, 4)):
        layout = source.place(name, "BF16", (2 * heads, 8), [(0, 0, 2 * heads, 8)])
        store(layout, elements(layout, heads))
        extents = tuple(Extent(file, 100 + (g * 5 + first) * 16, g * heads, 0, heads, 8) for g in range(2))
        pairs.append(Pair(layout, TensorLayout(name, "BF16", layout.shape, extents)))
    (done,) = run_jobs([Job("qkv", tuple(pairs))], threads=1, digests=True)
    assert [(r.offset, r.nbytes, r.crc32) for r in done.ranges] == [
        (100, 160, zlib.crc32(file.read_bytes()[100:]))
    ]
    for pair in pairs:
        assert pair.destination is not None
        assert done.digests[pair.source.name] == hashlib.sha256(load(pair.source).tobytes()).hexdigest()
        assert np.array_equal(load(pair.destination), load(pair.source))


def test_layouts_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = Shelf(tmp_path / "a", 1).place("w", "BF16", (4, 4), [(0, 0, 4, 4)])
    store(source, elements(source, 0))
    file = tmp_path / "out"
    for extents, text in (
        ((Extent(file, 0, 0, 0, 4, 3),), "hole or overlap"),
        ((Extent(file, 0, 0, 1, 4, 4),), "outside its shape"),
    ):
        target = TensorLayout("w", "BF16", (4, 4), extents)
        with pytest.raises(CheckpointError, match=text):
            run_jobs([Job("w", (Pair(source, target),))], threads=1, digests=False)
    target = TensorLayout("w", "BF16", (2, 8), (Extent(file, 0, 0, 0, 2, 8),))
    with pytest.raises(CheckpointError, match="has shape"):
        run_jobs([Job("w", (Pair(source, target),))], threads=1, digests=False)
    hole = TensorLayout("w", "BF16", (4, 4), (source.extents[0],) * 0)
    with pytest.raises(CheckpointError, match="hole"):
        run_jobs([Job("w", (Pair(hole, None),))], threads=1, digests=True)
    assert not file.exists()
