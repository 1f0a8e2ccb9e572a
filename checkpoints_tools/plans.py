"""What a conversion will write, worked out before anything is touched.

A plan holds the jobs (source extents to destination extents), the files that hold them with their final sizes,
and the small files around them. Executing it is `convert.py`'s part; `thinkprune-ckpt plan` only prints it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from checkpoints_tools.copying.jobs import Job, Pair
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.layout import Extent, StoredModel, TensorLayout

DType = Literal["keep", "bf16", "fp32"]
_STORED_DTYPE = {"bf16": "BF16", "fp32": "F32"}
_CONVERTED = {"F16", "BF16", "F32"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversion. All names are relative to the output folder, which must not lie in `root`, the whole source.

    `jobs` copy tensors, `raw_jobs` byte ranges that are not the model's. `files`: weight files and their final
    sizes in bytes. `carried`: small files copied byte for byte, name to source. `texts`: small files that are
    written, name to content; the names in `last` come after all others. `seal` writes what stands around the
    copied bytes, given the CRC-32 of every range {(file, offset): crc}. `read_back` opens the weights as they
    were written.
    """

    verb: Literal["import", "export", "reshard"]
    source: StoredModel
    root: Path
    out: Path
    jobs: tuple[Job, ...]
    raw_jobs: tuple[Job, ...]
    files: Mapping[str, int]
    carried: Mapping[str, Path]
    texts: Mapping[str, bytes]
    last: tuple[str, ...]
    tensors: Mapping[str, TensorLayout]
    seal: Callable[[Mapping[tuple[Path, int], int]], None]
    read_back: Callable[[], StoredModel]

    def sizes(self) -> dict[str, int]:
        """Bytes of every file that is known before the copy: all but the manifest (see `convert.output_sizes`)."""
        small = {name: len(text) for name, text in self.texts.items()}
        return {**self.files, **small, **{name: f.stat().st_size for name, f in self.carried.items()}}

    def identity(self) -> str:
        """Digest of what is copied from where to where: only the same conversion goes on where one was cut short.

        A file that was written to in between is another source, even of the same size and time. Small files are
        not in it: every run writes them anew.
        """
        pairs = [pair for job in (*self.jobs, *self.raw_jobs) for pair in job.pairs]
        files = sorted({extent.file for pair in pairs for extent in pair.source.extents})
        stats = [
            (str(f), s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for f in files for s in [f.stat()]
        ]
        digest = hashlib.sha256(json.dumps([self.verb, stats, sorted(self.files.items())]).encode())
        for pair in pairs:
            for layout in (pair.source, pair.destination):
                digest.update(repr(layout).encode())
        return digest.hexdigest()


def partial_path(out: Path) -> Path:
    """The folder beside `out` in which it is made."""
    path = Path(os.path.abspath(out))
    if not path.name:
        raise CheckpointError(f"{out} cannot be made; give the name of a new folder")
    return path.with_name(path.name + ".partial")


def target_dtypes(model: StoredModel, dtype: DType) -> dict[str, str]:
    """Safetensors dtype of every tensor after the conversion. Raises CheckpointError for one without it."""
    stored = {name: tensor.dtype for name, tensor in model.tensors.items()}
    if dtype == "keep":
        return stored
    odd = next((name for name, kind in stored.items() if kind not in _CONVERTED), None)
    if odd is not None:
        raise CheckpointError(f"{odd} is {stored[odd]}, which is not converted to {dtype}; use --dtype keep")
    return dict.fromkeys(stored, _STORED_DTYPE[dtype])


def jobs_of(
    groups: Iterable[tuple[str, Iterable[str]]],
    sources: Mapping[str, TensorLayout],
    destinations: Mapping[str, TensorLayout],
) -> tuple[Job, ...]:
    """One job per group (name, Hugging Face names): the tensors that are written together."""
    return tuple(
        Job(name, tuple(Pair(sources[tensor], destinations[tensor]) for tensor in members))
        for name, members in groups
    )


def raw_layout(name: str, file: Path, offset: int, nbytes: int) -> TensorLayout:
    """A byte range as a tensor of bytes: what is carried over without being understood."""
    return TensorLayout(name, "U8", (nbytes,), (Extent(file, offset, 0, 0, nbytes, 1),))
