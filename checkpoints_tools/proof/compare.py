"""Where two models differ, by the digests of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from checkpoints_tools.proof.digest import TensorDigest

Kind = Literal["missing", "extra", "dtype", "shape", "bytes"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor in which two models differ.

    `missing`: the first model has it, the second does not (or neither has, and the architecture needs it);
    `extra`: only the second has it. `dtype`, `shape`, `bytes`: the first of these in which they differ.
    """

    kind: Kind
    name: str
    a: TensorDigest | None
    b: TensorDigest | None


def compare(a: Mapping[str, TensorDigest], b: Mapping[str, TensorDigest]) -> list[Difference]:
    """All tensors in which two models differ: those of `a` in its order, then what only `b` has."""
    differences = []
    for name, tensor in a.items():
        kind = _kind(tensor, b.get(name))
        if kind is not None:
            differences.append(Difference(kind, name, tensor, b.get(name)))
    return differences + [Difference("extra", name, None, b[name]) for name in b if name not in a]


def _kind(a: TensorDigest, b: TensorDigest | None) -> Kind | None:
    if b is None:
        return "missing"
    if a.shape != b.shape:
        return "shape"
    if a.dtype != b.dtype:
        return "dtype"
    return None if a.sha256 == b.sha256 else "bytes"
