"""Conversion between float types against torch: every 16-bit pattern, and float32 where rounding is delicate."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from support.copies import Shelf, load, store

from checkpoints_tools.copying.convert import converter
from checkpoints_tools.copying.jobs import Job, Pair
from checkpoints_tools.copying.run import run_jobs
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.safetensors_file import ITEM_BYTES

TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SIGNED = {"F32": np.int32, "BF16": np.int16, "F16": np.int16}
UNSIGNED = {"F32": np.uint32, "BF16": np.uint16, "F16": np.uint16}


def patterns(dtype: str) -> np.ndarray:
    if ITEM_BYTES[dtype] == 2:
        return np.arange(1 << 16, dtype=np.uint16)
    random = np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint32)
    # Around every value of either short type: exact, a tie, and one unit to both sides of it.
    short = [
        torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(TORCH[d]).float() for d in ("BF16", "F16")
    ]
    exact = torch.cat(short).numpy().view(np.uint32)
    near = [exact + np.uint32(step) for step in (1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    return np.concatenate([random, exact, *near])


def by_torch(bits: np.ndarray, source: str, target: str) -> np.ndarray:
    values = torch.from_numpy(bits.view(SIGNED[source]).copy()).view(TORCH[source])
    # torch converts between the two short types through float32 as well.
    short = values.float().to(TORCH[target])
    return short.view(torch.int32 if target == "F32" else torch.int16).numpy().view(UNSIGNED[target])


def is_nan(bits: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(bits.view(SIGNED[dtype]).copy()).view(TORCH[dtype]).isnan().numpy()


@pytest.mark.parametrize("target", TORCH)
@pytest.mark.parametrize("source", TORCH)
def test_conversion_equals_torch(source: str, target: str) -> None:
    bits = patterns(source)
    if source == target:
        assert converter(source, target) is None
        return
    result = np.empty(len(bits), UNSIGNED[target])
    convert = converter(source, target)
    assert convert is not None
    convert(bits.view(np.uint8), result.view(np.uint8))
    expected = by_torch(bits, source, target)
    nan = is_nan(bits, source)
    assert np.array_equal(result[~nan], expected[~nan])
    assert is_nan(result[nan], target).all()
    quiet = {"F32": 1 << 22, "BF16": 1 << 6, "F16": 1 << 9}[target]
    if ITEM_BYTES[target] < ITEM_BYTES[source]:
        assert (result[nan] & quiet).all()


def test_what_cannot_be_converted_says_so() -> None:
    with pytest.raises(CheckpointError, match="I64 are not converted to BF16"):
        converter("I64", "BF16")


def test_copies_convert_and_digest_what_they_wrote(tmp_path: Path) -> None:
    shape = (70, 90)
    source = Shelf(tmp_path / "a", 2).place("w", "F32", shape, [(0, 0, 70, 40), (0, 40, 70, 50)])
    target = Shelf(tmp_path / "b", 1).place("w", "BF16", shape, [(0, 0, 30, 90), (30, 0, 40, 90)])
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    store(source, values.numpy().view(np.uint32))
    (done,) = run_jobs([Job("w", (Pair(source, target),))], threads=1, digests=True, block=5000)
    expected = values.bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(load(target), expected)
    assert done.digests["w"] == hashlib.sha256(expected.tobytes()).hexdigest()
