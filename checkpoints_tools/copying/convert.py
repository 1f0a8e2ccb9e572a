"""Conversion between float types, as raw bits in numpy: bfloat16 is no numpy type.

Exact where the wider type holds the value, otherwise to the nearest, ties to even; infinities are kept, and what
is no number stays none.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from checkpoints_tools.errors import CheckpointError

Bits = npt.NDArray[Any]
Converter = Callable[[Bits, Bits], None]

_SLICE = 1 << 16  # elements at a time: bounds the temporaries, and they stay in the processor's cache
_BITS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<u4"), "BF16": np.dtype("<u2"), "F16": np.dtype("<u2")}


def converter(source: str, destination: str) -> Converter | None:
    """What converts a buffer of one safetensors dtype to another, or None where they are the same.

    The result is called with two one-dimensional arrays of bytes, source and destination.
    Raises CheckpointError for anything but F32, BF16 and F16.
    """
    if source == destination:
        return None
    for dtype in (source, destination):
        if dtype not in _BITS:
            raise CheckpointError(
                f"weights of type {source} are not converted to {destination}; "
                f"supported are {', '.join(_BITS)}; --dtype keep leaves every type as it is"
            )

    def convert(data: Bits, out: Bits) -> None:
        wide, narrow = data.view(_BITS[source]), out.view(_BITS[destination])
        for start in range(0, len(wide), _SLICE):
            piece = slice(start, start + _SLICE)
            narrow[piece] = _from_f32(_to_f32(wide[piece], source), destination)

    return convert


def _to_f32(bits: Bits, dtype: str) -> Bits:
    if dtype == "BF16":
        return bits.astype("<u4") << 16
    if dtype == "F16":
        return bits.view("<f2").astype("<f4").view("<u4")
    return bits


def _from_f32(bits: Bits, dtype: str) -> Bits:
    if dtype == "F32":
        return bits
    not_a_number = (bits & 0x7FFFFFFF) > 0x7F800000
    if dtype == "F16":
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            half = bits.view("<f4").astype("<f2").view("<u2")
        return half | (not_a_number.astype("<u2") << 9)  # quiet, as the processor would make it
    # Half of the last place, less one where the last place is even: a tie then carries only to even.
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    if not_a_number.any():
        rounded[not_a_number] = bits[not_a_number] >> 16 | 0x40
    return rounded
