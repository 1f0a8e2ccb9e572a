"""Conversions, executed: copy, seal, prove, publish.

Everything is written into `OUT.partial`; OUT appears, complete and synced, by one rename. What was done when a
conversion was killed is not done again by the next run of the same command.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from checkpoints_tools.copying.crew import on_threads
from checkpoints_tools.copying.disk import allocated_bytes, require_space
from checkpoints_tools.copying.files import drop_cached
from checkpoints_tools.copying.jobs import Done, fits
from checkpoints_tools.copying.partial import PartialFolder
from checkpoints_tools.copying.progress import Progress
from checkpoints_tools.copying.run import intact_ranges, run_jobs
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_folder import DEFAULT_SHARD_BYTES
from checkpoints_tools.models import open_checkpoint, open_hf
from checkpoints_tools.plans import DType, Plan
from checkpoints_tools.proof.compare import compare
from checkpoints_tools.proof.digest import TensorDigest, digest_model
from checkpoints_tools.proof.manifest import MANIFEST_FILE, Manifest, manifest_of, to_bytes
from checkpoints_tools.proof.stated import require_stated, require_stated_shapes, stated_manifest
from checkpoints_tools.to_hf import plan_export
from checkpoints_tools.to_megatron import plan_import, plan_reshard

# Two overlap reading, hashing and writing on one core; more than eight gain little on one disk.
MIN_THREADS, MAX_THREADS = 2, 8

# Room in the journal for a finished job, a digest or a range: names of keys and files are not longer.
_JOURNAL_LINE = 256

# Small files made once the tensors' digests are known, name to content (a model card).
ExtraFiles = Callable[[Plan, Manifest | None], Mapping[str, bytes]]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished conversion. `manifest` is None when verification was turned off.

    `nbytes` are those of all files in the output. `resumed` counts bytes that an earlier, interrupted run had
    already written.
    """

    plan: Plan = field(repr=False)
    nbytes: int
    resumed: int
    manifest: Manifest | None


def default_threads() -> int:
    """Threads to copy with when none are asked for: the machine's cores, 2 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_THREADS, max(MIN_THREADS, cores))


def import_model(
    source: Path,
    out: Path,
    *,
    chunk_tp: int = 1,
    dtype: DType = "keep",
    threads: int | None = None,
    verify: bool = True,
) -> Result:
    """Write the Hugging Face folder `source` as the Megatron checkpoint `out`.

    Raises:
        CheckpointError: The source cannot be used, or `out` cannot be written; nothing is left at `out`.
    """
    plan = plan_import(open_hf(source), out, chunk_tp=chunk_tp, dtype=dtype)
    return execute(plan, dtype=dtype, threads=threads, verify=verify)


def export_model(
    source: Path,
    out: Path,
    *,
    base: Path | None = None,
    dtype: DType = "keep",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    threads: int | None = None,
    verify: bool = True,
    extra_files: ExtraFiles | None = None,
) -> Result:
    """Write the checkpoint `source` as the Hugging Face folder `out`; `base` as `open_checkpoint` takes it.

    `extra_files` are written into `out` before it is published. Raises CheckpointError as `import_model` does.
    """
    opened = open_checkpoint(source, base=base)
    plan = plan_export(
        opened.model, out, root=opened.folder.root, dtype=dtype, max_shard_bytes=max_shard_bytes
    )
    return execute(plan, dtype=dtype, threads=threads, verify=verify, extra_files=extra_files)


def reshard(
    source: Path,
    out: Path,
    *,
    chunk_tp: int,
    base: Path | None = None,
    threads: int | None = None,
    verify: bool = True,
) -> Result:
    """Write the checkpoint `source` as `out` with chunks for `chunk_tp` tensor parallel loaders.

    Raises CheckpointError as `import_model` does.
    """
    plan = plan_reshard(open_checkpoint(source, base=base), out, chunk_tp=chunk_tp)
    return execute(plan, dtype="keep", threads=threads, verify=verify)


def execute(
    plan: Plan,
    *,
    dtype: DType,
    threads: int | None = None,
    verify: bool = True,
    extra_files: ExtraFiles | None = None,
) -> Result:
    """Carry out a plan; with `verify` the output is read back and compared with what was read from the source.

    Raises:
        CheckpointError: Reading or writing failed, the source is not what a manifest beside it says, or what was
            written differs; nothing is left at the output.
    """
    count = threads or default_threads()
    stated = stated_manifest(plan.source) if verify else None
    if stated is not None:
        require_stated_shapes(stated, plan)
    with PartialFolder(plan.out, plan.identity(), sources=[plan.root], threads=count) as partial:
        partial.done = _fitting(plan, partial.done, verify=verify)
        resumed = sum(r.nbytes for done in partial.done.values() for r in done.ranges)
        planned = sum(output_sizes(plan, dtype=dtype).values()) + _journal_bytes(plan)
        require_space(partial.folder, planned - allocated_bytes(partial.folder))
        _copy(plan, partial, threads=count, verify=verify, resumed=resumed)
        if stated is not None:
            require_stated(stated, plan, _digests(plan, partial.done))
        ranges = [r for done in partial.done.values() for r in done.ranges]
        plan.seal({(r.file, r.offset): r.crc32 for r in ranges})
        for name, file in plan.carried.items():
            partial.copy_file(file, name)
        _write(partial, plan.texts)
        manifest = _prove(plan, partial, dtype=dtype, threads=count) if verify else None
        if manifest is not None:
            _write(partial, {MANIFEST_FILE: to_bytes(manifest)})
        if extra_files is not None:
            _write(partial, extra_files(plan, manifest))
        partial.publish(last=plan.last)
    return Result(plan, _bytes_in(partial.out), resumed, manifest)


def output_sizes(plan: Plan, *, dtype: DType) -> dict[str, int]:
    """Bytes of every file of the output, by its name there; a manifest's size does not depend on the digests."""
    digests = {name: TensorDigest(t.dtype, t.shape, "0" * 64) for name, t in plan.tensors.items()}
    manifest = to_bytes(manifest_of(plan.source, digests, dtype_policy=dtype))
    return {**plan.sizes(), MANIFEST_FILE: len(manifest)}


