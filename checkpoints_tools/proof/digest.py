"""sha256 of every tensor of a model, whatever format holds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from checkpoints_tools.copying.jobs import Job, Pair
from checkpoints_tools.copying.run import run_jobs
from checkpoints_tools.layout import StoredModel, TensorLayout
from checkpoints_tools.plans import DType, target_dtypes
from checkpoints_tools.safetensors_file import ITEM_BYTES
from checkpoints_tools.shapes import Index


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """Safetensors dtype, shape, and sha256 (64 hexadecimal digits) of the row-major little-endian bytes."""

    dtype: str
    shape: Index
    sha256: str

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def digest_model(
    model: StoredModel,
    *,
    threads: int = 4,
    on_bytes: Callable[[int], None] | None = None,
    as_dtype: DType = "keep",
) -> dict[str, TensorDigest]:
    """Hash all tensors, in the model's order; memory is bounded whatever the model's size.

    `as_dtype` converts every tensor before it is hashed. `on_bytes` is told how many of the hashed bytes were
    done, from any thread.

    Raises:
        CheckpointError: A file is truncated or cannot be read, or a tensor cannot be converted.
    """
    dtypes = target_dtypes(model, as_dtype)
    jobs = [
        Job(name, (Pair(tensor, hashed_as(tensor, dtypes[name])),)) for name, tensor in model.tensors.items()
    ]
    done = run_jobs(jobs, threads=threads, digests=True, on_bytes=on_bytes)
    return {
        name: TensorDigest(dtypes[name], tensor.shape, finished.digests[name])
        for (name, tensor), finished in zip(model.tensors.items(), done, strict=True)
    }


def hashed_as(tensor: TensorLayout, dtype: str) -> TensorLayout | None:
    """The copier's destination for a tensor that is hashed in another dtype and written nowhere."""
    return None if dtype == tensor.dtype else replace(tensor, dtype=dtype, extents=())
