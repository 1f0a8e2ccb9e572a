"""What happened to a tensor that differs: proved, not guessed, by reading it once more in bounded memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np

from checkpoints_tools.copying.reading import read_rows
from checkpoints_tools.layout import StoredModel
from checkpoints_tools.proof.compare import Difference
from checkpoints_tools.proof.digest import TensorDigest

_LAYER = re.compile(r"model\.layers\.\d+\.")
_ZEROS = bytes(1 << 20)

Digests = Mapping[str, TensorDigest]


@dataclass(frozen=True, slots=True)
class _Scan:
    """How two tensors of one shape differ. `first` is (row, column); rows `top` to `end` - 1 are affected."""

    elements: int
    differing: int
    first: tuple[int, int]
    top: int
    end: int
    reordered: bool


def explain(
    a: StoredModel,
    b: StoredModel | None,
    a_digests: Digests,
    b_digests: Digests,
    differences: Sequence[Difference],
    *,
    limit: int = 8,
) -> dict[str, str]:
    """Notes by tensor name for differences of kind `bytes`; a tensor may have none.

    What the digests alone prove is said of every tensor. The first `limit` others are read again, which needs
    both models (`b` None: one side is a manifest).
    """
    names = [d.name for d in differences if d.kind == "bytes"]
    notes = {name: note for name in names if (note := _by_digest(name, names, a_digests, b_digests))}
    if b is not None:
        for name in islice((n for n in names if n not in notes), limit):
            partners = [n for n in names if n != name and _siblings(n, name, a_digests)]
            notes[name] = _by_reading(_Reader(a, b, a_digests[name].dtype), name, partners)
    return notes


def _by_digest(name: str, names: Sequence[str], a: Digests, b: Digests) -> str:
    zeros = _digest_of_zeros(a[name].nbytes)
    if zeros in (a[name].sha256, b[name].sha256):
        return f"all zero in {'A' if a[name].sha256 == zeros else 'B'}"
    exchanged = [n for n in names if n != name and a[n] == b[name] and b[n] == a[name]]
    if len(exchanged) == 1:
        return f"exchanged with {_short(exchanged[0], name)}"
    origins = [n for n in a if n != name and a[n] == b[name]]
    return f"B holds what A has as {origins[0]}" if len(origins) == 1 else ""


def _siblings(x: str, y: str, digests: Digests) -> bool:
    layers = _LAYER.match(x), _LAYER.match(y)
    same_layer = all(layers) and len({m[0] for m in layers if m}) == 1
    return same_layer and (digests[x].dtype, digests[x].shape) == (digests[y].dtype, digests[y].shape)


def _short(name: str, beside: str) -> str:
    """The name without the layer that both lie in."""
    layer = _LAYER.match(beside)
    return name.removeprefix(layer[0]) if layer else name


@lru_cache(maxsize=64)  # the tensors of a model have few sizes
def _digest_of_zeros(nbytes: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, nbytes, len(_ZEROS)):
        digest.update(_ZEROS[: nbytes - start])
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Reader:
    a: StoredModel
    b: StoredModel
    dtype: str

    def bands(self, *names: str) -> Iterator[tuple[int, list[np.ndarray]]]:
        """First row, and the same rows of each tensor: of A, then of B, for each name."""
        tensors = [model.tensors[name] for name in names for model in (self.a, self.b)]
        row = 0
        for parts in zip(*(read_rows(tensor, self.dtype) for tensor in tensors), strict=True):
            yield row, list(parts)
            row += len(parts[0])


def _by_reading(reader: _Reader, name: str, partners: Sequence[str]) -> str:
    scan = _scan(reader, name)
    axis = "rows" if len(reader.a.tensors[name].shape) > 1 else "elements"
    span = f"{axis} {scan.top} to {scan.end - 1}" if scan.end - scan.top > 1 else f"{axis[:-1]} {scan.top}"
    partner = next((n for n in partners if _exchanged(reader, name, n)), None)
    if partner is not None:
        return f"{span} exchanged with {_short(partner, name)}"
    if scan.reordered:
        return f"the same {axis} in another order, {span}"
    at = list(scan.first) if axis == "rows" else [scan.first[0]]
    return f"{scan.differing:,} of {scan.elements:,} elements differ, the first at {at}, {span}"


def _scan(reader: _Reader, name: str) -> _Scan:
    elements = differing = end = 0
    first: tuple[int, int] | None = None
    rows: tuple[list[bytes], list[bytes]] = ([], [])
    for row, (a, b) in reader.bands(name):
        unequal = a != b
        elements += a.size
        differing += int(np.count_nonzero(unequal))
        affected = np.flatnonzero(unequal.any(axis=1))
        if len(affected):
            first = first or (row + int(affected[0]), int(unequal[affected[0]].argmax()))
            end = row + int(affected[-1]) + 1
        for kept, part in zip(rows, (a, b), strict=True):
            kept.extend(hashlib.blake2b(part[i].data, digest_size=16).digest() for i in affected)
    return _Scan(elements, differing, first or (0, 0), first[0] if first else 0, end,
                 sorted(rows[0]) == sorted(rows[1]))  # fmt: skip


def _exchanged(reader: _Reader, x: str, y: str) -> bool:
    """Whether the rows in which x differs are in B what y has there in A, and the other way round."""
    for _, (xa, xb, ya, yb) in reader.bands(x, y):
        affected = (xa != xb).any(axis=1)
        if not np.array_equal(affected, (ya != yb).any(axis=1)):
            return False
        if not np.array_equal(xa[affected], yb[affected]) or not np.array_equal(ya[affected], xb[affected]):
            return False
    return True
