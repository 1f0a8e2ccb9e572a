"""Matrices on disk in any tiling, for tests of the copier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from checkpoints_tools.copying.jobs import Job, Pair
from checkpoints_tools.layout import Extent, TensorLayout
from checkpoints_tools.safetensors_file import ITEM_BYTES

Box = tuple[int, int, int, int]  # row, column, rows, columns


class Shelf:
    """Places extents one after the other in the files of a folder, with a gap before some of them."""

    def __init__(self, folder: Path, files: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ends = {folder / f"file_{n}": 0 for n in range(files)}

    def place(
        self, name: str, dtype: str, shape: tuple[int, ...], boxes: Sequence[Box], *, gap: int = 0
    ) -> TensorLayout:
        extents = []
        for number, (row, column, rows, columns) in enumerate(boxes):
            file = list(self.ends)[number % len(self.ends)]
            offset = self.ends[file] + gap
            extents.append(Extent(file, offset, row, column, rows, columns))
            self.ends[file] = offset + rows * columns * ITEM_BYTES[dtype]
        return TensorLayout(name, dtype, shape, tuple(extents))


def elements(layout: TensorLayout, seed: int) -> np.ndarray:
    """Random bits for a tensor, as a matrix of unsigned integers."""
    kind = f"<u{ITEM_BYTES[layout.dtype]}"
    rows, columns = layout.matrix
    data = np.random.default_rng(seed).bytes(layout.nbytes)
    return np.frombuffer(data, kind).reshape(rows, columns)


def store(layout: TensorLayout, matrix: np.ndarray) -> None:
    """Write a tensor's extents the plain way."""
    for e in layout.extents:
        e.file.touch()
        with open(e.file, "r+b") as stream:
            stream.seek(e.offset)
            stream.write(matrix[e.row : e.row + e.rows, e.column : e.column + e.columns].tobytes())


def load(layout: TensorLayout) -> np.ndarray:
    """Read a tensor back the plain way."""
    kind = np.dtype(f"<u{ITEM_BYTES[layout.dtype]}")
    matrix = np.zeros(layout.matrix, kind)
    for e in layout.extents:
        with open(e.file, "rb") as stream:
            stream.seek(e.offset)
            data = np.frombuffer(stream.read(e.rows * e.columns * kind.itemsize), kind)
        matrix[e.row : e.row + e.rows, e.column : e.column + e.columns] = data.reshape(e.rows, e.columns)
    return matrix


def columns_of(rows: int, columns: int, count: int) -> list[Box]:
    """A matrix cut into `count` equal blocks of columns, as tensor parallelism stores its row-parallel weights."""
    width = columns // count
    return [(0, n * width, rows, width) for n in range(count)]


def simple_jobs(source: Path, target: Path, *, jobs: int, rows: int = 64, columns: int = 512) -> list[Job]:
    """Jobs of one bfloat16 matrix each, stored in `source` as two blocks of columns and copied to one file."""
    if not (made := source.exists()):
        source.mkdir(parents=True)
    shelf, destination = Shelf(source, 2), Shelf(target, 1)
    result = []
    for n in range(jobs):
        layout = shelf.place(f"t{n}", "BF16", (rows, columns), columns_of(rows, columns, 2))
        if not made:
            store(layout, elements(layout, n))
        whole = destination.place(f"t{n}", "BF16", (rows, columns), [(0, 0, rows, columns)], gap=8)
        result.append(Job(f"t{n}", (Pair(layout, whole),)))
    return result
