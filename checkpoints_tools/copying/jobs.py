"""What is to be copied, and what has been."""

from dataclasses import dataclass
from pathlib import Path

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.layout import TensorLayout
from checkpoints_tools.safetensors_file import ITEM_BYTES


@dataclass(frozen=True, slots=True)
class Pair:
    """One Hugging Face tensor: where it lies and where it goes. Without destination it is only hashed.

    Both layouts have one shape; where their dtypes differ, elements are converted (see `convert`). A destination
    without extents writes nothing: the tensor is hashed as its dtype.
    """

    source: TensorLayout
    destination: TensorLayout | None

    @property
    def nbytes(self) -> int:
        """Bytes of the destination, or of the source where there is none."""
        return (self.destination or self.source).nbytes


@dataclass(frozen=True, slots=True)
class Job:
    """Pairs that are copied by one thread and are done together, under a name unique in its run."""

    name: str
    pairs: tuple[Pair, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the job writes, or reads where it only hashes."""
        return sum(pair.nbytes for pair in self.pairs)


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes [offset, offset + nbytes) of `file` as they were written; `crc32` is the zip format's CRC-32."""

    file: Path
    offset: int
    nbytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Done:
    """A finished job: the ranges written, ascending, none touching the next, and the tensors' digests.

    `digests` maps Hugging Face name to the SHA-256 (hex) of the tensor's bytes in the destination's dtype,
    row by row; empty when digests were not asked for.
    """

    name: str
    ranges: tuple[Range, ...]
    digests: dict[str, str]


def fits(done: Done, job: Job, *, digests: bool) -> bool:
    """Whether what is noted as done covers every byte that the job writes, and the digests asked for."""
    written = sorted(
        (str(e.file), e.offset, e.offset + e.rows * e.columns * ITEM_BYTES[pair.destination.dtype])
        for pair in job.pairs
        if pair.destination is not None
        for e in pair.destination.extents
    )
    noted = {(str(r.file), r.offset, r.offset + r.nbytes) for r in done.ranges}
    joined: list[tuple[str, int, int]] = []
    for file, start, end in written:
        if joined and joined[-1][0] == file and joined[-1][2] == start:
            joined[-1] = (file, joined[-1][1], end)
        elif start < end:
            joined.append((file, start, end))
    named = {pair.source.name for pair in job.pairs} if digests else set(done.digests)
    return noted == set(joined) and len(noted) == len(done.ranges) and named == set(done.digests)


def check_job(job: Job) -> None:
    """Raise CheckpointError where two layouts of a pair do not fit together, or extents do not fill a tensor."""
    for pair in job.pairs:
        if pair.destination is not None and pair.destination.shape != pair.source.shape:
            raise CheckpointError(
                f"{pair.source.name} has shape {pair.source.shape}, its copy {pair.destination.shape}"
            )
        _check_extents(pair.source)
        if pair.destination is not None and pair.destination.extents:
            _check_extents(pair.destination)


def _check_extents(layout: TensorLayout) -> None:
    rows, columns = layout.matrix
    for e in layout.extents:
        if min(e.offset, e.row, e.column) < 0 or e.row + e.rows > rows or e.column + e.columns > columns:
            raise CheckpointError(f"{e.file}: a piece of {layout.name} lies outside its shape {layout.shape}")
    if sum(e.rows * e.columns for e in layout.extents) != rows * columns:
        raise CheckpointError(f"{layout.name}: the stored pieces leave a hole or overlap")
