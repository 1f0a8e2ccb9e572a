"""Conversions, executed: copy, seal, prove, publish.

Everything is written into `OUT.partial`; OUT appears, complete and synced, by one rename. What was done when a
conversion was killed is not done again by the next run of the same command.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from checkpoints_tools.copying.disk import allocated_bytes, require_space
from checkpoints_tools.copying.jobs import Done
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
from checkpoints_tools.to_hf import plan_export
from checkpoints_tools.to_megatron import plan_import, plan_reshard

# Two overlap reading, hashing and writing on one core; more than eight gain little on one disk.
MIN_THREADS, MAX_THREADS = 2, 8

# Small files made once the tensors' digests are known, name to content (a model card).
ExtraFiles = Callable[[Plan, Manifest | None], Mapping[str, bytes]]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished conversion. `manifest` is None when verification was turned off.

    `resumed` counts bytes that an earlier, interrupted run had already written.
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
    model = open_checkpoint(source, base=base).model
    plan = plan_export(model, out, dtype=dtype, max_shard_bytes=max_shard_bytes)
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
        CheckpointError: Reading or writing failed, or what was written differs; nothing is left at the output.
    """
    count = threads or default_threads()
    with PartialFolder(plan.out, plan.identity(verify), sources=[plan.source.path], threads=count) as partial:
        resumed = sum(r.nbytes for done in partial.done.values() for r in done.ranges)
        require_space(partial.folder, plan.nbytes - allocated_bytes(partial.folder))
        _copy(plan, partial, threads=count, verify=verify, resumed=resumed)
        ranges = [r for done in partial.done.values() for r in done.ranges]
        plan.seal({(r.file, r.offset): r.crc32 for r in ranges})
        for name, file in plan.carried.items():
            partial.copy_file(file, name)
        _write(partial, plan.texts)
        manifest = _prove(plan, partial.done, dtype=dtype, threads=count) if verify else None
        if manifest is not None:
            _write(partial, {MANIFEST_FILE: to_bytes(manifest)})
        if extra_files is not None:
            _write(partial, extra_files(plan, manifest))
        partial.publish(last=plan.last)
    return Result(plan, plan.nbytes, resumed, manifest)


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


def _prove(plan: Plan, done: Mapping[str, Done], *, dtype: DType, threads: int) -> Manifest:
    """Read the output back from the disk and compare it with the digests taken while the source was read."""
    read = {name: digest for item in done.values() for name, digest in item.digests.items()}
    expected = {n: TensorDigest(t.dtype, t.shape, read[n]) for n, t in plan.tensors.items()}
    total = sum(job.nbytes for job in (*plan.jobs, *plan.raw_jobs))
    with Progress(total, "verify") as progress:
        found = digest_model(plan.read_back(), threads=threads, on_bytes=progress.advance)
        raw = [r for job in plan.raw_jobs for r in done[job.name].ranges]
        damaged = len(raw) - len(intact_ranges(raw, threads=threads))
    faults = [difference.name for difference in compare(expected, found)]
    if faults or damaged:
        what = ", ".join(faults[:5]) or f"{damaged} records beside the model"
        raise CheckpointError(
            f"{plan.out} was not made: {what} came back from the disk different from what was written; "
            "the disk or memory is faulty, or another program wrote there"
        )
    return manifest_of(plan.source, found, dtype_policy=dtype)
