"""Plans of Megatron checkpoints: from a Hugging Face folder, or with other chunks from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from checkpoints_tools.bridge_files import bridge_files
from checkpoints_tools.copying.jobs import Job, Pair
from checkpoints_tools.layout import StoredModel
from checkpoints_tools.megatron_model import model_layouts
from checkpoints_tools.models import OpenCheckpoint
from checkpoints_tools.plans import DType, Plan, jobs_of, partial_path, raw_layout, target_dtypes
from checkpoints_tools.torch_dist.folders import TOKENIZER_FOLDER
from checkpoints_tools.torch_dist.index import DistIndex
from checkpoints_tools.torch_dist.plan_chunks import RecordCopy, file_sizes, plan_chunks
from checkpoints_tools.torch_dist.plan_chunks import plan_reshard as plan_reshard_chunks
from checkpoints_tools.torch_dist.read import read_index
from checkpoints_tools.torch_dist.write import (
    COMMON_FILE,
    CONFIG_FILE,
    METADATA_FILE,
    TRACKER_FILE,
    common_pt,
    finish_records,
    iteration_folder,
    metadata_json,
    tracker_text,
    write_metadata,
)
from checkpoints_tools.weight_map import weight_map


def plan_import(
    source: StoredModel, out: Path, *, chunk_tp: int = 1, dtype: DType = "keep", iteration: int = 0
) -> Plan:
    """Plan the Hugging Face model `source` as a checkpoint that Megatron-Core, Bridge and NeMo-RL read.

    Raises:
        CheckpointError: `chunk_tp` does not divide the model, or dtypes do not go together.
    """
    name = iteration_folder(iteration)
    folder = partial_path(out) / name
    dtypes = target_dtypes(source, dtype)
    index = plan_chunks(source.config, dtypes, folder, chunk_tp=chunk_tp)
    texts = {
        f"{name}/{METADATA_FILE}": write_metadata(index),
        f"{name}/{COMMON_FILE}": common_pt(iteration=iteration),
        **bridge_files(source.config, name, iteration, dtypes=dtypes),
        f"{name}/{CONFIG_FILE}": metadata_json(),
        TRACKER_FILE: tracker_text(iteration),
    }
    carried = {f"{name}/{TOKENIZER_FOLDER}/{file.name}": file for file in source.carried}
    plan = _plan(source, out, index, carried=carried, texts=texts, written=index)
    return replace(plan, verb="import")


def plan_reshard(opened: OpenCheckpoint, out: Path, *, chunk_tp: int) -> Plan:
    """Plan a checkpoint with chunks for `chunk_tp` tensor parallel loaders.

    Optimizer state, objects and the files beside the weights are carried over unchanged.

    Raises:
        CheckpointError: `chunk_tp` does not divide the model.
    """
    source, checkpoint, index = opened.model, opened.folder, opened.index
    name = checkpoint.iteration.name
    folder = partial_path(out) / name
    planned = plan_reshard_chunks(index, source.config, folder, chunk_tp=chunk_tp)
    texts = {
        f"{name}/{METADATA_FILE}": write_metadata(planned.index),
        f"{name}/{CONFIG_FILE}": (checkpoint.iteration / CONFIG_FILE).read_bytes(),
        TRACKER_FILE: name.removeprefix("iter_").lstrip("0").encode() or b"0",
    }
    carried = {f"{name}/{TOKENIZER_FOLDER}/{file.name}": file for file in source.carried}
    for file in sorted(checkpoint.iteration.rglob("*")):
        beside = file.suffix != ".distcp" and file.name not in (METADATA_FILE, CONFIG_FILE)
        if file.is_file() and beside:
            carried[f"{name}/{file.relative_to(checkpoint.iteration)}"] = file
    plan = _plan(source, out, planned.index, carried=carried, texts=texts, written=planned.model)
    return replace(plan, verb="reshard", raw_jobs=tuple(map(_raw_job, planned.copies)))


def _raw_job(copy: RecordCopy) -> Job:
    source = raw_layout(copy.key, copy.source, copy.source_offset, copy.nbytes)
    destination = raw_layout(copy.key, copy.destination, copy.offset, copy.nbytes)
    return Job(f"record {copy.destination.name} {copy.offset}", (Pair(source, destination),))


def _plan(
    source: StoredModel,
    out: Path,
    index: DistIndex,
    *,
    carried: Mapping[str, Path],
    texts: Mapping[str, bytes],
    written: DistIndex,
) -> Plan:
    """The plan of a checkpoint `index` of which `written` is made from the source's tensors."""
    folder, table = index.folder, weight_map(source.config)
    name, tensors = folder.name, model_layouts(index, source.config)

    def seal(checksums: Mapping[tuple[Path, int], int]) -> None:
        finish_records(written, {(f.name, at): crc for (f, at), crc in checksums.items()}, folder)

    def read_back() -> StoredModel:
        layouts = model_layouts(read_index(folder), source.config)
        return StoredModel(folder, "torch_dist", source.config, layouts, ())

    return Plan(
        verb="import",
        source=source,
        out=out,
        jobs=jobs_of(((n, table.hf_names(n)) for n in table.megatron), source.tensors, tensors),
        raw_jobs=(),
        files={f"{name}/{file}": size for file, size in file_sizes(index).items()},
        carried=carried,
        texts=texts,
        last=(f"{name}/{CONFIG_FILE}", TRACKER_FILE),
        tensors=tensors,
        seal=seal,
        read_back=read_back,
    )
