"""Is a Hugging Face folder the model that its config.json describes?"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.safetensors_file import StoredTensor
from checkpoints_tools.weight_map import WeightMap
from checkpoints_tools.weight_map.names import HF_EMBEDDING, HF_OUTPUT

WEIGHT_DTYPES = ("BF16", "F16", "F32")
_BLOCK = 1 << 20


def check_tensors(
    stored: Mapping[str, StoredTensor], table: WeightMap, config: ModelConfig, folder: Path
) -> None:
    """Check names, shapes and dtypes of a folder's tensors.

    The rotary frequencies of old exports are ignored, and the output layer that some tied models store as well:
    see `check_tied_head`. Raises CheckpointError that lists the faults.
    """
    faults = [f"{name} is missing" for name in table.hf if name not in stored]
    tied_head = {HF_OUTPUT} if config.tied else set()
    faults += [f"{name} is unknown" for name in _unknown(stored, table) if name not in tied_head]
    for name, shape in table.hf.items():
        if name in stored and stored[name].shape != shape:
            faults.append(f"{name} has shape {stored[name].shape}, config.json says {shape}")
        elif name in stored and stored[name].dtype not in WEIGHT_DTYPES:
            faults.append(
                f"{name} is stored as {stored[name].dtype}; weights are read as {', '.join(WEIGHT_DTYPES)}"
            )
    if faults:
        more = f" (and {len(faults) - 10} more)" if len(faults) > 10 else ""
        raise CheckpointError(
            f"{folder} does not hold this {config.architecture}: " + "; ".join(faults[:10]) + more
        )


def unknown_tensors(stored: Mapping[str, StoredTensor], table: WeightMap, config: ModelConfig) -> list[str]:
    """Names of a folder's tensors that the model has no place for; a tied model's own output layer is one."""
    names = _unknown(stored, table)
    if config.tied and HF_OUTPUT in names and HF_EMBEDDING in stored:
        with contextlib.suppress(CheckpointError):
            check_tied_head(stored)
            names.remove(HF_OUTPUT)
    return names


def _unknown(stored: Mapping[str, StoredTensor], table: WeightMap) -> list[str]:
    return [n for n in stored if n not in table.hf and not n.endswith("rotary_emb.inv_freq")]


def check_tied_head(stored: Mapping[str, StoredTensor], *, rows: tuple[int, int] | None = None) -> None:
    """Check that an output layer stored beside the embedding it shares is the same, byte for byte.

    `rows` (first, count) limits the comparison. Raises CheckpointError when they differ.
    """
    if HF_OUTPUT not in stored:
        return
    head, embedding = stored[HF_OUTPUT], stored[HF_EMBEDDING]
    same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    width = embedding.nbytes // embedding.shape[0] if embedding.shape[0] else 0
    first, count = rows or (0, embedding.shape[0])
    if not (same and _same_bytes(head, embedding, first * width, count * width)):
        raise CheckpointError(f"{HF_OUTPUT} differs from {HF_EMBEDDING}: set tie_word_embeddings to false")


def _same_bytes(a: StoredTensor, b: StoredTensor, start: int, nbytes: int) -> bool:
    with open(a.file, "rb", buffering=0) as one, open(b.file, "rb", buffering=0) as other:
        one.seek(a.start + start)
        other.seek(b.start + start)
        while nbytes:
            data = one.read(min(nbytes, _BLOCK))
            rest = memoryview(data)
            while rest:
                part = other.read(len(rest))
                if not part or part != rest[: len(part)]:
                    return False
                rest = rest[len(part) :]
            if not data:
                return False
            nbytes -= len(data)
    return True