def _journal_bytes(plan: Plan) -> int:
    """The most that the journal, which lies beside the output until that is whole, can come to."""
    total = _JOURNAL_LINE
    for job in (*plan.jobs, *plan.raw_jobs):
        extents = sum(len(pair.destination.extents) for pair in job.pairs if pair.destination is not None)
        total += (1 + len(job.pairs) + extents) * _JOURNAL_LINE
    return total


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _fitting(plan: Plan, done: Mapping[str, Done], *, verify: bool) -> dict[str, Done]:
    """The finished jobs of an earlier run that are the plan's; a record may be whole and say something else."""
    jobs = [(job, verify) for job in plan.jobs] + [(job, False) for job in plan.raw_jobs]
    return {
        job.name: done[job.name]
        for job, digests in jobs
        if job.name in done and fits(done[job.name], job, digests=digests)
    }


def _write(partial: PartialFolder, texts: Mapping[str, bytes]) -> None:
    for name, text in texts.items():
        partial.write_file(name, text)


def _copy(plan: Plan, partial: PartialFolder, *, threads: int, verify: bool, resumed: int) -> None:
    for name in plan.files:
        partial.path(name)  # makes the folders
    total = sum(job.nbytes for job in (*plan.jobs, *plan.raw_jobs))
    with Progress(total, plan.verb, done=resumed) as progress:
        for jobs, digests in ((plan.jobs, verify), (plan.raw_jobs, False)):
            todo = [job for job in jobs if job.name not in partial.done]
            run_jobs(
                todo, threads=threads, digests=digests, on_bytes=progress.advance, on_done=partial.record
            )


def _digests(plan: Plan, done: Mapping[str, Done]) -> dict[str, TensorDigest]:
    """Digests that were taken while the source was read, in the types that were written."""
    read = {name: digest for item in done.values() for name, digest in item.digests.items()}
    return {name: TensorDigest(t.dtype, t.shape, read[name]) for name, t in plan.tensors.items()}


def _prove(plan: Plan, partial: PartialFolder, *, dtype: DType, threads: int) -> Manifest:
    """Read the output back from the disk and compare it with the digests taken while the source was read."""
    on_threads(drop_cached, [partial.path(name) for name in plan.files], threads=threads)
    total = sum(job.nbytes for job in plan.jobs)
    with Progress(total, "verify") as progress:
        found = digest_model(plan.read_back(), threads=threads, on_bytes=progress.advance)
    faults = [difference.name for difference in compare(_digests(plan, partial.done), found)]
    ranges = [(job, partial.done[job.name].ranges) for job in plan.raw_jobs]
    intact = intact_ranges([r for _, part in ranges for r in part], threads=threads)
    faults += [job.pairs[0].source.name for job, part in ranges if not intact.issuperset(part)]
    if faults:
        partial.forget()
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            f"{plan.out} was not made: {', '.join(faults[:5])}{more} came back from the disk different from what was "
            "written; the disk or memory is faulty, or another program wrote there; the same command starts over"
        )
    return manifest_of(plan.source, found, dtype_policy=dtype)
